//! Observability: [`Metrics`] for Prometheus, logs through `tracing`, [`traces`] for OpenTelemetry.
//!
//! Every module may record here; this module depends on none of them.

use std::time::Duration;

pub mod logging;
mod metrics;
pub(crate) mod spans;
pub mod traces;

pub(crate) use metrics::{DropReason, StageTimer};
pub use metrics::{GaugeGuard, Metrics, ModelMetrics, Stage};

/// The commit that the program was built from, or `unknown`.
pub const BUILD_REVISION: &str = match option_env!("GHOSTSERVE_BUILD_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// A duration as the log shows it: milliseconds with one decimal.
pub(crate) fn rounded_ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logged_times_have_one_decimal() {
        assert_eq!(rounded_ms(Duration::from_nanos(12_345_678)).to_string(), "12.3");
        assert_eq!(rounded_ms(Duration::from_secs(5)).to_string(), "5000");
    }
}
