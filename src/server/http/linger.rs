//! Refusals that arrive: after an error answer, what the client is still sending is read on for a moment.
//!
//! A connection that is closed with bytes unread makes the client's system throw the answer away: a client uploading a
//! photograph would see "connection reset" instead of its 429. The layer stands outside everything that can refuse.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::header;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Duration, sleep, timeout};

use super::body::client;
use crate::fair_share::Client;
use crate::server::app::App;

/// How long, and how much.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 64 << 20;

/// A body that can be read on after the handler has let go of it.
#[derive(Clone)]
struct Shared(Arc<Mutex<Body>>);

impl HttpBody for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}

pub(super) async fn linger(State(app): State<App>, request: Request, next: Next) -> Response {
    // A client that asks before it sends need not send; reading on would tell it to.
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return next.run(request).await;
    }
    let client = client(request.extensions());
    let (parts, body) = request.into_parts();
    let shared = Shared(Arc::new(Mutex::new(body)));
    let response = next.run(Request::from_parts(parts, Body::new(shared.clone()))).await;
    if response.status().is_client_error() || response.status().is_server_error() {
        let _ = timeout(LINGER, discard(&app, client, shared)).await;
    }
    response
}

async fn discard(app: &App, client: Client, mut body: Shared) {
    let mut left = LINGER_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        if length > left {
            return;
        }
        left -= length;
        // Refusing must not cost more than serving.
        sleep(app.ingress.received(client, length)).await;
    }
}
