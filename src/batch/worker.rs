//! The worker: takes batches, runs the model, answers; and gets a new model when the old one fails.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;

use super::queue::Job;
use super::{Answer, Batching, JobError, Model, ModelFailure, Queue};
use crate::cores::Held;
use crate::telemetry::GaugeGuard;

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
pub struct Worker<R, L> {
    queue: Arc<Queue<R>>,
    load: L,
    batching: Batching,
    state: Arc<WorkerState>,
}

impl<R: Send + 'static, M: Model<R>, L: FnMut() -> Result<M, ModelFailure>> Worker<R, L> {
    /// A worker that gets its model from `load`, at the start and after every failure.
    pub fn new(queue: Arc<Queue<R>>, batching: Batching, load: L) -> Self {
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

    async fn run_batch(&self, model: &mut M, jobs: Vec<Job<R>>, cores: Held) -> Result<(), ModelFailure> {
        let metrics = &self.queue.metrics;
        metrics.batch_size.observe(jobs.len() as f64);
        let rows: Vec<&R> = jobs.iter().map(|job| &job.row).collect();
        let start = Instant::now();
        let result = AssertUnwindSafe(model.run(&rows)).catch_unwind().await;
        let infer = start.elapsed();
        // Others can compute while the answers go out.
        drop(cores);
        let result = match result {
            Ok(Ok(outputs)) if outputs.len() != jobs.len() => {
                Err(ModelFailure(format!("expected {} output rows, found {}", jobs.len(), outputs.len())))
            }
            Ok(result) => result,
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                Err(ModelFailure(format!("it panicked: {}", text.unwrap_or_default())))
            }
        };
        match result {
            Ok(outputs) => {
                self.queue.record_infer(jobs.len(), self.batching.cores, infer);
                for (job, output) in jobs.into_iter().zip(outputs) {
                    let queued = start - job.enqueued_at;
                    metrics.queued.observe(queued.as_secs_f64());
                    metrics.infer.observe(infer.as_secs_f64());
                    job.answer(Ok(Answer { output, queued, infer }));
                }
                Ok(())
            }
            Err(failure) => {
                for job in jobs {
                    job.span.in_scope(|| tracing::error!("the image was in a batch on which the model failed"));
                    job.answer(Err(JobError::ModelFailed));
                }
                Err(failure)
            }
        }
    }
}
