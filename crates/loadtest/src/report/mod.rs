//! The report of a campaign, as text, JSON and HTML.

mod html;
mod json;
mod plot;
mod text;

use std::time::Duration;

use super::{
    Environment, LatencyHistogram, LoadTarget, RunMeasurement, RunSettings, ServerInfo, StatisticRatio, Workload,
    median,
};

/// The results of a campaign.
#[derive(Clone, Debug)]
pub struct CampaignReport {
    /// When, where and with which command the campaign ran.
    pub environment: Environment,
    /// Description of the images.
    pub images: String,
    /// Settings of every run.
    pub settings: RunSettings,
    /// The percentile that a saturation search compared with the latency objective.
    pub slo_percentile: f64,
    /// One report per target, in the user's order; the others are compared with the first.
    pub targets: Vec<TargetReport>,
}

/// The results of one target.
#[derive(Clone, Debug)]
pub struct TargetReport {
    /// The target.
    pub target: LoadTarget,
    /// What the server said about itself before the campaign; `None` if it is no GhostServe or did not answer.
    pub server: Option<ServerInfo>,
    /// One series per workload.
    pub series: Vec<WorkloadSeries>,
    /// The runs of a saturation search, in order.
    pub search_runs: Vec<RunMeasurement>,
    /// The highest rate that met the latency objective, requests per second.
    pub highest_rate: Option<f64>,
}

/// The rounds of one workload against one target.
#[derive(Clone, Debug)]
pub struct WorkloadSeries {
    /// The offered workload.
    pub workload: Workload,
    /// One measurement per round.
    pub rounds: Vec<RunMeasurement>,
}

/// A statistic of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistic {
    /// Successful responses per second.
    Throughput,
    /// Successful responses per second that met the latency objective.
    Goodput,
    /// Median latency of successful requests, milliseconds.
    P50,
    /// 90th percentile of the latencies, milliseconds.
    P90,
    /// 95th percentile of the latencies, milliseconds.
    P95,
    /// 99th percentile of the latencies, milliseconds.
    P99,
    /// 99.9th percentile of the latencies, milliseconds.
    P999,
    /// Largest latency, milliseconds.
    Max,
    /// Mean latency, milliseconds.
    Mean,
    /// Median latency of rejections (429 and 503), milliseconds.
    RejectedP50,
    /// Requests that did not succeed, percent.
    Failures,
}

impl Statistic {
    /// All statistics, in the order of the tables.
    pub const ALL: [Self; 11] = [
        Self::Throughput,
        Self::Goodput,
        Self::P50,
        Self::P90,
        Self::P95,
        Self::P99,
        Self::P999,
        Self::Max,
        Self::Mean,
        Self::RejectedP50,
        Self::Failures,
    ];

    /// Name in tables and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::Goodput => "goodput",
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P95 => "p95",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::Max => "max",
            Self::Mean => "mean",
            Self::RejectedP50 => "rejected p50",
            Self::Failures => "failed",
        }
    }

    /// Unit of the value.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Throughput | Self::Goodput => "/s",
            Self::Failures => "%",
            _ => "ms",
        }
    }

    /// The percentile of the successful requests that this statistic is; `None` for the others.
    #[must_use]
    pub fn percent(self) -> Option<f64> {
        match self {
            Self::P50 => Some(50.0),
            Self::P90 => Some(90.0),
            Self::P95 => Some(95.0),
            Self::P99 => Some(99.0),
            Self::P999 => Some(99.9),
            _ => None,
        }
    }

    /// Value of this statistic in one run; NaN if the run has no request that it describes, such as a rejected one.
    #[must_use]
    pub fn of(self, run: &RunMeasurement) -> f64 {
        match self {
            Self::Throughput => run.throughput(),
            Self::Goodput => run.goodput(),
            Self::RejectedP50 => latency_of(&run.rejected, |rejected| rejected.percentile(50.0)),
            Self::Max => latency_of(&run.success, LatencyHistogram::max),
            Self::Mean => latency_of(&run.success, LatencyHistogram::mean),
            Self::P50 | Self::P90 | Self::P95 | Self::P99 | Self::P999 => {
                latency_of(&run.success, |success| success.percentile(self.percent().unwrap_or(f64::NAN)))
            }
            Self::Failures => 100.0 * run.failure_share(),
        }
    }
}

