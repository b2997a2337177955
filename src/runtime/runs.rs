//! How often a model ran, on how many images at once, and for how long: what statistics per batch size are made of.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The runs of a model since the server's start.
#[derive(Debug, Default)]
pub struct Runs {
    /// Of the classifier.
    pub classifier: RunCounts,
    /// Of all other variants.
    pub variants: RunCounts,
}

/// Runs by batch size.
#[derive(Debug, Default)]
pub struct RunCounts(Mutex<BTreeMap<usize, (u64, Duration)>>);

impl RunCounts {
    pub(super) fn record(&self, images: usize, took: Duration) {
        // Counts are changed in one go: there is nothing half done to be found.
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, sum) = counts.entry(images).or_default();
        *count += 1;
        *sum += took;
    }

    /// For each batch size that there was: how many runs, and the time they took together.
    #[must_use]
    pub fn by_size(&self) -> Vec<(usize, u64, Duration)> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(size, (count, sum))| (*size, *count, *sum)).collect()
    }
}
