//! The server's settings, checked.
//!
//! What a user types lives in [`crate::cli`]; it becomes a [`Config`] once, at the start, and everything after that reads
//! numbers that are known to fit together. Nothing here reads the environment.

use std::net::SocketAddr;
use std::time::Duration;

use crate::plan::Wanted;
use crate::preprocess::{ImageLimits, MAX_BYTES_PER_PIXEL};
use crate::runtime::{Backend, NoSuchPrecision};

/// Everything that `ghostserve serve` can be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// If set, `/metrics` and the health routes are served here instead.
    pub admin: Option<SocketAddr>,
    /// If set, gRPC is served here, too; it always is where clients connect.
    pub grpc: Option<SocketAddr>,
    /// The embedded model's name, or a model folder.
    pub model: String,
    /// How the model is run.
    pub execution: Execution,
    /// What a request may be.
    pub request: RequestLimits,
    /// What an image may be.
    pub image: ImageLimits,
    /// Whether JPEG files are always decoded at their full size.
    pub exact_decode: bool,
    /// What feature maps may be asked for.
    pub features: FeatureLimits,
    /// How much may be in flight.
    pub load: LoadLimits,
    /// How long things may take.
    pub time: TimeLimits,
    /// The status of a shed request.
    pub shed_status: ShedStatus,
}

/// How cores are used.
#[derive(Clone, Debug)]
pub struct Execution {
    /// The cores that may compute, and how a model is run on them.
    pub plan: Wanted,
    /// How long the oldest row waits for a batch to fill. Zero unless throughput is worth more than time.
    pub batch_delay: Duration,
    /// What computes, and how precisely.
    pub backend: Backend,
}

/// Bounds of one request.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Bytes of a body that is one image.
    pub max_body: usize,
    /// Bytes of a body that may hold several images (multipart, JSON).
    pub max_multi_body: usize,
    /// Images.
    pub max_images: usize,
    /// Parts of a multipart body.
    pub max_parts: usize,
    /// Header lines of a part.
    pub max_part_headers: usize,
}

/// Bounds of feature maps.
#[derive(Clone, Copy, Debug)]
pub struct FeatureLimits {
    /// Width times height of the network's input.
    pub max_pixels: usize,
    /// Input sizes, and sets of outputs, for which a worker keeps a session.
    pub sessions: usize,
    /// Bytes that the images of one request and what is made of them take.
    pub max_bytes: usize,
    /// The same for all requests.
    pub max_bytes_in_flight: usize,
}

/// Bounds over all requests.
#[derive(Clone, Copy, Debug)]
pub struct LoadLimits {
    /// Open connections; more wait in the listener's backlog.
    pub max_connections: usize,
    /// Requests to `/v1` handled at once.
    pub max_requests: usize,
    /// Images being decoded, waiting and running.
    pub max_images: usize,
    /// The longest predicted wait at which an interactive request is admitted.
    pub max_wait: Duration,
    /// Bytes of request bodies in memory.
    pub max_body_bytes: usize,
    /// Bytes in which scores of files are remembered; 0 for none.
    pub response_cache_bytes: u64,
    /// Bytes of decoded pixels in memory.
    pub max_decoded_bytes: u64,
    /// Resident bytes of the process past which requests are shed; 0 if there is no limit.
    pub max_memory: u64,
    /// Streams of an HTTP/2 connection.
    pub max_http2_streams: u32,
    /// Fraction of the connections, requests and memory above that one client address can hold while no other client needs
    /// them. Above 0; 1 is no limit.
    pub max_client_share: f64,
}

/// Bounds in time.
#[derive(Clone, Copy, Debug)]
pub struct TimeLimits {
    /// For the head of a request, from its first byte (or the connection's start).
    pub header: Duration,
    /// For the whole body, however steadily it trickles.
    pub body: Duration,
    /// For the whole request; also the longest deadline a client can ask for.
    pub request: Duration,
    /// Bytes a second that a body must arrive at, after [`TRANSFER_GRACE`].
    pub min_upload_rate: u64,
    /// Bytes a second at which a client must take a large answer, in every [`DOWNLOAD_WINDOW`].
    pub min_download_rate: u64,
    /// For a connection without a request.
    pub idle: Duration,
    /// After SIGTERM: how long requests are still accepted, so that load balancers can notice.
    pub drain_grace: Duration,
    /// After that: how long requests in flight may take to finish.
    pub drain: Duration,
}

