//! The report as text, for a terminal: one table per workload, with the targets as rows.

use std::fmt::{self, Display, Formatter};

use super::{CampaignReport, Statistic, TargetReport, format_number};
use crate::RunMeasurement;
use crate::recorder::format_counts;

const COLUMNS: [Statistic; 8] = [
    Statistic::Throughput,
    Statistic::Goodput,
    Statistic::P50,
    Statistic::P90,
    Statistic::P99,
    Statistic::P999,
    Statistic::Max,
    Statistic::RejectedP50,
];

impl Display for CampaignReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (settings, environment) = (&self.settings, &self.environment);
        writeln!(f, "ghostserve bench {}, {}", env!("CARGO_PKG_VERSION"), environment.started_for_people())?;
        writeln!(f, "{}", environment.machine.summary())?;
        if !environment.command.is_empty() {
            writeln!(f, "{}", environment.command)?;
        }
        for target in &self.targets {
            write_server(f, target)?;
        }
        let rounds = self.targets.first().and_then(|t| t.series.first()).map_or(0, |series| series.rounds.len());
        writeln!(
            f,
            "{}; {:?} measured after {:?} of warm-up; {rounds} round{}, medians; latency objective {:?}",
            self.images,
            settings.duration,
            settings.warm_up,
            if rounds == 1 { "" } else { "s" },
            settings.slo
        )?;
        for (index, workload) in self.workloads().into_iter().enumerate() {
            writeln!(f, "\n{workload}")?;
            self.write_table(f, index)?;
        }
        for target in self.targets.iter().filter(|target| !target.search_runs.is_empty()) {
            let highest = target.highest_rate.map_or("none".to_owned(), |rate| format!("{rate:.1} requests/s"));
            writeln!(
                f,
                "\n{}: highest rate at which p{} is within {:?}: {highest} ({} tried)",
                target.target.name,
                self.slo_percentile,
                settings.slo,
                target.search_runs.len()
            )?;
        }
        for target in &self.targets {
            let problems = target.problems();
            if !problems.is_empty() {
                writeln!(f, "\n{}: {}", target.target.name, problems.join("; "))?;
            }
        }
        Ok(())
    }
}

impl CampaignReport {
    /// Writes the table of one workload, its columns aligned.
    fn write_table(&self, f: &mut Formatter<'_>, series: usize) -> fmt::Result {
        let mut rows = vec![vec![String::new()]];
        rows[0].extend(COLUMNS.iter().map(|statistic| format!("{} {}", statistic.name(), statistic.unit())));
        rows[0].push("answers".to_owned());
        for (index, target) in self.targets.iter().enumerate() {
            rows.extend(target_row(target, series));
            if index > 0 && target.series.get(series).is_some() {
                rows.push(self.ratio_row(index, series));
            }
        }
        let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
        let widths: Vec<usize> = (0..rows[0].len()).map(|column| width(column).unwrap_or(0)).collect();
        for row in &rows {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
                0 => format!("{cell:<width$}"),
                _ if column + 1 == row.len() => cell.clone(),
                _ => format!("{cell:>width$}"),
            });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }

    /// The cells that compare a target with the first one.
    fn ratio_row(&self, target: usize, series: usize) -> Vec<String> {
        let mut row = vec!["  ÷ the first".to_owned()];
        row.extend(COLUMNS.iter().map(|statistic| match (statistic, self.ratio(target, series, *statistic)) {
            (Statistic::RejectedP50, _) | (_, None) => "–".to_owned(),
            (_, Some(ratio)) => format!("{:.2}", ratio.of_medians),
        }));
        let range = |statistic, name| {
            let ratio = self.ratio(target, series, statistic)?;
            Some(format!("{name} {:.2}…{:.2}", ratio.min, ratio.max))
        };
        let ranges = [range(Statistic::Throughput, "throughput"), range(Statistic::P99, "p99")];
        row.push(ranges.into_iter().flatten().collect::<Vec<_>>().join(", "));
        row
    }
}

/// Writes what a target's server says about itself.
fn write_server(f: &mut Formatter<'_>, target: &TargetReport) -> fmt::Result {
    let Some(server) = &target.server else { return Ok(()) };
    writeln!(f, "{}: {}", target.target.name, server.program())?;
    server.models.iter().try_for_each(|model| {
        let plan = model.plan_summary();
        writeln!(f, "  {}{}{plan}", model.identity(), if plan.is_empty() { "" } else { "; " })
    })
}

/// The cells of a target's statistics; `None` if it has no such series.
fn target_row(target: &TargetReport, series: usize) -> Option<Vec<String>> {
    let series = target.series.get(series)?;
    let mut row = vec![target.target.name.clone()];
    row.extend(COLUMNS.iter().map(|statistic| format_number(series.median_of(*statistic))));
    let all = RunMeasurement::merged(&series.rounds);
    row.push(all.map(|all| format_counts(all.statuses)).unwrap_or_default());
    Some(row)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::report::tests::{CONDITIONS, sample, sample_without_rejections};

    #[test]
    fn the_text_states_the_conditions() {
        let text = sample().to_string();
        CONDITIONS.iter().for_each(|condition| assert!(text.contains(condition), "{condition}: {text}"));
        assert!(text.contains("Some Processor <9>") && text.contains("3.0 GiB"), "{text}");
        assert!(text.contains("ghostserve bench 'one<b>=http://localhost:1/'"), "{text}");
    }

    #[test]
    fn what_was_not_measured_is_a_dash() {
        let text = sample_without_rejections().to_string();
        let is_row = |line: &str, name: &str| line.starts_with(name) && !line.contains(": ");
        let row = |name: &str| text.lines().find(|line| is_row(line, name)).unwrap_or_default().to_owned();
        assert_eq!(row("one").matches('–').count(), 1, "the median of the rejections: {text}");
        assert_eq!(row("two").matches('–').count(), 6, "all latencies: {text}");
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");

        // The ratios, too, if it is the first target that never succeeded.
        let mut report = sample_without_rejections();
        report.targets.swap(0, 1);
        let text = report.to_string();
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }

    #[test]
    fn a_table_has_one_row_per_target_and_one_for_its_ratios() {
        let text = sample().to_string();
        assert!(text.contains("open loop, 50.0 requests/s"), "{text}");
        let row = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        assert!(row("two").contains(" 50.0 "), "{text}");
        assert!(row("  ÷ the first").contains(" 0.50 "), "{text}");
        assert!(text.contains("p99 is within 90ms") || !text.contains("highest"), "{text}");
        assert!(text.contains("8 × status 500"), "{text}");
    }
}
