//! The report as an HTML page, for people: one self-contained file.

use std::fmt::Write;

use super::plot::{AxisScale, COLOURS, LinePlot, PlotLine, RangeBar, bar_chart, escape};
use super::{CampaignReport, Statistic, TargetReport, format_number, milliseconds};
use crate::recorder::format_counts;
use crate::{RunMeasurement, Workload};

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2330; --soft: #667085; --paper: #fff; --grid: #e4e7ec;
  --c0: #2563eb; --c1: #e8590c; --c2: #0f9d58; --c3: #9333ea; --c4: #c2255c; --c5: #0b7285; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --paper: #14181f; --grid: #2b323d;
  --c0: #6ea8fe; --c1: #ff9a62; --c2: #5bd69a; --c3: #c49bff; --c4: #ff85a8; --c5: #66d9e8; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 68rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
.sub, .axis, .legend { color: var(--soft); margin: .3rem 0; } .axis { font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th:first-child, td:first-child, td.text { text-align: left; } th { color: var(--soft); font-weight: 500; }
tr.ratio td { color: var(--soft); border-bottom-color: transparent; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 12px; fill: var(--soft); }
.grid { stroke: var(--grid); } .mark { stroke: var(--soft); stroke-dasharray: 2 4; }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round; } .dashed { stroke-dasharray: 6 4; }
.range { stroke: var(--ink); stroke-width: 1.5; opacity: .7; }
.key { display: inline-block; width: 1.4rem; border-top: 3px solid; margin: 0 .4rem .2rem 1rem; }
.key.dashed { border-top-style: dashed; }
";

