//! `ghostserve serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::{RuntimeArgs, default_cache, values};
use crate::config::{Config, Execution, FeatureLimits, LoadLimits, RequestLimits, ShedStatus, TimeLimits};
use crate::memory;
use crate::model::EMBEDDED_MODEL;
use crate::plan::Wanted;
use crate::preprocess::ImageLimits;
use crate::server::Server;
use crate::telemetry::logging::{self, LogFormat};
use crate::telemetry::traces::{Protocol, TraceConfig, Traces};

/// Serve a model over HTTP.
///
/// Every flag is also an environment variable: --max-batch is GHOSTSERVE_MAX_BATCH. The defaults suit one server on a
/// machine or in a container of its own; cores are counted by what the process may use (affinity, cgroup quota).
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Address and port for clients.
    #[arg(long, env = "GHOSTSERVE_LISTEN", default_value = "0.0.0.0:8080", value_name = "ADDR")]
    listen: SocketAddr,

    /// Address and port for /metrics, /livez and /readyz, instead of beside the clients' routes.
    #[arg(long, env = "GHOSTSERVE_ADMIN_ADDR", value_name = "ADDR")]
    admin_addr: Option<SocketAddr>,

    /// A second address and port for gRPC alone; clients' own port has it, too.
    #[arg(long, env = "GHOSTSERVE_GRPC_LISTEN", value_name = "ADDR")]
    grpc_listen: Option<SocketAddr>,

    /// The embedded model's name, or a folder with a manifest.toml.
    #[arg(long, env = "GHOSTSERVE_MODEL", default_value = EMBEDDED_MODEL)]
    model: String,

    #[command(flatten)]
    runtime: RuntimeArgs,

    /// What is logged: levels, also by module (info, warn, ghostserve=debug).
    #[arg(long, env = "GHOSTSERVE_LOG", default_value = "info", value_name = "FILTER")]
    log: String,

    /// How it is logged.
    #[arg(long, env = "GHOSTSERVE_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,

    #[command(flatten, next_help_heading = "Traces")]
    traces: TraceArgs,

    #[command(flatten, next_help_heading = "Execution")]
    execution: ExecutionArgs,

    #[command(flatten, next_help_heading = "Limits of a request")]
    request: RequestArgs,

    #[command(flatten, next_help_heading = "Limits of feature maps")]
    features: FeatureArgs,

    #[command(flatten, next_help_heading = "Limits of load")]
    load: LoadArgs,

    #[command(flatten, next_help_heading = "Limits of time")]
    time: TimeArgs,
}

/// Named in the environment as OpenTelemetry has it, so that what sets these up for others does so for us.
#[derive(Debug, Args)]
struct TraceArgs {
    /// Send traces by OTLP to the collector at this address, like http://collector:4318 [default: none are made].
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,

    /// How the collector is spoken to.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_PROTOCOL", value_enum, default_value_t)]
    otlp_protocol: Protocol,

    /// Which part of the requests is traced, 0 to 1, unless their callers have decided [default: all].
    #[arg(long, env = "GHOSTSERVE_TRACE_RATIO", value_name = "PART")]
    trace_ratio: Option<f64>,

    /// The service's name in traces.
    #[arg(long, env = "OTEL_SERVICE_NAME", default_value = "ghostserve", value_name = "NAME")]
    service_name: String,
}

impl TraceArgs {
    fn config(&self) -> Option<TraceConfig> {
        // Set but empty is how deployments switch things off.
        let endpoint = self.otlp_endpoint.clone().filter(|endpoint| !endpoint.is_empty())?;
        let (protocol, ratio) = (self.otlp_protocol, self.trace_ratio);
        Some(TraceConfig { endpoint, protocol, ratio, service: self.service_name.clone() })
    }
}

#[derive(Debug, Args)]
struct ExecutionArgs {
    /// Cores that decode and compute [default: those that the process may use, by affinity mask and cgroup quota].
    #[arg(long, env = "GHOSTSERVE_CORES", value_name = "N")]
    cores: Option<usize>,

    /// Sessions that run at the same time [default: measured at the start].
    #[arg(long, env = "GHOSTSERVE_WORKERS", value_name = "N")]
    workers: Option<usize>,

    /// Threads of each session [default: measured at the start].
    #[arg(long, env = "GHOSTSERVE_THREADS_PER_WORKER", value_name = "N")]
    threads_per_worker: Option<usize>,

