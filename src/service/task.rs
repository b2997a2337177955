//! What waits in a model's queue: a crop, and which of the model's graphs it is for.

use std::sync::Arc;

use crate::batch::{Row, Task};
use crate::model::Variant;
use crate::preprocess::Crop;
use crate::runtime::{ForVariant, RowOutputs};

/// An image for a model.
#[derive(Debug)]
pub struct ImageTask {
    pub(super) crop: Crop,
    /// The classifier if `None`.
    pub(super) sort: Option<Sort>,
}

/// A sort of task other than classification.
#[derive(Clone, Debug)]
pub(super) struct Sort {
    pub(super) variant: Arc<Variant>,
    pub(super) most_together: usize,
}

impl Row for ImageTask {
    fn elements(&self) -> usize {
        self.crop.elements()
    }

    fn write(&self, out: &mut [f32]) {
        self.crop.write(out);
    }
}

impl Task for ImageTask {
    type Output = RowOutputs;

    fn fits(&self, other: &Self) -> bool {
        self.variant() == other.variant()
    }

    fn most_together(&self) -> usize {
        self.sort.as_ref().map_or(usize::MAX, |sort| sort.most_together)
    }
}

impl ForVariant for ImageTask {
    fn variant(&self) -> Option<&Arc<Variant>> {
        self.sort.as_ref().map(|sort| &sort.variant)
    }
}