/// How long a body may be slower than its minimum rate: connections start slowly, and small bodies come in one piece.
pub const TRANSFER_GRACE: Duration = Duration::from_secs(2);

/// How long a client may take nothing of a large answer.
pub const DOWNLOAD_WINDOW: Duration = Duration::from_secs(10);

/// What a shed request is answered with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ShedStatus {
    /// 429 Too Many Requests.
    #[default]
    #[value(name = "429")]
    TooManyRequests,
    /// 503 Service Unavailable: some load balancers try another server only after this.
    #[value(name = "503")]
    ServiceUnavailable,
}

/// Settings that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A number that must not be zero.
    #[error("{setting} must be at least 1, found 0")]
    Zero {
        /// The flag.
        setting: &'static str,
    },
    /// One bound makes another unreachable.
    #[error("{larger} must be at least {smaller}: expected {least} or more, found {found}")]
    Order {
        /// The flag that is too small.
        larger: &'static str,
        /// What it must hold.
        smaller: &'static str,
        /// The least that works.
        least: u64,
        /// What was given.
        found: u64,
    },
    /// A fraction that is none.
    #[error("{setting} must be above 0 and at most 1, found {found}")]
    Fraction {
        /// The flag.
        setting: &'static str,
        /// What was given.
        found: String,
    },
    /// A precision that the provider does not have.
    #[error(transparent)]
    Precision(#[from] NoSuchPrecision),
}

impl Config {
    /// Checks that the settings fit together.
    ///
    /// # Errors
    /// The first contradiction, with the flags to change.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.execution.backend.check()?;
        let plan = &self.execution.plan;
        let counts = [
            ("--cores", plan.cores),
            ("--workers", plan.workers.unwrap_or(1)),
            ("--threads-per-worker", plan.threads_per_worker.unwrap_or(1)),
            ("--max-batch", plan.max_batch.unwrap_or(1)),
            ("--max-body-bytes", self.request.max_body),
            ("--max-images-per-request", self.request.max_images),
            ("--max-part-headers", self.request.max_part_headers),
            ("--max-connections", self.load.max_connections),
            ("--max-requests-in-flight", self.load.max_requests),
            ("--max-http2-streams", self.load.max_http2_streams as usize),
            ("--feature-sessions", self.features.sessions),
            ("--max-jpeg-scans", self.image.max_jpeg_scans),
            ("--max-image-pixels", usize::try_from(self.image.max_pixels).unwrap_or(usize::MAX)),
            ("--max-image-side", self.image.max_side as usize),
        ];
        if let Some((setting, _)) = counts.into_iter().find(|(_, n)| *n == 0) {
            return Err(ConfigError::Zero { setting });
        }
        let share = self.load.max_client_share;
        if !(share > 0.0 && share <= 1.0) {
            return Err(ConfigError::Fraction { setting: "--max-client-share", found: share.to_string() });
        }
        // A request that could never be admitted should be refused for its size, not told to try again.
        let orders = [
            (
                "--max-multi-body-bytes",
                "--max-body-bytes",
                self.request.max_multi_body as u64,
                self.request.max_body as u64,
            ),
            (
                "--max-body-bytes-in-flight",
                "--max-multi-body-bytes",
                self.load.max_body_bytes as u64,
                self.request.max_multi_body as u64,
            ),
            (
                "--max-feature-bytes-in-flight",
                "--max-feature-bytes",
                self.features.max_bytes_in_flight as u64,
                self.features.max_bytes as u64,
            ),
            (
                "--max-images-in-flight",
                "--max-images-per-request",
                self.load.max_images as u64,
                self.request.max_images as u64,
            ),
            (
                "--max-multipart-parts",
                "--max-images-per-request",
                self.request.max_parts as u64,
                self.request.max_images as u64,
            ),
            (
                "--max-decoded-bytes-in-flight",
                "16 bytes for each of --max-image-pixels",
                self.load.max_decoded_bytes,
                self.image.max_pixels.saturating_mul(MAX_BYTES_PER_PIXEL),
            ),
        ];
        match orders.into_iter().find(|(_, _, found, least)| found < least) {
            Some((larger, smaller, found, least)) => Err(ConfigError::Order { larger, smaller, least, found }),
            None => Ok(()),
        }
    }
}
