//! Enforces limits on the body of a call while it arrives: the limits of one message, the memory of all bodies, and
//! time limits.
//!
//! tonic reads and decodes messages. Like the HTTP endpoints, this module counts the bytes before they are decoded. An
//! error is a [`tonic::Status`], which tonic finds in the body's error and sends to the client.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Duration, Instant, Sleep, sleep_until};

use super::call::CallErrors;
use super::wire::{MessageLimits, Schema, Walker, WireError};
use crate::fair_share::Client;
use crate::server::budget::BodyMemory;
use crate::server::ingress::Ingress;
use crate::server::pace::Pace;
use crate::server::problem::Problem;
use crate::service::{Code, Error};

/// Length of the prefix of every message, bytes: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Counts the memory of a call's messages.
#[derive(Clone)]
pub(super) struct Meter(Arc<Mutex<MessageMemory>>);

struct MessageMemory {
    memory: BodyMemory,
    /// Memory of the incomplete message, bytes.
    arriving: usize,
    /// Memory of each complete message that was not handed to the handler, oldest first, bytes.
    complete: VecDeque<usize>,
}

impl Meter {
    pub(super) fn new(memory: BodyMemory) -> Self {
        Self(Arc::new(Mutex::new(MessageMemory { memory, arriving: 0, complete: VecDeque::new() })))
    }

    fn lock(&self) -> MutexGuard<'_, MessageMemory> {
        self.0.lock()
    }

    fn grow(&self, bytes: usize) -> Result<(), Error> {
        let mut messages = self.lock();
        messages.memory.grow(bytes)?;
        messages.arriving += bytes;
        Ok(())
    }

    fn complete(&self) {
        let mut messages = self.lock();
        let bytes = std::mem::take(&mut messages.arriving);
        messages.complete.push_back(bytes);
    }

    /// Memory of the next message of a stream, in the order of arrival, bytes. Called once for each message.
    pub(super) fn next_message_bytes(&self) -> usize {
        self.lock().complete.pop_front().unwrap_or(0)
    }

    /// Returns the memory of a message that is no longer needed.
    pub(super) fn release(&self, bytes: usize) {
        self.lock().memory.shrink(bytes);
    }
}

/// Limits on a call's body.
#[derive(Clone)]
pub(super) struct MessageBounds {
    /// Maximum length of one message, bytes.
    pub(super) max_bytes: usize,
    pub(super) schema: Arc<Schema>,
    /// Index of the messages' type in the schema.
    pub(super) message_type: usize,
    /// Limits on the contents of one message.
    pub(super) limits: MessageLimits,
    /// Time limit for one message, from its first byte to its last.
    pub(super) message_time: Duration,
    /// Minimum rate at which a message must arrive, bytes a second.
    pub(super) min_rate: u64,
    /// The client that sends the body. [`Ingress`] limits the rate at which its bytes are read.
    pub(super) client: Client,
    pub(super) ingress: Ingress,
    /// Time limit between two messages.
    pub(super) idle_time: Duration,
    /// Deadline of the first message.
    pub(super) first_deadline: Instant,
}

/// A call's body.
pub(super) struct MeteredBody {
    body: Body,
    meter: Meter,
    bounds: MessageBounds,
    framing: Framing,
    /// Checks the contents of the current message. `None` if it is compressed: it will not be decoded.
    walker: Option<Walker>,
    pace: Pace,
    /// When the client is too slow. `None` while the body does not wait for it.
    deadline: Option<Instant>,
    /// Whether the first message has not begun.
    before_first: bool,
    /// When reading continues, if the client sends more than its share.
    paused_until: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    errors: CallErrors,
}

/// Splits a body into prefixes and messages.
#[derive(Default)]
struct Framing {
    prefix: [u8; PREFIX],
    /// Number of bytes of the prefix that have arrived.
    prefix_bytes: usize,
    /// Bytes of the message that are still to come.
    left: usize,
}

/// A piece of a body.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'b> {
    /// Some bytes of a prefix that is not complete. Their number.
    Prefix(usize),
    /// The last `bytes` bytes of a prefix. A message of `length` bytes follows.
    Begin { bytes: usize, length: usize, compressed: bool },
    /// Bytes of a message.
    Message(&'b [u8]),
}

impl Framing {
    /// Removes the next piece from the front of `bytes`. `None` if `bytes` is empty.
    fn next<'b>(&mut self, bytes: &mut &'b [u8]) -> Option<Piece<'b>> {
        if bytes.is_empty() {
            return None;
        }
        if self.left > 0 {
            let (piece, rest) = bytes.split_at(self.left.min(bytes.len()));
            self.left -= piece.len();
            *bytes = rest;
            return Some(Piece::Message(piece));
        }
        let (piece, rest) = bytes.split_at((PREFIX - self.prefix_bytes).min(bytes.len()));
        self.prefix[self.prefix_bytes..self.prefix_bytes + piece.len()].copy_from_slice(piece);
        self.prefix_bytes += piece.len();
        *bytes = rest;
        if self.prefix_bytes < PREFIX {
            return Some(Piece::Prefix(piece.len()));
        }
        let [compressed, length @ ..] = self.prefix;
        self.left = u32::from_be_bytes(length) as usize;
        self.prefix_bytes = 0;
        Some(Piece::Begin { bytes: piece.len(), length: self.left, compressed: compressed != 0 })
    }

    fn between_messages(&self) -> bool {
        self.prefix_bytes == 0 && self.left == 0
    }
}

