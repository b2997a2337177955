//! Reading a request's body: within its limit, within its time, within what all bodies together may hold.

use std::sync::Arc;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Duration, Instant, timeout, timeout_at};

use super::App;
use crate::server::problem::Problem;
use crate::service::{Code, Error};
use crate::telemetry::{GaugeGuard, Metrics};

/// How long, and how much, a refused body is read on so that the client gets to see the answer: closing a connection
/// with bytes unread makes the client's system throw the answer away.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 64 << 20;

/// The bytes that bodies of all requests may take.
#[derive(Clone)]
pub(crate) struct BodyBudget {
    bytes: Arc<Semaphore>,
    metrics: prometheus::IntGauge,
}

impl BodyBudget {
    pub(super) fn new(bytes: usize, metrics: &Metrics) -> Self {
        let bytes = Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS)));
        Self { bytes, metrics: metrics.body_bytes.clone() }
    }

    fn take(&self, bytes: usize) -> Option<Share> {
        let permit = Arc::clone(&self.bytes).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()?;
        Some(Share { _permit: permit, _gauge: GaugeGuard::by(&self.metrics, bytes as i64) })
    }
}

/// A part of the budget; returned when dropped.
struct Share {
    _permit: OwnedSemaphorePermit,
    _gauge: GaugeGuard,
}

/// A body that has been read. Keep it as long as its bytes are in memory.
pub(super) struct ReadBody {
    pub(super) bytes: Bytes,
    _shares: Vec<Share>,
}

/// Reads a body of at most `limit` bytes. It must be complete at `until`.
pub(super) async fn read(
    app: &App,
    headers: &HeaderMap,
    mut body: Body,
    limit: usize,
    until: Instant,
) -> Result<ReadBody, Problem> {
    let result = timeout_at(until, collect(app, headers, &mut body, limit)).await;
    let problem = match result {
        Ok(Ok(read)) => return Ok(read),
        Ok(Err(problem)) => problem,
        Err(_) => Problem::new(Code::BodyTimeout, "the body did not arrive in time"),
    };
    let _ = timeout(LINGER, discard(body)).await;
    Err(problem)
}

async fn collect(app: &App, headers: &HeaderMap, body: &mut Body, limit: usize) -> Result<ReadBody, Problem> {
    let too_large = || Problem::new(Code::BodyTooLarge, format!("the body is larger than the {limit} bytes accepted"));
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut bytes = BytesMut::with_capacity(declared.unwrap_or_default().min(limit));
    let mut shares = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::new(Code::InvalidRequest, "the body ended before it was complete"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(too_large());
        }
        shares.push(
            app.bodies
                .take(data.len())
                .ok_or(Error::Overloaded { limit: "memory for request bodies", retry_after: Duration::from_secs(1) })?,
        );
        bytes.extend_from_slice(&data);
    }
    Ok(ReadBody { bytes: bytes.freeze(), _shares: shares })
}

async fn discard(mut body: Body) {
    let mut left = LINGER_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        if length > left {
            return;
        }
        left -= length;
    }
}
