//! Arrival times of an open loop: a Poisson process, as many independent clients produce it.

use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;

/// Longest sleep of the pacing thread before it checks whether to stop.
const MAX_SLEEP: Duration = Duration::from_millis(50);

/// A Poisson process: an endless iterator of arrival times since its start. The same seed gives the same times.
#[derive(Clone, Debug)]
pub(super) struct PoissonArrivals {
    /// Arrivals per second.
    rate: f64,
    /// Time of the last arrival, seconds. The sum of many small numbers; f64 has enough digits for it.
    elapsed: f64,
    rng_state: u64,
}

impl PoissonArrivals {
    /// Creates a process of `rate` arrivals per second on average.
    pub(super) fn new(rate: f64, seed: u64) -> Self {
        Self { rate, elapsed: 0.0, rng_state: seed }
    }

    /// Uniform random number in [0, 1), by `SplitMix64`.
    fn uniform(&mut self) -> f64 {
        self.rng_state = self.rng_state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.rng_state;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Iterator for PoissonArrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.elapsed -= (1.0 - self.uniform()).ln() / self.rate;
        Duration::try_from_secs_f64(self.elapsed).ok()
    }
}

/// Sends each arrival time between `start` and `end` to `due` at that time. Runs on its own thread: tokio's timer has a
/// resolution of milliseconds and would bunch arrivals together; a thread wakes within the kernel's slack of 50 µs.
pub(super) fn pace(
    arrivals: PoissonArrivals,
    start: Instant,
    end: Instant,
    due: &UnboundedSender<Instant>,
    stop: &CancellationToken,
) {
    for offset in arrivals {
        let arrival = start + offset;
        if arrival >= end {
            return;
        }
        loop {
            if stop.is_cancelled() {
                return;
            }
            let wait = arrival.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                break;
            }
            std::thread::sleep(wait.min(MAX_SLEEP));
        }
        if due.send(arrival).is_err() {
            return;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_poisson_and_repeatable() {
        let n = 200_000;
        let times: Vec<f64> = PoissonArrivals::new(500.0, 1).take(n).map(|t| t.as_secs_f64()).collect();
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // Gaps are exponential: the standard deviation equals the mean. The bounds are several standard errors wide.
        assert!((mean * 500.0 - 1.0).abs() < 0.015, "{mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "{variance}");
        // The variance of the counts in windows of equal length equals their mean.
        let counts = (0..2000).map(|i| {
            let window = f64::from(i) * 0.1..f64::from(i + 1) * 0.1;
            let [low, high] = [window.start, window.end].map(|edge| times.partition_point(|t| *t < edge));
            (high - low) as f64
        });
        let dispersion = counts.clone().map(|c| (c - 50.0).powi(2)).sum::<f64>() / 2000.0 / 50.0;
        assert!((dispersion - 1.0).abs() < 0.15, "{dispersion}");

        let first = |seed| PoissonArrivals::new(500.0, seed).take(5).collect::<Vec<_>>();
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }

    #[test]
    fn all_arrivals_are_between_start_and_end() {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let start = Instant::now();
        let end = start + Duration::from_millis(30);
        pace(PoissonArrivals::new(1000.0, 3), start, end, &sender, &CancellationToken::new());
        drop(sender);
        let mut due = Vec::new();
        while let Some(arrival) = receiver.blocking_recv() {
            due.push(arrival);
        }
        let arrivals = PoissonArrivals::new(1000.0, 3).map(|offset| start + offset);
        let expected: Vec<_> = arrivals.take_while(|arrival| *arrival < end).collect();
        assert_eq!(due, expected);
        assert!(due.len() > 5);
    }
}