    /// Images that one run of the model takes at most [default: measured at the start].
    #[arg(long, env = "GHOSTSERVE_MAX_BATCH", value_name = "N")]
    max_batch: Option<usize>,

    /// How long the oldest image waits for a batch to fill. With 0ms nothing waits while a core is free.
    #[arg(long, env = "GHOSTSERVE_BATCH_DELAY", default_value = "0ms", value_parser = values::duration, value_name = "TIME")]
    batch_delay: Duration,

    /// Do not measure at the start: what is not given is one worker a core, one thread, four images.
    #[arg(long, env = "GHOSTSERVE_NO_CALIBRATION")]
    no_calibration: bool,

    /// Folder in which measured plans are kept for the next start [default: ghostserve in the user's cache folder].
    #[arg(long, env = "GHOSTSERVE_PLAN_CACHE", value_name = "FOLDER")]
    plan_cache: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct RequestArgs {
    /// Size of a body that is one image.
    #[arg(long, env = "GHOSTSERVE_MAX_BODY_BYTES", default_value = "10MiB", value_parser = values::size, value_name = "SIZE")]
    max_body_bytes: usize,

    /// Size of a multipart or JSON body.
    #[arg(long, env = "GHOSTSERVE_MAX_MULTI_BODY_BYTES", default_value = "32MiB", value_parser = values::size, value_name = "SIZE")]
    max_multi_body_bytes: usize,

    /// Images in a request.
    #[arg(long, env = "GHOSTSERVE_MAX_IMAGES_PER_REQUEST", default_value_t = 32, value_name = "N")]
    max_images_per_request: usize,

    /// Parts of a multipart body.
    #[arg(long, env = "GHOSTSERVE_MAX_MULTIPART_PARTS", default_value_t = 64, value_name = "N")]
    max_multipart_parts: usize,

    /// Header lines of a multipart body's part.
    #[arg(long, env = "GHOSTSERVE_MAX_PART_HEADERS", default_value_t = 16, value_name = "N")]
    max_part_headers: usize,

    /// Width times height of an image.
    #[arg(long, env = "GHOSTSERVE_MAX_IMAGE_PIXELS", default_value_t = 50_000_000, value_name = "N")]
    max_image_pixels: u64,

    /// Width and height of an image, each.
    #[arg(long, env = "GHOSTSERVE_MAX_IMAGE_SIDE", default_value_t = 16_384, value_name = "N")]
    max_image_side: u32,

    /// Scans of a progressive JPEG.
    #[arg(long, env = "GHOSTSERVE_MAX_JPEG_SCANS", default_value_t = 100, value_name = "N")]
    max_jpeg_scans: usize,

    /// Decode large JPEG files at their full size, instead of at 1/2, 1/4 or 1/8 of it where the model's input is much smaller
    /// still.
    #[arg(long, env = "GHOSTSERVE_EXACT_DECODE")]
    exact_decode: bool,
}

#[derive(Debug, Args)]
struct FeatureArgs {
    /// Width times height of the network's input that /v1/features and /v1/attention may ask for.
    #[arg(long, env = "GHOSTSERVE_MAX_FEATURE_PIXELS", default_value_t = 640 * 640, value_name = "N")]
    max_feature_pixels: usize,

    /// Input sizes, and sets of levels, for which each worker keeps a session ready, the one used longest ago making room; of the
    /// largest inputs, two.
    #[arg(long, env = "GHOSTSERVE_FEATURE_SESSIONS", default_value_t = 4, value_name = "N")]
    feature_sessions: usize,

    /// What the images of one request for feature maps, and the answer, take in memory.
    #[arg(long, env = "GHOSTSERVE_MAX_FEATURE_BYTES", default_value = "64MiB", value_parser = values::size, value_name = "SIZE")]
    max_feature_bytes: usize,

    /// The same for all requests.
    #[arg(long, env = "GHOSTSERVE_MAX_FEATURE_BYTES_IN_FLIGHT", default_value = "256MiB", value_parser = values::size, value_name = "SIZE")]
    max_feature_bytes_in_flight: usize,
}

#[derive(Debug, Args)]
struct LoadArgs {
    /// The longest predicted wait for a core at which a request is admitted; past it requests are shed. Work that asked for
    /// no hurry (`Priority: u=4` and up) waits as long as its deadline lets it.
    #[arg(long, env = "GHOSTSERVE_MAX_WAIT", default_value = "200ms", value_parser = values::duration, value_name = "TIME")]
    max_wait: Duration,

