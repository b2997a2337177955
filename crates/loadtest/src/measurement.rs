//! The result of offering one load to one server for a while.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::recorder::merge;
use super::{ErrorKind, Load, LoadError};

/// Times, in an HDR histogram of microseconds.
#[derive(Clone, Debug)]
pub struct Latencies(pub(super) Histogram<u64>);

impl Latencies {
    /// How many were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The time that `percent` of the requests did not exceed; zero if there were none.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> Duration {
        Duration::from_micros(if self.0.is_empty() { 0 } else { self.0.value_at_percentile(percent) })
    }

    /// The longest; zero if there were none.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_micros(self.0.max())
    }

    /// The average; zero if there were none.
    #[must_use]
    pub fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.0.mean() / 1e6)
    }

    /// Points of the percentile curve, evenly spaced in the logarithm of the share that is slower, as far as the number
    /// of requests carries: percent, and the time.
    #[must_use]
    pub fn curve(&self) -> Vec<(f64, Duration)> {
        const STEPS_A_DECADE: f64 = 40.0;
        if self.0.is_empty() {
            return Vec::new();
        }
        let last = (self.count() as f64).log10().clamp(0.1, 6.0);
        let steps = (last * STEPS_A_DECADE).ceil() as usize;
        let points = (0..=steps).map(|i| {
            let slower = 10f64.powf(-(i as f64 / STEPS_A_DECADE).min(last));
            let percent = 100.0 * (1.0 - slower);
            (percent, self.percentile(percent))
        });
        points.collect()
    }

    /// The histogram's buckets that are not empty: the highest time each stands for, and its count.
    #[must_use]
    pub fn buckets(&self) -> Vec<(Duration, u64)> {
        let buckets = self.0.iter_recorded();
        buckets.map(|b| (Duration::from_micros(b.value_iterated_to()), b.count_since_last_iteration())).collect()
    }

    fn add(&mut self, other: &Self) {
        // All have the same bounds, for which this cannot fail.
        let _ = self.0.add(&other.0);
    }
}

/// What came of one load.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// What was offered.
    pub load: Load,
    /// How long was measured, warm-up excluded.
    pub seconds: f64,
    /// Latencies of answers of status 2xx.
    pub success: Latencies,
    /// Latencies of answers of status 429 and 503.
    pub rejected: Latencies,
    /// How late requests were sent that found a free connection: the tester's own slowness. Open loop only.
    pub lag: Latencies,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests without an answer that can be used, by what happened.
    pub errors: BTreeMap<ErrorKind, u64>,
    /// What the first of each kind said.
    pub first_errors: BTreeMap<ErrorKind, String>,
    /// Successes that arrived in the window.
    pub finished: u64,
    /// Those of them that arrived within the objective.
    pub finished_in_time: u64,
    /// Requests that waited for a connection because the most were open. Open loop only.
    pub queued: u64,
    /// Connections opened, warm-up included.
    pub connections_opened: u64,
    /// Bytes of requests that were answered.
    pub bytes_sent: u64,
    /// Bytes of answers.
    pub bytes_received: u64,
    /// Requests that were still unanswered when the user had enough.
    pub abandoned: u64,
    /// Processor time of the tester, seconds, warm-up included; None where the system does not tell.
    pub cpu_seconds: Option<f64>,
    /// How long it took, warm-up and waiting for the last answers included, seconds.
    pub wall_seconds: f64,
    /// Whether the user ended it early.
    pub interrupted: bool,
}

impl Measurement {
    pub(super) fn new(load: Load) -> Result<Self, LoadError> {
        Ok(Self {
            load,
            seconds: 0.0,
            success: Latencies::new()?,
            rejected: Latencies::new()?,
            lag: Latencies::new()?,
            statuses: BTreeMap::new(),
            errors: BTreeMap::new(),
            first_errors: BTreeMap::new(),
            finished: 0,
            finished_in_time: 0,
            queued: 0,
            connections_opened: 0,
            bytes_sent: 0,
            bytes_received: 0,
            abandoned: 0,
            cpu_seconds: None,
            wall_seconds: 0.0,
            interrupted: false,
        })
    }

