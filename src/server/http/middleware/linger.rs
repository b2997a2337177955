//! Reads the rest of a refused request's body for a moment.
//!
//! If a connection is closed while bytes are unread, the client's system discards the answer: a client that uploads
//! an image would see "connection reset" instead of its 429. This middleware is outside everything that can refuse a
//! request.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::header;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::time::{Duration, sleep, timeout};

use crate::fair_share::Client;
use crate::server::app::App;

/// Maximum time, and maximum number of bytes, that are spent on the rest of a body.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 64 << 20;

/// A body that can still be read when the handler has dropped it.
#[derive(Clone)]
struct SharedBody(Arc<Mutex<Body>>);

impl HttpBody for SharedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.0.lock()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().size_hint()
    }
}

pub(super) async fn linger(State(app): State<App>, client: Client, request: Request, next: Next) -> Response {
    // A client that asks before it sends does not send after a refusal. Reading would tell it to.
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let shared = SharedBody(Arc::new(Mutex::new(body)));
    let response = next.run(Request::from_parts(parts, Body::new(shared.clone()))).await;
    if response.status().is_client_error() || response.status().is_server_error() {
        let _ = timeout(LINGER, discard(&app, client, shared)).await;
    }
    response
}

async fn discard(app: &App, client: Client, mut body: SharedBody) {
    let mut left = LINGER_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        if length > left {
            return;
        }
        left -= length;
        // A refused request must not cost more than one that is served.
        sleep(app.ingress.received(client, length)).await;
    }
}
