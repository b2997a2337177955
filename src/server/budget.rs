//! The memory that request bodies may take, over all requests and protocols.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Duration;

use crate::service::Error;
use crate::telemetry::{GaugeGuard, Metrics};

/// The bytes that bodies of all requests may take.
#[derive(Clone)]
pub(crate) struct BodyBudget {
    bytes: Arc<Semaphore>,
    metrics: prometheus::IntGauge,
}

impl BodyBudget {
    pub(super) fn new(bytes: usize, metrics: &Metrics) -> Self {
        let bytes = Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS)));
        Self { bytes, metrics: metrics.body_bytes.clone() }
    }

    /// A share of nothing yet.
    pub(crate) fn share(&self) -> Share {
        Share { budget: self.clone(), permit: None, gauge: GaugeGuard::by(&self.metrics, 0) }
    }
}

/// A part of the budget; returned when dropped.
pub(crate) struct Share {
    budget: BodyBudget,
    permit: Option<OwnedSemaphorePermit>,
    gauge: GaugeGuard,
}

impl Share {
    /// Grows by some bytes.
    ///
    /// # Errors
    /// The budget has no more.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        let none = || Error::Overloaded { limit: "memory for request bodies", retry_after: Duration::from_secs(1) };
        let count = u32::try_from(bytes).map_err(|_| none())?;
        let more = Arc::clone(&self.budget.bytes).try_acquire_many_owned(count).map_err(|_| none())?;
        match &mut self.permit {
            // One permit, however small the pieces: a body of one-byte chunks must not cost more than its bytes.
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        self.gauge.grow(bytes as i64);
        Ok(())
    }

    /// Gives some bytes back.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        if let Some(given) = self.permit.as_mut().and_then(|permit| permit.split(bytes)) {
            drop(given);
            self.gauge.grow(-(bytes as i64));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_share_takes_what_there_is_and_gives_it_back() {
        let metrics = Metrics::new().unwrap();
        let budget = BodyBudget::new(10, &metrics);
        let (mut one, mut other) = (budget.share(), budget.share());
        one.grow(6).unwrap();
        other.grow(4).unwrap();
        assert!(other.grow(1).is_err());
        one.shrink(2);
        other.grow(2).unwrap();
        assert_eq!(metrics.body_bytes.get(), 10);
        drop((one, other));
        assert_eq!((metrics.body_bytes.get(), budget.bytes.available_permits()), (0, 10));
    }
}
