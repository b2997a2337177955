//! For people: one file that needs nothing else.

use std::fmt::Write;

use super::plot::{Axis, Bar, Line, Plot, bars, escape};
use super::{Figure, Report, Subject, number};
use crate::recorder::counts;
use crate::{Load, Measurement};

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

impl Report {
    /// The report as a page, with everything it needs inside.
    #[must_use]
    pub fn to_html(&self) -> String {
        let settings = &self.settings;
        let mut page = String::from("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">");
        page.push_str("<meta name=\"viewport\" content=\"width=device-width\"><title>ghostserve bench</title><style>");
        page.push_str(STYLE);
        for colour in 0..6 {
            let _ = write!(
                page,
                ".line.c{colour}{{stroke:var(--c{colour})}}.key.c{colour}{{border-color:var(--c{colour})}}"
            );
            let _ = write!(page, ".dot.c{colour},.bar.c{colour}{{fill:var(--c{colour})}}");
        }
        page.push_str("</style><h1>Load test</h1>");
        let _ = write!(
            page,
            "<p class=\"sub\">{}; {:?} measured after {:?} of warm-up; an answer is in time within {:?}.</p>",
            escape(&self.images),
            settings.duration,
            settings.warm_up,
            settings.slo
        );
        for (index, load) in self.loads().into_iter().enumerate() {
            self.load_section(&mut page, index, load);
        }
        self.rate_section(&mut page);
        self.trouble_section(&mut page);
        page.push_str("<p class=\"sub\">Made by ghostserve bench ");
        page.push_str(env!("CARGO_PKG_VERSION"));
        page.push_str("</p></html>\n");
        page
    }

    fn load_section(&self, page: &mut String, index: usize, load: Load) {
        let _ = write!(page, "<h2>{}</h2>", escape(&load.to_string()));
        self.html_table(page, index);
        if self.subjects.len() > 1 {
            let bar = |subject: &Subject| {
                let series = subject.series.get(index)?;
                let rounds = series.rounds_of(Figure::Throughput);
                let range = rounds.iter().fold((f64::INFINITY, 0.0f64), |(low, high), v| (low.min(*v), high.max(*v)));
                let value = series.median_of(Figure::Throughput);
                value.is_finite().then(|| Bar { name: subject.target.name.clone(), value, range })
            };
            page.push_str(
                "<p class=\"axis\">throughput, successes a second; the thin line is the range over the rounds</p>",
            );
            page.push_str(&bars("throughput", "/s", &self.subjects.iter().filter_map(bar).collect::<Vec<_>>()));
        }
        let line = |(colour, subject): (usize, &Subject)| {
            let all = Measurement::merged(&subject.series.get(index)?.rounds)?;
            let points = all.success.curve().into_iter().map(|(percent, time)| (percent, time.as_secs_f64() * 1e3));
            Some(Line { name: subject.target.name.clone(), colour, dashed: false, points: points.collect() })
        };
        let plot = Plot {
            title: "latency by percentile",
            x: "share of the successes that were not slower",
            y: "latency, ms",
            axis: Axis::Percentile,
            lines: self.subjects.iter().enumerate().filter_map(line).collect(),
            mark: None,
        };
        page.push_str(&plot.svg());
    }

    fn html_table(&self, page: &mut String, index: usize) {
        page.push_str("<table><tr><th>target</th>");
        for figure in Figure::ALL {
            let _ = write!(page, "<th>{}<br>{}</th>", figure.name(), figure.unit());
        }
        page.push_str("<th>answers</th></tr>");
        for (who, subject) in self.subjects.iter().enumerate() {
            let Some(series) = subject.series.get(index) else { continue };
            let _ = write!(page, "<tr><td>{}</td>", escape(&subject.target.name));
            for figure in Figure::ALL {
                let _ = write!(page, "<td>{}</td>", number(series.median_of(figure)));
            }
            let answers = Measurement::merged(&series.rounds).map(|all| counts(all.statuses)).unwrap_or_default();
            let _ = write!(page, "<td class=\"text\">{}</td></tr>", escape(&answers));
            if who == 0 {
                continue;
            }
            page.push_str("<tr class=\"ratio\"><td>÷ the first</td>");
            for figure in Figure::ALL {
                let ratio = self.ratio(who, index, figure).filter(|ratio| ratio.of_medians.is_finite());
                let cell =
                    ratio.map(|r| format!("<td title=\"{:.2} to {:.2}\">{:.2}</td>", r.least, r.most, r.of_medians));
                page.push_str(&cell.unwrap_or_else(|| "<td></td>".to_owned()));
            }
            page.push_str("<td></td></tr>");
        }
        page.push_str("</table>");
    }

    /// Latency and goodput over the offered rate, where there was more than one.
    fn rate_section(&self, page: &mut String) {
        let points = |subject: &Subject, figure: Figure| {
            let swept = subject.series.iter().filter_map(|series| match series.load {
                Load::Open { rate } if !series.rounds.is_empty() => Some((rate, series.median_of(figure))),
                _ => None,
            });
            let searched = subject.searched.iter().filter_map(|run| match run.load {
                Load::Open { rate } => Some((rate, figure.of(run))),
                Load::Closed { .. } => None,
            });
            let mut points: Vec<(f64, f64)> = swept.chain(searched).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            points
        };
        if self.subjects.iter().all(|subject| points(subject, Figure::P50).len() < 2) {
            return;
        }
        page.push_str("<h2>Over the offered rate</h2>");
        let lines = |figures: &[Figure]| {
            let line = |(colour, subject): (usize, &Subject)| {
                let of = |(at, figure): (usize, &Figure)| Line {
                    name: format!("{} {}", subject.target.name, figure.name()),
                    colour,
                    dashed: at > 0,
                    points: points(subject, *figure),
                };
                figures.iter().enumerate().map(of).collect::<Vec<_>>()
            };
            self.subjects.iter().enumerate().flat_map(line).collect::<Vec<_>>()
        };
        let slo = self.settings.slo.as_secs_f64() * 1e3;
        let latency = Plot {
            title: "latency over the offered rate",
            x: "requests/s",
            y: "latency, ms",
            axis: Axis::Linear,
            lines: lines(&[Figure::P99, Figure::P50]),
            mark: Some((slo, format!("in time: {slo} ms"))),
        };
        let goodput = Plot {
            title: "goodput over the offered rate",
            x: "requests/s",
            y: "successes in time a second",
            axis: Axis::Linear,
            lines: lines(&[Figure::Goodput]),
            mark: None,
        };
        page.push_str(&latency.svg());
        page.push_str(&goodput.svg());
        for subject in &self.subjects {
            if let Some(rate) = subject.highest {
                let _ = write!(
                    page,
                    "<p>{}: highest rate at which p{} is within {:?}: <b>{rate:.1} requests/s</b></p>",
                    escape(&subject.target.name),
                    self.slo_percentile,
                    self.settings.slo
                );
            }
        }
    }

    fn trouble_section(&self, page: &mut String) {
        let troubles: Vec<String> = self
            .subjects
            .iter()
            .flat_map(|subject| {
                let name = escape(&subject.target.name);
                Self::troubles(subject).into_iter().map(move |trouble| format!("<li>{name}: {}</li>", escape(&trouble)))
            })
            .collect();
        if !troubles.is_empty() {
            let _ = write!(page, "<h2>What went wrong</h2><ul>{}</ul>", troubles.concat());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::report::tests::sample;

    #[test]
    fn the_page_needs_nothing_else_and_cannot_be_broken_by_a_name() {
        let page = sample().to_html();
        for reference in ["src=", "href=", "url(", "@import", "<script"] {
            assert!(!page.contains(reference), "{reference}");
        }
        assert!(!page.contains("<b>one") && !page.contains("one<b>") && page.contains("one&lt;b&gt;"));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert_eq!(page.matches("<svg").count(), 2 * 2 + 2, "bars and percentiles for each load, two over the rate");
        assert!(!page.contains("NaN"));
    }
}
