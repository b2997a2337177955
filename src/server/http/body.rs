//! Reading a request's body: within its limit, within its time, within what all bodies together may hold.

use std::sync::Arc;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Duration, Instant, timeout_at};

use super::App;
use crate::server::problem::Problem;
use crate::service::{Code, Error};
use crate::telemetry::{GaugeGuard, Metrics};

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

    fn share(&self) -> Share {
        Share { budget: self.clone(), permit: None, gauge: GaugeGuard::by(&self.metrics, 0) }
    }
}

/// A part of the budget; returned when dropped.
struct Share {
    budget: BodyBudget,
    permit: Option<OwnedSemaphorePermit>,
    gauge: GaugeGuard,
}

impl Share {
    /// Grows by some bytes; false if the budget has no more.
    fn grow(&mut self, bytes: usize) -> bool {
        let Ok(count) = u32::try_from(bytes) else { return false };
        let Ok(more) = Arc::clone(&self.budget.bytes).try_acquire_many_owned(count) else { return false };
        match &mut self.permit {
            // One permit, however small the pieces: a body of one-byte chunks must not cost more than its bytes.
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        self.gauge.grow(bytes as i64);
        true
    }
}

/// A body that has been read. Keep it as long as its bytes are in memory.
pub(super) struct ReadBody {
    pub(super) bytes: Bytes,
    _share: Share,
}

/// Reads a body of at most `limit` bytes. It must be complete at `until`.
pub(super) async fn read(
    app: &App,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    until: Instant,
) -> Result<ReadBody, Problem> {
    let result = timeout_at(until, collect(app, headers, body, limit)).await;
    result.unwrap_or_else(|_| Err(Problem::new(Code::BodyTimeout, "the body did not arrive in time")))
}

async fn collect(app: &App, headers: &HeaderMap, mut body: Body, limit: usize) -> Result<ReadBody, Problem> {
    let too_large = || Problem::new(Code::BodyTooLarge, format!("the body is larger than the {limit} bytes accepted"));
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut bytes = BytesMut::with_capacity(declared.unwrap_or_default().min(limit));
    let mut share = app.bodies.share();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::new(Code::InvalidRequest, "the body ended before it was complete"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(too_large());
        }
        if !share.grow(data.len()) {
            let retry_after = Duration::from_secs(1);
            return Err(Error::Overloaded { limit: "memory for request bodies", retry_after }.into());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(ReadBody { bytes: bytes.freeze(), _share: share })
}
