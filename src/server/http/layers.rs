//! What surrounds every handler, from the outside in: request ids, the span and the log line, metrics, error bodies,
//! panic containment, compression, the last-resort timeout; and load shedding around `/v1`.
//!
//! Bodies are limited where they are read ([`super::body`]), by kind: one image, or several.

use std::any::Any;
use std::time::{Duration, Instant};

use axum::error_handling::HandleErrorLayer;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{BoxError, Router};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use tower::ServiceBuilder;
use tower::timeout::TimeoutLayer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::set_header::SetResponseHeaderLayer;
use tower_http::trace::TraceLayer;
use tracing::Instrument;

use super::body::client;
use super::linger::linger;
use crate::server::app::App;
use crate::server::problem::Problem;
use crate::server::shutdown::Phase;
use crate::service::Error;
use crate::telemetry::{GaugeGuard, spans};

pub(in crate::server) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longer ids from clients are replaced: they stand on every log line.
const MAX_REQUEST_ID: usize = 128;
/// Answers below this gain nothing from compression.
const COMPRESS_ABOVE: u64 = 1024;
/// On an answer that is not worth compressing.
#[derive(Clone, Copy)]
pub(super) struct Uncompressed;

/// What a handler should have noticed itself is cut off this much later.
pub(in crate::server) const BACKSTOP: Duration = Duration::from_secs(1);

/// Sheds requests past the bound on requests in flight, before their body is read.
pub(super) fn shed_past(routes: Router<App>, app: &App) -> Router<App> {
    routes.route_layer(from_fn_with_state(app.clone(), take_slot))
}

async fn take_slot(State(app): State<App>, request: Request, next: Next) -> Result<Response, Problem> {
    let client = client(request.extensions());
    // Held until the handler is done; what is left of the answer then has bounds of its own.
    let _slot = app.requests.take(client, || app.service.retry_after())?;
    Ok(next.run(request).await)
}

/// Puts the common layers around all routes.
pub(super) fn around(routes: Router<App>, app: &App) -> Router<App> {
    let constant =
        |name: HeaderName, value| SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value));
    let late = async |_: BoxError| Problem::from(Error::DeadlineExceeded);
    let may_be =
        |_: StatusCode, _: Version, _: &HeaderMap, extensions: &Extensions| extensions.get::<Uncompressed>().is_none();
    let compress = SizeAbove::new(COMPRESS_ABOVE).and(NotForContentType::IMAGES).and(may_be);

    let inner = ServiceBuilder::new()
        .layer(CatchPanicLayer::custom(panicked))
        .layer(CompressionLayer::new().compress_when(compress))
        .layer(HandleErrorLayer::new(late))
        .layer(TimeoutLayer::new(app.config.time.request + BACKSTOP));
    let outer = ServiceBuilder::new()
        .map_request(drop_odd_request_id)
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(SetSensitiveRequestHeadersLayer::new([header::AUTHORIZATION, header::COOKIE]))
        .layer(TraceLayer::new_for_http().make_span_with(span).on_request(()).on_response(()).on_failure(()))
        .layer(constant(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(constant(header::X_FRAME_OPTIONS, "DENY"))
        .layer(constant(header::REFERRER_POLICY, "no-referrer"))
        .layer(constant(header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"))
        .layer(constant(header::CACHE_CONTROL, "no-store"))
        .layer(from_fn_with_state(app.clone(), observe))
        .layer(from_fn_with_state(app.clone(), linger));
    routes.layer(inner).layer(outer)
}

/// Counts, times and logs a request; writes the body of an error; ends kept-alive connections of a draining server.
async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let _in_flight = GaugeGuard::one(&app.metrics.http_requests_in_flight);
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let version = request.version();
    let id =
        request.extensions().get::<RequestId>().and_then(|id| id.header_value().to_str().ok()).unwrap_or("").to_owned();

    let traced = match is_probe(&route) {
        true => tracing::Span::none(),
        false => spans::request(&method, &route, &path, request.headers()),
    };
    let identity = spans::identity(&traced);
    traced.record("request_id", &id);
    if let Some((trace, _)) = &identity {
        tracing::Span::current().record("trace_id", trace);
    }

    let abandoned = Abandoned(Some(app.metrics.http_requests_abandoned_total.with_label_values(&[&route[..]])));
    let mut response = next.run(request).instrument(traced.clone()).await;
    abandoned.answered();

    let problem = response.extensions_mut().remove::<Problem>().or_else(|| {
        let status = response.status();
        (status.is_client_error() || status.is_server_error()).then(|| Problem::of_status(status))
    });
    if let Some(problem) = &problem {
        app.metrics.problems_total.with_label_values(&[problem.code.as_str()]).inc();
        let shed = app.config.shed_status;
        let rendered = if is_oip(&path) { problem.render_oip(shed) } else { problem.render(shed, &id) };
        // Headers of the original that still mean something.
        let allow = response.headers_mut().remove(header::ALLOW);
        response = rendered;
        response.headers_mut().extend(allow.map(|allow| (header::ALLOW, allow)));
    }
    if app.lifecycle.phase() > Phase::Running && version < Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }

    if let Some((_, own)) = identity {
        response.headers_mut().insert(spans::TRACE_RESPONSE, own);
    }

    let took = start.elapsed();
    let status = response.status().as_u16();
    traced.record("http.response.status_code", status);
    if let Some(problem) = &problem {
        traced.record("error.type", problem.code.as_str());
    }
    if status >= 500 {
        traced.record("otel.status_code", "ERROR");
    }
    app.metrics.http_requests_total.with_label_values(&[&route[..], response.status().as_str()]).inc();
    app.metrics.http_request_duration_seconds.with_label_values(&[&route[..]]).observe(took.as_secs_f64());
    let code = problem.as_ref().map(|p| p.code.as_str());
    let ms = took.as_secs_f64() * 1e3;
    if is_probe(&route) && status < 400 {
        tracing::debug!(%method, path, status, ms, "request");
    } else {
        tracing::info!(%method, path, status, code, ms, "request");
    }
    response
}

/// Scrapes and probes come every few seconds for ever.
fn is_probe(route: &str) -> bool {
    matches!(route, "/metrics" | "/livez" | "/readyz" | "/v2/health/live" | "/v2/health/ready")
}

/// Counts a request as abandoned if it is dropped before it has an answer: hyper does that when its client is gone.
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
            tracing::info!("the client went away before the answer");
        }
    }
}

fn span(request: &http::Request<axum::body::Body>) -> tracing::Span {
    let id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    tracing::info_span!("http", request_id = id, trace_id = tracing::field::Empty)
}

/// A client's id is taken over if it can stand in a log.
fn drop_odd_request_id<B>(mut request: http::Request<B>) -> http::Request<B> {
    if request.headers().get(REQUEST_ID).is_some_and(|id| !sane_request_id(id)) {
        request.headers_mut().remove(REQUEST_ID);
    }
    request
}

pub(in crate::server) fn sane_request_id(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    (1..=MAX_REQUEST_ID).contains(&bytes.len()) && bytes.iter().all(|b| b.is_ascii_graphic())
}

/// Whether a path is the Open Inference Protocol's, which has errors of another form.
fn is_oip(path: &str) -> bool {
    path.strip_prefix("/v2").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The panic itself is logged by the process's hook, inside the request's span.
fn panicked(_: Box<dyn Any + Send>) -> Response {
    Problem::from(Error::Internal).into_response()
}
