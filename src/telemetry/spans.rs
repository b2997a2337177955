//! The spans of traces: one per request or call, one per image and per stage of it, one per batch.
//!
//! They are `tracing` spans with the target [`TARGET`]. The log omits them. Without an exporter ([`super::traces`])
//! they are disabled where they are created and cost one comparison. Names and attributes follow OpenTelemetry's
//! semantic conventions where these define them.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TraceContextExt;
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::field::Empty;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::Stage;

/// The `tracing` target of all spans that are exported.
pub(crate) const TARGET: &str = "ghostserve::trace";

/// Response header with the server's span of the request, in the format of W3C Trace Context (level 2).
pub(crate) const TRACE_RESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// Span of an HTTP request. `route` is the route pattern, `path` the requested path.
pub(crate) fn request(method: &http::Method, route: &str, path: &str, headers: &HeaderMap) -> Span {
    let span = info_span!(
        target: TARGET,
        "request",
        "otel.name" = %format_args!("{method} {route}"),
        "otel.kind" = "server",
        "otel.status_code" = Empty,
        "http.request.method" = %method,
        "http.route" = route,
        "http.response.status_code" = Empty,
        "url.path" = path,
        "error.type" = Empty,
        request_id = Empty,
    );
    set_parent_from(&span, headers);
    span
}

/// Span of a gRPC call. `method` is `/package.Service/Method`.
pub(crate) fn call(method: &str, headers: &HeaderMap) -> Span {
    let name = method.trim_start_matches('/');
    let (service, method) = name.rsplit_once('/').unwrap_or(("", name));
    let span = info_span!(
        target: TARGET,
        "call",
        "otel.name" = name,
        "otel.kind" = "server",
        "otel.status_code" = Empty,
        "rpc.system" = "grpc",
        "rpc.service" = service,
        "rpc.method" = method,
        "rpc.grpc.status_code" = Empty,
        request_id = Empty,
    );
    set_parent_from(&span, headers);
    span
}

/// Span of one image of a request. The first image has index 0.
pub(crate) fn image(index: usize) -> Span {
    info_span!(target: TARGET, "image", "image.index" = index)
}

/// Span of an image's wait for a core before it is decoded.
pub(crate) fn wait_for_core() -> Span {
    info_span!(target: TARGET, "wait_for_core")
}

/// Span of a stage; a child of the current span, which is that of a request or an image.
pub(crate) fn stage(stage: Stage) -> Span {
    match stage {
        Stage::Read => info_span!(target: TARGET, "read"),
        Stage::Decode => info_span!(target: TARGET, "decode"),
        Stage::Resize => info_span!(target: TARGET, "resize"),
        Stage::Queue => info_span!(target: TARGET, "queue"),
        Stage::Infer => info_span!(target: TARGET, "infer"),
        Stage::Encode => info_span!(target: TARGET, "encode"),
        // The span of the request covers it.
        Stage::Total => Span::none(),
    }
}

/// Spans of one run of the model for images of several requests. The run is the root of a separate trace, which links
/// to each image's span; a span `infer` below each of these links back.
pub(crate) struct BatchSpan {
    span: Span,
    /// The span `infer` of each image.
    infer: Vec<Span>,
}

impl BatchSpan {
    /// Starts the span of a run for images with the given spans.
    pub(crate) fn begin<'a>(images: impl ExactSizeIterator<Item = &'a Span>) -> Self {
        let span = info_span!(target: TARGET, parent: None, "batch", "batch.size" = images.len());
        if span.is_disabled() {
            return Self { span, infer: Vec::new() };
        }
        // The links are set first: the sampler decides by them.
        let images: Vec<_> = images.collect();
        images.iter().for_each(|image| {
            span.follows_from(*image);
        });
        let infer_span = |image: &&Span| {
            let child = info_span!(target: TARGET, parent: *image, "infer");
            child.follows_from(&span);
            child
        };
        let infer = images.iter().map(infer_span).collect();
        Self { span, infer }
    }

    /// Marks all spans as failed.
    pub(crate) fn failed(&self) {
        for span in self.infer.iter().chain([&self.span]) {
            span.set_status(opentelemetry::trace::Status::error("the model failed"));
        }
    }
}

/// Makes the caller's span the parent, if the headers contain one.
fn set_parent_from(span: &Span, headers: &HeaderMap) {
    if !span.is_disabled() {
        let context = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
        // Fails if the span has already started; this one is new.
        let _ = span.set_parent(context);
    }
}

/// The trace id of a span and its value of [`TRACE_RESPONSE`]; `None` if the span is not traced.
pub(crate) fn identity(span: &Span) -> Option<(String, HeaderValue)> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let span = context.span();
    let span = span.span_context();
    let trace = span.is_valid().then(|| span.trace_id().to_string())?;
    let value = format!("00-{trace}-{}-{:02x}", span.span_id(), span.trace_flags().to_u8());
    Some((trace, HeaderValue::try_from(value).ok()?))
}
