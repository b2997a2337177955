//! Limits on the memory of request bodies and on the number of requests, over all connections and protocols. Clients
//! share both.

use std::sync::Arc;

use prometheus::{IntCounter, IntGauge};
use tokio::time::Duration;

use crate::fair_share::{Client, FairPool, PoolRejection, Share};
use crate::service::Error;
use crate::telemetry::{GaugeGuard, Metrics};

/// Memory budget for the bodies of all requests, bytes.
#[derive(Clone)]
pub(crate) struct BodyBudget {
    bytes: Arc<FairPool>,
    gauge: IntGauge,
    share_refusals: IntCounter,
}

impl BodyBudget {
    pub(super) fn new(bytes: usize, share: f64, metrics: &Metrics) -> Self {
        let share_refusals = metrics.client_share_refusals_total.with_label_values(&["body_bytes"]);
        Self { bytes: FairPool::new(bytes, share), gauge: metrics.body_bytes.clone(), share_refusals }
    }

    /// Returns the memory of a new body, which is empty.
    pub(crate) fn body(&self, client: Client) -> BodyMemory {
        BodyMemory { budget: self.clone(), share: self.bytes.share(client), gauge: GaugeGuard::by(&self.gauge, 0) }
    }
}

/// Memory of one body and of what is decoded from it. Dropping it returns the memory to the budget.
pub(crate) struct BodyMemory {
    budget: BodyBudget,
    share: Share,
    gauge: GaugeGuard,
}

impl BodyMemory {
    /// Takes more bytes from the budget.
    ///
    /// # Errors
    /// The budget, or the client's share of it, is exhausted.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        self.share.grow(bytes).map_err(|rejection| {
            let limit = match rejection {
                PoolRejection::Full => "memory for request bodies",
                PoolRejection::ClientShare => {
                    self.budget.share_refusals.inc();
                    "memory for request bodies from one client address"
                }
            };
            Error::Overloaded { limit, retry_after: Duration::from_secs(1) }
        })?;
        self.gauge.grow(bytes as i64);
        Ok(())
    }

    /// Returns some bytes to the budget.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let returned = self.share.shrink(bytes);
        self.gauge.grow(-(returned as i64));
    }
}

/// Slots for the requests that may be handled at once.
#[derive(Clone)]
pub(crate) struct RequestSlots {
    slots: Arc<FairPool>,
    share_refusals: IntCounter,
}

impl RequestSlots {
    pub(super) fn new(requests: usize, share: f64, metrics: &Metrics) -> Self {
        let share_refusals = metrics.client_share_refusals_total.with_label_values(&["requests"]);
        Self { slots: FairPool::new(requests, share), share_refusals }
    }

    /// Acquires a slot for one request. Dropping it frees the slot.
    ///
    /// # Errors
    /// All slots, or all that one client may have, are in use. `retry_after` returns the time after which the client
    /// may try again.
    pub(crate) fn acquire(&self, client: Client, retry_after: impl FnOnce() -> Duration) -> Result<Share, Error> {
        self.slots.acquire(client, 1).map_err(|rejection| {
            let limit = match rejection {
                PoolRejection::Full => "requests in flight",
                PoolRejection::ClientShare => {
                    self.share_refusals.inc();
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
    fn a_body_takes_memory_from_the_budget_and_returns_it() {
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
    fn a_client_beyond_its_share_is_rejected_and_counted() {
        let metrics = Metrics::new().unwrap();
        let slots = RequestSlots::new(4, 0.5, &metrics);
        let acquire = || slots.acquire(Client::LOCAL, || Duration::from_secs(1));
        let shares = [acquire().unwrap(), acquire().unwrap()];
        assert!(matches!(acquire(), Err(Error::Overloaded { limit, .. }) if limit.contains("one client address")));
        let other = Client::of(std::net::IpAddr::from([127, 0, 0, 2]));
        assert!(slots.acquire(other, Duration::default).is_ok());
        drop(shares);
        assert!(acquire().is_ok());
        assert_eq!(metrics.client_share_refusals_total.with_label_values(&["requests"]).get(), 1);
    }
}
