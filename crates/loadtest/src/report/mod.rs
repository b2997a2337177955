//! What a campaign found, as text, JSON and HTML.

mod html;
mod json;
mod plot;
mod text;

use super::{Load, Measurement, Ratio, Target, median, run::Settings};

/// Everything a campaign found.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was sent.
    pub images: String,
    /// How.
    pub settings: Settings,
    /// The percentile that a search held against the objective.
    pub slo_percentile: f64,
    /// One a target, in the user's order; the first is what others are compared with.
    pub subjects: Vec<Subject>,
}

/// What was found of one target.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Who.
    pub target: Target,
    /// One a load.
    pub series: Vec<Series>,
    /// The runs of a search, in their order.
    pub searched: Vec<Measurement>,
    /// The highest rate that met the objective, requests a second.
    pub highest: Option<f64>,
}

/// The rounds of one load.
#[derive(Clone, Debug)]
pub struct Series {
    /// What was offered.
    pub load: Load,
    /// What came of it, round by round.
    pub rounds: Vec<Measurement>,
}

/// A number that is reported of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Successes a second.
    Throughput,
    /// Successes within the objective a second.
    Goodput,
    /// Milliseconds that half of the successes did not exceed.
    P50,
    /// Milliseconds that 90 % did not exceed.
    P90,
    /// Milliseconds that 95 % did not exceed.
    P95,
    /// Milliseconds that 99 % did not exceed.
    P99,
    /// Milliseconds that 99.9 % did not exceed.
    P999,
    /// The longest, milliseconds.
    Max,
    /// The average, milliseconds.
    Mean,
    /// Milliseconds that half of the shed requests waited for their refusal.
    RejectedP50,
    /// Requests without success, percent.
    Failures,
}

impl Figure {
    /// All that are reported, in the order of the tables.
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

    /// As columns and JSON call it.
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

    /// What it is counted in.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Throughput | Self::Goodput => "/s",
            Self::Failures => "%",
            _ => "ms",
        }
    }

    /// Of one run.
    #[must_use]
    pub fn of(self, run: &Measurement) -> f64 {
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        match self {
            Self::Throughput => run.throughput(),
            Self::Goodput => run.goodput(),
            Self::P50 => ms(run.success.percentile(50.0)),
            Self::P90 => ms(run.success.percentile(90.0)),
            Self::P95 => ms(run.success.percentile(95.0)),
            Self::P99 => ms(run.success.percentile(99.0)),
            Self::P999 => ms(run.success.percentile(99.9)),
            Self::Max => ms(run.success.max()),
            Self::Mean => ms(run.success.mean()),
            Self::RejectedP50 => ms(run.rejected.percentile(50.0)),
            Self::Failures => 100.0 * run.failure_share(),
        }
    }
}

impl Series {
    /// A figure of every round.
    #[must_use]
    pub fn rounds_of(&self, figure: Figure) -> Vec<f64> {
        self.rounds.iter().map(|run| figure.of(run)).collect()
    }

    /// The median of a figure over the rounds; not a number if there are none.
    #[must_use]
    pub fn median_of(&self, figure: Figure) -> f64 {
        median(self.rounds_of(figure))
    }
}

impl Report {
    /// A target's figure against the first target's, under one load.
    #[must_use]
    pub fn ratio(&self, subject: usize, series: usize, figure: Figure) -> Option<Ratio> {
        let of = |subject: usize| Some(self.subjects.get(subject)?.series.get(series)?.rounds_of(figure));
        let (figures, base) = (of(subject)?, of(0)?);
        (!figures.is_empty() && !base.is_empty()).then(|| Ratio::of(&figures, &base))
    }

    /// The first problem of each kind that a target had, with how often the kind was seen.
    fn troubles(subject: &Subject) -> Vec<String> {
        let runs = subject.series.iter().flat_map(|series| &series.rounds).chain(&subject.searched);
        let Some(all) = Measurement::merged(runs) else { return Vec::new() };
        let mut troubles: Vec<String> = all
            .errors
            .iter()
            .map(|(kind, count)| {
                let first = all.first_errors.get(kind).map_or("", String::as_str);
                format!("{count} × {}: {first}", kind.name())
            })
            .collect();
        let strange = all.statuses.iter().filter(|(status, _)| !matches!(status, 200..300 | 429 | 503));
        troubles.extend(strange.map(|(status, count)| format!("{count} × status {status}")));
        if all.queued > 0 {
            troubles.push(format!("{} requests waited for a connection of our own", all.queued));
        }
        // A tester that is late itself measures itself.
        let lag = all.lag.percentile(99.0);
        if lag > std::time::Duration::from_millis(5) {
            troubles.push(format!("1 % of the requests were sent more than {:.1} ms late", lag.as_secs_f64() * 1e3));
        }
        if all.abandoned > 0 {
            troubles.push(format!("{} requests were unanswered when it was ended", all.abandoned));
        }
        troubles
    }
}

/// A number with as many digits as mean something.
fn number(value: f64) -> String {
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
    use std::time::Duration;

    use super::*;

    /// Two targets, two loads, two rounds: the second target is half as fast.
    pub(crate) fn sample() -> Report {
        let run = |load, slower: u64| {
            let mut run = Measurement::new(load).unwrap();
            run.seconds = 10.0;
            for i in 1..=100 {
                run.success.0.record(slower * i * 1000).unwrap();
            }
            run.rejected.0.record(500).unwrap();
            run.statuses = [(200, 100), (429, 1), (500, 2)].into();
            (run.finished, run.finished_in_time) = (1000 / slower, 900 / slower);
            run
        };
        let loads = [Load::Open { rate: 50.0 }, Load::Open { rate: 100.0 }];
        let subject = |name: &str, slower| Subject {
            target: Target::parse(&format!("{name}=http://localhost:1/")).unwrap(),
            series: loads
                .iter()
                .map(|load| Series { load: *load, rounds: vec![run(*load, slower), run(*load, slower)] })
                .collect(),
            searched: Vec::new(),
            highest: Some(80.0),
        };
        let settings = Settings {
            duration: Duration::from_secs(10),
            warm_up: Duration::from_secs(2),
            timeout: Duration::from_secs(10),
            slo: Duration::from_millis(90),
            max_connections: 10,
            seed: 1,
            obey_retry_after: false,
            check_json: false,
        };
        Report {
            images: "3 images".to_owned(),
            settings,
            slo_percentile: 99.0,
            subjects: vec![subject("one<b>", 1), subject("two", 2)],
        }
    }

    #[test]
    fn figures_are_medians_and_ratios_are_to_the_first() {
        let report = sample();
        let series = &report.subjects[1].series[0];
        assert!((series.median_of(Figure::Throughput) - 50.0).abs() < 1e-9);
        assert!((series.median_of(Figure::P50) - 100.0).abs() < 0.2);
        assert!((series.median_of(Figure::Failures) - 100.0 * 3.0 / 103.0).abs() < 1e-9);
        let ratio = report.ratio(1, 0, Figure::Throughput).unwrap();
        assert!((ratio.of_medians - 0.5).abs() < 1e-9);
        assert!(report.ratio(1, 7, Figure::Throughput).is_none());
        assert_eq!(Report::troubles(&report.subjects[0]), ["8 × status 500"]);
    }

    #[test]
    fn numbers_have_the_digits_that_mean_something() {
        for (value, text) in [(0.0, "0"), (0.123, "0.12"), (12.34, "12.3"), (1234.5, "1234"), (f64::NAN, "–")] {
            assert_eq!(number(value), text);
        }
    }
}