impl CampaignReport {
    /// The report as an HTML page that loads no other file.
    #[must_use]
    pub fn to_html(&self) -> String {
        let settings = &self.settings;
        let mut page = String::from("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">");
        page.push_str("<meta name=\"viewport\" content=\"width=device-width\"><title>ghostserve bench</title><style>");
        page.push_str(STYLE);
        for colour in 0..COLOURS {
            let _ = write!(
                page,
                ".line.c{colour}{{stroke:var(--c{colour})}}.key.c{colour}{{border-color:var(--c{colour})}}"
            );
            let _ = write!(page, ".dot.c{colour},.bar.c{colour}{{fill:var(--c{colour})}}");
        }
        page.push_str("</style><h1>Load test</h1>");
        let _ = write!(
            page,
            "<p class=\"sub\">{}; {:?} measured after {:?} of warm-up; latency objective {:?}.</p>",
            escape(&self.images),
            settings.duration,
            settings.warm_up,
            settings.slo
        );
        for (index, workload) in self.workloads().into_iter().enumerate() {
            self.write_workload_section(&mut page, index, workload);
        }
        self.write_rate_section(&mut page);
        self.write_problem_section(&mut page);
        page.push_str("<p class=\"sub\">Made by ghostserve bench ");
        page.push_str(env!("CARGO_PKG_VERSION"));
        page.push_str("</p></html>\n");
        page
    }

    /// Table, throughput bars and latency percentiles of one workload. `index` is that of its series.
    fn write_workload_section(&self, page: &mut String, index: usize, workload: Workload) {
        let _ = write!(page, "<h2>{}</h2>", escape(&workload.to_string()));
        self.write_table_html(page, index);
        if self.targets.len() > 1 {
            let bar = |target: &TargetReport| {
                let series = target.series.get(index)?;
                let rounds = series.rounds_of(Statistic::Throughput);
                let range = rounds.iter().fold((f64::INFINITY, 0.0f64), |(low, high), v| (low.min(*v), high.max(*v)));
                let value = series.median_of(Statistic::Throughput);
                value.is_finite().then(|| RangeBar { name: target.target.name.clone(), value, range })
            };
            page.push_str(
                "<p class=\"axis\">throughput, successful responses per second; the thin line is the range over the \
                 rounds</p>",
            );
            page.push_str(&bar_chart("throughput", "/s", &self.targets.iter().filter_map(bar).collect::<Vec<_>>()));
        }
        let line = |(colour, target): (usize, &TargetReport)| {
            let all = RunMeasurement::merged(&target.series.get(index)?.rounds)?;
            let points = all.success.curve().into_iter().map(|(percent, latency)| (percent, milliseconds(latency)));
            Some(PlotLine { name: target.target.name.clone(), colour, dashed: false, points: points.collect() })
        };
        let plot = LinePlot {
            title: "latency by percentile",
            x: "percentile of the successful requests",
            y: "latency, ms",
            scale: AxisScale::Percentile,
            lines: self.targets.iter().enumerate().filter_map(line).collect(),
            mark: None,
        };
        page.push_str(&plot.html());
    }

    fn write_table_html(&self, page: &mut String, index: usize) {
        page.push_str("<table><tr><th>target</th>");
        for statistic in Statistic::ALL {
            let _ = write!(page, "<th>{}<br>{}</th>", statistic.name(), statistic.unit());
        }
        page.push_str("<th>answers</th></tr>");
        for (target_index, target) in self.targets.iter().enumerate() {
            let Some(series) = target.series.get(index) else { continue };
            let _ = write!(page, "<tr><td>{}</td>", escape(&target.target.name));
            for statistic in Statistic::ALL {
                let _ = write!(page, "<td>{}</td>", format_number(series.median_of(statistic)));
            }
            let all = RunMeasurement::merged(&series.rounds);
            let answers = all.map(|all| format_counts(all.statuses)).unwrap_or_default();
            let _ = write!(page, "<td class=\"text\">{}</td></tr>", escape(&answers));
            if target_index == 0 {
                continue;
            }
            page.push_str("<tr class=\"ratio\"><td>÷ the first</td>");
            for statistic in Statistic::ALL {
                let ratio = self.ratio(target_index, index, statistic).filter(|ratio| ratio.of_medians.is_finite());
                let cell =
                    ratio.map(|r| format!("<td title=\"{:.2} to {:.2}\">{:.2}</td>", r.min, r.max, r.of_medians));
                page.push_str(&cell.unwrap_or_else(|| "<td></td>".to_owned()));
            }
            page.push_str("<td></td></tr>");
        }
        page.push_str("</table>");
    }

    /// Latency and goodput by offered rate, if a target has open loops at two rates or more.
    fn write_rate_section(&self, page: &mut String) {
        if self.targets.iter().all(|target| target.points_by_rate(Statistic::P50).len() < 2) {
            return;
        }
        page.push_str("<h2>By offered rate</h2>");
        let slo = milliseconds(self.settings.slo);
        let latency = LinePlot {
            title: "latency by offered rate",
            x: "requests/s",
            y: "latency, ms",
            scale: AxisScale::Linear,
            lines: self.lines_by_rate(&[Statistic::P99, Statistic::P50]),
            mark: Some((slo, format!("objective: {slo} ms"))),
        };
        let goodput = LinePlot {
            title: "goodput by offered rate",
            x: "requests/s",
            y: "goodput, responses per second",
            scale: AxisScale::Linear,
            lines: self.lines_by_rate(&[Statistic::Goodput]),
            mark: None,
        };
        page.push_str(&latency.html());
        page.push_str(&goodput.html());
        for target in &self.targets {
            if let Some(rate) = target.highest_rate {
                let _ = write!(
                    page,
                    "<p>{}: highest rate at which p{} is within {:?}: <b>{rate:.1} requests/s</b></p>",
                    escape(&target.target.name),
                    self.slo_percentile,
                    self.settings.slo
                );
            }
        }
    }

    /// One line per target and statistic. A target's lines share a colour; all but the first are dashed.
    fn lines_by_rate(&self, statistics: &[Statistic]) -> Vec<PlotLine> {
        let target_lines = |(colour, target): (usize, &TargetReport)| {
            let line = |(index, statistic): (usize, &Statistic)| PlotLine {
                name: format!("{} {}", target.target.name, statistic.name()),
                colour,
                dashed: index > 0,
                points: target.points_by_rate(*statistic),
            };
            statistics.iter().enumerate().map(line).collect::<Vec<_>>()
        };
        self.targets.iter().enumerate().flat_map(target_lines).collect()
    }

    fn write_problem_section(&self, page: &mut String) {
        let problems: Vec<String> = self
            .targets
            .iter()
            .flat_map(|target| {
                let name = escape(&target.target.name);
                target.problems().into_iter().map(move |problem| format!("<li>{name}: {}</li>", escape(&problem)))
            })
            .collect();
        if !problems.is_empty() {
            let _ = write!(page, "<h2>Problems</h2><ul>{}</ul>", problems.concat());
        }
    }
}

impl TargetReport {
    /// A statistic by offered rate: the medians of the open loops, and the runs of a saturation search.
    fn points_by_rate(&self, statistic: Statistic) -> Vec<(f64, f64)> {
        let planned = self.series.iter().filter_map(|series| match series.workload {
            Workload::OpenLoop { arrival_rate } if !series.rounds.is_empty() => {
                Some((arrival_rate, series.median_of(statistic)))
            }
            _ => None,
        });
        let searched = self.search_runs.iter().filter_map(|run| match run.workload {
            Workload::OpenLoop { arrival_rate } => Some((arrival_rate, statistic.of(run))),
            Workload::ClosedLoop { .. } => None,
        });
        let mut points: Vec<(f64, f64)> = planned.chain(searched).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::report::tests::sample;

    #[test]
    fn the_page_loads_no_other_file_and_escapes_names() {
        let page = sample().to_html();
        for reference in ["src=", "href=", "url(", "@import", "<script"] {
            assert!(!page.contains(reference), "{reference}");
        }
        assert!(!page.contains("<b>one") && !page.contains("one<b>") && page.contains("one&lt;b&gt;"));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert_eq!(page.matches("<svg").count(), 2 * 2 + 2, "bars and percentiles per workload, two plots by rate");
        assert!(!page.contains("NaN"));
    }
}
