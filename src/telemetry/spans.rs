//! The spans of a trace: one for a request or a call, one for each image and each stage in it, one for each batch.
//!
//! They are `tracing` spans of a target of their own, [`TARGET`]: the log leaves them out, and without an exporter
//! ([`super::traces`]) they are disabled where they are made and cost a comparison. Names and attributes are OpenTelemetry's
//! semantic conventions where those have them.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TraceContextExt;
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::field::Empty;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::Stage;

/// The target of all spans that are traced.
pub(crate) const TARGET: &str = "ghostserve::trace";

/// On answers: the span that the server made of the request, as W3C's Trace Context (level 2) writes it.
pub(crate) const TRACE_RESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// An HTTP request. `route` is the pattern, not the path.
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
    adopt(&span, headers);
    span
}

/// A gRPC call; `method` is `/package.Service/Method`.
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
    adopt(&span, headers);
    span
}

/// One image of a request, the first being 0.
pub(crate) fn image(index: usize) -> Span {
    info_span!(target: TARGET, "image", "image.index" = index)
}

/// An image waits for one of the cores before it is decoded.
pub(crate) fn wait_for_core() -> Span {
    info_span!(target: TARGET, "wait_for_core")
}

/// A stage of the request, or of the image, whose span is the current one.
pub(crate) fn stage(stage: Stage) -> Span {
    match stage {
        Stage::Read => info_span!(target: TARGET, "read"),
        Stage::Decode => info_span!(target: TARGET, "decode"),
        Stage::Resize => info_span!(target: TARGET, "resize"),
        Stage::Queue => info_span!(target: TARGET, "queue"),
        Stage::Infer => info_span!(target: TARGET, "infer"),
        Stage::Encode => info_span!(target: TARGET, "encode"),
        // The request's own span.
        Stage::Total => Span::none(),
    }
}

/// A run of the model for images of several requests: a trace of its own, linked to each of them and they to it.
pub(crate) struct Batch {
    span: Span,
    images: Vec<Span>,
}

impl Batch {
    /// Begins a run for the images whose spans are given.
    pub(crate) fn begin<'a>(images: impl ExactSizeIterator<Item = &'a Span>) -> Self {
        let span = info_span!(target: TARGET, parent: None, "batch", "batch.size" = images.len());
        if span.is_disabled() {
            return Self { span, images: Vec::new() };
        }
        // Links come first: whether the batch is sampled depends on them.
        let images: Vec<_> = images.collect();
        images.iter().for_each(|image| {
            span.follows_from(*image);
        });
        let infer = |image: &&Span| {
            let infer = info_span!(target: TARGET, parent: *image, "infer");
            infer.follows_from(&span);
            infer
        };
        let images = images.iter().map(infer).collect();
        Self { span, images }
    }

    /// The model failed.
    pub(crate) fn failed(&self) {
        for span in self.images.iter().chain([&self.span]) {
            span.set_status(opentelemetry::trace::Status::error("the model failed"));
        }
    }
}

/// Makes the caller's span, if the headers name one, the parent.
fn adopt(span: &Span, headers: &HeaderMap) {
    if !span.is_disabled() {
        let context = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
        // A span that was only just made has no parent yet.
        let _ = span.set_parent(context);
    }
}

/// The trace's id, and what [`TRACE_RESPONSE`] says; nothing of a span that is not traced.
pub(crate) fn identity(span: &Span) -> Option<(String, HeaderValue)> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let span = context.span();
    let own = span.span_context();
    let trace = own.is_valid().then(|| own.trace_id().to_string())?;
    let value = format!("00-{trace}-{}-{:02x}", own.span_id(), own.trace_flags().to_u8());
    Some((trace, HeaderValue::try_from(value).ok()?))
}
