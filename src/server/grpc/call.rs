//! What surrounds every call: id, span and log line, metrics, panic containment, limits, deadline. What `http/layers.rs` is for
//! HTTP, in gRPC's words.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderMap, HeaderValue};
use http_body::{Frame, SizeHint};
use tokio::time::{Duration, Instant, timeout};
use tonic::Status;
use tracing::{Instrument, Span};
use uuid::Uuid;

use super::Grpc;
use super::meter::{Bounds, Meter, Metered};
use super::wire::Limits;
use crate::config::{RequestLimits, ShedStatus};
use crate::cores::Priority;
use crate::fair_share::{Client, Share};
use crate::preprocess::Origin;
use crate::server::http::layers::{BACKSTOP, REQUEST_ID, sane_request_id};
use crate::server::http::{client, priority};
use crate::server::oip::{MAX_PARAMETERS, MAX_TENSORS};
use crate::server::problem::Problem;
use crate::service::{Code, Error};
use crate::telemetry::{GaugeGuard, Metrics, Stage, spans};

const TIMEOUT: &str = "grpc-timeout";
const STATUS: &str = "grpc-status";

/// What a handler knows of its call beside the message.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) start: Instant,
    /// When the client stops waiting, if it said so.
    asked: Option<Instant>,
    /// For one message.
    longest: Duration,
    /// Whose connection it came over.
    pub(super) client: Client,
    /// By the metadata.
    pub(super) priority: Priority,
    pub(super) meter: Meter,
    pub(super) refusal: Refusal,
    /// Open until the message is there.
    reading: Span,
}

impl Call {
    /// Of the whole call, if the client set one.
    pub(super) fn asked(&self) -> Option<Instant> {
        self.asked
    }

    /// The message is there.
    pub(super) fn has_read(&mut self, metrics: &Metrics) {
        self.reading = Span::none();
        metrics.stage(Stage::Read, self.start.elapsed());
    }

    /// Whose work a message is that came at a certain time.
    pub(super) fn origin(&self, came: Instant) -> Origin {
        Origin { priority: self.priority, client: self.client, deadline: self.deadline(came) }
    }

    /// By when a message that came at a certain time must be answered.
    pub(super) fn deadline(&self, came: Instant) -> Instant {
        let latest = came + self.longest;
        self.asked.map_or(latest, |asked| asked.min(latest))
    }
}

/// How the problems of a call are told.
#[derive(Clone)]
pub(super) struct Refusal {
    shed: ShedStatus,
    id: Arc<str>,
    metrics: Arc<Metrics>,
}

impl Refusal {
    /// The status that a problem is for a client, counted.
    pub(super) fn status(&self, problem: &Problem) -> Status {
        self.metrics.problems_total.with_label_values(&[problem.code.as_str()]).inc();
        problem.status(self.shed, &self.id)
    }
}

