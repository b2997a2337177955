//! Counts of a model's runs by batch size, and their durations. Statistics per batch size are computed from them.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

/// The runs of a model since the server started.
#[derive(Debug, Default)]
pub struct Runs {
    /// Runs of the classifier.
    pub classifier: RunCounts,
    /// Runs of all other variants.
    pub variants: RunCounts,
}

/// Runs by batch size.
#[derive(Debug, Default)]
pub struct RunCounts(Mutex<BTreeMap<usize, (u64, Duration)>>);

impl RunCounts {
    pub(super) fn record(&self, images: usize, took: Duration) {
        let mut counts = self.0.lock();
        let (count, sum) = counts.entry(images).or_default();
        *count += 1;
        *sum += took;
    }

    /// For each batch size that has occurred: the number of runs and their total duration.
    #[must_use]
    pub fn by_size(&self) -> Vec<(usize, u64, Duration)> {
        let counts = self.0.lock();
        counts.iter().map(|(size, (count, sum))| (*size, *count, *sum)).collect()
    }
}
