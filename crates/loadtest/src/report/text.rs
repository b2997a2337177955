//! For a terminal: one table a load, targets as rows.

use std::fmt::{self, Display, Formatter};

use super::{Figure, Report, number};
use crate::recorder::counts;
use crate::{Load, Measurement};

const COLUMNS: [Figure; 8] = [
    Figure::Throughput,
    Figure::Goodput,
    Figure::P50,
    Figure::P90,
    Figure::P99,
    Figure::P999,
    Figure::Max,
    Figure::RejectedP50,
];

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let settings = &self.settings;
        let rounds = self.subjects.first().and_then(|s| s.series.first()).map_or(0, |series| series.rounds.len());
        writeln!(
            f,
            "{}; {:?} measured after {:?} of warm-up; {rounds} round{}, medians; in time is {:?}",
            self.images,
            settings.duration,
            settings.warm_up,
            if rounds == 1 { "" } else { "s" },
            settings.slo
        )?;
        for (index, load) in self.loads().into_iter().enumerate() {
            writeln!(f, "\n{load}")?;
            self.table(f, index)?;
        }
        for subject in self.subjects.iter().filter(|subject| !subject.searched.is_empty()) {
            let highest = subject.highest.map_or("none".to_owned(), |rate| format!("{rate:.1} requests/s"));
            writeln!(
                f,
                "\n{}: highest rate at which p{} is within {:?}: {highest} ({} tried)",
                subject.target.name,
                self.slo_percentile,
                settings.slo,
                subject.searched.len()
            )?;
        }
        for subject in &self.subjects {
            let troubles = Self::troubles(subject);
            if !troubles.is_empty() {
                writeln!(f, "\n{}: {}", subject.target.name, troubles.join("; "))?;
            }
        }
        Ok(())
    }
}

impl Report {
    /// What was offered, in the order of the series.
    pub(super) fn loads(&self) -> Vec<Load> {
        self.subjects.first().map(|s| s.series.iter().map(|series| series.load).collect()).unwrap_or_default()
    }

    fn table(&self, f: &mut Formatter<'_>, index: usize) -> fmt::Result {
        let mut rows = vec![vec![String::new()]];
        rows[0].extend(COLUMNS.iter().map(|figure| format!("{} {}", figure.name(), figure.unit())));
        rows[0].push("answers".to_owned());
        for (who, subject) in self.subjects.iter().enumerate() {
            let Some(series) = subject.series.get(index) else { continue };
            let mut row = vec![subject.target.name.clone()];
            row.extend(COLUMNS.iter().map(|figure| match figure {
                Figure::RejectedP50 if series.rounds.iter().all(|run| run.rejected.count() == 0) => "–".to_owned(),
                figure => number(series.median_of(*figure)),
            }));
            let all = Measurement::merged(&series.rounds);
            row.push(all.map(|all| counts(all.statuses)).unwrap_or_default());
            rows.push(row);
            if who > 0 {
                let mut row = vec!["  ÷ the first".to_owned()];
                row.extend(COLUMNS.iter().map(|figure| match (figure, self.ratio(who, index, *figure)) {
                    (Figure::RejectedP50, _) | (_, None) => String::new(),
                    (_, Some(ratio)) => format!("{:.2}", ratio.of_medians),
                }));
                let spread = |figure, name| {
                    let ratio = self.ratio(who, index, figure)?;
                    Some(format!("{name} {:.2}…{:.2}", ratio.least, ratio.most))
                };
                let spreads = [spread(Figure::Throughput, "throughput"), spread(Figure::P99, "p99")];
                row.push(spreads.into_iter().flatten().collect::<Vec<_>>().join(", "));
                rows.push(row);
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
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::report::tests::sample;

    #[test]
    fn a_table_has_a_row_a_target_and_one_for_its_ratios() {
        let text = sample().to_string();
        assert!(text.contains("open loop, 50.0 requests/s"), "{text}");
        let row = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        assert!(row("two").contains(" 50.0 "), "{text}");
        assert!(row("  ÷ the first").contains(" 0.50 "), "{text}");
        assert!(text.contains("p99 is within 90ms") || !text.contains("highest"), "{text}");
        assert!(text.contains("8 × status 500"), "{text}");
    }
}
