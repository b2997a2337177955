//! The worker: takes batches, runs the model, answers the jobs, and loads the model again when it fails.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::queue::Job;
use super::{Batching, JobError, JobOutput, Model, ModelFailure, Queue, Task};
use crate::cores::CoreLease;
use crate::telemetry::{GaugeGuard, spans};

/// Wait before a failed model is loaded again. It doubles with every further failure.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// A batch that runs longer than this counts as hung. No network served here takes a second.
const HUNG_AFTER: Duration = Duration::from_secs(30);

/// Whether a worker can take work. The server's readiness check reads it while the worker runs.
#[derive(Debug, Default)]
pub struct WorkerState(Mutex<Activity>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Activity {
    /// The worker has no model: it is not loaded yet, or has failed.
    #[default]
    Down,
    Idle,
    /// Running a batch since this time.
    Busy(Instant),
}

impl WorkerState {
    /// Whether the worker has a model that works, as far as is known. A model that has been running a batch for half a
    /// minute does not count as working.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match *self.0.lock() {
            Activity::Down => false,
            Activity::Idle => true,
            Activity::Busy(since) => since.elapsed() < HUNG_AFTER,
        }
    }

    fn set(&self, activity: Activity) {
        *self.0.lock() = activity;
    }
}

/// A worker that does not run yet. Spawn [`Worker::run`] where it should run.
pub struct Worker<T: Task, L> {
    queue: Arc<Queue<T>>,
    load: L,
    batching: Batching,
    state: Arc<WorkerState>,
}

impl<T: Task + Sync, M: Model<T>, L: FnMut() -> Result<M, ModelFailure>> Worker<T, L> {
    /// Creates a worker that calls `load` for a model at the start and after every failure.
    pub fn new(queue: Arc<Queue<T>>, batching: Batching, load: L) -> Self {
        Self { queue, load, batching, state: Arc::default() }
    }

    /// The worker's state, to read while it runs.
    #[must_use]
    pub fn state(&self) -> Arc<WorkerState> {
        Arc::clone(&self.state)
    }

    /// Works until the queue is closed and empty.
    pub async fn run(mut self) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            match (self.load)() {
                Ok(mut model) => {
                    self.state.set(Activity::Idle);
                    let ready = GaugeGuard::one(&self.queue.metrics.workers_ready);
                    let ended = self.serve(&mut model, &mut backoff).await;
                    drop(ready);
                    self.state.set(Activity::Down);
                    if ended {
                        return;
                    }
                }
                Err(failure) => tracing::error!(%failure, "the model cannot be loaded"),
            }
            self.queue.metrics.worker_restarts.inc();
            if self.queue.is_finished() {
                return;
            }
            tracing::warn!(wait_ms = backoff.as_millis() as u64, "the worker loads its model again");
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    /// Runs batches until the queue ends (true) or the model fails (false).
    async fn serve(&self, model: &mut M, backoff: &mut Duration) -> bool {
        while let Some((jobs, lease)) = self.queue.next_batch(self.batching).await {
            self.state.set(Activity::Busy(Instant::now()));
            let result = self.run_batch(model, jobs, lease).await;
            self.state.set(Activity::Idle);
            if let Err(failure) = result {
                tracing::error!(%failure, "the model failed on a batch");
                return false;
            }
            *backoff = FIRST_BACKOFF;
        }
        true
    }

    async fn run_batch(&self, model: &mut M, mut jobs: Vec<Job<T>>, lease: CoreLease) -> Result<(), ModelFailure> {
        let metrics = &self.queue.metrics;
        jobs.iter_mut().for_each(|job| job.waiting = tracing::Span::none());
        let batch_span = spans::BatchSpan::begin(jobs.iter().map(|job| &job.span));
        let tasks: Vec<&T> = jobs.iter().map(|job| &job.task).collect();
        let begin = Instant::now();
        match catch_panic(model.ensure_session(&tasks)).await {
            Ok(Ok(false)) => {}
            Ok(Ok(true)) => self.queue.record_open(self.batching.cores, begin.elapsed()),
            Ok(Err(failure)) => {
                tracing::error!(%failure, "the model cannot run this kind of task");
                batch_span.failed();
                jobs.into_iter().for_each(|job| fail(job));
                return Ok(());
            }
            Err(panic) => {
                batch_span.failed();
                jobs.into_iter().for_each(|job| fail(job));
                return Err(panic);
            }
        }
        metrics.batch_size.observe(jobs.len() as f64);
        let start = Instant::now();
        let result = catch_panic(model.run(&tasks)).await;
        let infer = start.elapsed();
        // The cores are free for other work while the outputs are sent.
        drop(lease);
        let result = match result.flatten() {
            Ok(outputs) if outputs.len() != jobs.len() => {
                Err(ModelFailure(format!("expected {} answers, found {}", jobs.len(), outputs.len())))
            }
            result => result,
        };
        match result {
            Ok(outputs) => {
                let work = jobs.iter().map(|job| job.permit.work()).sum();
                self.queue.record_infer(work, self.batching.cores, infer);
                // Before the jobs are answered: the spans of a request must end before the request's trace does.
                drop(batch_span);
                for (job, output) in jobs.into_iter().zip(outputs) {
                    let queued = start - job.enqueued_at;
                    metrics.queue_seconds.observe(queued.as_secs_f64());
                    metrics.infer_seconds.observe(infer.as_secs_f64());
                    job.answer(Ok(JobOutput { output, queued, infer }));
                }
                Ok(())
            }
            Err(failure) => {
                batch_span.failed();
                jobs.into_iter().for_each(|job| fail(job));
                Err(failure)
            }
        }
    }
}

/// Answers a job on whose batch the model failed.
fn fail<T: Task>(job: Job<T>) {
    job.span.in_scope(|| tracing::error!("the image was in a batch on which the model failed"));
    job.answer(Err(JobError::ModelFailed));
}

/// Waits for the model's work and turns a panic in it into a failure.
async fn catch_panic<O>(work: impl Future<Output = O>) -> Result<O, ModelFailure> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        ModelFailure(format!("it panicked: {}", text.unwrap_or_default()))
    })
}
