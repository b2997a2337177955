//! The body of a call as it comes in: held against the limits of a message and of all bodies together, and against
//! the clock.
//!
//! tonic reads messages, but whoever reads bodies over HTTP counts bytes before anything is made of them, and so it
//! is here. What is wrong is told as a [`tonic::Status`], which tonic finds in the error and gives to the client.

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

/// Before every message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The memory that a call's messages take.
#[derive(Clone)]
pub(super) struct Meter(Arc<Mutex<MessageMemory>>);

struct MessageMemory {
    memory: BodyMemory,
    /// What the message that is arriving takes so far.
    arriving: usize,
    /// What each message takes that has arrived and was not asked for yet.
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

    /// What the next message of a stream takes, in the order in which they arrived. To be asked once for each.
    pub(super) fn next_message(&self) -> usize {
        self.lock().complete.pop_front().unwrap_or(0)
    }

    /// A message that took so much is no longer in memory.
    pub(super) fn done_with(&self, bytes: usize) {
        self.lock().memory.shrink(bytes);
    }
}

/// What a body may be.
#[derive(Clone)]
pub(super) struct MessageBounds {
    /// Bytes of one message.
    pub(super) message: usize,
    /// What a message may hold, by its type.
    pub(super) schema: Arc<Schema>,
    pub(super) message_type: usize,
    pub(super) limits: MessageLimits,
    /// For a message, from its first byte to its last.
    pub(super) body: Duration,
    /// Bytes a second at which a message must arrive.
    pub(super) rate: u64,
    /// Whose bytes they are, and how fast they are read.
    pub(super) client: Client,
    pub(super) ingress: Ingress,
    /// Between messages.
    pub(super) idle: Duration,
    /// For the first message.
    pub(super) first: Instant,
}

/// A call's body.
pub(super) struct MeteredBody {
    body: Body,
    meter: Meter,
    bounds: MessageBounds,
    framing: Framing,
    /// Of the message that is arriving, unless it is compressed: then it will not be decoded.
    walker: Option<Walker>,
    pace: Pace,
    /// When the client will have been too slow; none while it is not waited for.
    until: Option<Instant>,
    /// No message has begun yet.
    first: bool,
    /// No more is read before: the client sends more than its share.
    paused: Option<Instant>,
    clock: Pin<Box<Sleep>>,
    errors: CallErrors,
}

/// Where in the sequence of messages a body is.
#[derive(Default)]
struct Framing {
    prefix: [u8; PREFIX],
    have: usize,
    /// Bytes of the message that are yet to come.
    left: usize,
}

/// A piece of a body.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'b> {
    /// Bytes of a prefix that is not complete.
    Prefix(usize),
    /// The rest of a prefix; a message of so many bytes follows.
    Begin { bytes: usize, length: usize, compressed: bool },
    /// Bytes of a message.
    Message(&'b [u8]),
}

impl Framing {
    /// Takes the next piece off the front of some bytes; `None` if there are none.
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
        let (piece, rest) = bytes.split_at((PREFIX - self.have).min(bytes.len()));
        self.prefix[self.have..self.have + piece.len()].copy_from_slice(piece);
        self.have += piece.len();
        *bytes = rest;
        if self.have < PREFIX {
            return Some(Piece::Prefix(piece.len()));
        }
        let [compressed, length @ ..] = self.prefix;
        self.left = u32::from_be_bytes(length) as usize;
        self.have = 0;
        Some(Piece::Begin { bytes: piece.len(), length: self.left, compressed: compressed != 0 })
    }

    fn between_messages(&self) -> bool {
        self.have == 0 && self.left == 0
    }
}

impl MeteredBody {
    pub(super) fn new(body: Body, meter: Meter, bounds: MessageBounds, errors: CallErrors) -> Self {
        Self {
            body,
            meter,
            framing: Framing::default(),
            walker: None,
            pace: Pace::new(bounds.rate),
            until: Some(bounds.first),
            first: true,
            paused: None,
            clock: Box::pin(sleep_until(bounds.first)),
            bounds,
            errors,
        }
    }

    /// Counts some bytes of the body, and what will be made of them. Says whether a message began in them.
    fn check(&mut self, mut bytes: &[u8]) -> Result<bool, Problem> {
        let mut began = false;
        while let Some(piece) = self.framing.next(&mut bytes) {
            match piece {
                Piece::Prefix(bytes) => self.meter.grow(bytes)?,
                Piece::Begin { bytes, length, compressed } => {
                    let limit = self.bounds.message;
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
        if let Some(until) = this.paused {
            this.clock.as_mut().reset(until);
            ready!(this.clock.as_mut().poll(cx));
            this.paused = None;
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
                this.paused = (!wait.is_zero()).then(|| Instant::now() + wait);
                if this.framing.between_messages() {
                    this.until = None;
                    this.first = false;
                } else if began || this.until.is_none() {
                    // The first message has its time from the call's beginning on. Of later ones each has its own,
                    // whether or not frames end where messages do.
                    if !std::mem::take(&mut this.first) {
                        this.until = Some(Instant::now() + this.bounds.body);
                    }
                    this.pace = Pace::new(this.bounds.rate);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(other) => Poll::Ready(other.map(|result| {
                let broken = || Problem::new(Code::InvalidRequest, "the body ended before it was complete");
                result.map_err(|_| this.errors.status(&broken()))
            })),
            Poll::Pending => {
                let mut until = *this.until.get_or_insert_with(|| Instant::now() + this.bounds.idle);
                // Between messages a client owes nothing.
                let slow = !this.framing.between_messages() && this.pace.next_due() < until;
                if slow {
                    until = this.pace.next_due();
                }
                if this.clock.deadline() != until {
                    this.clock.as_mut().reset(until);
                }
                match this.clock.as_mut().poll(cx) {
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

    /// The messages in some bytes that come in pieces of a length: what each is said to be, and how much of it came.
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
    fn messages_are_told_apart_however_they_are_cut() {
        // Two messages, of three bytes and of none, and the beginning of a third.
        let bytes = [0, 0, 0, 0, 3, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 9];
        for step in 1..=bytes.len() {
            assert_eq!(messages(&bytes, step), [(3, 3), (0, 0), (256, 1)], "in steps of {step}");
        }
    }

    #[test]
    fn a_prefix_says_how_long_a_message_is_and_whether_it_is_compressed() {
        let mut bytes = &[1, 0, 0, 1, 0, 7][..];
        let begin = Some(Piece::Begin { bytes: 5, length: 256, compressed: true });
        let mut framing = Framing::default();
        assert_eq!((framing.next(&mut bytes), framing.between_messages()), (begin, false));
        assert_eq!(framing.next(&mut bytes), Some(Piece::Message(&[7])));
        assert_eq!(framing.next(&mut bytes), None);
    }
}
