//! The worker: takes batches, runs the model, answers; and gets a new model when the old one fails.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;

use super::queue::Job;
use super::{Answer, Batching, JobError, Model, ModelFailure, Queue, Task};
use crate::cores::Held;
use crate::telemetry::{GaugeGuard, spans};

/// The first wait before a failed model is loaded again; doubles with every further failure.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// A batch that runs longer than this counts as hung. No network served here takes a second.
const HUNG_AFTER: Duration = Duration::from_secs(30);

/// Whether a worker can take work; shared with whoever answers for the server's readiness.
#[derive(Debug, Default)]
pub struct WorkerState(Mutex<Activity>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Activity {
    /// It has no model: not loaded yet, or lost.
    #[default]
    Down,
    Idle,
    /// Running a batch since then.
    Busy(Instant),
}

impl WorkerState {
    /// Whether it has a model that works, as far as is known: one that has been running a batch for half a minute does
    /// not.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Activity::Down => false,
            Activity::Idle => true,
            Activity::Busy(since) => since.elapsed() < HUNG_AFTER,
        }
    }

    fn set(&self, activity: Activity) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = activity;
    }
}

/// A worker, not yet running: [`Worker::run`] is to be spawned where it should run.
pub struct Worker<T: Task, L> {
    queue: Arc<Queue<T>>,
    load: L,
    batching: Batching,
    state: Arc<WorkerState>,
}

impl<T: Task + Sync, M: Model<T>, L: FnMut() -> Result<M, ModelFailure>> Worker<T, L> {
    /// A worker that gets its model from `load`, at the start and after every failure.
    pub fn new(queue: Arc<Queue<T>>, batching: Batching, load: L) -> Self {
        Self { queue, load, batching, state: Arc::default() }
    }

    /// Its state, to be asked while it runs.
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
            self.queue.metrics.restarts.inc();
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
        while let Some((jobs, cores)) = self.queue.take(self.batching).await {
            self.state.set(Activity::Busy(Instant::now()));
            let result = self.run_batch(model, jobs, cores).await;
            self.state.set(Activity::Idle);
            if let Err(failure) = result {
                tracing::error!(%failure, "the model failed on a batch");
                return false;
            }
            *backoff = FIRST_BACKOFF;
        }
        true
    }

    async fn run_batch(&self, model: &mut M, mut jobs: Vec<Job<T>>, cores: Held) -> Result<(), ModelFailure> {
        let metrics = &self.queue.metrics;
        jobs.iter_mut().for_each(|job| job.waiting = tracing::Span::none());
        let traced = spans::Batch::begin(jobs.iter().map(|job| &job.span));
        let tasks: Vec<&T> = jobs.iter().map(|job| &job.task).collect();
        let begin = Instant::now();
        match caught(model.prepare(&tasks)).await {
            Ok(Ok(false)) => {}
            Ok(Ok(true)) => self.queue.record_open(self.batching.cores, begin.elapsed()),
            Ok(Err(failure)) => {
                tracing::error!(%failure, "the model does not do these tasks");
                traced.failed();
                jobs.into_iter().for_each(|job| fail(job));
                return Ok(());
            }
            Err(panic) => {
                traced.failed();
                jobs.into_iter().for_each(|job| fail(job));
                return Err(panic);
            }
        }
        metrics.batch_size.observe(jobs.len() as f64);
        let start = Instant::now();
        let result = caught(model.run(&tasks)).await;
        let infer = start.elapsed();
        // Others can compute while the answers go out.
        drop(cores);
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
                // Before the answers: a request's trace must not end before its parts.
                drop(traced);
                for (job, output) in jobs.into_iter().zip(outputs) {
                    let queued = start - job.enqueued_at;
                    metrics.queued.observe(queued.as_secs_f64());
                    metrics.infer.observe(infer.as_secs_f64());
                    job.answer(Ok(Answer { output, queued, infer }));
                }
                Ok(())
            }
            Err(failure) => {
                traced.failed();
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

/// Waits for a model behind a guard: a panic in it is a failure like others.
async fn caught<O>(work: impl Future<Output = O>) -> Result<O, ModelFailure> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        ModelFailure(format!("it panicked: {}", text.unwrap_or_default()))
    })
}
