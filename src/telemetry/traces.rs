//! Traces for OpenTelemetry: the spans of `telemetry::spans`, sent to a collector by OTLP. Off unless an endpoint is given.
//!
//! A thread of its own sends them in batches. When the collector is slow or gone, spans are dropped, and nothing else
//! suffers. What OpenTelemetry's specification leaves to the environment (`OTEL_EXPORTER_OTLP_HEADERS`,
//! `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_*`) its SDK reads itself.

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
    ExporterBuildError, Protocol as Wire, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig, tonic_types,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, SdkTracer, SdkTracerProvider, ShouldSample};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

/// Where traces are posted, below an endpoint that speaks HTTP.
const PATH: &str = "/v1/traces";
/// For a collector to answer, and for the last spans to be sent when the server stops.
const PATIENCE: Duration = Duration::from_secs(5);
/// A collector's answer is a few bytes.
const LONGEST_ANSWER: u64 = 64 << 10;

/// What is sent where.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceConfig {
    /// The collector: `http://collector:4318`, without a path.
    pub endpoint: String,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// Which part of the requests whose callers have not decided is traced, 0 to 1; `None` for what the environment says,
    /// or all.
    pub ratio: Option<f64>,
    /// The service's name in traces.
    pub service: String,
}

/// OTLP's transports, by their names in `OTEL_EXPORTER_OTLP_PROTOCOL`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// Protobuf over HTTP; collectors take it on port 4318.
    #[default]
    #[value(name = "http/protobuf")]
    Http,
    /// gRPC; collectors take it on port 4317.
    Grpc,
}

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// Not an address.
    #[error("`{0}` is no address of a collector; expected one like http://collector:4318")]
    Endpoint(String),
    /// Not a part of a whole.
    #[error("the part of the requests that is traced must be between 0 and 1, found {0}")]
    Ratio(f64),
    /// OpenTelemetry does not take the settings.
    #[error(transparent)]
    Exporter(#[from] ExporterBuildError),
}

/// The exporter. [`Traces::end`] sends what is left.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Starts it. The collector need not be there yet. With [`Protocol::Grpc`] only within a tokio runtime, which must last
    /// as long.
    ///
    /// # Errors
    /// A setting cannot be used.
    pub fn start(config: &TraceConfig) -> Result<Self, TracesError> {
        let endpoint = config.endpoint.trim_end_matches('/');
        let uri = endpoint.parse::<Uri>().ok();
        if !uri.is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()) {
            return Err(TracesError::Endpoint(config.endpoint.clone()));
        }
        if let Some(ratio) = config.ratio.filter(|ratio| !(0.0..=1.0).contains(ratio)) {
            return Err(TracesError::Ratio(ratio));
        }
        let exporter = match config.protocol {
            Protocol::Http => SpanExporter::builder()
                .with_http()
                .with_http_client(Client::new())
                .with_protocol(Wire::HttpBinary)
                .with_endpoint(format!("{endpoint}{PATH}"))
                .with_timeout(PATIENCE)
                .build()?,
            Protocol::Grpc => {
                let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(PATIENCE);
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
        // Otherwise the SDK asks the environment, and says so of nothing: all.
        let provider = match config.ratio {
            Some(ratio) => {
                let own = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio)));
                provider.with_sampler(ByLinks(own))
            }
            None => provider,
        };
        Ok(Self { provider: provider.build() })
    }

    pub(super) fn tracer(&self) -> SdkTracer {
        self.provider.tracer("ghostserve")
    }

    /// Sends what is left, at most for some seconds.
    pub fn end(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(PATIENCE) {
            tracing::warn!(%error, "the last traces may be lost");
        }
    }
}

/// Decides as another sampler, but a batch is sampled exactly if one of the images in it is: a trace that leads to a batch
/// must find it there.
#[derive(Clone, Debug)]
struct ByLinks<S>(S);

impl<S: ShouldSample + Clone + 'static> ShouldSample for ByLinks<S> {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let root = parent.is_none_or(|parent| !parent.has_active_span());
        if !root || links.is_empty() {
            return self.0.should_sample(parent, trace, name, kind, attributes, links);
        }
        let sampled = links.iter().any(|link| link.span_context.is_sampled());
        let decision = if sampled { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop };
        SamplingResult { decision, attributes: Vec::new(), trace_state: TraceState::default() }
    }
}

/// OTLP over HTTP by the client that the hub is asked with, on the exporter's own thread.
#[derive(Debug)]
struct Client(ureq::Agent);

impl Client {
    fn new() -> Self {
        // As for the hub: the system's certificates, and a provider that is named because none is the process's default.
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
            // Collectors are neighbours; a proxy in the environment is for the hub.
            .proxy(None)
            .timeout_global(Some(PATIENCE))
            .build();
        Self(config.new_agent())
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let (parts, answer) = self.0.run(Request::from_parts(parts, &body[..]))?.into_parts();
        let mut body = Vec::new();
        answer.into_reader().take(LONGEST_ANSWER).read_to_end(&mut body)?;
        Ok(Response::from_parts(parts, body.into()))
    }
}

impl HttpClient for Client {
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
            let result =
                ByLinks(sampler).should_sample(None, TraceId::from(1), "batch", &SpanKind::Internal, &[], links);
            result.decision
        };
        assert_eq!(decide(Sampler::AlwaysOff, &[link(false), link(true)]), SamplingDecision::RecordAndSample);
        assert_eq!(decide(Sampler::AlwaysOn, &[link(false)]), SamplingDecision::Drop);
        assert_eq!(decide(Sampler::AlwaysOn, &[]), SamplingDecision::RecordAndSample);
        assert_eq!(decide(Sampler::AlwaysOff, &[]), SamplingDecision::Drop);
    }

    #[test]
    fn settings_that_cannot_be_used_are_told() {
        let with = |endpoint: &str, ratio| {
            let config = TraceConfig {
                endpoint: endpoint.to_owned(),
                protocol: Protocol::Http,
                ratio,
                service: "ghostserve".to_owned(),
            };
            Traces::start(&config).map(Traces::end).map_err(|error| error.to_string())
        };
        for bad in ["", "collector", "collector:4318", "ftp://collector", "http://"] {
            assert!(with(bad, None).unwrap_err().contains("expected one like http://collector:4318"), "{bad}");
        }
        for bad in [-0.1, 1.1, f64::NAN] {
            assert!(with("http://127.0.0.1:1", Some(bad)).unwrap_err().contains("between 0 and 1"), "{bad}");
        }
        assert_eq!(with("http://127.0.0.1:1/", Some(0.5)), Ok(()));
    }
}
