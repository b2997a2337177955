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

/// Ratio of the largest latency to the smallest typical one from which an axis is logarithmic.
const LOGARITHMIC_FROM: f64 = 40.0;

/// Largest number of ticks of a logarithmic axis with ticks at 1, 2 and 5; a longer one has only powers of ten.
const MAX_FINE_TICKS: usize = 9;

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

/// A vertical axis, or the axis of a bar chart. Plots that are compared share one.
#[derive(Clone, Debug)]
pub(super) struct ValueAxis {
    low: f64,
    high: f64,
    is_logarithmic: bool,
}

impl ValueAxis {
    /// A linear axis from zero that fits the values.
    pub(super) fn from_zero(values: impl IntoIterator<Item = f64>) -> Self {
        let largest = values.into_iter().filter(|value| value.is_finite()).fold(MIN_AXIS_END, f64::max);
        Self { low: 0.0, high: largest * 1.05, is_logarithmic: false }
    }

    /// An axis that fits the values: linear from zero, or logarithmic if the largest is at least 40 times the smallest
    /// of the `typical` ones, which a linear axis would show as zero.
    pub(super) fn fitting(values: impl IntoIterator<Item = f64>, typical: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().filter(|value| value.is_finite() && *value > 0.0).collect();
        let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = values.iter().copied().fold(0.0, f64::max);
        // `f64::min` skips NaN.
        let smallest_typical = typical.into_iter().fold(f64::INFINITY, f64::min);
        if largest / smallest_typical.max(smallest) < LOGARITHMIC_FROM || values.is_empty() {
            return Self::from_zero(values);
        }
        Self { low: smallest / 1.15, high: largest * 1.15, is_logarithmic: true }
    }

    /// Position of a value on the axis, 0 to 1.
    fn position(&self, value: f64) -> f64 {
        if self.is_logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// Round values within the axis.
    fn ticks(&self) -> Vec<f64> {
        if !self.is_logarithmic {
            return tick_values(self.low, self.high);
        }
        let powers = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let multiples = |factors: &'static [f64]| -> Vec<f64> {
            let all = powers.clone().flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
            all.filter(|tick| (self.low..=self.high).contains(tick)).collect()
        };
        let fine = multiples(&[1.0, 2.0, 5.0]);
        if fine.len() > MAX_FINE_TICKS { multiples(&[1.0]) } else { fine }
    }

    /// Whether a mark at this value is within the axis.
    fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// Scale of a horizontal axis.
pub(super) enum AxisScale {
    /// Linear, over the values.
    Linear,
    /// Percentiles: the position is minus the decimal logarithm of the share of slower requests, so each further nine
    /// has the same width.
    Percentile,
}

impl AxisScale {
    /// Position of a value on the axis, in the axis' own unit.
    fn position(&self, x: f64) -> f64 {
        match self {
            Self::Linear => x,
            Self::Percentile => -(1.0 - x / 100.0).max(1e-6).log10(),
        }
    }

    /// First and last position of an axis that shows these values.
    fn ends(&self, values: impl Iterator<Item = f64>) -> (f64, f64) {
        let (low, high) = values
            .map(|x| self.position(x))
            .fold((f64::INFINITY, MIN_AXIS_END), |ends, position| (ends.0.min(position), ends.1.max(position)));
        // Rates far from zero would leave most of the plot empty.
        let fitted = low - 0.05 * (high - low);
        let starts_at_zero = !matches!(self, Self::Linear) || !low.is_finite() || low < 0.4 * high || low >= high;
        (if starts_at_zero { 0.0 } else { fitted }, high)
    }

