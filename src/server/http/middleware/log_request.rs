//! The span, the log line and the metrics of a request.

use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderValue, Method, Version, header};
use tower_http::request_id::RequestId;
use tracing::{Instrument, Span};

use super::errors::write_error;
use crate::server::app::App;
use crate::server::request::REQUEST_ID;
use crate::server::shutdown::Phase;
use crate::service::Code;
use crate::telemetry::{GaugeGuard, rounded_ms, spans};

/// A request as it is recorded.
struct RequestRecord {
    start: Instant,
    /// Its span in the trace.
    traced: Span,
    method: Method,
    path: String,
    /// The pattern that its path matches.
    route: String,
    version: Version,
    id: String,
}

impl RequestRecord {
    fn start(request: &Request) -> Self {
        let start = Instant::now();
        let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str);
        let id = request.extensions().get::<RequestId>().and_then(|id| id.header_value().to_str().ok()).unwrap_or("");
        let traced = match is_probe(route) {
            true => Span::none(),
            false => spans::request(request.method(), route, request.uri().path(), request.headers()),
        };
        Self {
            start,
            traced,
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            route: route.to_owned(),
            version: request.version(),
            id: id.to_owned(),
        }
    }

    /// Records an answer in the trace, the metrics and the log.
    fn finish(self, app: &App, response: &Response, code: Option<Code>) {
        let Self { start, traced, method, path, route, .. } = self;
        let took = start.elapsed();
        let status = response.status().as_u16();
        let code = code.map(Code::as_str);
        traced.record("http.response.status_code", status);
        if let Some(code) = code {
            traced.record("error.type", code);
        }
        if status >= 500 {
            traced.record("otel.status_code", "ERROR");
        }
        app.metrics.http_requests_total.with_label_values(&[&route[..], response.status().as_str()]).inc();
        app.metrics.http_request_duration_seconds.with_label_values(&[&route[..]]).observe(took.as_secs_f64());
        let duration_ms = rounded_ms(took);
        if is_probe(&route) && status < 400 {
            tracing::debug!(%method, path, status, duration_ms, "request");
        } else {
            tracing::info!(%method, path, status, code, duration_ms, "request");
        }
    }
}

/// Whether a route is for scrapes or probes. They come every few seconds: they are not traced, and logged at the
/// level debug.
fn is_probe(route: &str) -> bool {
    matches!(route, "/metrics" | "/livez" | "/readyz" | "/v2/health/live" | "/v2/health/ready")
}

/// The span of a request in the log.
pub(super) fn span(request: &http::Request<Body>) -> Span {
    let id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    tracing::info_span!("http", request_id = id, trace_id = tracing::field::Empty)
}

/// Counts, times, traces and logs a request. Also finishes its answer: it writes the body of an error, and closes the
/// connection of a server that drains. Both need the head of the request.
pub(super) async fn log_request(State(app): State<App>, request: Request, next: Next) -> Response {
    let _in_flight = GaugeGuard::one(&app.metrics.http_requests_in_flight);
    let record = RequestRecord::start(&request);
    let identity = spans::identity(&record.traced);
    record.traced.record("request_id", &record.id);
    if let Some((trace, _)) = &identity {
        Span::current().record("trace_id", trace);
    }

    let abandoned = Abandoned(Some(app.metrics.http_requests_abandoned_total.with_label_values(&[&record.route[..]])));
    let mut response = next.run(request).instrument(record.traced.clone()).await;
    abandoned.answered();

    let code = write_error(&app, &record.path, &record.id, &mut response);
    if app.lifecycle.phase() > Phase::Running && record.version < Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some((_, own)) = identity {
        response.headers_mut().insert(spans::TRACE_RESPONSE, own);
    }
    record.finish(&app, &response, code);
    response
}

/// Counts a request as abandoned if it is dropped before it has an answer: hyper drops it when its client disconnects.
struct Abandoned(Option<prometheus::IntCounter>);

impl Abandoned {
    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(counter) = &self.0 {
            counter.inc();
            tracing::info!("the client disconnected before the answer");
        }
    }
}
