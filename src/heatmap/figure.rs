//! A gate over a photograph, as a figure for a talk or a paper.

use image::imageops::{self, FilterType};
use image::{ImageBuffer, Luma, Rgb, RgbImage};

use super::colours::colour_at;
use super::digits::{draw_number, number_width};
use super::{ValueRange, channel_mean};

/// A panel's shorter side is enlarged to this, in pixels.
const PANEL: u32 = 448;
/// But its longer side not beyond this.
const MAX_PANEL: u32 = 1024;
/// Around the figure and between its parts, pixels.
const MARGIN: u32 = 20;
/// The width of the colour bar, pixels.
const BAR: u32 = 22;
/// The length of a tick of the colour bar, pixels.
const TICK: u32 = 6;
/// Pixels for a cell of a label's characters.
const LABEL_SCALE: u32 = 3;
const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([32, 32, 32]);
/// The part of a pixel's colour that comes from the gate; the rest is the photograph in grey.
const HEAT: f32 = 0.6;

/// Draws a figure: the network's input, beside it the same with the mean of a gate's channels over it, and a colour
/// bar with the lowest, the middle and the highest value. The gate is stretched over the whole input, as it acts on
/// the features, and interpolated between the centres of its cells.
#[must_use]
pub fn attention_figure(view: &RgbImage, maps: &[f32], shape: [usize; 3]) -> RgbImage {
    let mean = channel_mean(maps, shape);
    let range = ValueRange::of(&mean);
    let panel = enlarged(view);
    let (width, height) = panel.dimensions();
    let overlay = overlay(&panel, &mean, [shape[1], shape[2]], range);

    let labels = tick_labels(range);
    let label_width = labels.iter().map(|label| number_width(label, LABEL_SCALE)).max().unwrap_or(0);
    let bar_left = 2 * (MARGIN + width) + MARGIN;
    let label_left = bar_left + BAR + 2 * TICK;
    let mut figure = RgbImage::from_pixel(label_left + label_width + MARGIN, height + 2 * MARGIN, PAPER);
    imageops::replace(&mut figure, &panel, i64::from(MARGIN), i64::from(MARGIN));
    imageops::replace(&mut figure, &overlay, i64::from(2 * MARGIN + width), i64::from(MARGIN));
    for y in 0..height {
        let colour = colour_at(1.0 - y as f32 / (height - 1).max(1) as f32);
        (0..BAR).for_each(|x| figure.put_pixel(bar_left + x, MARGIN + y, colour));
    }
    for (label, y) in labels.iter().zip([height - 1, (height - 1) / 2, 0]) {
        (0..TICK).for_each(|x| figure.put_pixel(bar_left + BAR + x, MARGIN + y, INK));
        draw_number(&mut figure, label, [label_left, MARGIN + y], LABEL_SCALE, INK);
    }
    figure
}

/// The photograph, enlarged if it is small.
fn enlarged(view: &RgbImage) -> RgbImage {
    let (width, height) = view.dimensions();
    let (short, long) = (f64::from(width.min(height).max(1)), f64::from(width.max(height).max(1)));
    let scale = (f64::from(PANEL) / short).min(f64::from(MAX_PANEL) / long).max(1.0);
    let side = |side: u32| (f64::from(side) * scale).round() as u32;
    imageops::resize(view, side(width), side(height), FilterType::CatmullRom)
}

/// The colours of a gate of height × width cells over a photograph in grey.
fn overlay(photograph: &RgbImage, gate: &[f32], [height, width]: [usize; 2], range: ValueRange) -> RgbImage {
    let fractions: Vec<f32> = gate.iter().map(|value| range.fraction(*value)).collect();
    let mut image = photograph.clone();
    let Some(fractions) = ImageBuffer::<Luma<f32>, _>::from_raw(width as u32, height as u32, fractions) else {
        return image;
    };
    let fractions = imageops::resize(&fractions, image.width(), image.height(), FilterType::CatmullRom);
    for (pixel, Luma([fraction])) in image.pixels_mut().zip(fractions.pixels()) {
        // The photograph is grey, so that its colours are not taken for the gate's.
        let [r, g, b] = pixel.0.map(f32::from);
        let grey = 0.299 * r + 0.587 * g + 0.114 * b;
        let heat = colour_at(*fraction);
        *pixel = Rgb(heat.0.map(|heat| (f32::from(heat) * HEAT + grey * (1.0 - HEAT)).round() as u8));
    }
    image
}

/// The lowest, the middle and the highest value, with the fewest decimals that show how they differ.
fn tick_labels(ValueRange { low, high }: ValueRange) -> [String; 3] {
    let step = (high - low) / 2.0;
    // A step has two digits.
    let decimals = if step > 0.0 && step.is_finite() { (1.0 - step.log10().floor()).clamp(0.0, 8.0) } else { 2.0 };
    [low, low + step, high].map(|value| format!("{value:.*}", decimals as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_has_the_photograph_the_gate_over_it_and_a_colour_bar() {
        let view = RgbImage::from_fn(64, 64, |x, _| Rgb([if x < 32 { 90 } else { 140 }, 100, 100]));
        let image = attention_figure(&view, &[0.9, 0.1, 0.7, 0.1], [2, 1, 2]);
        assert_eq!(image.height(), 448 + 40);
        // The photograph, unchanged.
        assert_eq!(*image.get_pixel(20 + 100, 200), Rgb([90, 100, 100]));
        assert_eq!(*image.get_pixel(20 + 348, 200), Rgb([140, 100, 100]));
        // The gate: open on the left, closed on the right.
        let light = |x: u32| image.get_pixel(20 + 448 + 20 + x, 200).0.map(u32::from).iter().sum::<u32>();
        assert!(light(20) > light(430) + 100, "{} {}", light(20), light(430));
        // The bar, from the highest value at the top to the lowest.
        let bar = 3 * 20 + 2 * 448 + 10;
        assert_eq!([*image.get_pixel(bar, 20), *image.get_pixel(bar, 467)], [colour_at(1.0), colour_at(0.0)]);
        let labels = |rows: std::ops::Range<u32>| {
            rows.flat_map(|y| (bar + 24..image.width()).map(move |x| (x, y)))
                .filter(|(x, y)| *image.get_pixel(*x, *y) == INK)
                .count()
        };
        assert!([labels(5..40), labels(225..265), labels(450..485)].iter().all(|ink| *ink > 200));
        assert_eq!(labels(40..225), 0);
    }

    #[test]
    fn labels_have_the_decimals_that_tell_them_apart() {
        let labels = |low, high| tick_labels(ValueRange { low, high });
        assert_eq!(labels(0.1, 0.8), ["0.10", "0.45", "0.80"]);
        assert_eq!(labels(0.5, 0.504), ["0.5000", "0.5020", "0.5040"]);
        assert_eq!(labels(-3.0, 7.0), ["-3.0", "2.0", "7.0"]);
        assert_eq!(labels(0.5, 0.5), ["0.50", "0.50", "0.50"]);
    }

    #[test]
    fn a_figure_of_a_very_wide_input_stays_of_bounded_size() {
        let view = RgbImage::from_pixel(4096, 64, Rgb([90; 3]));
        let image = attention_figure(&view, &[0.1, 0.2], [1, 1, 2]);
        assert!(image.width() < 9000 && image.height() < 1100, "{:?}", image.dimensions());
        let large = RgbImage::from_pixel(640, 640, Rgb([90; 3]));
        assert_eq!(attention_figure(&large, &[0.1, 0.2], [1, 1, 2]).height(), 680, "not enlarged");
    }
}
