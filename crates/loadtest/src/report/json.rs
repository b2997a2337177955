//! For programs: everything, round by round.

use serde_json::{Map, Value, json};

use super::{Figure, Report, Series};
use crate::{Latencies, Measurement};

impl Report {
    /// The whole report; times in milliseconds unless named otherwise, rates a second.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let settings = &self.settings;
        let subjects = self.subjects.iter().enumerate().map(|(who, subject)| {
            let series = subject.series.iter().enumerate().map(|(index, series)| {
                let mut value = describe(series);
                if who > 0 {
                    let ratios = Figure::ALL.into_iter().filter_map(|figure| {
                        let ratio = self.ratio(who, index, figure)?;
                        Some((figure.name().to_owned(), json!(ratio)))
                    });
                    value["ratio_to_first"] = Value::Object(ratios.collect());
                }
                value
            });
            json!({
                "name": subject.target.name,
                "url": subject.target.url,
                "loads": series.collect::<Vec<_>>(),
                "search": subject.searched.iter().map(run).collect::<Vec<_>>(),
                "highest_rate": subject.highest,
            })
        });
        json!({
            "ghostserve": env!("CARGO_PKG_VERSION"),
            "images": self.images,
            "duration_s": settings.duration.as_secs_f64(),
            "warm_up_s": settings.warm_up.as_secs_f64(),
            "timeout_s": settings.timeout.as_secs_f64(),
            "slo_ms": settings.slo.as_secs_f64() * 1e3,
            "slo_percentile": self.slo_percentile,
            "max_connections": settings.max_connections,
            "seed": settings.seed,
            "targets": subjects.collect::<Vec<_>>(),
        })
    }
}

fn describe(series: &Series) -> Value {
    let medians = Figure::ALL.into_iter().map(|figure| (figure.name().to_owned(), json!(series.median_of(figure))));
    json!({
        "load": series.load,
        "medians": medians.collect::<Map<_, _>>(),
        "rounds": series.rounds.iter().map(run).collect::<Vec<_>>(),
    })
}

fn run(run: &Measurement) -> Value {
    let figures = Figure::ALL.into_iter().map(|figure| (figure.name().to_owned(), json!(figure.of(run))));
    let errors = run.errors.iter().map(|(kind, count)| (kind.name().to_owned(), json!(count)));
    let statuses = run.statuses.iter().map(|(status, count)| (status.to_string(), json!(count)));
    json!({
        "load": run.load,
        "seconds": run.seconds,
        "figures": figures.collect::<Map<_, _>>(),
        "statuses": statuses.collect::<Map<_, _>>(),
        "errors": errors.collect::<Map<_, _>>(),
        "finished": run.finished,
        "finished_in_time": run.finished_in_time,
        "queued": run.queued,
        "lag_p99_ms": run.lag.percentile(99.0).as_secs_f64() * 1e3,
        "connections_opened": run.connections_opened,
        "bytes_sent": run.bytes_sent,
        "bytes_received": run.bytes_received,
        "tester_cpu_cores": run.cpu_cores(),
        "interrupted": run.interrupted,
        "latency_buckets_us": buckets(&run.success),
        "rejected_buckets_us": buckets(&run.rejected),
    })
}

/// The highest time of each bucket that is not empty, and its count.
fn buckets(latencies: &Latencies) -> Vec<(u64, u64)> {
    latencies.buckets().into_iter().map(|(time, count)| (time.as_micros() as u64, count)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::report::tests::sample;

    #[test]
    fn programs_find_figures_ratios_and_the_raw_counts() {
        let json = sample().to_json();
        let load = &json["targets"][1]["loads"][0];
        assert_eq!(load["medians"]["throughput"], 50.0);
        assert_eq!(load["ratio_to_first"]["throughput"]["of_medians"], 0.5);
        assert_eq!(load["rounds"][0]["statuses"]["200"], 100);
        assert_eq!(load["rounds"][0]["latency_buckets_us"].as_array().map(Vec::len), Some(100));
        assert_eq!(load["load"]["open"]["rate"], 50.0);
    }
}
