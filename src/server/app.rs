//! The state that the handlers of every protocol share.

use std::sync::Arc;

use super::budget::{BodyBudget, RequestSlots};
use super::ingress::Ingress;
use super::shutdown::Lifecycle;
use crate::config::Config;
use crate::service::Service;
use crate::telemetry::Metrics;

/// Handles to the parts of the server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) service: Arc<Service>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) config: Arc<Config>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) bodies: BodyBudget,
    /// Limits how many requests of all protocols are handled at once.
    pub(crate) requests: RequestSlots,
    /// Limits how fast bodies are read.
    pub(crate) ingress: Ingress,
}

impl App {
    pub(crate) fn new(service: Arc<Service>, metrics: Arc<Metrics>, config: Arc<Config>, lifecycle: Lifecycle) -> Self {
        let share = config.load.max_client_share;
        let bodies = BodyBudget::new(config.load.max_body_bytes_in_flight, share, &metrics);
        let requests = RequestSlots::new(config.load.max_requests_in_flight, share, &metrics);
        let ingress = Ingress::new(config.execution.core_count());
        Self { service, metrics, config, lifecycle, bodies, requests, ingress }
    }
}
