//! The middleware of every call: id, span and log line, metrics, panic containment, limits, deadline.
//! `http/middleware` is the same for HTTP.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use futures::FutureExt;
use http::{HeaderMap, HeaderValue};
use tokio::time::{Duration, Instant, timeout};
use tonic::Status;
use tracing::{Instrument, Span};
use uuid::Uuid;

use super::Grpc;
use super::meter::{MessageBounds, Meter, MeteredBody};
use super::wire::MessageLimits;
use crate::config::{RequestLimits, ShedStatus};
use crate::cores::Priority;
use crate::fair_share::{Client, Share};
use crate::preprocess::RequestContext;
use crate::server::oip::{MAX_PARAMETERS, MAX_TENSORS};
use crate::server::problem::Problem;
use crate::server::request::{HANDLER_GRACE, REQUEST_ID, client_of, is_valid_request_id, priority};
use crate::server::retain::{RetainBody, RetainedMemory};
use crate::service::{Code, Error};
use crate::telemetry::{GaugeGuard, Metrics, Stage, rounded_ms, spans};

const TIMEOUT: &str = "grpc-timeout";
const STATUS: &str = "grpc-status";

/// Maximum number of bytes of a message that runs no model: a name, a request for a service's description.
const MAX_METADATA_MESSAGE: usize = 64 << 10;

/// A call as its handler sees it, without the messages.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) start: Instant,
    /// The deadline of the whole call, if the client set one.
    client_deadline: Option<Instant>,
    /// Maximum time for one message.
    max_time: Duration,
    /// The client at the other end of its connection.
    pub(super) client: Client,
    /// The priority in the metadata.
    pub(super) priority: Priority,
    pub(super) meter: Meter,
    pub(super) errors: CallErrors,
    /// The span of reading the message. It ends when the message is complete.
    reading: Span,
}

impl Call {
    /// The deadline of the whole call, if the client set one.
    pub(super) fn client_deadline(&self) -> Option<Instant> {
        self.client_deadline
    }

    /// Records that the message is complete.
    pub(super) fn record_read(&mut self, metrics: &Metrics) {
        self.reading = Span::none();
        metrics.record_stage(Stage::Read, self.start.elapsed());
    }

    /// Client, priority and deadline of a message that came at a certain time.
    pub(super) fn context(&self, came: Instant) -> RequestContext {
        RequestContext { priority: self.priority, client: self.client, deadline: self.deadline(came) }
    }

    /// The deadline of a message that came at a certain time.
    pub(super) fn deadline(&self, came: Instant) -> Instant {
        let latest = came + self.max_time;
        self.client_deadline.map_or(latest, |deadline| deadline.min(latest))
    }
}

/// Turns the problems of a call into statuses.
#[derive(Clone)]
pub(super) struct CallErrors {
    shed: ShedStatus,
    id: Arc<str>,
    metrics: Arc<Metrics>,
}

impl CallErrors {
    /// The status of a problem for the client, counted.
    pub(super) fn status(&self, problem: &Problem) -> Status {
        self.metrics.problems_total.with_label_values(&[problem.code.as_str()]).inc();
        problem.status(self.shed, &self.id)
    }
}

/// Runs a call inside everything that calls have in common.
pub(super) async fn call_middleware(State(grpc): State<Grpc>, mut request: Request, next: Next) -> Response {
    let app = &grpc.app;
    let id = request.headers().get(REQUEST_ID).filter(|id| is_valid_request_id(id)).cloned();
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
    let errors = CallErrors { shed: app.config.load.shed_status, id: text, metrics: Arc::clone(&app.metrics) };
    let name = method.as_ref().map_or_else(|| "unmatched".into(), |method| Arc::clone(&method.name));
    let mut record = CallRecord::begin(&app.metrics, name, span.clone(), traced.clone());

    let response = async {
        let admitted = match &method {
            None => {
                Err(Problem::new(Code::UnknownRoute, "there is no such method; the server's reflection lists them"))
            }
            Some(method) => admit(&grpc, method, &mut request, &errors),
        };
        let slot = match admitted {
            Ok(slot) => slot,
            Err(problem) => return (errors.status(&problem).into_http(), None),
        };
        let run = AssertUnwindSafe(next.run(request)).catch_unwind();
        let response = match timeout(app.config.time.request_timeout + HANDLER_GRACE, run).await {
            Ok(Ok(response)) => response,
            // The panic itself is logged by the process's hook, inside the span.
            Ok(Err(_)) => errors.status(&Error::Internal.into()).into_http(),
            Err(_) => errors.status(&Error::DeadlineExceeded.into()).into_http(),
        };
        (response, slot)
    };
    let (mut response, slot) = response.instrument(traced).instrument(span).await;
    response.headers_mut().insert(REQUEST_ID, id);
    if let Some((_, own)) = identity {
        response.headers_mut().insert(spans::TRACE_RESPONSE, own);
    }
    record.status(response.headers());
    let memory = response.extensions_mut().remove::<RetainedMemory>();
    let end = CallEnd { record, _slot: slot, _memory: memory };
    response.map(|body| RetainBody::observe(body, end, |end, trailers| end.record.status(trailers)))
}

