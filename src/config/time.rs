//! Bounds in time.

use std::time::Duration;

use clap::Args;

use super::values;

/// How long a body may be slower than its minimum rate: connections start slowly, and small bodies come in one
/// piece.
pub const TRANSFER_GRACE: Duration = Duration::from_secs(2);

/// How long a client may take nothing of a large answer. Its rate is measured over the same time.
pub const DOWNLOAD_WINDOW: Duration = Duration::from_secs(10);

/// Bounds in time.
#[derive(Clone, Copy, Debug, Args)]
pub struct TimeLimits {
    /// Time allowed to receive request headers, from their first byte or from the connection's start.
    #[arg(
        long,
        env = "GHOSTSERVE_HEADER_TIMEOUT",
        default_value = "5s",
        value_parser = values::duration,
        value_name = "TIME"
    )]
    pub header_timeout: Duration,

    /// Time allowed to receive a whole body, whatever its rate.
    #[arg(
        long,
        env = "GHOSTSERVE_BODY_TIMEOUT",
        default_value = "10s",
        value_parser = values::duration,
        value_name = "TIME"
    )]
    pub body_timeout: Duration,

    // The two seconds are TRANSFER_GRACE.
    /// Minimum average rate of a body in bytes per second, checked after two seconds; 0 is no limit.
    #[arg(
        long,
        env = "GHOSTSERVE_MIN_UPLOAD_RATE",
        default_value = "8KiB",
        value_parser = values::bytes,
        value_name = "SIZE"
    )]
    pub min_upload_rate: u64,

    // The ten seconds are DOWNLOAD_WINDOW.
    /// Minimum rate in bytes per second, averaged over every ten seconds, at which a client must take an answer of
    /// more than 16 KiB. Slower clients are cut off. 0 is no limit.
    #[arg(
        long,
        env = "GHOSTSERVE_MIN_DOWNLOAD_RATE",
        default_value = "32KiB",
        value_parser = values::bytes,
        value_name = "SIZE"
    )]
    pub min_download_rate: u64,

    /// Time allowed for a whole request; also the longest deadline that a client can set with x-request-timeout-ms.
    #[arg(
        long,
        env = "GHOSTSERVE_REQUEST_TIMEOUT",
        default_value = "10s",
        value_parser = values::duration,
        value_name = "TIME"
    )]
    pub request_timeout: Duration,

    /// Time that a connection stays open without a request. Choose it longer than your load balancer keeps its
    /// connections.
    #[arg(
        long,
        env = "GHOSTSERVE_IDLE_TIMEOUT",
        default_value = "75s",
        value_parser = values::duration,
        value_name = "TIME"
    )]
    pub idle_timeout: Duration,

    /// Time after SIGTERM during which requests are still accepted while readiness fails, so that load balancers
    /// can notice. Choose it longer than your load balancer's health check takes.
    #[arg(
        long,
        env = "GHOSTSERVE_DRAIN_GRACE",
        default_value = "5s",
        value_parser = values::duration,
        value_name = "TIME"
    )]
    pub drain_grace: Duration,

    /// Time allowed after that for requests in flight to finish.
    #[arg(
        long,
        env = "GHOSTSERVE_DRAIN_TIMEOUT",
        default_value = "20s",
        value_parser = values::duration,
        value_name = "TIME"
    )]
    pub drain_timeout: Duration,
}
