//! The body of a call as it comes in: held against the limits of a message and of all bodies together, and against the clock.
//!
//! tonic reads messages, but whoever reads bodies over HTTP counts bytes before anything is made of them, and so it is here.
//! What is wrong is told as a [`tonic::Status`], which tonic finds in the error and gives to the client.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Duration, Instant, Sleep, sleep_until};

use super::call::Refusal;
use crate::server::budget::Share;
use crate::server::problem::Problem;
use crate::service::Code;

/// Before every message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The memory that a call's messages take.
#[derive(Clone)]
pub(super) struct Meter(Arc<Mutex<Share>>);

impl Meter {
    pub(super) fn new(share: Share) -> Self {
        Self(Arc::new(Mutex::new(share)))
    }

    fn share(&self) -> MutexGuard<'_, Share> {
        // A share is changed in one go.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message of so many bytes, as it was sent, is no longer in memory.
    pub(super) fn done_with(&self, message: usize) {
        self.share().shrink(message + PREFIX);
    }
}

/// What a body may be.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// Bytes of one message.
    pub(super) message: usize,
    /// For a message, from its first byte to its last.
    pub(super) body: Duration,
    /// Between messages.
    pub(super) idle: Duration,
    /// For the first message.
    pub(super) first: Instant,
}

/// A call's body.
pub(super) struct Metered {
    body: Body,
    meter: Meter,
    bounds: Bounds,
    framing: Framing,
    /// When the client will have been too slow; none while it is not waited for.
    until: Option<Instant>,
    clock: Pin<Box<Sleep>>,
    refusal: Refusal,
}

/// Where in the sequence of messages a body is.
#[derive(Default)]
struct Framing {
    prefix: [u8; PREFIX],
    have: usize,
    /// Bytes of the message that are yet to come.
    left: usize,
}

impl Framing {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// A message begins that is longer than `limit`: its length.
    fn feed(&mut self, mut bytes: &[u8], limit: usize) -> Result<(), usize> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let part = self.left.min(bytes.len());
                self.left -= part;
                bytes = &bytes[part..];
                continue;
            }
            let part = (PREFIX - self.have).min(bytes.len());
            self.prefix[self.have..self.have + part].copy_from_slice(&bytes[..part]);
            self.have += part;
            bytes = &bytes[part..];
            if self.have == PREFIX {
                let [_, length @ ..] = self.prefix;
                self.left = u32::from_be_bytes(length) as usize;
                self.have = 0;
                if self.left > limit {
                    return Err(self.left);
                }
            }
        }
        Ok(())
    }

    fn between_messages(&self) -> bool {
        self.have == 0 && self.left == 0
    }
}

impl Metered {
    pub(super) fn new(body: Body, meter: Meter, bounds: Bounds, refusal: Refusal) -> Self {
        Self {
            body,
            meter,
            bounds,
            framing: Framing::default(),
            until: Some(bounds.first),
            clock: Box::pin(sleep_until(bounds.first)),
            refusal,
        }
    }

    fn refuse(&self, problem: Problem) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        Poll::Ready(Some(Err(self.refusal.status(&problem))))
    }
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let Some(data) = frame.data_ref() else { return Poll::Ready(Some(Ok(frame))) };
                let middle = !this.framing.between_messages();
                if let Err(length) = this.framing.feed(data, this.bounds.message) {
                    let limit = this.bounds.message;
                    let detail =
                        format!("the message has {length} bytes, more than the {limit} accepted; send fewer images");
                    return this.refuse(Problem::new(Code::BodyTooLarge, detail));
                }
                if let Err(error) = this.meter.share().grow(data.len()) {
                    return this.refuse(error.into());
                }
                if this.framing.between_messages() {
                    this.until = None;
                } else if !middle || this.until.is_none() {
                    let first = this.until.take();
                    this.until = Some(first.unwrap_or(Instant::now() + this.bounds.body));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(other) => Poll::Ready(other.map(|result| {
                let broken = || Problem::new(Code::InvalidRequest, "the body ended before it was complete");
                result.map_err(|_| this.refusal.status(&broken()))
            })),
            Poll::Pending => {
                let until = *this.until.get_or_insert_with(|| Instant::now() + this.bounds.idle);
                if this.clock.deadline() != until {
                    this.clock.as_mut().reset(until);
                }
                match this.clock.as_mut().poll(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => {
                        let detail =
                            "the next message did not arrive in time; end the call when there is no more to send";
                        this.refuse(Problem::new(Code::BodyTimeout, detail))
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart_however_they_are_cut() {
        // Two messages, of three bytes and of none, and the beginning of a third.
        let bytes = [0, 0, 0, 0, 3, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0];
        for step in 1..bytes.len() {
            let mut framing = Framing::default();
            let mut ends = Vec::new();
            for (i, piece) in bytes.chunks(step).enumerate() {
                assert_eq!(framing.feed(piece, 3), Ok(()));
                if framing.between_messages() {
                    ends.push((i + 1) * step);
                }
            }
            assert!(!framing.between_messages(), "in steps of {step}");
            assert!(ends.iter().all(|end| matches!(end, 8 | 13)), "{ends:?} in steps of {step}");
        }
    }

    #[test]
    fn a_message_is_refused_by_its_prefix() {
        assert_eq!(Framing::default().feed(&[0, 0, 0, 1, 0], 255), Err(256));
        assert_eq!(Framing::default().feed(&[0, 0, 0, 1, 0], 256), Ok(()));
    }
}
