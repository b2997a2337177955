//! Reading a request's body: within its limit, within its time, within what all bodies together may hold.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use crate::server::app::App;
use crate::server::budget::Share;
use crate::server::problem::Problem;
use crate::service::Code;

/// Reads a JSON object. serde also takes an array for a struct, by the order of its fields, which nobody has been told.
pub(super) fn json_object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, serde_json::Error> {
    match json.trim_ascii_start().first() {
        Some(b'{') => serde_json::from_slice(json),
        _ => Err(serde::de::Error::custom("not an object")),
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
        share.grow(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok(ReadBody { bytes: bytes.freeze(), _share: share })
}
