//! Bounds over all requests.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::values;
use crate::memory;

/// Bounds over all requests.
#[derive(Clone, Copy, Debug, Args)]
pub struct LoadLimits {
    /// Maximum predicted wait for a core at which an interactive request is admitted; requests that would wait
    /// longer are shed. Background work (`Priority: u=4` and up) waits as long as its deadline allows.
    #[arg(
        long,
        env = "GHOSTSERVE_MAX_WAIT",
        default_value = "200ms",
        value_parser = values::duration,
        value_name = "TIME"
    )]
    pub max_wait: Duration,

    /// Maximum number of images admitted at once, whatever the wait: being decoded, waiting and running. Background
    /// work gets at most three quarters of them.
    #[arg(long, env = "GHOSTSERVE_MAX_IMAGES_IN_FLIGHT", default_value_t = 512, value_name = "N")]
    pub max_images_in_flight: usize,

    /// Memory for the scores of earlier files. The same file is also computed only once for all clients that send
    /// it at the same time. 0 turns both off. A file costs about 4 bytes per class.
    #[arg(
        long,
        env = "GHOSTSERVE_RESPONSE_CACHE",
        default_value = "0",
        value_parser = values::bytes,
        value_name = "SIZE"
    )]
    pub response_cache: u64,

    /// Maximum number of requests to /v1 handled at once.
    #[arg(long, env = "GHOSTSERVE_MAX_REQUESTS_IN_FLIGHT", default_value_t = 1024, value_name = "N")]
    pub max_requests_in_flight: usize,

    /// Maximum memory for the bodies of all requests.
    #[arg(
        long,
        env = "GHOSTSERVE_MAX_BODY_BYTES_IN_FLIGHT",
        default_value = "256MiB",
        value_parser = values::size,
        value_name = "SIZE"
    )]
    pub max_body_bytes_in_flight: usize,

    /// Maximum memory for the decoded pixels of all requests.
    #[arg(
        long,
        env = "GHOSTSERVE_MAX_DECODED_BYTES_IN_FLIGHT",
        default_value = "1GiB",
        value_parser = values::bytes,
        value_name = "SIZE"
    )]
    pub max_decoded_bytes_in_flight: u64,

    /// Resident memory of the process above which requests are shed [default: nine tenths of the cgroup's limit, or
    /// of the machine's memory]; 0 is no limit.
    #[arg(long, env = "GHOSTSERVE_MAX_MEMORY", value_parser = values::bytes, value_name = "SIZE")]
    pub max_memory: Option<u64>,

    /// Maximum number of open connections. More wait in the listener's backlog until one closes.
    #[arg(long, env = "GHOSTSERVE_MAX_CONNECTIONS", default_value_t = 4096, value_name = "N")]
    pub max_connections: usize,

    /// Maximum number of concurrent streams in an HTTP/2 connection.
    #[arg(long, env = "GHOSTSERVE_MAX_HTTP2_STREAMS", default_value_t = 100, value_name = "N")]
    pub max_http2_streams: u32,

    /// Fraction of the connections, requests and memory above that one client address (IPv6: its /64 network) can
    /// hold while other clients might need them. It must be above 0; 1 is no limit. Clients behind one load
    /// balancer are one address.
    #[arg(long, env = "GHOSTSERVE_MAX_CLIENT_SHARE", default_value_t = 0.5, value_name = "FRACTION")]
    pub max_client_share: f64,

    /// HTTP status of a shed request. Some load balancers try another server only after a 503.
    #[arg(long, env = "GHOSTSERVE_SHED_STATUS", value_enum, default_value_t)]
    pub shed_status: ShedStatus,
}

impl LoadLimits {
    /// Resident memory of the process in bytes above which requests are shed: the setting, or what suits the
    /// machine. 0 if there is no limit.
    #[must_use]
    pub fn memory_limit(&self) -> u64 {
        self.max_memory.unwrap_or_else(memory::default_limit)
    }
}

/// The HTTP status of a shed request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ShedStatus {
    /// 429 Too Many Requests.
    #[default]
    #[value(name = "429")]
    TooManyRequests,
    /// 503 Service Unavailable: some load balancers try another server only after this.
    #[value(name = "503")]
    ServiceUnavailable,
}