    /// Values and labels of the ticks between two positions.
    fn ticks(&self, ends: (f64, f64)) -> Vec<(f64, String)> {
        match self {
            Self::Linear => tick_values(ends.0, ends.1).into_iter().map(|tick| (tick, format_number(tick))).collect(),
            Self::Percentile => [0.0, 50.0, 90.0, 95.0, 99.0, 99.9, 99.99, 99.999]
                .into_iter()
                .filter(|percent| self.position(*percent) <= ends.1 + 1e-9)
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
    /// The vertical axis; plots that are compared share one.
    pub(super) axis: &'a ValueAxis,
    pub(super) lines: Vec<PlotLine>,
    /// Horizontal values whose points are drawn as dots; empty draws those of all points if they are few.
    pub(super) dots: &'a [f64],
    /// A horizontal line with a label: the latency objective.
    pub(super) mark: Option<(f64, String)>,
}

impl LinePlot<'_> {
    /// The plot as HTML: the vertical axis' label, an SVG element and a legend.
    pub(super) fn html(&self) -> String {
        let points = self.lines.iter().flat_map(|line| &line.points).filter(|point| point.1.is_finite());
        let ends = self.scale.ends(points.map(|point| point.0));
        let px = |x: f64| LEFT + (self.scale.position(x) - ends.0) / (ends.1 - ends.0) * (WIDTH - LEFT - RIGHT);
        let py = |y: f64| HEIGHT - BOTTOM - self.axis.position(y) * (HEIGHT - TOP - BOTTOM);

        let mut svg = svg_start(HEIGHT, self.title);
        for tick in self.axis.ticks() {
            draw_grid_line(&mut svg, py(tick), &format_tick(tick));
        }
        for (tick, text) in self.scale.ticks(ends) {
            draw_label(&mut svg, px(tick), HEIGHT - BOTTOM + 18.0, "middle", &text);
        }
        draw_label(&mut svg, f64::midpoint(LEFT, WIDTH - RIGHT), HEIGHT - 6.0, "middle", self.x);
        let mut notes = String::new();
        match &self.mark {
            Some((y, name)) if self.axis.contains(*y) => {
                let at = py(*y);
                let _ = write!(
                    svg,
                    "<line class=\"mark\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\"/>",
                    WIDTH - RIGHT
                );
                draw_label(&mut svg, LEFT + 6.0, at - 5.0, "start", name);
            }
            Some((_, name)) => {
                let _ = write!(notes, "; {} is outside this plot", escape(name));
            }
            None => (),
        }
        for line in &self.lines {
            self.draw_line(&mut svg, line, &px, &py);
        }
        svg.push_str("</svg>");
        let legend = self.lines.iter().map(|line| {
            let dashed = if line.dashed { " dashed" } else { "" };
            let (colour, name) = (line.colour % COLOURS, escape(&line.name));
            format!("<span class=\"item\"><span class=\"key c{colour}{dashed}\"></span>{name}</span>")
        });
        let scale = if self.axis.is_logarithmic { ", logarithmic scale" } else { "" };
        format!(
            "<figure><p class=\"axis\">{}{scale}{notes}</p>{svg}<p class=\"legend\">{}</p></figure>",
            escape(self.y),
            legend.collect::<Vec<_>>().join(" ")
        )
    }

    /// Draws one line, and dots with tooltips. `px` and `py` map values to pixels. Points without a value are left out.
    fn draw_line(&self, svg: &mut String, line: &PlotLine, px: &dyn Fn(f64) -> f64, py: &dyn Fn(f64) -> f64) {
        let points: Vec<_> = line.points.iter().filter(|(_, y)| y.is_finite()).collect();
        let corners: Vec<String> = points.iter().map(|(x, y)| format!("{:.1},{:.1}", px(*x), py(*y))).collect();
        let _ = write!(
            svg,
            "<polyline class=\"line c{}{}\" points=\"{}\"><title>{}</title></polyline>",
            line.colour % COLOURS,
            if line.dashed { " dashed" } else { "" },
            corners.join(" "),
            escape(&line.name)
        );
        let has_dot = |x: f64| match self.dots {
            [] => points.len() < MAX_DOTS,
            chosen => chosen.iter().any(|dot| (dot - x).abs() < 1e-9),
        };
        for (x, y) in points.iter().filter(|(x, _)| has_dot(*x)) {
            let (cx, cy) = (px(*x), py(*y));
            let x_value = match self.scale {
                AxisScale::Percentile => format!("p{}", (x * 1e6).round() / 1e6),
                AxisScale::Linear => format!("{} {}", format_number(*x), self.x),
            };
            let tooltip = format!("{}, {x_value}: {} ({})", line.name, format_number(*y), self.y);
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

/// A chart of horizontal bars as an SVG element. Charts that are compared share an axis.
pub(super) fn bar_chart(title: &str, unit: &str, axis: &ValueAxis, bars: &[RangeBar]) -> String {
    const ROW: f64 = 34.0;
    const MAX_NAME: usize = 40;
    let longest = bars.iter().map(|bar| bar.name.chars().count()).max().unwrap_or(0).min(MAX_NAME);
    // A character is about 6.5 units wide.
    let names = longest as f64 * 6.5 + 20.0;
    let px = |value: f64| names + axis.position(value) * (WIDTH - names - 80.0);
    let mut svg = svg_start(ROW * bars.len() as f64 + 8.0, title);
    for (row, bar) in bars.iter().enumerate() {
        let y = ROW * row as f64 + 6.0;
        let name: String = if bar.name.chars().count() > MAX_NAME {
            bar.name.chars().take(MAX_NAME - 1).chain(['…']).collect()
        } else {
            bar.name.clone()
        };
        draw_label(&mut svg, names - 8.0, y + 15.0, "end", &name);
        let _ = write!(
            svg,
            "<rect class=\"bar c{}\" x=\"{names}\" y=\"{y}\" width=\"{:.1}\" height=\"22\" rx=\"3\"/>",
            row % COLOURS,
            px(bar.value) - names
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

/// The multiples of the tick step from `low` to `high`.
fn tick_values(low: f64, high: f64) -> Vec<f64> {
    let step = tick_step(high - low);
    let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// A round step (1, 2, 2.5 or 5 times a power of ten) that gives about five ticks over `length`.
fn tick_step(length: f64) -> f64 {
    let rough = length / 6.0;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough).unwrap_or(rough)
}

/// Formats the value of a tick without digits that it does not have.
fn format_tick(value: f64) -> String {
    let rounded = (value * 1e4).round() / 1e4;
    format!("{rounded}")
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
    fn ticks_are_round_and_the_axis_fits_the_values() {
        let axis = ValueAxis::from_zero([7.3, f64::NAN, 100.0]);
        assert_eq!(axis.ticks(), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        for largest in [0.013, 5.1, 10.1, 20.4, 99.0, 261.0, 5012.0] {
            let position = ValueAxis::from_zero([largest]).position(largest);
            assert!((0.9..1.0).contains(&position), "{largest} is at {position}");
            assert!((4..=8).contains(&ValueAxis::from_zero([largest]).ticks().len()), "{largest}");
        }
    }

    #[test]
    fn an_axis_of_values_far_apart_is_logarithmic_and_leaves_no_room_empty() {
        assert!(!ValueAxis::fitting([1.0, 10.0, 300.0], [10.0]).is_logarithmic);
        assert!(!ValueAxis::fitting([], []).is_logarithmic);
        for (low, high, ticks) in [
            (3.0, 900.0, vec![5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]),
            (0.4, 90_000.0, vec![1.0, 10.0, 100.0, 1000.0, 10_000.0, 100_000.0]),
        ] {
            let axis = ValueAxis::fitting([high, low, f64::NAN], [low, f64::NAN]);
            assert!(axis.is_logarithmic && axis.position(low) < 0.06 && axis.position(high) > 0.94);
            assert_eq!(axis.ticks(), ticks);
        }
    }

    #[test]
    fn an_axis_of_rates_far_from_zero_does_not_start_there() {
        let scale = AxisScale::Linear;
        assert_eq!(scale.ends([50.0, 200.0].into_iter()), (0.0, 200.0));
        let (low, high) = scale.ends([500.0, 600.0].into_iter());
        assert!((low - 495.0).abs() < 1e-9 && (high - 600.0).abs() < 1e-9);
        assert!(scale.ticks((low, high)).iter().any(|(tick, _)| (tick - 500.0).abs() < 1e-9));
        assert_eq!(AxisScale::Percentile.ends([0.0, 90.0].into_iter()).0, 0.0);
    }
}
