//! Admission, and the queue itself.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};
use tokio::time::{Instant, timeout_at};

use super::{AdmitError, Answer, JobError};
use crate::telemetry::{GaugeGuard, ModelMetrics};

/// One model's rows, from admission to a worker's hands.
#[derive(Debug)]
pub struct Queue {
    pub(super) state: Mutex<State>,
    /// One waiting worker is woken for every job.
    pub(super) ready: Notify,
    slots: Arc<Semaphore>,
    /// Nanoseconds a worker takes for an image, smoothed; 0 before the first batch.
    pace: AtomicU64,
    pub(super) metrics: ModelMetrics,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) jobs: VecDeque<Job>,
    pub(super) closed: bool,
}

/// A row that waits.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) row: Vec<f32>,
    pub(super) deadline: Instant,
    pub(super) enqueued_at: Instant,
    /// The request's span, so that what happens to the row is logged with its id.
    pub(super) span: tracing::Span,
    pub(super) reply: oneshot::Sender<Result<Answer, JobError>>,
    /// Held until the job is answered or forgotten: a row in the queue counts even when its client is gone.
    permit: Permit,
}

impl Job {
    /// Ends the job. Its place is free before its owner hears of it: whoever asks again at once must not be refused for it.
    pub(super) fn answer(self, result: Result<Answer, JobError>) {
        drop(self.permit);
        // An owner that has left does not want it.
        let _ = self.reply.send(result);
    }
}

/// The right to have some images in flight. Freed when dropped.
#[derive(Debug)]
pub struct Permit {
    slots: OwnedSemaphorePermit,
    gauge: GaugeGuard,
}

impl Permit {
    /// Takes the right for one image out of this one; `None` when there is none left.
    pub fn split_one(&mut self) -> Option<Self> {
        let slots = self.slots.split(1)?;
        Some(Self { slots, gauge: self.gauge.split_one() })
    }
}

impl Queue {
    /// A queue that admits `capacity` images at once: being decoded, waiting and running together.
    ///
    /// Choose it as the wait that clients accept times the images a second that the workers do; more only makes
    /// everybody wait longer before the same number is refused.
    #[must_use]
    pub fn new(capacity: usize, metrics: ModelMetrics) -> Arc<Self> {
        metrics.capacity.set(capacity as i64);
        Arc::new(Self {
            state: Mutex::default(),
            ready: Notify::new(),
            slots: Arc::new(Semaphore::new(capacity.min(Semaphore::MAX_PERMITS))),
            pace: AtomicU64::new(0),
            metrics,
        })
    }

    /// Asks for room for `images`, before anything is spent on them. All or none.
    ///
    /// # Errors
    /// The bound is reached, or the queue is closed.
    pub fn admit(&self, images: usize) -> Result<Permit, AdmitError> {
        let count = u32::try_from(images).map_err(|_| AdmitError::Full)?;
        match Arc::clone(&self.slots).try_acquire_many_owned(count) {
            Ok(slots) => {
                let gauge = GaugeGuard::by(&self.metrics.in_flight, images as i64);
                Ok(Permit { slots, gauge })
            }
            Err(TryAcquireError::NoPermits) => Err(AdmitError::Full),
            Err(TryAcquireError::Closed) => Err(AdmitError::Closed),
        }
    }

    /// Queues a row and waits for its answer, at most until `deadline`. Dropping the future withdraws the row.
    ///
    /// # Errors
    /// The deadline passed, the model failed, or the queue was closed.
    pub async fn run(&self, permit: Permit, row: Vec<f32>, deadline: Instant) -> Result<Answer, JobError> {
        let (reply, answer) = oneshot::channel();
        let span = tracing::Span::current();
        let job = Job { row, deadline, enqueued_at: Instant::now(), span, reply, permit };
        {
            let mut state = self.lock();
            if state.closed {
                return Err(JobError::Closed);
            }
            state.jobs.push_back(job);
            self.metrics.queue_depth.set(state.jobs.len() as i64);
        }
        self.ready.notify_one();
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            // The worker that had it is gone without a word.
            Ok(Err(_)) => Err(JobError::ModelFailed),
            Err(_) => Err(JobError::Expired),
        }
    }

    /// Admits no more. What is queued is still run; then the workers end.
    pub fn close(&self) {
        self.lock().closed = true;
        self.slots.close();
        self.ready.notify_waiters();
    }

    /// How long the images now in flight will keep the workers busy, by the pace of the last batches: when there will be
    /// room again.
    #[must_use]
    pub fn backlog(&self) -> Duration {
        let images = self.metrics.in_flight.get().max(0) as u64;
        let workers = self.metrics.workers_ready.get().max(1) as u64;
        Duration::from_nanos(self.pace.load(Ordering::Relaxed).saturating_mul(images) / workers)
    }

    /// Notes that a batch of `images` took `infer`.
    pub(super) fn record_pace(&self, images: usize, infer: Duration) {
        let new = infer.as_nanos() as u64 / images.max(1) as u64;
        let old = self.pace.load(Ordering::Relaxed);
        // An eighth of every new batch: a few tens of batches to forget. Two workers may overwrite each other; either
        // value will do.
        self.pace.store(if old == 0 { new } else { old - old / 8 + new / 8 }, Ordering::Relaxed);
    }

    /// Jobs that wait.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.lock().jobs.len()
    }

    /// Whether nothing is queued and nothing will be.
    pub(super) fn is_finished(&self) -> bool {
        let state = self.lock();
        state.closed && state.jobs.is_empty()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that runs under the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
