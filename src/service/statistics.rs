//! What became of a model's requests and where their time went, since the start: whole numbers, as the Open Inference Protocol's
//! statistics want them. The metrics say the same in histograms.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Error, Times};

/// Events and the time they took together.
#[derive(Debug, Default)]
pub struct Spent {
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Spent {
    fn add(&self, took: Duration) {
        self.count.fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// How many, and nanoseconds.
    #[must_use]
    pub fn get(&self) -> (u64, u64) {
        (self.count.load(Relaxed), self.nanoseconds.load(Relaxed))
    }
}

/// The requests to one model for one purpose. A request counts once, however many images it has; what its images did at the
/// same time counts as long as the longest of them took.
#[derive(Debug, Default)]
pub struct Statistics {
    /// From admission to the last image's answer.
    pub success: Spent,
    /// To the refusal.
    pub fail: Spent,
    /// Waiting for a worker.
    pub queue: Spent,
    /// Decoding and resizing.
    pub compute_input: Spent,
    /// The network.
    pub compute_infer: Spent,
    /// Writing the answer.
    pub compute_output: Spent,
    images: AtomicU64,
    last: AtomicU64,
}

impl Statistics {
    pub(super) fn record(&self, took: Duration, outcome: Result<(usize, Times), &Error>) {
        match outcome {
            Err(_) => self.fail.add(took),
            Ok((images, times)) => {
                self.success.add(took);
                self.queue.add(times.queue);
                self.compute_input.add(times.decode + times.resize);
                self.compute_infer.add(times.infer);
                self.images.fetch_add(images as u64, Relaxed);
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                self.last.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Relaxed);
            }
        }
    }

    /// Notes how long the answer to a request took to write.
    pub fn wrote(&self, took: Duration) {
        self.compute_output.add(took);
    }

    /// Images that were answered.
    #[must_use]
    pub fn images(&self) -> u64 {
        self.images.load(Relaxed)
    }

    /// When the last request was answered, milliseconds since 1970; 0 if there was none.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last.load(Relaxed)
    }
}
