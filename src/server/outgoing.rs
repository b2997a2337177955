//! Large answers on their way to the client: handed out in pieces, and dropped when the client does not take them.
//!
//! hyper and h2 keep whatever chunk they were given until the client has read it. A client that asks for megabytes
//! and reads a byte a second would hold that memory for as long as it likes. So a large chunk is kept here, where a
//! timer can drop it.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::sleep;

use crate::config::DOWNLOAD_WINDOW;

/// Chunks up to this size are handed on as they are. What is handed on counts against no budget any more, but stays
/// in memory until the client has read it, and a client may have a hundred answers open on each of its connections.
pub(super) const LARGE_CHUNK: usize = 16 << 10;

/// What hyper gets of a larger one at a time.
const PIECE: usize = 16 << 10;

/// What happens to clients that take an answer too slowly.
pub(super) struct SlowReaders {
    /// Bytes in every [`DOWNLOAD_WINDOW`] that a client must take; 0 if any pace will do.
    pub(super) least: u64,
    /// Called once when an answer is dropped. Over HTTP/1 it closes the connection; over HTTP/2 the other streams go
    /// on.
    pub(super) on_cut: Box<dyn Fn() + Send + Sync>,
}

/// A body that can be taken away from the connection that sends it.
pub(super) struct Outgoing {
    state: Arc<Mutex<OutgoingState>>,
    readers: Arc<SlowReaders>,
}

struct OutgoingState {
    /// `None` once the client was too slow.
    body: Option<Body>,
    /// What is left of the chunk that is being handed out.
    chunk: Bytes,
    /// Bytes of large chunks that were handed to hyper.
    handed: u64,
    /// Whether a timer looks after the chunk.
    timed: bool,
}

impl Outgoing {
    pub(super) fn new(body: Body, readers: SlowReaders) -> Self {
        let state = OutgoingState { body: Some(body), chunk: Bytes::new(), handed: 0, timed: false };
        Self { state: Arc::new(Mutex::new(state)), readers: Arc::new(readers) }
    }
}

/// Looks at a chunk's progress once in every window until it is gone, or drops it.
async fn time_out(state: Weak<Mutex<OutgoingState>>, readers: Arc<SlowReaders>) {
    let mut before = 0;
    loop {
        sleep(DOWNLOAD_WINDOW).await;
        // The connection is gone, and the body with it.
        let Some(state) = state.upgrade() else { return };
        let mut state = state.lock();
        if state.chunk.is_empty() {
            state.timed = false;
            return;
        }
        if state.handed - before < readers.least {
            // What the body holds is given back: memory, gauges, the request's end.
            let dropped = (state.body.take(), std::mem::take(&mut state.chunk));
            drop(state);
            drop(dropped);
            (readers.on_cut)();
            return;
        }
        before = state.handed;
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
                        if !state.timed && self.readers.least > 0 {
                            state.timed = true;
                            state.handed = 0;
                            tokio::spawn(time_out(Arc::downgrade(&self.state), Arc::clone(&self.readers)));
                        }
                    }
                    Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                other => return other,
            }
        }
        let piece = PIECE.min(state.chunk.len());
        state.handed += piece as u64;
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

    fn outgoing(bytes: usize, least: u64) -> (Outgoing, Arc<()>, Arc<AtomicUsize>) {
        let (memory, cuts) = (Arc::new(()), Arc::new(AtomicUsize::new(0)));
        let body = RetainBody::wrap(Body::from(vec![7; bytes]), Arc::clone(&memory));
        let counted = Arc::clone(&cuts);
        let on_cut = Box::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        (Outgoing::new(body, SlowReaders { least, on_cut }), memory, cuts)
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
