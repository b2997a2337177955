//! Observability: [`Metrics`] for Prometheus, logs through `tracing`, [`traces`] for OpenTelemetry.
//!
//! Every module may record here; this module depends on none of them.

pub mod logging;
mod metrics;
pub(crate) mod spans;
pub mod traces;

pub(crate) use metrics::{DropReason, StageTimer};
pub use metrics::{GaugeGuard, Metrics, ModelMetrics, Stage};
