//! Plots as inline SVG: line plots with a linear or logarithmic axis, and bar charts. Colours are CSS classes; the
//! page's style sheet defines them for light and dark mode.

use std::fmt::Write;

use super::format_number;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;

/// Number of colours in the style sheet; lines and bars use them in turn.
pub(super) const COLOURS: usize = 6;

/// Largest number of points of a line whose points are drawn as dots.
const MAX_DOTS: usize = 30;

/// Smallest end of an axis, so that an empty plot has one.
const MIN_AXIS_END: f64 = 1e-9;

/// One line of a plot.
pub(super) struct PlotLine {
    /// Name in the legend.
    pub(super) name: String,
    /// Index of the colour.
    pub(super) colour: usize,
    /// Whether the line is dashed; tells lines of the same colour apart.
    pub(super) dashed: bool,
    pub(super) points: Vec<(f64, f64)>,
}

/// Scale of a horizontal axis.
pub(super) enum AxisScale {
    /// Linear, from zero.
    Linear,
    /// Percentiles: the position is minus the decimal logarithm of the share of slower requests, so each further nine
    /// has the same width.
    Percentile,
}

impl AxisScale {
    /// Position of a value on the axis.
    fn position(&self, x: f64) -> f64 {
        match self {
            Self::Linear => x,
            Self::Percentile => -(1.0 - x / 100.0).max(1e-6).log10(),
        }
    }

    /// Values and labels of the ticks up to the position `end`.
    fn ticks(&self, end: f64) -> Vec<(f64, String)> {
        match self {
            Self::Linear => tick_values(end).into_iter().map(|tick| (tick, format_number(tick))).collect(),
            Self::Percentile => [0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999]
                .into_iter()
                .filter(|percent| self.position(*percent) <= end + 1e-9)
                .map(|percent| (percent, if percent == 0.0 { "min".to_owned() } else { format!("p{percent}") }))
                .collect(),
        }
    }
}

/// A plot of several lines over one axis.
pub(super) struct LinePlot<'a> {
    /// Title, for screen readers and as a tooltip.
    pub(super) title: &'a str,
    /// Label of the horizontal axis.
    pub(super) x: &'a str,
    /// Label of the vertical axis.
    pub(super) y: &'a str,
    pub(super) scale: AxisScale,
    pub(super) lines: Vec<PlotLine>,
    /// A horizontal line with a label: the latency objective.
    pub(super) mark: Option<(f64, String)>,
}

impl LinePlot<'_> {
    /// The plot as HTML: the vertical axis' label, an SVG element and a legend.
    pub(super) fn html(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x_end = points().map(|p| self.scale.position(p.0)).fold(MIN_AXIS_END, f64::max);
        let marked = self.mark.iter().map(|mark| mark.0 * 1.05);
        let y_end = axis_end(points().map(|p| p.1).chain(marked).fold(MIN_AXIS_END, f64::max));
        let px = |x: f64| LEFT + self.scale.position(x) / x_end * (WIDTH - LEFT - RIGHT);
        let py = |y: f64| HEIGHT - BOTTOM - y / y_end * (HEIGHT - TOP - BOTTOM);

        let mut svg = svg_start(HEIGHT, self.title);
        for tick in tick_values(y_end) {
            draw_grid_line(&mut svg, py(tick), &format_number(tick));
        }
        for (tick, text) in self.scale.ticks(x_end) {
            draw_label(&mut svg, px(tick), HEIGHT - BOTTOM + 18.0, "middle", &text);
        }
        draw_label(&mut svg, (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 6.0, "middle", self.x);
        if let Some((y, name)) = &self.mark {
            let at = py(*y);
            let _ = write!(
                svg,
                "<line class=\"mark\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\"/>",
                WIDTH - RIGHT
            );
            draw_label(&mut svg, WIDTH - RIGHT - 4.0, at - 5.0, "end", name);
        }
        for line in &self.lines {
            self.draw_line(&mut svg, line, &px, &py);
        }
        svg.push_str("</svg>");
        let legend = self.lines.iter().map(|line| {
            let dashed = if line.dashed { " dashed" } else { "" };
            format!("<span class=\"key c{}{dashed}\"></span>{}", line.colour % COLOURS, escape(&line.name))
        });
        format!(
            "<p class=\"axis\">{}</p>{svg}<p class=\"legend\">{}</p>",
            escape(self.y),
            legend.collect::<Vec<_>>().join(" ")
        )
    }

    /// Draws one line, and its points as dots if there are few. `px` and `py` map values to pixels.
    fn draw_line(&self, svg: &mut String, line: &PlotLine, px: &dyn Fn(f64) -> f64, py: &dyn Fn(f64) -> f64) {
        let points: Vec<String> = line.points.iter().map(|(x, y)| format!("{:.1},{:.1}", px(*x), py(*y))).collect();
        let _ = write!(
            svg,
            "<polyline class=\"line c{}{}\" points=\"{}\"><title>{}</title></polyline>",
            line.colour % COLOURS,
            if line.dashed { " dashed" } else { "" },
            points.join(" "),
            escape(&line.name)
        );
        if line.points.len() >= MAX_DOTS {
            return;
        }
        for (x, y) in &line.points {
            let (cx, cy) = (px(*x), py(*y));
            let (x_value, y_value) = (format_number(*x), format_number(*y));
            let tooltip = format!("{}: {y_value} {} at {x_value} {}", line.name, self.y, self.x);
            let _ = write!(
                svg,
                "<circle class=\"dot c{}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3.5\"><title>{}</title></circle>",
                line.colour % COLOURS,
                escape(&tooltip)
            );
        }
    }
}

