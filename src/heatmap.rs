//! Draws feature maps and attention as images.

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, Rgb, RgbImage, imageops};

/// Smaller maps are enlarged, each element to a square, up to this shorter side in pixels.
const MIN_TILE: usize = 48;
/// The smallest height and width of the overlay, pixels.
const MIN_OVERLAY: u32 = 320;
/// Pixels between tiles.
const GAP: usize = 2;
const BACKGROUND: Rgb<u8> = Rgb([24, 24, 24]);

/// From dark blue through green to yellow: a brighter colour is a higher value. The order is kept in greyscale and
/// for people who see no red.
const COLOURS: [[f32; 3]; 6] = [
    [20.0, 14.0, 60.0],
    [48.0, 60.0, 140.0],
    [34.0, 120.0, 142.0],
    [42.0, 176.0, 120.0],
    [140.0, 214.0, 70.0],
    [252.0, 232.0, 40.0],
];

/// Draws each channel of channels × height × width maps as a tile, row by row. The colours of a tile range from the
/// channel's lowest to its highest value.
#[must_use]
pub fn tiles(maps: &[f32], [channels, height, width]: [usize; 3]) -> RgbImage {
    let enlarge = (MIN_TILE / height.min(width).max(1)).max(1);
    let columns = (1..=channels).find(|n| n * n >= channels).unwrap_or(1);
    let rows = channels.div_ceil(columns);
    let offset = |count: usize, side: usize| (count * (side * enlarge + GAP) + GAP) as u32;
    let mut image = RgbImage::from_pixel(offset(columns, width), offset(rows, height), BACKGROUND);
    for (channel, map) in maps.chunks_exact((height * width).max(1)).take(channels).enumerate() {
        let (left, top) = (offset(channel % columns, width), offset(channel / columns, height));
        let range = ValueRange::of(map);
        for (y, line) in map.chunks_exact(width).enumerate() {
            for (x, value) in line.iter().enumerate() {
                let colour = colour_at(range.fraction(*value));
                for (dx, dy) in (0..enlarge * enlarge).map(|i| (i % enlarge, i / enlarge)) {
                    image.put_pixel(left + (x * enlarge + dx) as u32, top + (y * enlarge + dy) as u32, colour);
                }
            }
        }
    }
    image
}

/// Draws the network's input with the mean of a gate's channels over it. A brighter spot is one where the gate lets
/// more through.
#[must_use]
pub fn overlay(view: &RgbImage, maps: &[f32], [channels, height, width]: [usize; 3]) -> RgbImage {
    let mean = channel_mean(maps, [channels, height, width]);
    let range = ValueRange::of(&mean);
    let heat = RgbImage::from_fn(width as u32, height as u32, |x, y| {
        colour_at(range.fraction(mean[y as usize * width + x as usize]))
    });
    let enlarge = MIN_OVERLAY.div_ceil(view.width().min(view.height()).max(1));
    let (w, h) = (view.width() * enlarge, view.height() * enlarge);
    let mut image = imageops::resize(view, w, h, imageops::FilterType::Triangle);
    let heat = imageops::resize(&heat, w, h, imageops::FilterType::Triangle);
    for (pixel, heat) in image.pixels_mut().zip(heat.pixels()) {
        // The photograph is drawn in grey, so that its colours are not taken for heat.
        let grey = (u16::from(pixel[0]) * 3 + u16::from(pixel[1]) * 6 + u16::from(pixel[2])) / 10;
        *pixel = Rgb(std::array::from_fn(|c| ((grey * 9 + u16::from(heat[c]) * 11) / 20) as u8));
    }
    image
}

/// The mean of the maps over channels: height × width elements.
#[must_use]
pub fn channel_mean(maps: &[f32], [channels, height, width]: [usize; 3]) -> Vec<f32> {
    let mut mean = vec![0.0; height * width];
    for map in maps.chunks_exact((height * width).max(1)) {
        mean.iter_mut().zip(map).for_each(|(sum, value)| *sum += value / channels as f32);
    }
    mean
}

/// Encodes an image as a PNG file; empty if the image has no pixels.
#[must_use]
pub fn png(image: &RgbImage) -> Vec<u8> {
    let mut file = Vec::new();
    let encoder = PngEncoder::new_with_quality(&mut file, CompressionType::Fast, FilterType::Adaptive);
    let written = encoder.write_image(image.as_raw(), image.width(), image.height(), ExtendedColorType::Rgb8);
    if written.is_ok() { file } else { Vec::new() }
}

/// The lowest and the highest of some values.
struct ValueRange {
    low: f32,
    high: f32,
}

impl ValueRange {
    fn of(values: &[f32]) -> Self {
        let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
        values.iter().for_each(|v| (low, high) = (low.min(*v), high.max(*v)));
        Self { low, high }
    }

    /// Where a value is between the lowest (0) and the highest (1); 0 if all values are the same.
    fn fraction(&self, value: f32) -> f32 {
        let fraction = (value - self.low) / (self.high - self.low);
        if fraction.is_finite() { fraction } else { 0.0 }
    }
}

/// The colour of a fraction between 0 and 1.
fn colour_at(fraction: f32) -> Rgb<u8> {
    let position = fraction.clamp(0.0, 1.0) * (COLOURS.len() - 1) as f32;
    let below = (position as usize).min(COLOURS.len() - 2);
    let rest = position - below as f32;
    let (a, b) = (COLOURS[below], COLOURS[below + 1]);
    Rgb(std::array::from_fn(|c| (a[c] + (b[c] - a[c]) * rest).round() as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_has_its_own_tile_and_range() {
        // Three channels of 1×2: rising, falling by a thousandth, constant.
        let maps = [0.0, 1.0, 0.001, 0.0, 5.0, 5.0];
        let image = tiles(&maps, [3, 1, 2]);
        let (tile_w, tile_h) = (2 * 48 + 2, 48 + 2);
        assert_eq!(image.dimensions(), (2 * tile_w + 2, 2 * tile_h + 2));
        let at = |channel: u32, x: u32| {
            *image.get_pixel(2 + channel % 2 * tile_w + 48 * x + 20, 2 + channel / 2 * tile_h + 20)
        };
        let (dark, bright) = (Rgb([20, 14, 60]), Rgb([252, 232, 40]));
        assert_eq!([at(0, 0), at(0, 1)], [dark, bright]);
        assert_eq!([at(1, 0), at(1, 1)], [bright, dark]);
        assert_eq!([at(2, 0), at(2, 1)], [dark, dark]);
        assert_eq!(*image.get_pixel(tile_w + 20, tile_h + 20), BACKGROUND, "no fourth channel");
    }

    #[test]
    fn the_overlay_is_bright_where_the_gate_is_open() {
        let view = RgbImage::from_pixel(64, 64, Rgb([100, 100, 100]));
        let image = overlay(&view, &[0.9, 0.1, 0.7, 0.1], [2, 1, 2]);
        assert_eq!(image.dimensions(), (320, 320));
        let light = |x: u32| image.get_pixel(x, 160).0.map(u32::from).iter().sum::<u32>();
        assert!(light(20) > light(300) + 100, "{} {}", light(20), light(300));
        assert_eq!(channel_mean(&[0.75, 0.25, 0.25, 0.25], [2, 1, 2]), [0.5, 0.25]);
        assert!(png(&image).starts_with(b"\x89PNG"));
    }
}
