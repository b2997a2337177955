//! Batching: tasks of many requests become batches for few workers.
//!
//! [`Queue`] admits images, keeps their tasks, hands out batches, and forgets the tasks whose callers have left.
//! [`Worker`] takes a batch, runs a [`Model`] on it, and sends each [`Task`] its output. An idle worker that acquires
//! one of the [`cores`](crate::cores) takes the waiting tasks at once: no timer delays an early task unless the
//! configuration says so, and batches form by themselves while all cores are busy. Tasks of several kinds may wait in
//! one queue. A batch holds tasks of one kind: the kind of the task whose turn it is.
//!
//! This module does not depend on ONNX, images or HTTP. Time is tokio's, so that tests run every rule on a paused
//! clock.

mod admission;
mod collect;
mod queue;
mod worker;

#[cfg(test)]
mod tests;

pub use admission::{AdmissionLimits, AdmissionRequest, ONE_RUN, Permit};
pub use collect::Batching;
pub use queue::Queue;
pub use worker::{Worker, WorkerState};

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

/// An input of a model that waits in a queue, and what the model computes from it.
pub trait Task: Send + 'static {
    /// What the model computes from the input.
    type Output: Debug + Send + 'static;

    /// Whether one run of the model can take both tasks.
    fn fits(&self, other: &Self) -> bool;

    /// Number of tasks of this kind that one run takes at most. The worker's own limit also applies.
    fn max_batch(&self) -> usize {
        usize::MAX
    }
}

/// Runs tasks. Each worker owns one model and calls it from one thread.
///
/// The methods are asynchronous so that a test's model can take time on a paused clock. A real model computes at
/// once, on a thread that has nothing else to do.
pub trait Model<T: Task>: Send + 'static {
    /// Makes sure that a session exists for a batch of tasks that fit each other. Returns whether one had to be opened,
    /// which may take much longer than a run.
    ///
    /// # Errors
    /// The model cannot run such tasks. It still runs others.
    fn ensure_session(&mut self, _: &[&T]) -> impl Future<Output = Result<bool, ModelFailure>> + Send {
        std::future::ready(Ok(false))
    }

    /// Runs a batch of tasks that fit each other. Returns one output per task, in the same order.
    ///
    /// # Errors
    /// The model could not run. The worker then loads a new one.
    fn run(&mut self, tasks: &[&T]) -> impl Future<Output = Result<Vec<T::Output>, ModelFailure>> + Send;
}

/// Why a model could not be loaded or run. For the log; clients do not receive it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ModelFailure(pub String);

/// The output of a task, and the times it took.
#[derive(Clone, Debug, PartialEq)]
pub struct JobOutput<O> {
    /// What the model computed from the task.
    pub output: O,
    /// Time from entering the queue to the start of the run.
    pub queued: Duration,
    /// Time of the run, for the whole batch.
    pub infer: Duration,
}

/// Why a task has no output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// The task's deadline passed.
    #[error("the deadline passed before the model ran")]
    Expired,
    /// The model failed on the task's batch.
    #[error("the model failed")]
    ModelFailed,
    /// The queue was closed.
    #[error("the server is shutting down")]
    Closed,
}

/// Why images were not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// The limit on images in flight is reached.
    #[error("as many images as the server admits are in flight")]
    Full,
    /// The predicted wait, which is longer than the limit on it.
    #[error("the wait would be {0:?}")]
    WaitTooLong(Duration),
    /// The predicted time until the first image is done, which is past the deadline.
    #[error("an answer would take {0:?}, which is past the deadline")]
    TooLate(Duration),
    /// The queue was closed.
    #[error("the server is shutting down")]
    Closed,
}
