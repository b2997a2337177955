//! Outcomes and times of a model's requests since the start, as the integers of the Open Inference Protocol's
//! statistics. The metrics report the same as histograms.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Error, StageTimes};

/// Number of events, and the sum of their durations.
#[derive(Debug, Default)]
pub struct TimeCounter {
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

impl TimeCounter {
    fn add(&self, took: Duration) {
        self.count.fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Number of events, and nanoseconds.
    #[must_use]
    pub fn get(&self) -> (u64, u64) {
        (self.count.load(Relaxed), self.nanoseconds.load(Relaxed))
    }
}

/// The requests to one model for one kind of answer. A request counts once, however many images it has. Its images
/// run at the same time: each stage counts as long as the longest of them took.
#[derive(Debug, Default)]
pub struct RequestStatistics {
    /// From admission to the last image's answer.
    pub success: TimeCounter,
    /// From admission to the error.
    pub fail: TimeCounter,
    /// Waiting for a worker.
    pub queue: TimeCounter,
    /// Decoding and resizing.
    pub compute_input: TimeCounter,
    /// The network.
    pub compute_infer: TimeCounter,
    /// Encoding the answer.
    pub compute_output: TimeCounter,
    images: AtomicU64,
    last_answer_ms: AtomicU64,
}

impl RequestStatistics {
    /// Records a request: its duration, and the number of its images with their times, or its error.
    pub(super) fn record(&self, took: Duration, outcome: Result<(usize, StageTimes), &Error>) {
        match outcome {
            Err(_) => self.fail.add(took),
            Ok((images, times)) => {
                self.success.add(took);
                self.queue.add(times.queue);
                self.compute_input.add(times.decode + times.resize);
                self.compute_infer.add(times.infer);
                self.images.fetch_add(images as u64, Relaxed);
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                self.last_answer_ms.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Relaxed);
            }
        }
    }

    /// Records how long encoding the answer to a request took.
    pub fn record_encode(&self, took: Duration) {
        self.compute_output.add(took);
    }

    /// Number of images that were answered.
    #[must_use]
    pub fn images(&self) -> u64 {
        self.images.load(Relaxed)
    }

    /// Time of the last answer, milliseconds since 1970; 0 if there was none.
    #[must_use]
    pub fn last_answer_ms(&self) -> u64 {
        self.last_answer_ms.load(Relaxed)
    }
}