    /// Images admitted at once, whatever the wait: being decoded, waiting, running. Work without hurry gets at most three
    /// quarters of them.
    #[arg(long, env = "GHOSTSERVE_MAX_IMAGES_IN_FLIGHT", default_value_t = 512, value_name = "N")]
    max_images_in_flight: usize,

    /// Remember the scores of files in this much memory, and do the same file once for all who send it at the same time; 0 does
    /// neither. A file costs about 4 bytes a class.
    #[arg(long, env = "GHOSTSERVE_RESPONSE_CACHE", default_value = "0", value_parser = values::bytes, value_name = "SIZE")]
    response_cache: u64,

    /// Requests to /v1 handled at once.
    #[arg(long, env = "GHOSTSERVE_MAX_REQUESTS_IN_FLIGHT", default_value_t = 1024, value_name = "N")]
    max_requests_in_flight: usize,

    /// Bodies of all requests in memory.
    #[arg(long, env = "GHOSTSERVE_MAX_BODY_BYTES_IN_FLIGHT", default_value = "256MiB", value_parser = values::size, value_name = "SIZE")]
    max_body_bytes_in_flight: usize,

    /// Decoded pixels of all requests in memory.
    #[arg(long, env = "GHOSTSERVE_MAX_DECODED_BYTES_IN_FLIGHT", default_value = "1GiB", value_parser = values::bytes, value_name = "SIZE")]
    max_decoded_bytes_in_flight: u64,

    /// Resident memory of the process past which requests are shed [default: nine tenths of the cgroup's limit, or of the
    /// machine's memory]; 0 is no limit.
    #[arg(long, env = "GHOSTSERVE_MAX_MEMORY", value_parser = values::bytes, value_name = "SIZE")]
    max_memory: Option<u64>,

    /// Open connections; more wait until one closes.
    #[arg(long, env = "GHOSTSERVE_MAX_CONNECTIONS", default_value_t = 4096, value_name = "N")]
    max_connections: usize,

    /// Concurrent streams of an HTTP/2 connection.
    #[arg(long, env = "GHOSTSERVE_MAX_HTTP2_STREAMS", default_value_t = 100, value_name = "N")]
    max_http2_streams: u32,

    /// Fraction of the connections, requests and memory above that one client address (IPv6: its /64 network) can hold while others
    /// might need them; 1 is no limit. Clients behind one load balancer are one address.
    #[arg(long, env = "GHOSTSERVE_MAX_CLIENT_SHARE", default_value_t = 0.5, value_name = "FRACTION")]
    max_client_share: f64,

    /// Status of a shed request: some load balancers try another server only after a 503.
    #[arg(long, env = "GHOSTSERVE_SHED_STATUS", value_enum, default_value_t)]
    shed_status: ShedStatus,
}

#[derive(Debug, Args)]
struct TimeArgs {
    /// For the head of a request to arrive.
    #[arg(long, env = "GHOSTSERVE_HEADER_TIMEOUT", default_value = "5s", value_parser = values::duration, value_name = "TIME")]
    header_timeout: Duration,

    /// For a whole body to arrive.
    #[arg(long, env = "GHOSTSERVE_BODY_TIMEOUT", default_value = "10s", value_parser = values::duration, value_name = "TIME")]
    body_timeout: Duration,

    /// Bytes a second at which a body must arrive, on average, once it has had two seconds; 0 is no limit.
    #[arg(long, env = "GHOSTSERVE_MIN_UPLOAD_RATE", default_value = "8KiB", value_parser = values::bytes, value_name = "SIZE")]
    min_upload_rate: u64,

    /// Bytes a second at which a client must take an answer of more than 16 KiB, on average over ten seconds; a slower one is cut off.
    /// 0 is no limit.
    #[arg(long, env = "GHOSTSERVE_MIN_DOWNLOAD_RATE", default_value = "32KiB", value_parser = values::bytes, value_name = "SIZE")]
    min_download_rate: u64,

    /// For a whole request; also the longest deadline that x-request-timeout-ms can ask for.
    #[arg(long, env = "GHOSTSERVE_REQUEST_TIMEOUT", default_value = "10s", value_parser = values::duration, value_name = "TIME")]
    request_timeout: Duration,

