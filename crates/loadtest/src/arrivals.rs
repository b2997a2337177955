//! When requests are due in an open loop: at random, as from many clients who know nothing of each other.

use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;

/// How long the pacing thread sleeps at most before it looks whether it should stop.
const NAP: Duration = Duration::from_millis(50);

/// A Poisson process: times from its beginning, without end. The same for the same seed.
#[derive(Clone, Debug)]
pub(super) struct Poisson {
    rate: f64,
    /// Seconds; a sum of many small numbers, for which f64 has room.
    at: f64,
    state: u64,
}

impl Poisson {
    /// `rate` arrivals a second on average.
    pub(super) fn new(rate: f64, seed: u64) -> Self {
        Self { rate, at: 0.0, state: seed }
    }

    /// Uniform in [0, 1): SplitMix64.
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Iterator for Poisson {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.at -= (1.0 - self.uniform()).ln() / self.rate;
        Duration::try_from_secs_f64(self.at).ok()
    }
}

/// Sends every arrival when it is due, from `start` to `end`. Runs on a thread of its own: tokio's clock ticks in
/// milliseconds, which would bunch arrivals together; a thread wakes to within the kernel's slack of 50 µs.
pub(super) fn pace(
    arrivals: Poisson,
    start: Instant,
    end: Instant,
    due: &UnboundedSender<Instant>,
    stop: &CancellationToken,
) {
    for offset in arrivals {
        let at = start + offset;
        if at >= end {
            return;
        }
        loop {
            if stop.is_cancelled() {
                return;
            }
            let wait = at.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                break;
            }
            std::thread::sleep(wait.min(NAP));
        }
        if due.send(at).is_err() {
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
        let times: Vec<f64> = Poisson::new(500.0, 1).take(n).map(|t| t.as_secs_f64()).collect();
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // Exponential gaps: the standard deviation is the mean. The bounds are several standard errors wide.
        assert!((mean * 500.0 - 1.0).abs() < 0.015, "{mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "{variance}");
        // Counts in a window vary by their mean.
        let counts = (0..2000).map(|i| {
            let window = f64::from(i) * 0.1..f64::from(i + 1) * 0.1;
            let [low, high] = [window.start, window.end].map(|edge| times.partition_point(|t| *t < edge));
            (high - low) as f64
        });
        let dispersion = counts.clone().map(|c| (c - 50.0).powi(2)).sum::<f64>() / 2000.0 / 50.0;
        assert!((dispersion - 1.0).abs() < 0.15, "{dispersion}");

        let first = |seed| Poisson::new(500.0, seed).take(5).collect::<Vec<_>>();
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }

    #[test]
    fn nothing_is_due_outside_the_time() {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let start = Instant::now();
        let end = start + Duration::from_millis(30);
        pace(Poisson::new(1000.0, 3), start, end, &sender, &CancellationToken::new());
        drop(sender);
        let mut due = Vec::new();
        while let Some(at) = receiver.blocking_recv() {
            due.push(at);
        }
        let expected: Vec<_> = Poisson::new(1000.0, 3).map(|t| start + t).take_while(|at| *at < end).collect();
        assert_eq!(due, expected);
        assert!(due.len() > 5);
    }
}
