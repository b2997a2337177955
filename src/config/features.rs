//! Bounds of feature maps.

use clap::Args;

use super::values;

/// Bounds of feature maps.
#[derive(Clone, Copy, Debug, Args)]
pub struct FeatureLimits {
    /// Maximum width times height of the network's input that /v1/features and /v1/attention accept.
    #[arg(long, env = "GHOSTSERVE_MAX_FEATURE_PIXELS", default_value_t = 640 * 640, value_name = "N")]
    pub max_feature_pixels: usize,

    /// Number of input sizes, and of sets of levels, for which each worker keeps a session ready. A new one
    /// replaces the one that was used longest ago. For the largest inputs, two sessions are kept.
    #[arg(long, env = "GHOSTSERVE_FEATURE_SESSIONS", default_value_t = 4, value_name = "N")]
    pub feature_sessions: usize,

    /// Maximum memory for one request for feature maps: its images and the answer.
    #[arg(
        long,
        env = "GHOSTSERVE_MAX_FEATURE_BYTES",
        default_value = "64MiB",
        value_parser = values::size,
        value_name = "SIZE"
    )]
    pub max_feature_bytes: usize,

    /// Maximum memory for all requests for feature maps together.
    #[arg(
        long,
        env = "GHOSTSERVE_MAX_FEATURE_BYTES_IN_FLIGHT",
        default_value = "256MiB",
        value_parser = values::size,
        value_name = "SIZE"
    )]
    pub max_feature_bytes_in_flight: usize,
}
