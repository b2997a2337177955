//! Reading a request's body: within its limit, within its time, within what all bodies together may hold.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{Extensions, HeaderMap, header};
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::time::{Duration, Instant, sleep_until, timeout_at};

use crate::fair_share::Client;
use crate::preprocess::Origin;
use crate::server::app::App;
use crate::server::budget::BodyMemory;
use crate::server::pace::Pace;
use crate::server::problem::Problem;
use crate::service::Code;

/// Reads a JSON object. serde also takes an array for a struct, by the order of its fields, which nobody has been told.
pub(super) fn json_object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, serde_json::Error> {
    match json.trim_ascii_start().first() {
        Some(b'{') => serde_json::from_slice(json),
        _ => Err(serde::de::Error::custom("not an object")),
    }
}

/// The client at the other end of a request's connection.
pub(in crate::server) fn client(extensions: &Extensions) -> Client {
    // Every connection says so; a request without one was made inside the process.
    extensions.get::<Client>().copied().unwrap_or(Client::LOCAL)
}

/// A body that has been read. Keep it as long as its bytes are in memory.
pub(super) struct ReadBody {
    pub(super) bytes: Bytes,
    /// What it and all that is made of it takes.
    pub(super) memory: BodyMemory,
}

/// What a body may be.
#[derive(Clone, Copy)]
pub(super) struct BodyBounds {
    /// Bytes.
    pub(super) limit: usize,
    /// When it must be complete.
    pub(super) until: Instant,
}

/// What is allocated for a body before any of it is there, at most. A client that declares megabytes has not sent them yet.
const FIRST_ALLOCATION: usize = 256 << 10;

/// Reads a body.
pub(super) async fn read(
    app: &App,
    (client, headers): (Client, &HeaderMap),
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
        let by = bounds.until.min(pace.next_due());
        let Ok(frame) = timeout_at(by, body.frame()).await else {
            return Err(match by < bounds.until {
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

/// Parses what came in a body of so many bytes. A large one takes milliseconds, which must not hold up the threads that serve
/// connections: it waits for its turn, as decoding does.
pub(super) async fn off_the_runtime<O: Send + 'static>(
    app: &App,
    bytes: usize,
    origin: Origin,
    parse: impl FnOnce() -> Result<O, Problem> + Send + 'static,
) -> Result<O, Problem> {
    match bytes > LARGE_BODY {
        true => app.service.off_the_runtime(origin, PARSE_BYTE * bytes as u32, parse).await?,
        false => parse(),
    }
}

/// Bodies up to this size are parsed where they were read.
const LARGE_BODY: usize = 256 << 10;

/// What parsing a byte takes: of numbers in JSON 5 to 10 ns, of base64 and forms less.
const PARSE_BYTE: Duration = Duration::from_nanos(5);
