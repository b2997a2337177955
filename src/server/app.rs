//! What the handlers of every protocol share.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::budget::BodyBudget;
use super::shutdown::Lifecycle;
use crate::config::Config;
use crate::service::Service;
use crate::telemetry::Metrics;

/// Handles on everything; cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) service: Arc<Service>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) config: Arc<Config>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) bodies: BodyBudget,
    /// Requests that may be handled at once, whatever protocol they come in.
    pub(crate) requests: Arc<Semaphore>,
}

impl App {
    pub(crate) fn new(service: Arc<Service>, metrics: Arc<Metrics>, config: Arc<Config>, lifecycle: Lifecycle) -> Self {
        let bodies = BodyBudget::new(config.load.max_body_bytes, &metrics);
        let requests = Arc::new(Semaphore::new(config.load.max_requests.min(Semaphore::MAX_PERMITS)));
        Self { service, metrics, config, lifecycle, bodies, requests }
    }
}
