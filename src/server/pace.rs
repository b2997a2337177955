//! Enforces the minimum rate at which a body must arrive.
//!
//! With a time limit alone, a thousand clients could each send a byte a second and hold a thousand requests until the
//! limit.

use tokio::time::{Duration, Instant};

use super::problem::Problem;
use crate::config::TRANSFER_GRACE;
use crate::service::Code;

/// Measures the rate at which a body arrives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Minimum rate, bytes a second; 0 for no minimum.
    rate: u64,
    start: Instant,
    bytes: u64,
}

/// A time longer than any request.
const NEVER: Duration = Duration::from_secs(24 * 3600);

impl Pace {
    /// Starts the measurement of a body.
    pub(super) fn new(rate: u64) -> Self {
        Self { rate, start: Instant::now(), bytes: 0 }
    }

    pub(super) fn received(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// Deadline for the next bytes.
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
    async fn received_bytes_extend_the_deadline_by_the_minimum_rate() {
        let mut pace = Pace::new(1000);
        assert_eq!(pace.next_due() - pace.start, TRANSFER_GRACE);
        pace.received(1500);
        assert_eq!(pace.next_due() - pace.start, TRANSFER_GRACE + Duration::from_millis(1500));
        let any = Pace::new(0);
        assert_eq!(any.next_due() - any.start, NEVER);
    }
}