    /// For a connection without a request. Longer than your load balancer keeps its connections.
    #[arg(long, env = "GHOSTSERVE_IDLE_TIMEOUT", default_value = "75s", value_parser = values::duration, value_name = "TIME")]
    idle_timeout: Duration,

    /// After SIGTERM: accept for this long while readiness fails. Longer than your load balancer's health check takes.
    #[arg(long, env = "GHOSTSERVE_DRAIN_GRACE", default_value = "5s", value_parser = values::duration, value_name = "TIME")]
    drain_grace: Duration,

    /// After that: for requests in flight to finish.
    #[arg(long, env = "GHOSTSERVE_DRAIN_TIMEOUT", default_value = "20s", value_parser = values::duration, value_name = "TIME")]
    drain_timeout: Duration,
}

impl ServeArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        memory::tune_allocator();
        memory::raise_file_limit();
        let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let traces = {
            let _tokio = tokio.enter();
            let config = self.traces.config();
            config.as_ref().map(Traces::start).transpose().context("--otlp-endpoint")?
        };
        let installed = logging::install(&self.log, self.log_format, traces.as_ref());
        installed.with_context(|| format!("--log `{}`", self.log))?;
        let runtime = self.runtime.load()?;
        let result = tokio.block_on(async {
            let server = Server::start(self.config(), &runtime).await?;
            tracing::info!(
                address = %server.address()?,
                admin = server.admin_address().map(tracing::field::display),
                grpc = server.grpc_address().map(tracing::field::display),
                "ready: POST images to /v1/classify"
            );
            server.run().await;
            Ok(ExitCode::SUCCESS)
        });
        if let Some(traces) = traces {
            traces.end();
        }
        // What has not ended in its time (a model that hangs) must not keep the process from ending.
        tokio.shutdown_background();
        result
    }

    fn config(self) -> Config {
        // Counts what the process may use: the affinity mask and the cgroup's quota, not the host's cores.
        let cores = available_parallelism().map_or(1, std::num::NonZero::get);
        let Self { runtime, execution, request, features, load, time, .. } = self;
        Config {
            listen: self.listen,
            admin: self.admin_addr,
            grpc: self.grpc_listen,
            model: self.model,
            execution: Execution {
                plan: Wanted {
                    cores: execution.cores.unwrap_or(cores),
                    workers: execution.workers,
                    threads_per_worker: execution.threads_per_worker,
                    max_batch: execution.max_batch,
                    calibrate: !execution.no_calibration,
                    cache: execution.plan_cache.or_else(default_cache),
                },
                batch_delay: execution.batch_delay,
                backend: runtime.backend(),
            },
            request: RequestLimits {
                max_body: request.max_body_bytes,
                max_multi_body: request.max_multi_body_bytes,
                max_images: request.max_images_per_request,
                max_parts: request.max_multipart_parts,
                max_part_headers: request.max_part_headers,
            },
            image: ImageLimits {
                max_pixels: request.max_image_pixels,
                max_side: request.max_image_side,
                max_jpeg_scans: request.max_jpeg_scans,
            },
            exact_decode: request.exact_decode,
            features: FeatureLimits {
                max_pixels: features.max_feature_pixels,
                sessions: features.feature_sessions,
                max_bytes: features.max_feature_bytes,
                max_bytes_in_flight: features.max_feature_bytes_in_flight,
            },
            load: LoadLimits {
                max_connections: load.max_connections,
                max_requests: load.max_requests_in_flight,
                max_images: load.max_images_in_flight,
                max_wait: load.max_wait,
                response_cache_bytes: load.response_cache,
                max_body_bytes: load.max_body_bytes_in_flight,
                max_decoded_bytes: load.max_decoded_bytes_in_flight,
                max_http2_streams: load.max_http2_streams,
                max_client_share: load.max_client_share,
                max_memory: load.max_memory.unwrap_or_else(memory::default_limit),
            },
            time: TimeLimits {
                header: time.header_timeout,
                body: time.body_timeout,
                min_upload_rate: time.min_upload_rate,
                min_download_rate: time.min_download_rate,
                request: time.request_timeout,
                idle: time.idle_timeout,
                drain_grace: time.drain_grace,
                drain: time.drain_timeout,
            },
            shed_status: load.shed_status,
        }
    }
}
