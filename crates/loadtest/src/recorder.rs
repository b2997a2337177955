//! Writing down what happened to each request.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::client::Failure;
use super::measurement::{Latencies, Measurement};
use super::{Load, LoadError};

/// Why a request has no answer that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// No connection.
    Connect,
    /// No whole answer in time.
    Timeout,
    /// The connection was closed or reset before an answer came.
    Reset,
    /// What came was no HTTP response, or only a part of one.
    Protocol,
    /// A success whose body should have been JSON and was not.
    Body,
}

impl ErrorKind {
    /// As reports call it.
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
pub(super) enum Outcome {
    Answered { status: u16, sent: u64, received: u64 },
    Failed(Failure),
}

/// Collects a measurement. Requests outside its window are ignored, or count only where they overlap.
#[derive(Debug)]
pub(super) struct Recorder {
    start: Instant,
    end: Instant,
    slo: Duration,
    result: Measurement,
}

impl Recorder {
    /// For the time from `start` to `end`.
    pub(super) fn new(load: Load, start: Instant, end: Instant, slo: Duration) -> Result<Self, LoadError> {
        Ok(Self { start, end, slo, result: Measurement::new(load)? })
    }

    /// A request that was due at `due` (in a closed loop: was sent then) and ended at `finished`.
    pub(super) fn record(&mut self, due: Instant, finished: Instant, outcome: Outcome) {
        let latency = finished.saturating_duration_since(due);
        let window = self.start..self.end;
        let result = &mut self.result;
        if let Outcome::Answered { status: 200..300, .. } = outcome
            && window.contains(&finished)
        {
            result.finished += 1;
            result.finished_in_time += u64::from(latency <= self.slo);
        }
        if !window.contains(&due) {
            return;
        }
        match outcome {
            Outcome::Answered { status, sent, received } => {
                match status {
                    200..300 => result.success.record(latency),
                    429 | 503 => result.rejected.record(latency),
                    _ => {}
                }
                *result.statuses.entry(status).or_default() += 1;
                result.bytes_sent += sent;
                result.bytes_received += received;
            }
            Outcome::Failed(Failure { kind, detail }) => {
                *result.errors.entry(kind).or_default() += 1;
                result.first_errors.entry(kind).or_insert(detail);
            }
        }
    }

    /// A request that found a free connection was sent this much after it was due.
    pub(super) fn sent(&mut self, due: Instant, now: Instant) {
        if (self.start..self.end).contains(&due) {
            self.result.lag.record(now.saturating_duration_since(due));
        }
    }

    /// A request that had to wait for a connection.
    pub(super) fn queued(&mut self, due: Instant) {
        self.result.queued += u64::from((self.start..self.end).contains(&due));
    }

    pub(super) fn connected(&mut self) {
        self.result.connections_opened += 1;
    }

    /// The window ends early.
    pub(super) fn cut(&mut self, now: Instant) {
        self.end = self.end.min(now.max(self.start));
        self.result.interrupted = true;
    }

    /// What is known so far: successes in the window, their 99th percentile, requests that failed.
    pub(super) fn so_far(&self) -> (u64, Duration, u64) {
        (self.result.finished, self.result.success.percentile(99.0), self.result.failures())
    }

    /// What has been collected; leaves nothing.
    pub(super) fn take(&mut self) -> Result<Measurement, LoadError> {
        let empty = Measurement::new(self.result.load)?;
        let mut result = std::mem::replace(&mut self.result, empty);
        result.seconds = (self.end - self.start).as_secs_f64();
        Ok(result)
    }
}

/// Counts by something, for people: `200 × 512, 429 × 3`.
pub(super) fn counts<K: std::fmt::Display>(counts: impl IntoIterator<Item = (K, u64)>) -> String {
    counts.into_iter().map(|(what, count)| format!("{what} × {count}")).collect::<Vec<_>>().join(", ")
}

/// Adds counts to counts.
pub(super) fn merge<K: Copy + Ord>(into: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
    for (key, count) in from {
        *into.entry(*key).or_default() += count;
    }
}

impl Latencies {
    /// Nothing recorded yet. Three digits are kept, from a microsecond to ten minutes.
    pub(super) fn new() -> Result<Self, LoadError> {
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

    fn answered(status: u16) -> Outcome {
        Outcome::Answered { status, sent: 10, received: 1 }
    }

    #[test]
    fn latencies_belong_to_who_began_in_the_window_and_rates_to_who_ended_in_it() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let load = Load::Closed { connections: 1 };
        let mut recorder = Recorder::new(load, at(100), at(200), Duration::from_millis(20)).unwrap();
        recorder.record(at(0), at(50), answered(200)); // before
        recorder.record(at(90), at(105), answered(200)); // ended in it, in time
        recorder.record(at(100), at(150), answered(200)); // wholly, late
        recorder.record(at(150), at(160), answered(200)); // wholly, in time
        recorder.record(at(190), at(300), answered(200)); // began in it
        recorder.record(at(200), at(210), answered(200)); // after
        recorder.record(at(110), at(112), answered(429));
        recorder.record(at(110), at(112), answered(503));
        recorder.record(at(110), at(112), answered(404));
        for detail in ["first", "second"] {
            let failure = Failure { kind: ErrorKind::Reset, detail: detail.to_owned() };
            recorder.record(at(110), at(112), Outcome::Failed(failure));
        }
        let result = recorder.take().unwrap();
        assert_eq!((result.finished, result.finished_in_time), (3, 2));
        assert!((result.throughput() - 30.0).abs() < 1e-9 && (result.goodput() - 20.0).abs() < 1e-9);
        assert_eq!((result.success.count(), result.rejected.count()), (3, 2));
        assert_eq!(result.statuses, BTreeMap::from([(200, 3), (404, 1), (429, 1), (503, 1)]));
        assert_eq!(result.errors, BTreeMap::from([(ErrorKind::Reset, 2)]));
        assert_eq!(result.first_errors[&ErrorKind::Reset], "first");
        assert_eq!((result.requests(), result.failures()), (8, 5));
        assert_eq!((result.bytes_sent, result.bytes_received), (60, 6));
        let max = result.success.max().as_secs_f64() * 1000.0;
        assert!((max - 110.0).abs() < 0.2, "{max}");
    }

    #[test]
    fn a_cut_ends_the_window() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let load = Load::Closed { connections: 1 };
        let mut recorder = Recorder::new(load, at(0), at(1000), Duration::from_millis(20)).unwrap();
        recorder.record(at(10), at(20), answered(200));
        recorder.cut(at(100));
        recorder.record(at(150), at(160), answered(200));
        let result = recorder.take().unwrap();
        assert!((result.throughput() - 10.0).abs() < 1e-9 && result.requests() == 1 && result.interrupted);
    }
}
