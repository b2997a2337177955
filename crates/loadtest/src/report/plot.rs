//! Plots as inline SVG: lines over a linear or logarithmic axis, and bars. Colours are classes, so that the page's style
//! decides them for light and dark.

use std::fmt::Write;

use super::number;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;

/// A line.
pub(super) struct Line {
    /// For the legend.
    pub(super) name: String,
    /// Which colour.
    pub(super) colour: usize,
    /// Dashed lines tell apart what shares a colour.
    pub(super) dashed: bool,
    pub(super) points: Vec<(f64, f64)>,
}

/// What a horizontal axis shows.
pub(super) enum Axis {
    /// From zero.
    Linear,
    /// Percentiles, each nine as wide as the one before: the position is minus the logarithm of the share that is slower.
    Percentile,
}

/// Lines over a common axis.
pub(super) struct Plot<'a> {
    /// Read out, and shown when the pointer rests.
    pub(super) title: &'a str,
    pub(super) x: &'a str,
    pub(super) y: &'a str,
    pub(super) axis: Axis,
    pub(super) lines: Vec<Line>,
    /// A horizontal line with a name: the objective.
    pub(super) mark: Option<(f64, String)>,
}

impl Plot<'_> {
    /// As an SVG element.
    pub(super) fn svg(&self) -> String {
        let place = |x: f64| match self.axis {
            Axis::Linear => x,
            Axis::Percentile => -(1.0 - x / 100.0).max(1e-6).log10(),
        };
        let all = || self.lines.iter().flat_map(|line| &line.points);
        let x_end = all().map(|p| place(p.0)).fold(1e-9, f64::max);
        let y_end = ceiling(all().map(|p| p.1).chain(self.mark.iter().map(|m| m.0 * 1.05)).fold(1e-9, f64::max));
        let px = |x: f64| LEFT + place(x) / x_end * (WIDTH - LEFT - RIGHT);
        let py = |y: f64| HEIGHT - BOTTOM - y / y_end * (HEIGHT - TOP - BOTTOM);

        let mut svg = open(self.title);
        for tick in ticks(y_end) {
            grid(&mut svg, py(tick), &number(tick));
        }
        let marks: Vec<(f64, String)> = match self.axis {
            Axis::Linear => ticks(x_end).into_iter().map(|tick| (tick, number(tick))).collect(),
            Axis::Percentile => [0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999]
                .into_iter()
                .filter(|percent| place(*percent) <= x_end + 1e-9)
                .map(|percent| (percent, if percent == 0.0 { "min".to_owned() } else { format!("p{percent}") }))
                .collect(),
        };
        for (tick, text) in marks {
            label(&mut svg, px(tick), HEIGHT - BOTTOM + 18.0, "middle", &text);
        }
        label(&mut svg, (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 6.0, "middle", self.x);
        if let Some((y, name)) = &self.mark {
            let at = py(*y);
            let _ = write!(
                svg,
                "<line class=\"mark\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\"/>",
                WIDTH - RIGHT
            );
            label(&mut svg, WIDTH - RIGHT - 4.0, at - 5.0, "end", name);
        }
        for line in &self.lines {
            let points: Vec<String> = line.points.iter().map(|(x, y)| format!("{:.1},{:.1}", px(*x), py(*y))).collect();
            let _ = write!(
                svg,
                "<polyline class=\"line c{}{}\" points=\"{}\"><title>{}</title></polyline>",
                line.colour % 6,
                if line.dashed { " dashed" } else { "" },
                points.join(" "),
                escape(&line.name)
            );
            if line.points.len() < 30 {
                for (x, y) in &line.points {
                    let (cx, cy) = (px(*x), py(*y));
                    let what = format!("{}: {} {} at {} {}", line.name, number(*y), self.y, number(*x), self.x);
                    let _ = write!(
                        svg,
                        "<circle class=\"dot c{}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3.5\"><title>{}</title></circle>",
                        line.colour % 6,
                        escape(&what)
                    );
                }
            }
        }
        svg.push_str("</svg>");
        let legend = self.lines.iter().map(|line| {
            let dashed = if line.dashed { " dashed" } else { "" };
            format!("<span class=\"key c{}{dashed}\"></span>{}", line.colour % 6, escape(&line.name))
        });
        format!(
            "<p class=\"axis\">{}</p>{svg}<p class=\"legend\">{}</p>",
            escape(self.y),
            legend.collect::<Vec<_>>().join(" ")
        )
    }
}

/// One bar a name, with its range over the rounds.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) range: (f64, f64),
}

/// Horizontal bars.
pub(super) fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    const ROW: f64 = 34.0;
    let end = ceiling(bars.iter().map(|bar| bar.range.1.max(bar.value)).fold(1e-9, f64::max));
    let names = 150.0;
    let px = |value: f64| names + value / end * (WIDTH - names - 80.0);
    let height = ROW * bars.len() as f64 + 8.0;
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\"><title>{}</title>", escape(title));
    for (row, bar) in bars.iter().enumerate() {
        let y = ROW * row as f64 + 6.0;
        label(&mut svg, names - 8.0, y + 15.0, "end", &bar.name);
        let _ = write!(
            svg,
            "<rect class=\"bar c{}\" x=\"{names}\" y=\"{y}\" width=\"{:.1}\" height=\"22\" rx=\"3\"/>",
            row % 6,
            px(bar.value) - names
        );
        let middle = y + 11.0;
        let (low, high) = (px(bar.range.0), px(bar.range.1));
        let _ = write!(svg, "<line class=\"range\" x1=\"{low:.1}\" y1=\"{middle}\" x2=\"{high:.1}\" y2=\"{middle}\"/>");
        label(&mut svg, high.max(px(bar.value)) + 6.0, y + 15.0, "start", &format!("{} {unit}", number(bar.value)));
    }
    svg.push_str("</svg>");
    svg
}

fn open(title: &str) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\"><title>{}</title>", escape(title))
}

fn grid(svg: &mut String, y: f64, text: &str) {
    let _ = write!(svg, "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\"/>", WIDTH - RIGHT);
    label(svg, LEFT - 8.0, y + 4.0, "end", text);
}

fn label(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escape(text));
}

/// Round numbers from zero to an end that is one of them.
fn ticks(end: f64) -> Vec<f64> {
    let step = step(end);
    (0..=((end / step + 1e-9) as usize)).map(|i| i as f64 * step).collect()
}

fn step(end: f64) -> f64 {
    let rough = end / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough).unwrap_or(rough)
}

/// The next multiple of a step.
fn ceiling(value: f64) -> f64 {
    let step = step(value);
    (value / step - 1e-9).ceil() * step
}

/// Text that cannot become markup.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_hold_the_largest_value() {
        for (value, end) in [(7.3, 8.0), (100.0, 100.0), (261.0, 300.0), (0.013, 0.015)] {
            assert!((ceiling(value) - end).abs() < 1e-9, "{value}: {}", ceiling(value));
        }
        assert_eq!(ticks(100.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
    }
}
