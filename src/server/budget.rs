//! What request bodies and requests may take, over all connections and protocols, and how clients share it.

use std::sync::Arc;

use prometheus::{IntCounter, IntGauge};
use tokio::time::Duration;

use crate::fair_share::{Client, FairPool, PoolRejection, Share};
use crate::service::Error;
use crate::telemetry::{GaugeGuard, Metrics};

/// The bytes that bodies of all requests may take.
#[derive(Clone)]
pub(crate) struct BodyBudget {
    bytes: Arc<FairPool>,
    gauge: IntGauge,
    refused_share: IntCounter,
}

impl BodyBudget {
    pub(super) fn new(bytes: usize, share: f64, metrics: &Metrics) -> Self {
        let refused_share = metrics.client_share_refusals_total.with_label_values(&["body_bytes"]);
        Self { bytes: FairPool::new(bytes, share), gauge: metrics.body_bytes.clone(), refused_share }
    }

    /// The memory of one body; nothing yet.
    pub(crate) fn body(&self, client: Client) -> BodyMemory {
        BodyMemory { budget: self.clone(), share: self.bytes.share(client), gauge: GaugeGuard::by(&self.gauge, 0) }
    }
}

/// The memory that one body, and what is made of it, takes. Returned when dropped.
pub(crate) struct BodyMemory {
    budget: BodyBudget,
    share: Share,
    gauge: GaugeGuard,
}

impl BodyMemory {
    /// Grows by some bytes.
    ///
    /// # Errors
    /// The budget, or the client's share of it, has no more.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        self.share.grow(bytes).map_err(|refused| {
            let limit = match refused {
                PoolRejection::Full => "memory for request bodies",
                PoolRejection::ClientShare => {
                    self.budget.refused_share.inc();
                    "memory for request bodies from one client address"
                }
            };
            Error::Overloaded { limit, retry_after: Duration::from_secs(1) }
        })?;
        self.gauge.grow(bytes as i64);
        Ok(())
    }

    /// Gives some bytes back.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let given = self.share.shrink(bytes);
        self.gauge.grow(-(given as i64));
    }
}

/// The requests that may be handled at once.
#[derive(Clone)]
pub(crate) struct RequestSlots {
    slots: Arc<FairPool>,
    refused_share: IntCounter,
}

impl RequestSlots {
    pub(super) fn new(requests: usize, share: f64, metrics: &Metrics) -> Self {
        let refused_share = metrics.client_share_refusals_total.with_label_values(&["requests"]);
        Self { slots: FairPool::new(requests, share), refused_share }
    }

    /// A slot for one request; free again when dropped.
    ///
    /// # Errors
    /// As many requests as there may be are being handled, or as many from this client; `retry_after` says when to
    /// try again.
    pub(crate) fn take(&self, client: Client, retry_after: impl FnOnce() -> Duration) -> Result<Share, Error> {
        self.slots.acquire(client, 1).map_err(|refused| {
            let limit = match refused {
                PoolRejection::Full => "requests in flight",
                PoolRejection::ClientShare => {
                    self.refused_share.inc();
                    "requests in flight from one client address"
                }
            };
            Error::Overloaded { limit, retry_after: retry_after() }
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_body_takes_what_there_is_and_gives_it_back() {
        let metrics = Metrics::new().unwrap();
        let budget = BodyBudget::new(10, 1.0, &metrics);
        let (mut one, mut other) = (budget.body(Client::LOCAL), budget.body(Client::LOCAL));
        one.grow(6).unwrap();
        other.grow(4).unwrap();
        assert!(other.grow(1).is_err());
        one.shrink(2);
        other.grow(2).unwrap();
        assert_eq!(metrics.body_bytes.get(), 10);
        drop((one, other));
        assert_eq!((metrics.body_bytes.get(), budget.bytes.used()), (0, 0));
    }

    #[test]
    fn a_client_past_its_share_is_told_so_and_counted() {
        let metrics = Metrics::new().unwrap();
        let slots = RequestSlots::new(4, 0.5, &metrics);
        let take = || slots.take(Client::LOCAL, || Duration::from_secs(1));
        let held = [take().unwrap(), take().unwrap()];
        assert!(matches!(take(), Err(Error::Overloaded { limit, .. }) if limit.contains("one client address")));
        let other = Client::of(std::net::IpAddr::from([127, 0, 0, 2]));
        assert!(slots.take(other, Duration::default).is_ok());
        drop(held);
        assert!(take().is_ok());
        assert_eq!(metrics.client_share_refusals_total.with_label_values(&["requests"]).get(), 1);
    }
}