/// One bar of a chart, with the range of its value over the rounds.
pub(super) struct RangeBar {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) range: (f64, f64),
}

/// A chart of horizontal bars as an SVG element.
pub(super) fn bar_chart(title: &str, unit: &str, bars: &[RangeBar]) -> String {
    const ROW: f64 = 34.0;
    const NAMES: f64 = 150.0;
    let end = axis_end(bars.iter().map(|bar| bar.range.1.max(bar.value)).fold(MIN_AXIS_END, f64::max));
    let px = |value: f64| NAMES + value / end * (WIDTH - NAMES - 80.0);
    let mut svg = svg_start(ROW * bars.len() as f64 + 8.0, title);
    for (row, bar) in bars.iter().enumerate() {
        let y = ROW * row as f64 + 6.0;
        draw_label(&mut svg, NAMES - 8.0, y + 15.0, "end", &bar.name);
        let _ = write!(
            svg,
            "<rect class=\"bar c{}\" x=\"{NAMES}\" y=\"{y}\" width=\"{:.1}\" height=\"22\" rx=\"3\"/>",
            row % COLOURS,
            px(bar.value) - NAMES
        );
        let middle = y + 11.0;
        let (low, high) = (px(bar.range.0), px(bar.range.1));
        let _ = write!(svg, "<line class=\"range\" x1=\"{low:.1}\" y1=\"{middle}\" x2=\"{high:.1}\" y2=\"{middle}\"/>");
        let text = format!("{} {unit}", format_number(bar.value));
        draw_label(&mut svg, high.max(px(bar.value)) + 6.0, y + 15.0, "start", &text);
    }
    svg.push_str("</svg>");
    svg
}

fn svg_start(height: f64, title: &str) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\"><title>{}</title>", escape(title))
}

fn draw_grid_line(svg: &mut String, y: f64, text: &str) {
    let _ = write!(svg, "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\"/>", WIDTH - RIGHT);
    draw_label(svg, LEFT - 8.0, y + 4.0, "end", text);
}

fn draw_label(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escape(text));
}

/// The multiples of the tick step from zero to `end`.
fn tick_values(end: f64) -> Vec<f64> {
    let step = tick_step(end);
    (0..=((end / step + 1e-9) as usize)).map(|i| i as f64 * step).collect()
}

/// A round step (1, 2, 2.5 or 5 times a power of ten) that gives about five ticks up to `end`.
fn tick_step(end: f64) -> f64 {
    let rough = end / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough).unwrap_or(rough)
}

/// The end of an axis that shows `value`: the next multiple of the tick step.
fn axis_end(value: f64) -> f64 {
    let step = tick_step(value);
    (value / step - 1e-9).ceil() * step
}

/// Escapes text for HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_include_the_largest_value() {
        for (value, end) in [(7.3, 8.0), (100.0, 100.0), (261.0, 300.0), (0.013, 0.015)] {
            assert!((axis_end(value) - end).abs() < 1e-9, "{value}: {}", axis_end(value));
        }
        assert_eq!(tick_values(100.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
    }
}
