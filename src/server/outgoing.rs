//! Sends large answers in pieces, and drops an answer that the client reads too slowly.
//!
//! hyper and h2 keep a chunk until the client has read it. A client that requests megabytes and reads a byte a second
//! could hold that memory for any time. So a large chunk stays in this module, where a timer can drop it.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::sleep;

use crate::config::DOWNLOAD_WINDOW;

/// Maximum size of a chunk that is passed on whole, bytes. What is passed on is no longer counted in any budget, but it
/// stays in memory until the client has read it, and a client may have a hundred open answers on each of its
/// connections.
pub(super) const LARGE_CHUNK: usize = 16 << 10;

/// Size of the pieces of a larger chunk, bytes.
const PIECE: usize = 16 << 10;

/// Limit for clients that read an answer too slowly.
pub(super) struct SlowReaders {
    /// Minimum number of bytes that a client must read in every [`DOWNLOAD_WINDOW`]; 0 for no minimum.
    pub(super) min_bytes: u64,
    /// Called once when an answer is dropped. It closes an HTTP/1 connection. Over HTTP/2 the other streams continue.
    pub(super) on_cut: Box<dyn Fn() + Send + Sync>,
}

/// A body that can be dropped while a connection sends it.
pub(super) struct Outgoing {
    state: Arc<Mutex<OutgoingState>>,
    slow_readers: Arc<SlowReaders>,
}

struct OutgoingState {
    /// `None` after the client was too slow.
    body: Option<Body>,
    /// Rest of the chunk that is being sent.
    chunk: Bytes,
    /// Number of bytes of large chunks passed to hyper.
    sent_bytes: u64,
    /// Whether a timer checks the progress.
    has_timer: bool,
}

impl Outgoing {
    pub(super) fn new(body: Body, slow_readers: SlowReaders) -> Self {
        let state = OutgoingState { body: Some(body), chunk: Bytes::new(), sent_bytes: 0, has_timer: false };
        Self { state: Arc::new(Mutex::new(state)), slow_readers: Arc::new(slow_readers) }
    }
}

/// Checks the progress of a chunk once in every window until it is sent. Drops the answer if the client is too slow.
async fn drop_if_slow(state: Weak<Mutex<OutgoingState>>, slow_readers: Arc<SlowReaders>) {
    let mut sent_before = 0;
    loop {
        sleep(DOWNLOAD_WINDOW).await;
        // The body was dropped with its connection.
        let Some(state) = state.upgrade() else { return };
        let mut state = state.lock();
        if state.chunk.is_empty() {
            state.has_timer = false;
            return;
        }
        if state.sent_bytes - sent_before < slow_readers.min_bytes {
            // Dropping the body returns memory, updates gauges and ends the request.
            let dropped = (state.body.take(), std::mem::take(&mut state.chunk));
            drop(state);
            drop(dropped);
            (slow_readers.on_cut)();
            return;
        }
        sent_before = state.sent_bytes;
    }
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let Some(body) = &mut state.body else {
            return Poll::Ready(Some(Err(axum::Error::new("the client took the answer too slowly"))));
        };
        if state.chunk.is_empty() {
            match Pin::new(body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if data.len() > LARGE_CHUNK => {
                        state.chunk = data;
                        if !state.has_timer && self.slow_readers.min_bytes > 0 {
                            state.has_timer = true;
                            state.sent_bytes = 0;
                            tokio::spawn(drop_if_slow(Arc::downgrade(&self.state), Arc::clone(&self.slow_readers)));
                        }
                    }
                    Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                other => return other,
            }
        }
        let piece = PIECE.min(state.chunk.len());
        state.sent_bytes += piece as u64;
        Poll::Ready(Some(Ok(Frame::data(state.chunk.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        let state = self.state.lock();
        state.chunk.is_empty() && state.body.as_ref().is_some_and(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.state.lock();
        let rest = state.body.as_ref().map(HttpBody::size_hint).unwrap_or_default();
        let left = state.chunk.len() as u64;
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + left);
        }
        hint.set_lower(rest.lower() + left);
        hint
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::BodyExt;
    use tokio::time::{Duration, advance};

    use super::*;
    use crate::server::retain::RetainBody;

    /// A body of so many bytes, the memory that it holds, and the number of answers that were dropped.
    fn outgoing(bytes: usize, min_bytes: u64) -> (Outgoing, Arc<()>, Arc<AtomicUsize>) {
        let (memory, cuts) = (Arc::new(()), Arc::new(AtomicUsize::new(0)));
        let body = RetainBody::wrap(Body::from(vec![7; bytes]), Arc::clone(&memory));
        let counted = Arc::clone(&cuts);
        let on_cut = Box::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        (Outgoing::new(body, SlowReaders { min_bytes, on_cut }), memory, cuts)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_arrives_whole_in_pieces() {
        let (body, memory, cuts) = outgoing(1_000_000, 1000);
        assert_eq!(body.size_hint().exact(), Some(1_000_000));
        let collected = body.collect().await.unwrap().to_bytes();
        assert_eq!(&collected[..], &vec![7; 1_000_000][..]);
        assert_eq!((Arc::strong_count(&memory), cuts.load(Ordering::Relaxed)), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stops_loses_the_answer_and_a_slow_one_does_not() {
        let (mut body, memory, cuts) = outgoing(4_000_000, PIECE as u64);
        // One piece in every window is just enough.
        for _ in 0..3 {
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), PIECE);
            tokio::task::yield_now().await;
            advance(DOWNLOAD_WINDOW + Duration::from_millis(1)).await;
            tokio::task::yield_now().await;
            assert_eq!((Arc::strong_count(&memory), cuts.load(Ordering::Relaxed)), (2, 0));
        }
        advance(DOWNLOAD_WINDOW + Duration::from_millis(1)).await;
        tokio::task::yield_now().await;
        assert_eq!((Arc::strong_count(&memory), cuts.load(Ordering::Relaxed)), (1, 1));
        assert!(body.frame().await.unwrap().is_err());
    }
}
