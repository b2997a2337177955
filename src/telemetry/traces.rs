//! Traces for OpenTelemetry: exports the spans of `telemetry::spans` to a collector by OTLP. Off unless an endpoint is
//! configured.
//!
//! The SDK's own thread sends the spans in batches. If the collector is slow or unreachable, spans are dropped;
//! requests are not affected. The SDK itself reads the environment variables that OpenTelemetry specifies
//! (`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_*`).

use std::future::Future;
use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId, TraceState, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig, tonic_types,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, SdkTracer, SdkTracerProvider, ShouldSample};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

/// Path to which traces are posted, relative to an HTTP endpoint.
const TRACES_PATH: &str = "/v1/traces";
/// Time allowed for a collector's response, and for the last spans when the server stops.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest length of a collector's response that is read, bytes. The usual response has a few bytes.
const MAX_RESPONSE: u64 = 64 << 10;

/// Settings of the export.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceConfig {
    /// Address of the collector without a path: `http://collector:4318`.
    pub endpoint: String,
    /// Transport to the collector.
    pub protocol: OtlpProtocol,
    /// Fraction of requests to trace, 0 to 1, of those whose callers have not decided; `None` for the sampler that the
    /// environment names, or all requests.
    pub ratio: Option<f64>,
    /// Name of the service in traces.
    pub service: String,
}

/// A transport of OTLP. Value names are those of `OTEL_EXPORTER_OTLP_PROTOCOL`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OtlpProtocol {
    /// Protobuf over HTTP; collectors listen on port 4318.
    #[default]
    #[value(name = "http/protobuf")]
    Http,
    /// gRPC; collectors listen on port 4317.
    Grpc,
}

/// The reason why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum TraceExporterError {
    /// The endpoint is not an HTTP address.
    #[error("`{0}` is no address of a collector; expected one like http://collector:4318")]
    Endpoint(String),
    /// The ratio is not between 0 and 1.
    #[error("the part of the requests that is traced must be between 0 and 1, found {0}")]
    Ratio(f64),
    /// The OpenTelemetry SDK rejects the settings.
    #[error(transparent)]
    Exporter(#[from] ExporterBuildError),
}

/// The exporter of traces. [`TraceExporter::end`] sends the remaining spans.
#[derive(Debug)]
pub struct TraceExporter {
    provider: SdkTracerProvider,
}

impl TraceExporter {
    /// Starts the exporter. The collector need not be reachable yet. [`OtlpProtocol::Grpc`] needs a tokio runtime that
    /// lives as long as the exporter.
    ///
    /// # Errors
    /// A setting cannot be used.
    pub fn start(config: &TraceConfig) -> Result<Self, TraceExporterError> {
        let endpoint = config.endpoint.trim_end_matches('/');
        let uri = endpoint.parse::<Uri>().ok();
        if !uri.is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()) {
            return Err(TraceExporterError::Endpoint(config.endpoint.clone()));
        }
        if let Some(ratio) = config.ratio.filter(|ratio| !(0.0..=1.0).contains(ratio)) {
            return Err(TraceExporterError::Ratio(ratio));
        }
        let exporter = match config.protocol {
            OtlpProtocol::Http => SpanExporter::builder()
                .with_http()
                .with_http_client(OtlpHttpClient::new())
                .with_protocol(Protocol::HttpBinary)
                .with_endpoint(format!("{endpoint}{TRACES_PATH}"))
                .with_timeout(TIMEOUT)
                .build()?,
            OtlpProtocol::Grpc => {
                let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(TIMEOUT);
                match endpoint.starts_with("https:") {
                    true => {
                        exporter.with_tls_config(tonic_types::transport::ClientTlsConfig::new().with_enabled_roots())
                    }
                    false => exporter,
                }
                .build()?
            }
        };
        let resource = Resource::builder()
            .with_service_name(config.service.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource);
        // Without a sampler, the SDK takes the one that the environment names, by default one that samples all.
        let provider = match config.ratio {
            Some(ratio) => {
                let by_ratio = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio)));
                provider.with_sampler(BatchLinkSampler(by_ratio))
            }
            None => provider,
        };
        Ok(Self { provider: provider.build() })
    }

    pub(super) fn tracer(&self) -> SdkTracer {
        self.provider.tracer("ghostserve")
    }

    /// Sends the remaining spans; takes at most five seconds.
    pub fn end(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(TIMEOUT) {
            tracing::warn!(%error, "the last traces may be lost");
        }
    }
}