/// Something that an answer keeps in memory, for as long as it is being sent.
#[derive(Clone)]
pub(super) struct Kept(#[allow(dead_code)] pub(super) Arc<Share>);

/// Takes a call through everything that calls have in common.
pub(super) async fn around(State(grpc): State<Grpc>, mut request: Request, next: Next) -> Response {
    let app = &grpc.app;
    let id = request.headers().get(REQUEST_ID).filter(|id| sane_request_id(id)).cloned();
    let id = id.unwrap_or_else(|| {
        // A UUID is plain text.
        HeaderValue::try_from(Uuid::new_v4().to_string()).unwrap_or(HeaderValue::from_static("none"))
    });
    let text: Arc<str> = id.to_str().unwrap_or_default().into();
    let method = grpc.methods.get(request.uri().path()).cloned();
    let span = tracing::info_span!("grpc", request_id = &*text, trace_id = tracing::field::Empty);
    let traced = match &method {
        Some(method) if !method.is_probe() => spans::call(&method.name, request.headers()),
        _ => Span::none(),
    };
    traced.record("request_id", &*text);
    let identity = spans::identity(&traced);
    if let Some((trace, _)) = &identity {
        span.record("trace_id", trace);
    }
    let refusal = Refusal { shed: app.config.shed_status, id: text, metrics: Arc::clone(&app.metrics) };
    let name = method.as_ref().map_or_else(|| "unmatched".into(), |method| Arc::clone(&method.name));
    let mut record = Record::begin(&app.metrics, name, span.clone(), traced.clone());

    let response = async {
        let entered = match &method {
            None => {
                Err(Problem::new(Code::UnknownRoute, "there is no such method; the server's reflection lists them"))
            }
            Some(method) => enter(&grpc, method, &mut request, &refusal),
        };
        let permit = match entered {
            Ok(permit) => permit,
            Err(problem) => return (refusal.status(&problem).into_http(), None),
        };
        let run = AssertUnwindSafe(next.run(request)).catch_unwind();
        let response = match timeout(app.config.time.request + BACKSTOP, run).await {
            Ok(Ok(response)) => response,
            // The panic itself is logged by the process's hook, inside the span.
            Ok(Err(_)) => refusal.status(&Error::Internal.into()).into_http(),
            Err(_) => refusal.status(&Error::DeadlineExceeded.into()).into_http(),
        };
        (response, permit)
    };
    let (mut response, permit) = response.instrument(traced).instrument(span).await;
    response.headers_mut().insert(REQUEST_ID, id);
    if let Some((_, own)) = identity {
        response.headers_mut().insert(spans::TRACE_RESPONSE, own);
    }
    record.status(response.headers());
    let kept = response.extensions_mut().remove::<Kept>();
    response.map(|body| Body::new(Observed { body, record, _permit: permit, _kept: kept }))
}

/// Admits a call, as far as that can be done before its first message.
fn enter(
    grpc: &Grpc,
    method: &super::Method,
    request: &mut Request,
    refusal: &Refusal,
) -> Result<Option<Share>, Problem> {
    let app = &grpc.app;
    let start = Instant::now();
    let asked = asked(request.headers())?.map(|wait| start + wait);
    let priority = priority(request.headers());
    let client = client(request.extensions());
    let slot = match method.works {
        false => None,
        true => Some(app.requests.take(client, || app.service.retry_after())?),
    };
    let (meter, time) = (Meter::new(app.bodies.body(client)), app.config.time);
    // The messages of a stream come as the client likes.
    let reading = if method.streams { Span::none() } else { spans::stage(Stage::Read) };
    let (longest, meter_of_call) = (time.request, meter.clone());
    let call =
        Call { start, asked, longest, client, priority, meter: meter_of_call, refusal: refusal.clone(), reading };
    if method.works && !method.streams {
        // Reading a message in order to refuse it would cost the others more than the refusal.
        app.service.would_admit(None, call.origin(start))?;
    }
    let first = if method.streams { start + time.idle } else { call.deadline(start).min(start + time.body) };
    let request_limits = &app.config.request;
    let message = if method.works { request_limits.max_multi_body } else { MAX_QUESTION };
    let bounds = Bounds {
        message,
        schema: Arc::clone(&grpc.schema),
        message_type: method.message,
        limits: limits(request_limits, message),
        body: time.body,
        rate: time.min_upload_rate,
        client,
        ingress: app.ingress.clone(),
        idle: time.idle,
        first,
    };
    let body = std::mem::take(request.body_mut());
    *request.body_mut() = Body::new(Metered::new(body, meter, bounds, refusal.clone()));
    request.extensions_mut().insert(call);
    Ok(slot)
}

/// Bytes of a message that only asks for something: a name, a service's description.
const MAX_QUESTION: usize = 64 << 10;

/// What a message of so many bytes may hold.
fn limits(request: &RequestLimits, bytes: usize) -> Limits {
    let blobs = request.max_images.max(MAX_TENSORS);
    // Every tensor in and out with every parameter would be more; nobody sends that.
    let items = 2 * MAX_TENSORS + 4 * MAX_PARAMETERS;
    // As many as a message of f32 holds.
    Limits { blobs, items, numbers: bytes / 4, unknown: 64, fields: 16 * items + blobs }
}

/// `grpc-timeout`: at most eight digits, and a unit.
fn asked(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
    let Some(value) = headers.get(TIMEOUT) else { return Ok(None) };
    let parse = || {
        let (digits, unit) = value.to_str().ok()?.split_at_checked(value.len().checked_sub(1)?)?;
        let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8 && !digits.starts_with('+'))?;
        Some(match unit {
            "H" => Duration::from_secs(number * 3600),
            "M" => Duration::from_secs(number * 60),
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => return None,
        })
    };
    let wrong = || Problem::new(Code::InvalidParameter, format!("`{TIMEOUT}` must be like 250m, found {value:?}"));
    parse().map(Some).ok_or_else(wrong)
}

