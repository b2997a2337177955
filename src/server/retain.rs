//! Bodies that keep something until they are sent, or the client is gone.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use crate::fair_share::Share;

/// A body that owns `T` for as long as it lives, and shows it the trailers. All frames pass through.
pub(super) struct RetainBody<T> {
    body: Body,
    on_trailers: fn(&mut T, &HeaderMap),
    /// Declared last: the body is dropped first.
    retained: T,
}

/// Memory that an answer takes while it is sent. A handler that does not make the body itself attaches it to its
/// response as an extension.
#[derive(Clone)]
pub(super) struct RetainedMemory(#[allow(dead_code)] Arc<Share>);

impl RetainedMemory {
    pub(super) fn new(memory: Share) -> Self {
        Self(Arc::new(memory))
    }
}

impl<T: Send + Unpin + 'static> RetainBody<T> {
    /// Keeps `retained` for as long as `body` lives.
    pub(super) fn wrap(body: Body, retained: T) -> Body {
        Self::observe(body, retained, |_, _| ())
    }

    /// Keeps `retained` for as long as `body` lives, and calls `on_trailers` with its trailers.
    pub(super) fn observe(body: Body, retained: T, on_trailers: fn(&mut T, &HeaderMap)) -> Body {
        Body::new(Self { body, on_trailers, retained })
    }
}

impl<T: Unpin> HttpBody for RetainBody<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            (this.on_trailers)(&mut this.retained, trailers);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
