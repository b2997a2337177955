//! Batching: rows of many requests become batches for few workers.
//!
//! [`Queue`] admits ([`admission`](self)), holds, hands out batches to whoever asks, and forgets what nobody waits for any
//! more; [`Worker`] asks, runs a [`Model`], and sends each row its answer. An idle worker that gets one of the
//! [`cores`](crate::cores) takes what is there at once: unless told to, no timer makes an early row wait for company, and
//! batches form by themselves while all cores are busy.
//!
//! Nothing here knows ONNX, images or HTTP. Time is tokio's, so that tests run every rule under a paused clock.

mod admission;
mod collect;
mod queue;
mod worker;

#[cfg(test)]
mod tests;

pub use admission::{Bounds, Permit};
pub use collect::Batching;
pub use queue::Queue;
pub use worker::{Worker, WorkerState};

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

/// Something that turns rows of input into rows of output. A worker owns one and calls it from one thread.
///
/// The method is asynchronous so that a test's model can take time on a paused clock; a real one computes right away,
/// on a thread that has nothing else to do.
pub trait Model<R>: Send + 'static {
    /// Runs a batch: as many rows out as in, in the same order.
    ///
    /// # Errors
    /// The model could not run; the worker will then be given a new one.
    fn run(&mut self, rows: &[&R]) -> impl Future<Output = Result<Vec<Vec<f32>>, ModelFailure>> + Send;
}

/// Why a model could not be loaded or run. For the log, not for clients.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ModelFailure(pub String);

/// What a row's owner gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The output row.
    pub output: Vec<f32>,
    /// Time between entering the queue and being taken out.
    pub queued: Duration,
    /// Time the model ran, for the whole batch.
    pub infer: Duration,
}

/// Why a row was not answered.
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

/// Why rows were not admitted.
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