/// A latency of a histogram, milliseconds; NaN if the histogram is empty.
fn latency_of(latencies: &LatencyHistogram, of: impl Fn(&LatencyHistogram) -> Duration) -> f64 {
    if latencies.count() == 0 { f64::NAN } else { milliseconds(of(latencies)) }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl WorkloadSeries {
    /// Creates a series without rounds.
    pub(super) fn new(workload: Workload) -> Self {
        Self { workload, rounds: Vec::new() }
    }

    /// Value of a statistic in each round.
    #[must_use]
    pub fn rounds_of(&self, statistic: Statistic) -> Vec<f64> {
        self.rounds.iter().map(|run| statistic.of(run)).collect()
    }

    /// Median of a statistic over the rounds that have it; NaN if none has.
    #[must_use]
    pub fn median_of(&self, statistic: Statistic) -> f64 {
        median(self.rounds_of(statistic).into_iter().filter(|value| value.is_finite()))
    }

    /// Latency curve over the percentiles: percent and milliseconds. Each value is the median over the rounds, as in
    /// the tables, and the percentiles of the tables are among the points.
    #[must_use]
    pub fn curve(&self) -> Vec<(f64, f64)> {
        const STEPS_PER_DECADE: usize = 20;
        let rounds: Vec<_> = self.rounds.iter().map(|run| &run.success).filter(|round| round.count() > 0).collect();
        let Some(largest) = rounds.iter().map(|round| round.count()).max() else { return Vec::new() };
        // The curve ends at the share that one request has, or at p99.9, the last percentile of the tables.
        let decades = (largest as f64).log10().clamp(3.0, 6.0);
        let steps = (decades * STEPS_PER_DECADE as f64) as usize;
        // Rounded, so that p90 of this grid is exactly p90 of the tables.
        let percent = |i: usize| 100.0 * (1.0 - 10f64.powf(-(i as f64) / STEPS_PER_DECADE as f64));
        let even = (0..=steps).map(|i| (percent(i) * 1e9).round() / 1e9);
        let mut percents: Vec<f64> = even.chain(Statistic::ALL.into_iter().filter_map(Statistic::percent)).collect();
        percents.sort_by(f64::total_cmp);
        percents.dedup_by(|a, b| (*a - *b).abs() < 1e-9);
        let value = |percent| median(rounds.iter().map(|round| milliseconds(round.percentile(percent))));
        percents.into_iter().map(|percent| (percent, value(percent))).collect()
    }
}

impl CampaignReport {
    /// Ratio of a target's statistic to the first target's, under one workload. `target` and `series` are indices.
    #[must_use]
    pub fn ratio(&self, target: usize, series: usize, statistic: Statistic) -> Option<StatisticRatio> {
        let rounds_of = |target: usize| Some(self.targets.get(target)?.series.get(series)?.rounds_of(statistic));
        let (values, base) = (rounds_of(target)?, rounds_of(0)?);
        let ratio = StatisticRatio::of(&values, &base);
        [ratio.of_medians, ratio.min, ratio.max].iter().all(|value| value.is_finite()).then_some(ratio)
    }

    /// The workloads, in the order of the series.
    fn workloads(&self) -> Vec<Workload> {
        let first = self.targets.first();
        first.map(|target| target.series.iter().map(|series| series.workload).collect()).unwrap_or_default()
    }
}

impl TargetReport {
    /// One line per kind of problem: its count, and for errors the first message.
    fn problems(&self) -> Vec<String> {
        let runs = self.series.iter().flat_map(|series| &series.rounds).chain(&self.search_runs);
        let Some(all) = RunMeasurement::merged(runs) else { return Vec::new() };
        let mut problems: Vec<String> = all
            .errors
            .iter()
            .map(|(kind, count)| {
                let first = all.first_errors.get(kind).map_or("", String::as_str);
                format!("{count} × {}: {first}", kind.name())
            })
            .collect();
        let unexpected = all.statuses.iter().filter(|(status, _)| !matches!(status, 200..300 | 429 | 503));
        problems.extend(unexpected.map(|(status, count)| format!("{count} × status {status}")));
        if all.queued > 0 {
            problems.push(format!("{} requests waited because the maximum number of connections was open", all.queued));
        }
        // A load generator that sends late measures itself.
        let lag = all.lag.percentile(99.0);
        if lag > Duration::from_millis(5) {
            problems.push(format!("1 % of the requests were sent more than {:.1} ms late", milliseconds(lag)));
        }
        if all.abandoned > 0 {
            problems.push(format!("{} requests had no response when the run was stopped", all.abandoned));
        }
        problems
    }
}

/// Formats a number with its significant digits.
fn format_number(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "–".to_owned(),
        0.0 => "0".to_owned(),
        v if v < 1.0 => format!("{value:.2}"),
        v if v < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;
    use crate::{Machine, ServedModel};

    fn environment() -> Environment {
        let machine = Machine {
            system: "Some Linux 1".to_owned(),
            architecture: "x86_64".to_owned(),
            processor: Some("Some Processor <9>".to_owned()),
            cores: Some(12),
            memory_bytes: Some(3 << 30),
        };
        let command = "ghostserve bench 'one<b>=http://localhost:1/'".to_owned();
        Environment { started: "2026-01-31T12:30:59Z".to_owned(), machine, command }
    }

    fn server() -> ServerInfo {
        let plan = [("provider", "cpu"), ("workers", "2")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let model = ServedModel {
            name: "birds".to_owned(),
            architecture: "ghostnetv2_100".to_owned(),
            digest: "sha256:0123".to_owned(),
            plan: plan.into(),
        };
        ServerInfo {
            version: "9.8.7".to_owned(),
            revision: "abcdef0".to_owned(),
            onnxruntime: "1.2.3".to_owned(),
            models: vec![model],
        }
    }

    /// What every form of the report says about the conditions of [`sample`].
    pub(crate) const CONDITIONS: [&str; 11] = [
        "2026-01-31",
        "12:30:59",
        "Some Linux 1",
        "12",
        "x86_64",
        "9.8.7",
        "abcdef0",
        "1.2.3",
        "birds",
        "sha256:0123",
        env!("CARGO_PKG_VERSION"),
    ];

    /// A report without rejections, whose second target has no successful request.
    pub(crate) fn sample_without_rejections() -> CampaignReport {
        let mut report = sample();
        for series in report.targets.iter_mut().flat_map(|target| &mut target.series) {
            series.rounds.iter_mut().for_each(|run| run.rejected.0.clear());
        }
        for series in &mut report.targets[1].series {
            series.rounds.iter_mut().for_each(|run| run.success.0.clear());
        }
        report
    }

    /// Two targets, two loads, two rounds: the second target is half as fast.
    pub(crate) fn sample() -> CampaignReport {
        let run = |workload, slower: u64| {
            let mut run = RunMeasurement::new(workload).unwrap();
            run.seconds = 10.0;
            for i in 1..=100 {
                run.success.0.record(slower * i * 1000).unwrap();
            }
            run.rejected.0.record(500).unwrap();
            run.statuses = [(200, 100), (429, 1), (500, 2)].into();
            (run.finished, run.finished_in_time) = (1000 / slower, 900 / slower);
            run
        };
        let workloads = [50.0, 100.0].map(|arrival_rate| Workload::OpenLoop { arrival_rate });
        let target = |name: &str, slower| TargetReport {
            target: LoadTarget::parse(&format!("{name}=http://localhost:1/")).unwrap(),
            server: (slower == 1).then(server),
            series: workloads
                .iter()
                .map(|&workload| WorkloadSeries {
                    workload,
                    rounds: vec![run(workload, slower), run(workload, slower)],
                })
                .collect(),
            search_runs: Vec::new(),
            highest_rate: Some(80.0),
        };
        let settings = RunSettings {
            duration: Duration::from_secs(10),
            warm_up: Duration::from_secs(2),
            timeout: Duration::from_secs(10),
            slo: Duration::from_millis(90),
            max_connections: 10,
            seed: 1,
            obey_retry_after: false,
            check_json: false,
        };
        CampaignReport {
            environment: environment(),
            images: "3 images".to_owned(),
            settings,
            slo_percentile: 99.0,
            targets: vec![target("one<b>", 1), target("two", 2)],
        }
    }

    #[test]
    fn statistics_are_medians_and_ratios_compare_with_the_first_target() {
        let report = sample();
        let series = &report.targets[1].series[0];
        assert!((series.median_of(Statistic::Throughput) - 50.0).abs() < 1e-9);
        assert!((series.median_of(Statistic::P50) - 100.0).abs() < 0.2);
        assert!((series.median_of(Statistic::Failures) - 100.0 * 3.0 / 103.0).abs() < 1e-9);
        let ratio = report.ratio(1, 0, Statistic::Throughput).unwrap();
        assert!((ratio.of_medians - 0.5).abs() < 1e-9);
        assert!(report.ratio(1, 7, Statistic::Throughput).is_none());
        assert_eq!(report.targets[0].problems(), ["8 × status 500"]);
    }

    #[test]
    fn a_statistic_without_requests_has_no_value_and_no_ratio() {
        let report = sample_without_rejections();
        let [first, second] = [0, 1].map(|target| &report.targets[target].series[0]);
        assert!(first.median_of(Statistic::RejectedP50).is_nan());
        for statistic in [Statistic::P50, Statistic::P999, Statistic::Max, Statistic::Mean] {
            assert!(first.median_of(statistic) > 0.0 && second.median_of(statistic).is_nan(), "{statistic:?}");
            assert!(report.ratio(1, 0, statistic).is_none());
        }
        assert!(report.ratio(1, 0, Statistic::RejectedP50).is_none() && second.curve().is_empty());
    }

    #[test]
    fn a_median_is_over_the_rounds_that_have_the_statistic() {
        let mut series = sample().targets.remove(0).series.remove(0);
        series.rounds[0].rejected.0.clear();
        assert!((series.median_of(Statistic::RejectedP50) - 0.5).abs() < 1e-3);
    }

    #[test]
    fn the_curve_has_the_values_of_the_table() {
        let mut series = sample().targets.remove(0).series.remove(0);
        // A slow round: the median over the rounds differs from the percentile of all requests.
        series.rounds[1].success.0.record_n(5_000_000, 60).unwrap();
        series.rounds.push(series.rounds[0].clone());
        let curve = series.curve();
        for statistic in Statistic::ALL {
            let Some(percent) = statistic.percent() else { continue };
            let point = curve.iter().find(|(at, _)| (at - percent).abs() < 1e-9).unwrap();
            assert_eq!(format_number(point.1), format_number(series.median_of(statistic)), "{}", statistic.name());
        }
        assert!(curve.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
    }

    #[test]
    fn numbers_have_their_significant_digits() {
        for (value, text) in [(0.0, "0"), (0.123, "0.12"), (12.34, "12.3"), (1234.5, "1234"), (f64::NAN, "–")] {
            assert_eq!(format_number(value), text);
        }
    }
}
