//! Records the outcome of every request.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::client::ExchangeError;
use super::measurement::{LatencyHistogram, RunMeasurement};
use super::run::RunProgress;
use super::{LoadTestError, Workload};

/// The reason why a request has no usable response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestErrorKind {
    /// No connection could be opened.
    Connect,
    /// No complete response arrived in time.
    Timeout,
    /// The connection was closed or reset before a response arrived.
    Reset,
    /// The received bytes were not a complete HTTP response.
    Protocol,
    /// The body of a successful response was not of the expected type.
    Body,
}

impl RequestErrorKind {
    /// Name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Protocol => "protocol",
            Self::Body => "body",
        }
    }
}

/// How a request ended.
#[derive(Debug)]
pub(super) enum RequestOutcome {
    Answered { status: u16, sent: u64, received: u64 },
    Failed(ExchangeError),
}

/// Collects a measurement. Requests outside the window from `start` to `end` are ignored; those that overlap it count
/// as [`Self::record`] describes.
#[derive(Debug)]
pub(super) struct RunRecorder {
    start: Instant,
    end: Instant,
    slo: Duration,
    measurement: RunMeasurement,
}

impl RunRecorder {
    /// Creates a recorder for the window from `start` to `end`.
    pub(super) fn new(workload: Workload, start: Instant, end: Instant, slo: Duration) -> Result<Self, LoadTestError> {
        Ok(Self { start, end, slo, measurement: RunMeasurement::new(workload)? })
    }

    /// Records a request that was due at `due` (in a closed loop: was sent then) and ended at `finished`. The rates
    /// count it if it ended in the window, all other numbers if it was due in the window.
    pub(super) fn record(&mut self, due: Instant, finished: Instant, outcome: RequestOutcome) {
        let latency = finished.saturating_duration_since(due);
        let window = self.start..self.end;
        let measurement = &mut self.measurement;
        if let RequestOutcome::Answered { status: 200..300, .. } = outcome
            && window.contains(&finished)
        {
            measurement.finished += 1;
            measurement.finished_in_time += u64::from(latency <= self.slo);
        }
        if !window.contains(&due) {
            return;
        }
        match outcome {
            RequestOutcome::Answered { status, sent, received } => {
                match status {
                    200..300 => measurement.success.record(latency),
                    429 | 503 => measurement.rejected.record(latency),
                    _ => {}
                }
                *measurement.statuses.entry(status).or_default() += 1;
                measurement.bytes_sent += sent;
                measurement.bytes_received += received;
            }
            RequestOutcome::Failed(ExchangeError { kind, detail }) => {
                *measurement.errors.entry(kind).or_default() += 1;
                measurement.first_errors.entry(kind).or_insert(detail);
            }
        }
    }

    /// Records the sending lag of a request that found a free connection.
    pub(super) fn record_lag(&mut self, due: Instant, now: Instant) {
        if (self.start..self.end).contains(&due) {
            self.measurement.lag.record(now.saturating_duration_since(due));
        }
    }

    /// Counts a request that has to wait for a connection.
    pub(super) fn record_queued(&mut self, due: Instant) {
        self.measurement.queued += u64::from((self.start..self.end).contains(&due));
    }

    /// Counts an attempt to open a connection.
    pub(super) fn record_connection(&mut self) {
        self.measurement.connections_opened += 1;
    }

    /// Ends the window early.
    pub(super) fn end_early(&mut self, now: Instant) {
        self.end = self.end.min(now.max(self.start));
        self.measurement.interrupted = true;
    }

    /// Intermediate results, `elapsed` after the run's start.
    pub(super) fn progress(&self, elapsed: Duration, warming_up: bool) -> RunProgress {
        RunProgress {
            elapsed,
            warming_up,
            finished: self.measurement.finished,
            p99: self.measurement.success.percentile(99.0),
            failures: self.measurement.failures(),
        }
    }

