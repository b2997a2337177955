//! Reads a request's body within its size limit, its time limit, and the memory for all bodies.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::time::{Duration, Instant, sleep_until, timeout_at};

use crate::fair_share::Client;
use crate::preprocess::RequestContext;
use crate::server::app::App;
use crate::server::budget::BodyMemory;
use crate::server::encode::run_by_cost;
use crate::server::pace::Pace;
use crate::server::problem::Problem;
use crate::service::Code;

/// Parses a JSON object. serde alone would also accept an array of a struct's fields, whose order is not documented.
pub(super) fn json_object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, serde_json::Error> {
    match json.trim_ascii_start().first() {
        Some(b'{') => serde_json::from_slice(json),
        _ => Err(serde::de::Error::custom("not an object")),
    }
}

/// A body that has been read. It is dropped when its bytes are not in memory any more.
pub(super) struct ReadBody {
    pub(super) bytes: Bytes,
    /// The memory of the body and of everything that is made of it.
    pub(super) memory: BodyMemory,
}

/// The limits of a body.
#[derive(Clone, Copy)]
pub(super) struct BodyBounds {
    /// Maximum number of bytes.
    pub(super) limit: usize,
    /// The time at which it must be complete.
    pub(super) until: Instant,
}

/// Maximum number of bytes that are allocated for a body before any of it has arrived: a client that declares
/// megabytes has not sent them yet.
const FIRST_ALLOCATION: usize = 256 << 10;

/// Reads a body.
pub(super) async fn read_body(
    app: &App,
    client: Client,
    headers: &HeaderMap,
    body: Body,
    bounds: BodyBounds,
) -> Result<ReadBody, Problem> {
    let limit = bounds.limit;
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > limit) {
        return Err(too_large(limit));
    }
    let mut bytes = BytesMut::with_capacity(declared.unwrap_or_default().min(FIRST_ALLOCATION));
    let mut memory = app.bodies.body(client);
    let mut pace = Pace::new(app.config.time.min_upload_rate);
    let mut body = body;
    loop {
        let due = bounds.until.min(pace.next_due());
        let Ok(frame) = timeout_at(due, body.frame()).await else {
            return Err(match due < bounds.until {
                true => pace.too_slow(),
                false => Problem::new(Code::BodyTimeout, "the body did not arrive in time"),
            });
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|_| Problem::new(Code::InvalidRequest, "the body ended before it was complete"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(too_large(limit));
        }
        memory.grow(data.len())?;
        pace.received(data.len());
        bytes.extend_from_slice(&data);
        let wait = app.ingress.received(client, data.len());
        if !wait.is_zero() {
            sleep_until(bounds.until.min(Instant::now() + wait)).await;
        }
    }
    Ok(ReadBody { bytes: bytes.freeze(), memory })
}

fn too_large(limit: usize) -> Problem {
    Problem::new(Code::BodyTooLarge, format!("the body is larger than the {limit} bytes accepted"))
}

/// Runs `parse` on what came in a body of so many bytes: on a core if the body is large.
pub(super) async fn parse_body<O: Send + 'static>(
    app: &App,
    bytes: usize,
    context: RequestContext,
    parse: impl FnOnce() -> Result<O, Problem> + Send + 'static,
) -> Result<O, Problem> {
    let cost = (bytes > LARGE_BODY).then(|| PARSE_BYTE * bytes as u32);
    run_by_cost(app, context, cost, parse).await?
}

/// Bytes of a body above which it is parsed on a core. Parsing takes milliseconds then, which would hold up the
/// threads that serve connections.
const LARGE_BODY: usize = 256 << 10;

/// Time for parsing one byte: 5 to 10 ns for numbers in JSON, less for base64 and forms.
const PARSE_BYTE: Duration = Duration::from_nanos(5);
