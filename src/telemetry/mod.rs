//! What the server says about itself: [`Metrics`] for Prometheus, logs through `tracing`.
//!
//! A leaf: everything may record here, nothing here knows who does.

pub mod logging;
mod metrics;

pub(crate) use metrics::Dropped;
pub use metrics::{GaugeGuard, Metrics, ModelMetrics, Stage};