    /// Requests that began in the window.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.statuses.values().sum::<u64>() + self.errors.values().sum::<u64>()
    }

    /// Those of them that were not answered with success.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.requests() - self.success.count()
    }

    /// The share of requests that were not answered with success, 0 to 1; 1 if there were no requests at all.
    #[must_use]
    pub fn failure_share(&self) -> f64 {
        if self.requests() == 0 { 1.0 } else { self.failures() as f64 / self.requests() as f64 }
    }

    /// Successes a second.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        self.finished as f64 / self.seconds.max(1e-9)
    }

    /// Successes within the objective a second.
    #[must_use]
    pub fn goodput(&self) -> f64 {
        self.finished_in_time as f64 / self.seconds.max(1e-9)
    }

    /// Cores that the tester kept busy on average.
    #[must_use]
    pub fn cpu_cores(&self) -> Option<f64> {
        Some(self.cpu_seconds? / self.wall_seconds.max(1e-9))
    }

    /// All of several as if they were one.
    #[must_use]
    pub fn merged<'a>(all: impl IntoIterator<Item = &'a Self>) -> Option<Self> {
        let mut all = all.into_iter();
        let mut sum = all.next()?.clone();
        for other in all {
            sum.seconds += other.seconds;
            sum.success.add(&other.success);
            sum.rejected.add(&other.rejected);
            sum.lag.add(&other.lag);
            merge(&mut sum.statuses, &other.statuses);
            merge(&mut sum.errors, &other.errors);
            for (kind, detail) in &other.first_errors {
                sum.first_errors.entry(*kind).or_insert_with(|| detail.clone());
            }
            sum.finished += other.finished;
            sum.finished_in_time += other.finished_in_time;
            sum.queued += other.queued;
            sum.connections_opened += other.connections_opened;
            sum.bytes_sent += other.bytes_sent;
            sum.bytes_received += other.bytes_received;
            sum.abandoned += other.abandoned;
            sum.cpu_seconds = sum.cpu_seconds.zip(other.cpu_seconds).map(|(a, b)| a + b);
            sum.wall_seconds += other.wall_seconds;
            sum.interrupted |= other.interrupted;
        }
        Some(sum)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_what_sorting_gives() {
        let mut latencies = Latencies::new().unwrap();
        assert_eq!((latencies.percentile(99.0), latencies.curve().len()), (Duration::ZERO, 0));
        let times: Vec<u64> = (1..=1000).map(|i| i * 100).collect();
        times.iter().for_each(|us| latencies.record(Duration::from_micros(*us)));
        for (percent, index) in [(50.0, 499), (90.0, 899), (99.0, 989), (99.85, 998), (100.0, 999)] {
            let found = latencies.percentile(percent).as_micros() as f64;
            assert!((found / times[index] as f64 - 1.0).abs() < 0.001, "{percent}: {found}");
        }
        let curve = latencies.curve();
        assert!(curve.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1));
        let last = curve.last().unwrap().0;
        assert!((last - 99.9).abs() < 1e-6, "no further than a thousand requests carry: {last}");
        assert_eq!(latencies.buckets().iter().map(|(_, count)| count).sum::<u64>(), 1000);
    }

    #[test]
    fn merging_adds() {
        let mut one = Measurement::new(Load::Closed { connections: 1 }).unwrap();
        one.success.record(Duration::from_millis(1));
        one.statuses.insert(200, 1);
        (one.seconds, one.finished) = (2.0, 10);
        let both = Measurement::merged([&one, &one]).unwrap();
        assert_eq!((both.success.count(), both.requests(), both.finished), (2, 2, 20));
        assert!((both.throughput() - 5.0).abs() < 1e-9);
        assert!(Measurement::merged([]).is_none());
    }
}
