//! The least rate at which a body must arrive.
//!
//! A time limit alone lets a thousand clients hold a thousand requests for all of it with a byte a second each.

use tokio::time::{Duration, Instant};

use super::problem::Problem;
use crate::config::TRANSFER_GRACE;
use crate::service::Code;

/// How fast a body arrives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Bytes a second; 0 if any will do.
    rate: u64,
    start: Instant,
    bytes: u64,
}

/// Longer than any request.
const NEVER: Duration = Duration::from_secs(24 * 3600);

impl Pace {
    /// A body begins to arrive.
    pub(super) fn new(rate: u64) -> Self {
        Self { rate, start: Instant::now(), bytes: 0 }
    }

    pub(super) fn received(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// When more bytes must have come.
    pub(super) fn next_due(&self) -> Instant {
        let allowed = match self.rate {
            0 => NEVER,
            rate => TRANSFER_GRACE + Duration::from_millis(self.bytes.saturating_mul(1000) / rate).min(NEVER),
        };
        self.start + allowed
    }

    /// The error for a body that is late.
    pub(super) fn too_slow(&self) -> Problem {
        let detail = format!(
            "the body arrives too slowly: {} bytes in {:.1} s, at least {} bytes a second are expected",
            self.bytes,
            self.start.elapsed().as_secs_f64(),
            self.rate
        );
        Problem::new(Code::BodyTimeout, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_buy_time_at_the_least_rate() {
        let mut pace = Pace::new(1000);
        assert_eq!(pace.next_due() - pace.start, TRANSFER_GRACE);
        pace.received(1500);
        assert_eq!(pace.next_due() - pace.start, TRANSFER_GRACE + Duration::from_millis(1500));
        let any = Pace::new(0);
        assert_eq!(any.next_due() - any.start, NEVER);
    }
}