impl MeteredBody {
    pub(super) fn new(body: Body, meter: Meter, bounds: MessageBounds, errors: CallErrors) -> Self {
        Self {
            body,
            meter,
            framing: Framing::default(),
            walker: None,
            pace: Pace::new(bounds.min_rate),
            deadline: Some(bounds.first_deadline),
            before_first: true,
            paused_until: None,
            timer: Box::pin(sleep_until(bounds.first_deadline)),
            bounds,
            errors,
        }
    }

    /// Counts bytes of the body and the memory that decoding them takes. Returns whether a message began in them.
    fn check(&mut self, mut bytes: &[u8]) -> Result<bool, Problem> {
        let mut began = false;
        while let Some(piece) = self.framing.next(&mut bytes) {
            match piece {
                Piece::Prefix(bytes) => self.meter.grow(bytes)?,
                Piece::Begin { bytes, length, compressed } => {
                    let limit = self.bounds.max_bytes;
                    if length > limit {
                        let detail = format!(
                            "the message has {length} bytes, more than the {limit} accepted; send fewer images"
                        );
                        return Err(Problem::new(Code::BodyTooLarge, detail));
                    }
                    self.meter.grow(bytes)?;
                    began = true;
                    let walker = || Walker::new(self.bounds.message_type, length, self.bounds.limits);
                    self.walker = (!compressed).then(walker);
                }
                Piece::Message(bytes) => {
                    let mut memory = bytes.len();
                    if let Some(walker) = &mut self.walker {
                        let before = walker.memory();
                        walker.feed(&self.bounds.schema, bytes).map_err(|error| {
                            let code = match error {
                                WireError::Blobs(_) => Code::TooManyImages,
                                _ => Code::InvalidRequest,
                            };
                            Problem::new(code, error.to_string())
                        })?;
                        memory += walker.memory() - before;
                    }
                    self.meter.grow(memory)?;
                }
            }
            if self.framing.between_messages() {
                self.meter.complete();
            }
        }
        Ok(began)
    }

    fn refuse(&self, problem: Problem) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        Poll::Ready(Some(Err(self.errors.status(&problem))))
    }
}

impl HttpBody for MeteredBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let this = &mut *self;
        if let Some(until) = this.paused_until {
            this.timer.as_mut().reset(until);
            ready!(this.timer.as_mut().poll(cx));
            this.paused_until = None;
        }
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let Some(data) = frame.data_ref() else { return Poll::Ready(Some(Ok(frame))) };
                let began = match this.check(data) {
                    Ok(began) => began,
                    Err(problem) => return this.refuse(problem),
                };
                this.pace.received(data.len());
                let wait = this.bounds.ingress.received(this.bounds.client, data.len());
                this.paused_until = (!wait.is_zero()).then(|| Instant::now() + wait);
                if this.framing.between_messages() {
                    this.deadline = None;
                    this.before_first = false;
                } else if began || this.deadline.is_none() {
                    // The time of the first message runs from the start of the call. Each later message has its own
                    // deadline, whether or not frames end where messages do.
                    if !std::mem::take(&mut this.before_first) {
                        this.deadline = Some(Instant::now() + this.bounds.message_time);
                    }
                    this.pace = Pace::new(this.bounds.min_rate);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(other) => Poll::Ready(other.map(|result| {
                let broken = || Problem::new(Code::InvalidRequest, "the body ended before it was complete");
                result.map_err(|_| this.errors.status(&broken()))
            })),
            Poll::Pending => {
                let mut deadline = *this.deadline.get_or_insert_with(|| Instant::now() + this.bounds.idle_time);
                // Between messages no minimum rate applies.
                let slow = !this.framing.between_messages() && this.pace.next_due() < deadline;
                if slow {
                    deadline = this.pace.next_due();
                }
                if this.timer.deadline() != deadline {
                    this.timer.as_mut().reset(deadline);
                }
                match this.timer.as_mut().poll(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) if slow => this.refuse(this.pace.too_slow()),
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

    /// Splits bytes that arrive in pieces of `step` bytes. For each message: declared length, and bytes received.
    fn messages(bytes: &[u8], step: usize) -> Vec<(usize, usize)> {
        let mut framing = Framing::default();
        let mut found: Vec<(usize, usize)> = Vec::new();
        for mut piece in bytes.chunks(step) {
            while let Some(piece) = framing.next(&mut piece) {
                match (piece, found.last_mut()) {
                    (Piece::Begin { length, .. }, _) => found.push((length, 0)),
                    (Piece::Message(bytes), Some(last)) => last.1 += bytes.len(),
                    _ => {}
                }
            }
        }
        found
    }

    #[test]
    fn messages_are_split_for_any_length_of_the_pieces() {
        // Two messages, of three bytes and of none, and the beginning of a third.
        let bytes = [0, 0, 0, 0, 3, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 9];
        for step in 1..=bytes.len() {
            assert_eq!(messages(&bytes, step), [(3, 3), (0, 0), (256, 1)], "in steps of {step}");
        }
    }

    #[test]
    fn a_prefix_holds_the_length_of_a_message_and_whether_it_is_compressed() {
        let mut bytes = &[1, 0, 0, 1, 0, 7][..];
        let begin = Some(Piece::Begin { bytes: 5, length: 256, compressed: true });
        let mut framing = Framing::default();
        assert_eq!((framing.next(&mut bytes), framing.between_messages()), (begin, false));
        assert_eq!(framing.next(&mut bytes), Some(Piece::Message(&[7])));
        assert_eq!(framing.next(&mut bytes), None);
    }
}
