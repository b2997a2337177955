//! What the network is to look at: a file, pixels that somebody else decoded, or its input itself.

use bytes::Bytes;
use image::RgbImage;
use image::metadata::Orientation;

use super::{ImageError, ImageLimits, Pixels, Scale};

/// What an answer is wanted for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An image file.
    File(Bytes),
    /// Pixels, upright: 8-bit red, green, blue, row by row. They are resized and cropped as those of a file are.
    Pixels {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
        /// 3 × width × height bytes.
        rgb: Bytes,
    },
    /// The network's input: resized, cropped and normalised by whoever sends it; planar red, green, blue, as little-endian f32.
    Values {
        /// Of a plane.
        width: u32,
        /// Of a plane.
        height: u32,
        /// 12 × width × height bytes.
        values: Bytes,
    },
}

impl Source {
    /// Bytes that it came in.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::File(bytes) | Self::Pixels { rgb: bytes, .. } | Self::Values { values: bytes, .. } => bytes.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Bytes> for Source {
    fn from(file: Bytes) -> Self {
        Self::File(file)
    }
}

/// Pixels as if they had been decoded.
pub(super) fn pixels(width: u32, height: u32, rgb: &[u8], limits: ImageLimits) -> Result<Pixels, ImageError> {
    let ImageLimits { max_pixels, max_side, .. } = limits;
    if width.max(height) > max_side || u64::from(width) * u64::from(height) > max_pixels {
        return Err(ImageError::TooManyPixels { width, height, max_side, max_pixels });
    }
    if width == 0 || height == 0 {
        return Err(ImageError::Empty);
    }
    let wrong = || ImageError::Values(format!("{} bytes are not {width}x{height} pixels of three", rgb.len()));
    let expected = 3 * width as usize * height as usize;
    let rgb = (rgb.len() == expected).then(|| RgbImage::from_raw(width, height, rgb.to_vec())).flatten();
    let rgb = rgb.ok_or_else(wrong)?;
    Ok(Pixels { rgb, stored: (width, height), scale: Scale::Full, orientation: Orientation::NoTransforms })
}

/// Checks that values are an input of this height and width.
pub(super) fn check_values((width, height): (u32, u32), values: &[u8], size: [usize; 2]) -> Result<(), ImageError> {
    let [rows, columns] = size;
    if [height as usize, width as usize] != size || values.len() != 12 * rows * columns {
        return Err(ImageError::Values(format!(
            "the network's input is {columns}x{rows}, found {width}x{height} in {} bytes; send an image file, and the server \
             resizes it",
            values.len()
        )));
    }
    if !values.as_chunks::<4>().0.iter().all(|value| f32::from_le_bytes(*value).is_finite()) {
        return Err(ImageError::Values("the network's input must be finite, found infinity or NaN".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_must_be_as_many_as_their_sides_say() {
        let limits = ImageLimits { max_pixels: 100, max_side: 50, ..ImageLimits::default() };
        assert!(pixels(3, 2, &[7; 18], limits).is_ok_and(|pixels| pixels.rgb.dimensions() == (3, 2)));
        for (width, height, bytes) in [(3, 2, 17), (0, 2, 0), (51, 1, 153), (11, 10, 330), (u32::MAX, u32::MAX, 3)] {
            assert!(pixels(width, height, &vec![0; bytes], limits).is_err(), "{width}x{height} in {bytes}");
        }
    }

    #[test]
    fn values_must_be_the_whole_input_and_finite() {
        let of = |value: f32| -> Vec<u8> { [value; 12].iter().flat_map(|v| v.to_le_bytes()).collect() };
        assert_eq!(check_values((2, 2), &of(0.5), [2, 2]), Ok(()));
        assert!(check_values((2, 2), &of(f32::NAN), [2, 2]).is_err());
        assert!(check_values((2, 2), &of(f32::INFINITY), [2, 2]).is_err());
        assert!(check_values((1, 4), &of(0.5), [2, 2]).is_err());
        assert!(check_values((2, 2), &of(0.5)[4..], [2, 2]).is_err());
    }
}
