//! A task in a model's queue: a crop, and which of the model's graphs it is for.

use std::sync::Arc;

use crate::batch::Task;
use crate::model::Variant;
use crate::preprocess::Crop;
use crate::row::Row;
use crate::runtime::{ForVariant, RowOutputs};

/// An image for a model.
#[derive(Debug)]
pub struct ImageTask {
    pub(super) crop: Crop,
    /// The classifier if `None`.
    pub(super) variant: Option<VariantTask>,
}

/// A graph other than the classifier, with its batch size.
#[derive(Clone, Debug)]
pub(super) struct VariantTask {
    pub(super) variant: Arc<Variant>,
    /// Maximum number of images in one run.
    pub(super) max_batch: usize,
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

    fn max_batch(&self) -> usize {
        self.variant.as_ref().map_or(usize::MAX, |task| task.max_batch)
    }
}

impl ForVariant for ImageTask {
    fn variant(&self) -> Option<&Arc<Variant>> {
        self.variant.as_ref().map(|task| &task.variant)
    }
}
