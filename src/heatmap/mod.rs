//! Draws feature maps and attention as images.

mod colours;
mod digits;
mod figure;
mod tiles;

pub use figure::attention_figure;
pub use tiles::tiles;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, RgbImage};

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

/// Smaller differences are rounding of a mean over channels.
const ROUNDING: f32 = 1e-6;

/// The lowest and the highest of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValueRange {
    /// The lowest value; infinity if there are no values.
    pub low: f32,
    /// The highest value; negative infinity if there are no values.
    pub high: f32,
}

impl ValueRange {
    /// The range of some values.
    #[must_use]
    pub fn of(values: &[f32]) -> Self {
        let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
        values.iter().for_each(|v| (low, high) = (low.min(*v), high.max(*v)));
        Self { low, high }
    }

    /// Whether all values are the same but for rounding, so that a picture of them shows nothing.
    #[must_use]
    pub fn is_one_value(&self) -> bool {
        let size = self.low.abs().max(self.high.abs());
        let span = self.high - self.low;
        // Not a number and no values at all have no range either.
        span.is_nan() || span <= size * ROUNDING
    }

    /// Where a value is between the lowest (0) and the highest (1); 0 if all values are the same.
    fn fraction(&self, value: f32) -> f32 {
        let fraction = (value - self.low) / (self.high - self.low);
        if fraction.is_finite() { fraction } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_rounding_is_one_value() {
        for one in [&[0.5, 0.5, 0.500_000_1][..], &[0.0; 4], &[], &[f32::NAN]] {
            assert!(ValueRange::of(one).is_one_value(), "{one:?}");
        }
        for two in [&[0.5, 0.5001][..], &[0.0, 1e-9], &[-1.0, 1.0]] {
            assert!(!ValueRange::of(two).is_one_value(), "{two:?}");
        }
        assert_eq!(ValueRange::of(&[1.0, 3.0]).fraction(2.5), 0.75);
        assert_eq!(channel_mean(&[0.75, 0.25, 0.25, 0.25], [2, 1, 2]), [0.5, 0.25]);
    }
}
