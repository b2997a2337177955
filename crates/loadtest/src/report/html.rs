//! The report as an HTML page, for people: one self-contained file.

use std::fmt::Write;

use super::plot::{AxisScale, COLOURS, LinePlot, PlotLine, RangeBar, ValueAxis, bar_chart, escape};
use super::{CampaignReport, Statistic, TargetReport, WorkloadSeries, format_number, milliseconds};
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
.item { white-space: nowrap; } figure { margin: 1rem 0; break-inside: avoid; } tr { break-inside: avoid; }
h2 { break-after: avoid; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 1rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; } code { font-size: .9em; }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --paper: #fff; --grid: #ccc;
    --c0: #2563eb; --c1: #e8590c; --c2: #0f9d58; --c3: #9333ea; --c4: #c2255c; --c5: #0b7285; }
  body { font-size: 11px; max-width: none; margin: 0; print-color-adjust: exact; }
  table { display: table; font-size: 9px; } th, td { padding: .2rem .3rem; }
}
";

impl CampaignReport {
    /// The report as an HTML page that loads no other file.
    #[must_use]
    pub fn to_html(&self) -> String {
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
        self.write_conditions(&mut page);
        let axes = CommonAxes::of(self);
        for (index, workload) in self.workloads().into_iter().enumerate() {
            self.write_workload_section(&mut page, index, workload, &axes);
        }
        self.write_rate_section(&mut page, &axes);
        self.write_problem_section(&mut page);
        page.push_str("</html>\n");
        page
    }

    /// When, where, with what and against what the campaign ran.
    fn write_conditions(&self, page: &mut String) {
        let (settings, environment) = (&self.settings, &self.environment);
        let rounds = self.targets.iter().flat_map(|target| &target.series).map(|series| series.rounds.len()).max();
        let rounds = match rounds.unwrap_or(0) {
            1 => "1 round".to_owned(),
            n => format!("{n} rounds; all figures are medians over them"),
        };
        let mut rows = vec![
            ("date".to_owned(), escape(&environment.started_for_people())),
            ("load tester".to_owned(), format!("ghostserve bench {}", env!("CARGO_PKG_VERSION"))),
            ("on".to_owned(), escape(&environment.machine.summary())),
        ];
        if !environment.command.is_empty() {
            rows.push(("command".to_owned(), format!("<code>{}</code>", escape(&environment.command))));
        }
        rows.push(("images".to_owned(), escape(&self.images)));
        rows.push((
            "runs".to_owned(),
            format!(
                "{:?} measured after {:?} of warm-up; {rounds}; latency objective {:?}",
                settings.duration, settings.warm_up, settings.slo
            ),
        ));
        for target in &self.targets {
            rows.push((escape(&target.target.name), server_html(target)));
        }
        page.push_str("<dl>");
        for (name, value) in rows {
            let _ = write!(page, "<dt>{name}</dt><dd>{value}</dd>");
        }
        page.push_str("</dl>");
    }

