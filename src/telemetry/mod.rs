//! What the server says about itself: [`Metrics`] for Prometheus, logs through `tracing`, [`traces`] for OpenTelemetry.
//!
//! A leaf: everything may record here, nothing here knows who does.

pub mod logging;
mod metrics;
pub(crate) mod spans;
pub mod traces;

pub(crate) use metrics::Dropped;
pub use metrics::{GaugeGuard, Metrics, ModelMetrics, Stage};