/// What ends with a call, when its answer has been sent: its record first.
struct CallEnd {
    record: CallRecord,
    _slot: Option<Share>,
    _memory: Option<RetainedMemory>,
}

/// Admits a call, as far as that is possible before its first message.
fn admit(
    grpc: &Grpc,
    method: &super::Method,
    request: &mut Request,
    errors: &CallErrors,
) -> Result<Option<Share>, Problem> {
    let app = &grpc.app;
    let start = Instant::now();
    let client_deadline = call_timeout(request.headers())?.map(|timeout| start + timeout);
    let client = client_of(request.extensions());
    let slot = match method.works {
        false => None,
        true => Some(app.requests.acquire(client, || app.service.retry_after())?),
    };
    let (meter, time) = (Meter::new(app.bodies.body(client)), app.config.time);
    let call = Call {
        start,
        client_deadline,
        max_time: time.request_timeout,
        client,
        priority: priority(request.headers()),
        meter: meter.clone(),
        errors: errors.clone(),
        // The client decides when the messages of a stream come.
        reading: if method.streams { Span::none() } else { spans::stage(Stage::Read) },
    };
    if method.works && !method.streams {
        // Which model the message names is not known yet.
        app.service.would_admit(app.service.model(None)?, call.context(start))?;
    }
    let first =
        if method.streams { start + time.idle_timeout } else { call.deadline(start).min(start + time.body_timeout) };
    let message = if method.works { app.config.request.max_multi_body_bytes } else { MAX_METADATA_MESSAGE };
    let bounds = MessageBounds {
        max_bytes: message,
        schema: Arc::clone(&grpc.schema),
        message_type: method.message,
        limits: message_limits(&app.config.request, message),
        message_time: time.body_timeout,
        min_rate: time.min_upload_rate,
        client,
        ingress: app.ingress.clone(),
        idle_time: time.idle_timeout,
        first_deadline: first,
    };
    let body = std::mem::take(request.body_mut());
    *request.body_mut() = Body::new(MeteredBody::new(body, meter, bounds, errors.clone()));
    request.extensions_mut().insert(call);
    Ok(slot)
}

/// The limits on the contents of a message with so many bytes.
fn message_limits(request: &RequestLimits, bytes: usize) -> MessageLimits {
    let blobs = request.max_images_per_request.max(MAX_TENSORS);
    // All tensors in and out with all their parameters would be more, but no client sends that.
    let items = 2 * MAX_TENSORS + 4 * MAX_PARAMETERS;
    // As many numbers as a message of f32 holds.
    MessageLimits { blobs, items, numbers: bytes / 4, unknown: 64, fields: 16 * items + blobs }
}

/// `grpc-timeout`: at most eight digits, and a unit.
fn call_timeout(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
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

/// Counts, times and logs a call when it is dropped, however it ends.
struct CallRecord {
    metrics: Arc<Metrics>,
    method: Arc<str>,
    start: Instant,
    span: Span,
    traced: Span,
    status: Option<tonic::Code>,
    _in_flight: GaugeGuard,
}

impl CallRecord {
    fn begin(metrics: &Arc<Metrics>, method: Arc<str>, span: Span, traced: Span) -> Self {
        let _in_flight = GaugeGuard::one(&metrics.grpc_requests_in_flight);
        Self { metrics: Arc::clone(metrics), method, start: Instant::now(), span, traced, status: None, _in_flight }
    }

    /// Takes the status from headers or trailers, if they have it.
    fn status(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get(STATUS) {
            self.status = Some(tonic::Code::from_bytes(status.as_bytes()));
        }
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        // A call without a status was dropped before its end, because its client disconnected.
        let code = self.status.unwrap_or(tonic::Code::Cancelled);
        self.traced.record("rpc.grpc.status_code", code as i32);
        // OpenTelemetry's rule: errors of the server, not of the client.
        let server_errors =
            [tonic::Code::Unknown, tonic::Code::Internal, tonic::Code::Unavailable, tonic::Code::DataLoss];
        if server_errors.contains(&code) || matches!(code, tonic::Code::DeadlineExceeded | tonic::Code::Unimplemented) {
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
        let (method, duration_ms) = (&*self.method, rounded_ms(took));
        // Probes come every few seconds.
        let quiet = method.starts_with("/grpc.health.") && matches!(code, tonic::Code::Ok | tonic::Code::Cancelled);
        self.span.in_scope(|| match quiet {
            true => tracing::debug!(method, status = name, duration_ms, "call"),
            false => tracing::info!(method, status = name, duration_ms, "call"),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        let of = |value: &'static str| {
            call_timeout(&HeaderMap::from_iter([(
                http::HeaderName::from_static(TIMEOUT),
                HeaderValue::from_static(value),
            )]))
            .ok()
            .flatten()
        };
        assert_eq!(of("250m"), Some(Duration::from_millis(250)));
        assert_eq!(of("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(of("7u"), Some(Duration::from_micros(7)));
        for wrong in ["", "m", "250", "250s", "-1m", "+1m", "123456789m", "1.5S"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        assert!(call_timeout(&HeaderMap::new()).is_ok_and(|timeout| timeout.is_none()));
    }
}