    /// Table, throughput bars and latency percentiles of one workload. `index` is that of its series.
    fn write_workload_section(&self, page: &mut String, index: usize, workload: Workload, axes: &CommonAxes) {
        let _ = write!(page, "<h2>{}</h2>", escape(&workload.to_string()));
        self.write_table_html(page, index);
        if self.targets.len() > 1 {
            let bar = |target: &TargetReport| {
                let series = target.series.get(index)?;
                let range = throughput_range(series);
                let value = series.median_of(Statistic::Throughput);
                value.is_finite().then(|| RangeBar { name: target.target.name.clone(), value, range })
            };
            page.push_str(
                "<figure><p class=\"axis\">throughput, successful responses per second; the thin line is the range \
                 over the rounds</p>",
            );
            let bars: Vec<_> = self.targets.iter().filter_map(bar).collect();
            page.push_str(&bar_chart("throughput", "/s", &axes.throughput, &bars));
            page.push_str("</figure>");
        }
        let line = |(colour, target): (usize, &TargetReport)| {
            let points = target.series.get(index)?.curve();
            (!points.is_empty()).then(|| PlotLine { name: target.target.name.clone(), colour, dashed: false, points })
        };
        let lines: Vec<_> = self.targets.iter().enumerate().filter_map(line).collect();
        if lines.is_empty() {
            page.push_str("<p class=\"axis\">No request succeeded: there is no latency to plot.</p>");
            return;
        }
        let percents: Vec<f64> = Statistic::ALL.into_iter().filter_map(Statistic::percent).collect();
        let plot = LinePlot {
            title: "latency by percentile",
            x: "percentile of the successful requests; dots are the table's",
            y: "latency, ms",
            scale: AxisScale::Percentile,
            axis: &axes.latency,
            lines,
            dots: &percents,
            mark: Some(self.objective_mark()),
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
                let ratio = self.ratio(target_index, index, statistic);
                let cell =
                    ratio.map(|r| format!("<td title=\"{:.2} to {:.2}\">{:.2}</td>", r.min, r.max, r.of_medians));
                page.push_str(&cell.unwrap_or_else(|| "<td>–</td>".to_owned()));
            }
            page.push_str("<td></td></tr>");
        }
        page.push_str("</table>");
    }

    /// Latency and goodput by offered rate, if a target has open loops at two rates or more.
    fn write_rate_section(&self, page: &mut String, axes: &CommonAxes) {
        if self.targets.iter().all(|target| target.points_by_rate(Statistic::P50).len() < 2) {
            return;
        }
        page.push_str("<h2>By offered rate</h2>");
        let latency = LinePlot {
            title: "latency by offered rate",
            x: "requests/s",
            y: "latency, ms",
            scale: AxisScale::Linear,
            axis: &axes.latency,
            lines: self.lines_by_rate(&[Statistic::P99, Statistic::P50]),
            dots: &[],
            mark: Some(self.objective_mark()),
        };
        let lines = self.lines_by_rate(&[Statistic::Goodput]);
        let goodput_axis = ValueAxis::from_zero(lines.iter().flat_map(|line| &line.points).map(|point| point.1));
        let goodput = LinePlot {
            title: "goodput by offered rate",
            x: "requests/s",
            y: "goodput, responses per second",
            scale: AxisScale::Linear,
            axis: &goodput_axis,
            lines,
            dots: &[],
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

    /// The latency objective and its label.
    fn objective_mark(&self) -> (f64, String) {
        (milliseconds(self.settings.slo), format!("the objective of {:?}", self.settings.slo))
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

/// The axes that the plots of a page share, so that they can be compared by eye.
struct CommonAxes {
    /// Latencies, milliseconds, of all workloads and rates.
    latency: ValueAxis,
    /// Throughput, responses per second, of all workloads.
    throughput: ValueAxis,
}

impl CommonAxes {
    fn of(report: &CampaignReport) -> Self {
        let series = || report.targets.iter().flat_map(|target| &target.series);
        let curves = series().flat_map(WorkloadSeries::curve).map(|point| point.1);
        let by_rate = report.lines_by_rate(&[Statistic::P99, Statistic::P50]).into_iter().flat_map(|line| line.points);
        let mut latencies: Vec<f64> = curves.chain(by_rate.map(|point| point.1)).collect();
        // The objective is shown unless most of the plot would be empty for it.
        let objective = milliseconds(report.settings.slo);
        let finite = latencies.iter().copied().filter(|latency| latency.is_finite());
        if objective <= 1.5 * finite.fold(0.0, f64::max) {
            latencies.push(objective);
        }
        let medians = series().map(|series| series.median_of(Statistic::P50));
        let highest = series().map(|series| throughput_range(series).1);
        Self { latency: ValueAxis::fitting(latencies, medians), throughput: ValueAxis::from_zero(highest) }
    }
}

/// Smallest and largest throughput of the rounds, responses per second.
fn throughput_range(series: &WorkloadSeries) -> (f64, f64) {
    let rounds = series.rounds_of(Statistic::Throughput);
    rounds.iter().fold((f64::INFINITY, 0.0f64), |(low, high), value| (low.min(*value), high.max(*value)))
}

/// A target's address, and what its server says about itself.
fn server_html(target: &TargetReport) -> String {
    let url = escape(&target.target.url);
    let Some(server) = &target.server else {
        return format!("{url}<br>the server does not state its version at /metrics");
    };
    let mut html = format!("{url}<br>{}", escape(&server.program()));
    for model in &server.models {
        let _ = write!(html, "<br>{}<br>{}", escape(&model.identity()), escape(&model.plan_summary()));
    }
    html
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
    use crate::report::format_number;
    use crate::report::tests::{CONDITIONS, sample, sample_without_rejections};
    use crate::report::{CampaignReport, Statistic};

    /// The vertical labels and positions of each plot with an axis of latencies.
    fn latency_axes(page: &str) -> Vec<String> {
        let figures = page.split("<figure>").filter(|figure| figure.starts_with("<p class=\"axis\">latency"));
        let axis = |figure: &str| {
            let lines = figure.split("<line class=\"grid\"").skip(1);
            lines.map(|line| line.split("</text>").next().unwrap_or_default().to_owned()).collect::<String>()
        };
        figures.map(axis).collect()
    }

    #[test]
    fn plots_of_latency_share_one_axis() {
        let mut report = sample();
        // The second workload is overload: 50 times as slow.
        for target in &mut report.targets {
            for run in &mut target.series[1].rounds {
                run.success.0.record_n(10_000_000, 90).unwrap();
                *run.statuses.entry(200).or_default() += 90;
            }
        }
        let page = report.to_html();
        let axes = latency_axes(&page);
        assert_eq!(axes.len(), 3, "two workloads and the plot by rate");
        assert!(!axes[0].is_empty() && axes.iter().all(|axis| *axis == axes[0]), "{axes:?}");
        assert!(page.contains("latency, ms, logarithmic scale"));
        assert!(!sample().to_html().contains("logarithmic"));
    }

    #[test]
    fn an_objective_far_above_the_latencies_does_not_stretch_the_axis() {
        let with = |slo: u64| -> CampaignReport {
            let mut report = sample();
            report.settings.slo = std::time::Duration::from_millis(slo);
            report
        };
        let axes = latency_axes(&with(5_000).to_html());
        assert_eq!(axes, latency_axes(&with(6_000).to_html()));
        assert!(with(5_000).to_html().contains("the objective of 5s is outside this plot"));
        assert!(!with(90).to_html().contains("outside this plot") && with(90).to_html().contains("objective of 90ms"));
    }

    #[test]
    fn the_page_states_the_conditions() {
        let page = sample().to_html();
        CONDITIONS.iter().for_each(|condition| assert!(page.contains(condition), "{condition}"));
        assert!(page.contains("Some Processor &lt;9&gt;") && page.contains("does not state its version"));
    }

    #[test]
    fn dots_of_the_curve_have_the_numbers_of_the_table() {
        let report = sample();
        let page = report.to_html();
        let series = &report.targets[1].series[0];
        for statistic in Statistic::ALL.into_iter().filter(|statistic| statistic.percent().is_some()) {
            let value = format_number(series.median_of(statistic));
            assert!(page.contains(&format!("<td>{value}</td>")), "{value}");
            let tooltip = format!("two, {}: {value} (latency, ms)", statistic.name());
            assert!(page.contains(&tooltip), "{tooltip}");
        }
    }

    #[test]
    fn what_was_not_measured_is_a_dash_and_not_plotted() {
        let page = sample_without_rejections().to_html();
        assert!(page.contains("<td>–</td>") && !page.contains("NaN") && !page.contains("inf"));
        let row = page.split("<tr>").find(|row| row.starts_with("<td>one&lt;b&gt;")).unwrap();
        assert_eq!(row.split("</tr>").next().unwrap().matches("<td>–</td>").count(), 1, "the rejections");
        // Of the first target: five per curve, and the p50 and p99 of each rate. Of both: the goodput of each rate.
        assert_eq!(page.matches("class=\"dot").count(), 2 * 5 + 2 * 2 + 2 * 2);
    }

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