/// Counts, times and logs a call when it is over, however it ends.
struct Record {
    metrics: Arc<Metrics>,
    method: Arc<str>,
    start: Instant,
    span: Span,
    traced: Span,
    status: Option<tonic::Code>,
    _in_flight: GaugeGuard,
}

impl Record {
    fn begin(metrics: &Arc<Metrics>, method: Arc<str>, span: Span, traced: Span) -> Self {
        let _in_flight = GaugeGuard::one(&metrics.grpc_requests_in_flight);
        Self { metrics: Arc::clone(metrics), method, start: Instant::now(), span, traced, status: None, _in_flight }
    }

    /// Takes the status from headers or trailers, if it is there.
    fn status(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get(STATUS) {
            self.status = Some(tonic::Code::from_bytes(status.as_bytes()));
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // Dropped before its end: the client went away.
        let code = self.status.unwrap_or(tonic::Code::Cancelled);
        self.traced.record("rpc.grpc.status_code", code as i32);
        // As OpenTelemetry sees it: what is the server's fault, not the client's.
        let own = [tonic::Code::Unknown, tonic::Code::Internal, tonic::Code::Unavailable, tonic::Code::DataLoss];
        if own.contains(&code) || matches!(code, tonic::Code::DeadlineExceeded | tonic::Code::Unimplemented) {
            self.traced.record("otel.status_code", "ERROR");
        }
        let name = match code {
            tonic::Code::Ok => "OK".to_owned(),
            other => format!("{other:?}"),
        };
        let took = self.start.elapsed();
        self.metrics.grpc_requests_total.with_label_values(&[&self.method[..], &name]).inc();
        let seconds = self.metrics.grpc_request_duration_seconds.with_label_values(&[&self.method[..]]);
        seconds.observe(took.as_secs_f64());
        let (method, ms) = (&*self.method, took.as_secs_f64() * 1e3);
        // Probes come every few seconds for ever.
        let quiet = method.starts_with("/grpc.health.") && matches!(code, tonic::Code::Ok | tonic::Code::Cancelled);
        self.span.in_scope(|| match quiet {
            true => tracing::debug!(method, status = name, ms, "call"),
            false => tracing::info!(method, status = name, ms, "call"),
        });
    }
}

/// An answer on its way: its trailers tell how the call ended.
struct Observed {
    body: Body,
    record: Record,
    _permit: Option<Share>,
    _kept: Option<Kept>,
}

impl HttpBody for Observed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            self.record.status(trailers);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        let of = |value: &'static str| {
            asked(&HeaderMap::from_iter([(http::HeaderName::from_static(TIMEOUT), HeaderValue::from_static(value))]))
                .ok()
                .flatten()
        };
        assert_eq!(of("250m"), Some(Duration::from_millis(250)));
        assert_eq!(of("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(of("7u"), Some(Duration::from_micros(7)));
        for wrong in ["", "m", "250", "250s", "-1m", "+1m", "123456789m", "1.5S"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        assert!(asked(&HeaderMap::new()).is_ok_and(|asked| asked.is_none()));
    }
}
