//! Feature maps and attention as pictures for people.

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, Rgb, RgbImage, imageops};

/// Maps of fewer pixels are drawn larger, each pixel a square.
const SMALLEST_TILE: usize = 48;
/// The overlay is at least so many pixels high and wide.
const SMALLEST_OVERLAY: u32 = 320;
const GAP: usize = 2;
const BACKGROUND: Rgb<u8> = Rgb([24, 24, 24]);

/// Dark blue to yellow by way of green, the brighter the more: it keeps its order in grey, and for those who see no red.
const COLOURS: [[f32; 3]; 6] = [
    [20.0, 14.0, 60.0],
    [48.0, 60.0, 140.0],
    [34.0, 120.0, 142.0],
    [42.0, 176.0, 120.0],
    [140.0, 214.0, 70.0],
    [252.0, 232.0, 40.0],
];

/// Every channel of channels × height × width maps as a tile, row by row; each from its own lowest to its highest value.
#[must_use]
pub fn tiles(maps: &[f32], [channels, height, width]: [usize; 3]) -> RgbImage {
    let enlarge = (SMALLEST_TILE / height.min(width).max(1)).max(1);
    let columns = (1..=channels).find(|n| n * n >= channels).unwrap_or(1);
    let rows = channels.div_ceil(columns);
    let across = |n: usize, side: usize| (n * (side * enlarge + GAP) + GAP) as u32;
    let mut picture = RgbImage::from_pixel(across(columns, width), across(rows, height), BACKGROUND);
    for (channel, map) in maps.chunks_exact((height * width).max(1)).take(channels).enumerate() {
        let (left, top) = (across(channel % columns, width), across(channel / columns, height));
        let range = Range::of(map);
        for (y, line) in map.chunks_exact(width).enumerate() {
            for (x, value) in line.iter().enumerate() {
                let colour = colour(range.place(*value));
                for (dx, dy) in (0..enlarge * enlarge).map(|i| (i % enlarge, i / enlarge)) {
                    picture.put_pixel(left + (x * enlarge + dx) as u32, top + (y * enlarge + dy) as u32, colour);
                }
            }
        }
    }
    picture
}

/// What the network saw, with the mean of a gate's channels over it: the brighter, the more is let through there.
#[must_use]
pub fn overlay(view: &RgbImage, maps: &[f32], [channels, height, width]: [usize; 3]) -> RgbImage {
    let mean = channel_mean(maps, [channels, height, width]);
    let range = Range::of(&mean);
    let heat = RgbImage::from_fn(width as u32, height as u32, |x, y| {
        colour(range.place(mean[y as usize * width + x as usize]))
    });
    let enlarge = SMALLEST_OVERLAY.div_ceil(view.width().min(view.height()).max(1));
    let (w, h) = (view.width() * enlarge, view.height() * enlarge);
    let mut picture = imageops::resize(view, w, h, imageops::FilterType::Triangle);
    let heat = imageops::resize(&heat, w, h, imageops::FilterType::Triangle);
    for (pixel, heat) in picture.pixels_mut().zip(heat.pixels()) {
        // The photograph as grey: its own colours would be taken for heat.
        let grey = (u16::from(pixel[0]) * 3 + u16::from(pixel[1]) * 6 + u16::from(pixel[2])) / 10;
        *pixel = Rgb(std::array::from_fn(|c| ((grey * 9 + u16::from(heat[c]) * 11) / 20) as u8));
    }
    picture
}

/// The mean over channels: height × width.
#[must_use]
pub fn channel_mean(maps: &[f32], [channels, height, width]: [usize; 3]) -> Vec<f32> {
    let mut mean = vec![0.0; height * width];
    for map in maps.chunks_exact((height * width).max(1)) {
        mean.iter_mut().zip(map).for_each(|(sum, value)| *sum += value / channels as f32);
    }
    mean
}

/// The picture as a PNG file; empty if it has no pixels.
#[must_use]
pub fn png(picture: &RgbImage) -> Vec<u8> {
    let mut file = Vec::new();
    let encoder = PngEncoder::new_with_quality(&mut file, CompressionType::Fast, FilterType::Adaptive);
    let written = encoder.write_image(picture.as_raw(), picture.width(), picture.height(), ExtendedColorType::Rgb8);
    if written.is_ok() { file } else { Vec::new() }
}

struct Range {
    low: f32,
    high: f32,
}

impl Range {
    fn of(values: &[f32]) -> Self {
        let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
        values.iter().for_each(|v| (low, high) = (low.min(*v), high.max(*v)));
        Self { low, high }
    }

    /// 0 to 1; 0 where all values are the same.
    fn place(&self, value: f32) -> f32 {
        let place = (value - self.low) / (self.high - self.low);
        if place.is_finite() { place } else { 0.0 }
    }
}

fn colour(place: f32) -> Rgb<u8> {
    let at = place.clamp(0.0, 1.0) * (COLOURS.len() - 1) as f32;
    let below = (at as usize).min(COLOURS.len() - 2);
    let part = at - below as f32;
    let (a, b) = (COLOURS[below], COLOURS[below + 1]);
    Rgb(std::array::from_fn(|c| (a[c] + (b[c] - a[c]) * part).round() as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_has_its_tile_and_its_own_range() {
        // Three channels of 1×2: rising, falling by a thousandth, flat.
        let maps = [0.0, 1.0, 0.001, 0.0, 5.0, 5.0];
        let picture = tiles(&maps, [3, 1, 2]);
        let (tile_w, tile_h) = (2 * 48 + 2, 48 + 2);
        assert_eq!(picture.dimensions(), (2 * tile_w + 2, 2 * tile_h + 2));
        let at = |channel: u32, x: u32| {
            *picture.get_pixel(2 + channel % 2 * tile_w + 48 * x + 20, 2 + channel / 2 * tile_h + 20)
        };
        let (dark, bright) = (Rgb([20, 14, 60]), Rgb([252, 232, 40]));
        assert_eq!([at(0, 0), at(0, 1)], [dark, bright]);
        assert_eq!([at(1, 0), at(1, 1)], [bright, dark]);
        assert_eq!([at(2, 0), at(2, 1)], [dark, dark]);
        assert_eq!(*picture.get_pixel(tile_w + 20, tile_h + 20), BACKGROUND, "no fourth channel");
    }

    #[test]
    fn the_overlay_is_bright_where_the_gate_is_open() {
        let view = RgbImage::from_pixel(64, 64, Rgb([100, 100, 100]));
        let picture = overlay(&view, &[0.9, 0.1, 0.7, 0.1], [2, 1, 2]);
        assert_eq!(picture.dimensions(), (320, 320));
        let light = |x: u32| picture.get_pixel(x, 160).0.map(u32::from).iter().sum::<u32>();
        assert!(light(20) > light(300) + 100, "{} {}", light(20), light(300));
        assert_eq!(channel_mean(&[0.75, 0.25, 0.25, 0.25], [2, 1, 2]), [0.5, 0.25]);
        assert!(png(&picture).starts_with(b"\x89PNG"));
    }
}
