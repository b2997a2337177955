//! The result of one run: one workload offered to one endpoint.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::recorder::add_counts;
use super::{LoadTestError, RequestErrorKind, Workload};

/// Latency histogram: an HDR histogram of microseconds.
#[derive(Clone, Debug)]
pub struct LatencyHistogram(pub(super) Histogram<u64>);

impl LatencyHistogram {
    /// Number of recorded latencies.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that `percent` (0 to 100) of the requests did not exceed; zero if the histogram is empty.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> Duration {
        Duration::from_micros(if self.0.is_empty() { 0 } else { self.0.value_at_percentile(percent) })
    }

    /// The largest latency; zero if the histogram is empty.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_micros(self.0.max())
    }

    /// The mean latency; zero if the histogram is empty.
    #[must_use]
    pub fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.0.mean() / 1e6)
    }

    /// The non-empty buckets: the highest latency of each, and its count.
    #[must_use]
    pub fn buckets(&self) -> Vec<(Duration, u64)> {
        let buckets = self.0.iter_recorded();
        buckets.map(|b| (Duration::from_micros(b.value_iterated_to()), b.count_since_last_iteration())).collect()
    }

    fn add(&mut self, other: &Self) {
        // All histograms have the same bounds, so this cannot fail.
        let _ = self.0.add(&other.0);
    }
}

/// The result of one run.
#[derive(Clone, Debug)]
pub struct RunMeasurement {
    /// The offered workload.
    pub workload: Workload,
    /// Length of the measured window, seconds; the warm-up is not part of it.
    pub seconds: f64,
    /// Latencies of responses with status 2xx.
    pub success: LatencyHistogram,
    /// Latencies of responses with status 429 or 503.
    pub rejected: LatencyHistogram,
    /// Delay between due time and sending, for requests that found a free connection: the load generator's own
    /// slowness. Open loop only.
    pub lag: LatencyHistogram,
    /// Number of responses by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Number of requests without a usable response, by kind of error.
    pub errors: BTreeMap<RequestErrorKind, u64>,
    /// Message of the first error of each kind.
    pub first_errors: BTreeMap<RequestErrorKind, String>,
    /// Number of successful responses that arrived in the window.
    pub finished: u64,
    /// Number of those that met the latency objective.
    pub finished_in_time: u64,
    /// Number of requests that waited for a connection because the maximum was open. Open loop only.
    pub queued: u64,
    /// Number of connections opened, warm-up included.
    pub connections_opened: u64,
    /// Bytes sent in requests that received a response.
    pub bytes_sent: u64,
    /// Bytes of responses.
    pub bytes_received: u64,
    /// Number of requests without a response when the run was stopped early.
    pub abandoned: u64,
    /// Processor time of the load generator, seconds, warm-up included; `None` where the system does not report it.
    pub cpu_seconds: Option<f64>,
    /// Length of the whole run, seconds: warm-up and waiting for the last responses included.
    pub wall_seconds: f64,
    /// Whether the run was stopped early.
    pub interrupted: bool,
}

impl RunMeasurement {
    pub(super) fn new(workload: Workload) -> Result<Self, LoadTestError> {
        Ok(Self {
            workload,
            seconds: 0.0,
            success: LatencyHistogram::new()?,
            rejected: LatencyHistogram::new()?,
            lag: LatencyHistogram::new()?,
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

    /// Number of requests that started in the window.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.statuses.values().sum::<u64>() + self.errors.values().sum::<u64>()
    }

    /// Number of requests that started in the window and did not succeed.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.requests() - self.success.count()
    }

    /// Share of the requests that did not succeed, 0 to 1; 1 if there were no requests.
    #[must_use]
    pub fn failure_share(&self) -> f64 {
        if self.requests() == 0 { 1.0 } else { self.failures() as f64 / self.requests() as f64 }
    }

    /// Successful responses per second.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        self.finished as f64 / self.seconds.max(1e-9)
    }

    /// Successful responses per second that met the latency objective.
    #[must_use]
    pub fn goodput(&self) -> f64 {
        self.finished_in_time as f64 / self.seconds.max(1e-9)
    }

    /// Number of cores that the load generator kept busy on average.
    #[must_use]
    pub fn cpu_cores(&self) -> Option<f64> {
        Some(self.cpu_seconds? / self.wall_seconds.max(1e-9))
    }

    /// Merges several runs into one; its workload is that of the first. `None` if there are no runs.
    #[must_use]
    pub fn merged<'a>(runs: impl IntoIterator<Item = &'a Self>) -> Option<Self> {
        let mut runs = runs.into_iter();
        let mut sum = runs.next()?.clone();
        for run in runs {
            sum.seconds += run.seconds;
            sum.success.add(&run.success);
            sum.rejected.add(&run.rejected);
            sum.lag.add(&run.lag);
            add_counts(&mut sum.statuses, &run.statuses);
            add_counts(&mut sum.errors, &run.errors);
            for (kind, detail) in &run.first_errors {
                sum.first_errors.entry(*kind).or_insert_with(|| detail.clone());
            }
            sum.finished += run.finished;
            sum.finished_in_time += run.finished_in_time;
            sum.queued += run.queued;
            sum.connections_opened += run.connections_opened;
            sum.bytes_sent += run.bytes_sent;
            sum.bytes_received += run.bytes_received;
            sum.abandoned += run.abandoned;
            sum.cpu_seconds = sum.cpu_seconds.zip(run.cpu_seconds).map(|(a, b)| a + b);
            sum.wall_seconds += run.wall_seconds;
            sum.interrupted |= run.interrupted;
        }
        Some(sum)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_agree_with_sorted_values() {
        let mut latencies = LatencyHistogram::new().unwrap();
        assert_eq!(latencies.percentile(99.0), Duration::ZERO);
        let times: Vec<u64> = (1..=1000).map(|i| i * 100).collect();
        times.iter().for_each(|us| latencies.record(Duration::from_micros(*us)));
        for (percent, index) in [(50.0, 499), (90.0, 899), (99.0, 989), (99.85, 998), (100.0, 999)] {
            let percentile = latencies.percentile(percent).as_micros() as f64;
            assert!((percentile / times[index] as f64 - 1.0).abs() < 0.001, "{percent}: {percentile}");
        }
        assert_eq!(latencies.buckets().iter().map(|(_, count)| count).sum::<u64>(), 1000);
    }

    #[test]
    fn merging_adds_counts_and_durations() {
        let mut one = RunMeasurement::new(Workload::ClosedLoop { connections: 1 }).unwrap();
        one.success.record(Duration::from_millis(1));
        one.statuses.insert(200, 1);
        (one.seconds, one.finished) = (2.0, 10);
        let both = RunMeasurement::merged([&one, &one]).unwrap();
        assert_eq!((both.success.count(), both.requests(), both.finished), (2, 2, 20));
        assert!((both.throughput() - 5.0).abs() < 1e-9);
        assert!(RunMeasurement::merged([]).is_none());
    }
}