/// A sampler that samples a batch exactly if one of its images is sampled, so that the link from an image's trace to
/// the batch leads to an exported span. It delegates every other decision to the inner sampler.
#[derive(Clone, Debug)]
struct BatchLinkSampler<S>(S);

impl<S: ShouldSample + Clone + 'static> ShouldSample for BatchLinkSampler<S> {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let is_root = parent.is_none_or(|parent| !parent.has_active_span());
        if !is_root || links.is_empty() {
            return self.0.should_sample(parent, trace, name, kind, attributes, links);
        }
        let sampled = links.iter().any(|link| link.span_context.is_sampled());
        let decision = if sampled { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop };
        SamplingResult { decision, attributes: Vec::new(), trace_state: TraceState::default() }
    }
}

/// HTTP client of the exporter: `ureq`, as the hub's client, blocking on the exporter's own thread.
#[derive(Debug)]
struct OtlpHttpClient(ureq::Agent);

impl OtlpHttpClient {
    fn new() -> Self {
        // As for the hub: the system's certificates, and an explicit provider, as the process has no default one.
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("ghostserve/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            // A collector is usually in the same network; the proxies of the environment apply to the hub.
            .proxy(None)
            .timeout_global(Some(TIMEOUT))
            .build();
        Self(config.new_agent())
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let (parts, response) = self.0.run(Request::from_parts(parts, &body[..]))?.into_parts();
        let mut body = Vec::new();
        response.into_reader().take(MAX_RESPONSE).read_to_end(&mut body)?;
        Ok(Response::from_parts(parts, body.into()))
    }
}

impl HttpClient for OtlpHttpClient {
    fn send_bytes<'s, 'f>(
        &'s self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(std::future::ready(self.send(request)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags};

    fn link(sampled: bool) -> Link {
        let flags = if sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
        let context = SpanContext::new(TraceId::from(7), SpanId::from(7), flags, true, TraceState::default());
        Link::with_context(context)
    }

    #[test]
    fn a_batch_is_sampled_if_one_of_its_images_is() {
        let decide = |sampler: Sampler, links: &[Link]| {
            let sampler = BatchLinkSampler(sampler);
            sampler.should_sample(None, TraceId::from(1), "batch", &SpanKind::Internal, &[], links).decision
        };
        assert_eq!(decide(Sampler::AlwaysOff, &[link(false), link(true)]), SamplingDecision::RecordAndSample);
        assert_eq!(decide(Sampler::AlwaysOn, &[link(false)]), SamplingDecision::Drop);
        assert_eq!(decide(Sampler::AlwaysOn, &[]), SamplingDecision::RecordAndSample);
        assert_eq!(decide(Sampler::AlwaysOff, &[]), SamplingDecision::Drop);
    }

    #[test]
    fn invalid_settings_are_errors() {
        let start = |endpoint: &str, ratio| {
            let config = TraceConfig {
                endpoint: endpoint.to_owned(),
                protocol: OtlpProtocol::Http,
                ratio,
                service: "ghostserve".to_owned(),
            };
            TraceExporter::start(&config).map(TraceExporter::end).map_err(|error| error.to_string())
        };
        for bad in ["", "collector", "collector:4318", "ftp://collector", "http://"] {
            assert!(start(bad, None).unwrap_err().contains("expected one like http://collector:4318"), "{bad}");
        }
        for bad in [-0.1, 1.1, f64::NAN] {
            assert!(start("http://127.0.0.1:1", Some(bad)).unwrap_err().contains("between 0 and 1"), "{bad}");
        }
        assert_eq!(start("http://127.0.0.1:1/", Some(0.5)), Ok(()));
    }
}
