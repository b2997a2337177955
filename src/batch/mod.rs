//! Batching: tasks of many requests become batches for few workers.
//!
//! [`Queue`] admits ([`admission`](self)), holds, hands out batches to whoever asks, and forgets what nobody waits for any
//! more; [`Worker`] asks, runs a [`Model`], and sends each [`Task`] its answer. An idle worker that gets one of the
//! [`cores`](crate::cores) takes what is there at once: unless told to, no timer makes an early task wait for company, and
//! batches form by themselves while all cores are busy. Tasks of several sorts may wait in one queue; a batch is of one
//! sort, that of the task whose turn it is.
//!
//! Nothing here knows ONNX, images or HTTP. Time is tokio's, so that tests run every rule under a paused clock.

mod admission;
mod collect;
mod queue;
mod worker;

#[cfg(test)]
mod tests;

pub use admission::{Bounds, Demand, ONE_RUN, Permit};
pub use collect::Batching;
pub use queue::Queue;
pub use worker::{Worker, WorkerState};

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

/// A row of a model's input, in whatever form is small to keep; it is written out where the batch is put together.
pub trait Row {
    /// Elements that it is written as.
    fn elements(&self) -> usize;

    /// Writes it; `out` has [`Row::elements`] elements.
    fn write(&self, out: &mut [f32]);
}

impl Row for [f32] {
    fn elements(&self) -> usize {
        self.len()
    }

    fn write(&self, out: &mut [f32]) {
        out.copy_from_slice(self);
    }
}

impl<R: Row + ?Sized> Row for &R {
    fn elements(&self) -> usize {
        (**self).elements()
    }

    fn write(&self, out: &mut [f32]) {
        (**self).write(out);
    }
}

/// What waits in a queue: an input of a model, and what is wanted of it.
pub trait Task: Send + 'static {
    /// What the model makes of it.
    type Output: Debug + Send + 'static;

    /// Whether one run of the model can do both.
    fn fits(&self, other: &Self) -> bool;

    /// How many of its sort a run takes at most; a worker's own bound counts, too.
    fn most_together(&self) -> usize {
        usize::MAX
    }
}

/// Something that does tasks. A worker owns one and calls it from one thread.
///
/// The methods are asynchronous so that a test's model can take time on a paused clock; a real one computes right away,
/// on a thread that has nothing else to do.
pub trait Model<T: Task>: Send + 'static {
    /// Gets ready for a batch of tasks that fit each other. Says whether there was anything to do, which may take much
    /// longer than a run.
    ///
    /// # Errors
    /// It cannot run such tasks; it is as good for others as before.
    fn prepare(&mut self, _: &[&T]) -> impl Future<Output = Result<bool, ModelFailure>> + Send {
        std::future::ready(Ok(false))
    }

    /// Runs a batch of tasks that fit each other: as many answers as tasks, in the same order.
    ///
    /// # Errors
    /// The model could not run; the worker will then be given a new one.
    fn run(&mut self, tasks: &[&T]) -> impl Future<Output = Result<Vec<T::Output>, ModelFailure>> + Send;
}

/// Why a model could not be loaded or run. For the log, not for clients.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ModelFailure(pub String);

/// What a task's owner gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer<O> {
    /// What the model made of it.
    pub output: O,
    /// Time between entering the queue and being taken out.
    pub queued: Duration,
    /// Time the model ran, for the whole batch.
    pub infer: Duration,
}

/// Why a task was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// Its deadline passed.
    #[error("the deadline passed before the model ran")]
    Expired,
    /// The model failed on its batch.
    #[error("the model failed")]
    ModelFailed,
    /// The queue was closed.
    #[error("the server is shutting down")]
    Closed,
}

/// Why tasks were not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// The bound on images is reached.
    #[error("as many images as the server admits are in flight")]
    Full,
    /// What is ahead would keep the rows waiting for longer than the server lets anybody wait.
    #[error("the wait would be {0:?}")]
    WaitTooLong(Duration),
    /// With what is ahead, the rows would be done so long from now, which is past their deadline.
    #[error("an answer would take {0:?}, which is past the deadline")]
    TooLate(Duration),
    /// The queue was closed.
    #[error("the server is shutting down")]
    Closed,
}
