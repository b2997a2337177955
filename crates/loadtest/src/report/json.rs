//! The report as JSON, for programs: every round with its raw counts.

use serde_json::{Map, Value, json};

use super::{CampaignReport, Statistic, WorkloadSeries, milliseconds};
use crate::{LatencyHistogram, RunMeasurement};

impl CampaignReport {
    /// The whole report. Times are in milliseconds unless the name has another unit; rates are per second.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let settings = &self.settings;
        let targets = self.targets.iter().enumerate().map(|(target_index, target)| {
            let series = target.series.iter().enumerate().map(|(index, series)| {
                let mut value = series_json(series);
                if target_index > 0 {
                    let ratios = Statistic::ALL.into_iter().filter_map(|statistic| {
                        let ratio = self.ratio(target_index, index, statistic)?;
                        Some((statistic.name().to_owned(), json!(ratio)))
                    });
                    value["ratio_to_first"] = Value::Object(ratios.collect());
                }
                value
            });
            json!({
                "name": target.target.name,
                "url": target.target.url,
                "server": target.server,
                "loads": series.collect::<Vec<_>>(),
                "search": target.search_runs.iter().map(run_json).collect::<Vec<_>>(),
                "highest_rate": target.highest_rate,
            })
        });
        json!({
            "ghostserve": env!("CARGO_PKG_VERSION"),
            "started": self.environment.started,
            "machine": self.environment.machine,
            "command": self.environment.command,
            "images": self.images,
            "duration_s": settings.duration.as_secs_f64(),
            "warm_up_s": settings.warm_up.as_secs_f64(),
            "timeout_s": settings.timeout.as_secs_f64(),
            "slo_ms": milliseconds(settings.slo),
            "slo_percentile": self.slo_percentile,
            "max_connections": settings.max_connections,
            "seed": settings.seed,
            "targets": targets.collect::<Vec<_>>(),
        })
    }
}

fn series_json(series: &WorkloadSeries) -> Value {
    let medians =
        Statistic::ALL.into_iter().map(|statistic| (statistic.name().to_owned(), json!(series.median_of(statistic))));
    json!({
        "load": series.workload,
        "medians": medians.collect::<Map<_, _>>(),
        "rounds": series.rounds.iter().map(run_json).collect::<Vec<_>>(),
    })
}

fn run_json(run: &RunMeasurement) -> Value {
    let statistics =
        Statistic::ALL.into_iter().map(|statistic| (statistic.name().to_owned(), json!(statistic.of(run))));
    let errors = run.errors.iter().map(|(kind, count)| (kind.name().to_owned(), json!(count)));
    let statuses = run.statuses.iter().map(|(status, count)| (status.to_string(), json!(count)));
    json!({
        "load": run.workload,
        "seconds": run.seconds,
        "figures": statistics.collect::<Map<_, _>>(),
        "statuses": statuses.collect::<Map<_, _>>(),
        "errors": errors.collect::<Map<_, _>>(),
        "finished": run.finished,
        "finished_in_time": run.finished_in_time,
        "queued": run.queued,
        "lag_p99_ms": milliseconds(run.lag.percentile(99.0)),
        "connections_opened": run.connections_opened,
        "bytes_sent": run.bytes_sent,
        "bytes_received": run.bytes_received,
        "tester_cpu_cores": run.cpu_cores(),
        "interrupted": run.interrupted,
        "latency_buckets_us": bucket_counts(&run.success),
        "rejected_buckets_us": bucket_counts(&run.rejected),
    })
}

/// The non-empty buckets: the highest latency of each, microseconds, and its count.
fn bucket_counts(latencies: &LatencyHistogram) -> Vec<(u64, u64)> {
    latencies.buckets().into_iter().map(|(time, count)| (time.as_micros() as u64, count)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::report::tests::{CONDITIONS, sample, sample_without_rejections};

    #[test]
    fn the_json_has_the_conditions_and_null_for_what_was_not_measured() {
        let json = sample_without_rejections().to_json();
        let text = json.to_string();
        CONDITIONS.iter().for_each(|condition| assert!(text.contains(condition), "{condition}"));
        assert_eq!(json["started"], "2026-01-31T12:30:59Z");
        assert_eq!(json["machine"]["memory_bytes"], 3u64 << 30);
        assert_eq!(json["targets"][0]["server"]["models"][0]["plan"]["workers"], "2");
        assert!(json["targets"][1]["server"].is_null());
        let medians = &json["targets"][1]["loads"][0]["medians"];
        assert!(medians["p50"].is_null() && medians["rejected p50"].is_null() && medians["failed"].is_number());
    }

    #[test]
    fn the_json_has_statistics_ratios_and_raw_counts() {
        let json = sample().to_json();
        let load = &json["targets"][1]["loads"][0];
        assert_eq!(load["medians"]["throughput"], 50.0);
        assert_eq!(load["ratio_to_first"]["throughput"]["of_medians"], 0.5);
        assert_eq!(load["rounds"][0]["statuses"]["200"], 100);
        assert_eq!(load["rounds"][0]["latency_buckets_us"].as_array().map(Vec::len), Some(100));
        assert_eq!(load["load"]["open"]["rate"], 50.0);
    }
}