    /// Takes the measurement out of the recorder; an empty one remains.
    pub(super) fn take_measurement(&mut self) -> Result<RunMeasurement, LoadTestError> {
        let empty = RunMeasurement::new(self.measurement.workload)?;
        let mut measurement = std::mem::replace(&mut self.measurement, empty);
        measurement.seconds = (self.end - self.start).as_secs_f64();
        Ok(measurement)
    }
}

/// Formats counts by key, for people: `200 × 512, 429 × 3`.
pub(super) fn format_counts<K: std::fmt::Display>(counts: impl IntoIterator<Item = (K, u64)>) -> String {
    counts.into_iter().map(|(key, count)| format!("{key} × {count}")).collect::<Vec<_>>().join(", ")
}

/// Adds the counts of `from` to those of `into`.
pub(super) fn add_counts<K: Copy + Ord>(into: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
    for (key, count) in from {
        *into.entry(*key).or_default() += count;
    }
}

impl LatencyHistogram {
    /// Creates an empty histogram from 1 µs to 10 minutes with three significant digits.
    pub(super) fn new() -> Result<Self, LoadTestError> {
        Ok(Self(Histogram::new_with_bounds(1, 600_000_000, 3)?))
    }

    pub(super) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn answered(status: u16) -> RequestOutcome {
        RequestOutcome::Answered { status, sent: 10, received: 1 }
    }

    #[test]
    fn latencies_count_requests_that_started_in_the_window_and_rates_those_that_ended_in_it() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let workload = Workload::ClosedLoop { connections: 1 };
        let mut recorder = RunRecorder::new(workload, at(100), at(200), Duration::from_millis(20)).unwrap();
        recorder.record(at(0), at(50), answered(200)); // before the window
        recorder.record(at(90), at(105), answered(200)); // ends inside, in time
        recorder.record(at(100), at(150), answered(200)); // inside, late
        recorder.record(at(150), at(160), answered(200)); // inside, in time
        recorder.record(at(190), at(300), answered(200)); // starts inside
        recorder.record(at(200), at(210), answered(200)); // after the window
        recorder.record(at(110), at(112), answered(429));
        recorder.record(at(110), at(112), answered(503));
        recorder.record(at(110), at(112), answered(404));
        for detail in ["first", "second"] {
            let error = ExchangeError { kind: RequestErrorKind::Reset, detail: detail.to_owned() };
            recorder.record(at(110), at(112), RequestOutcome::Failed(error));
        }
        let measurement = recorder.take_measurement().unwrap();
        assert_eq!((measurement.finished, measurement.finished_in_time), (3, 2));
        assert!((measurement.throughput() - 30.0).abs() < 1e-9 && (measurement.goodput() - 20.0).abs() < 1e-9);
        assert_eq!((measurement.success.count(), measurement.rejected.count()), (3, 2));
        assert_eq!(measurement.statuses, BTreeMap::from([(200, 3), (404, 1), (429, 1), (503, 1)]));
        assert_eq!(measurement.errors, BTreeMap::from([(RequestErrorKind::Reset, 2)]));
        assert_eq!(measurement.first_errors[&RequestErrorKind::Reset], "first");
        assert_eq!((measurement.requests(), measurement.failures()), (8, 5));
        assert_eq!((measurement.bytes_sent, measurement.bytes_received), (60, 6));
        let max = measurement.success.max().as_secs_f64() * 1000.0;
        assert!((max - 110.0).abs() < 0.2, "{max}");
    }

    #[test]
    fn stopping_early_ends_the_window() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let workload = Workload::ClosedLoop { connections: 1 };
        let mut recorder = RunRecorder::new(workload, at(0), at(1000), Duration::from_millis(20)).unwrap();
        recorder.record(at(10), at(20), answered(200));
        recorder.end_early(at(100));
        recorder.record(at(150), at(160), answered(200));
        let measurement = recorder.take_measurement().unwrap();
        assert!(
            (measurement.throughput() - 10.0).abs() < 1e-9 && measurement.requests() == 1 && measurement.interrupted
        );
    }
}
