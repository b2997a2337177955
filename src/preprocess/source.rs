//! Images in the forms that a client can send: a file, decoded pixels, or the network's input tensor.

use bytes::Bytes;
use image::RgbImage;
use image::metadata::Orientation;

use super::{ImageError, ImageLimits, Pixels, Scale};

/// One image of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An image file.
    File(Bytes),
    /// Decoded pixels, upright: 8-bit red, green, blue, row by row. They are resized and cropped as the pixels of a
    /// file are.
    Pixels {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// 3 × width × height bytes.
        rgb: Bytes,
    },
    /// The network's input, already resized, cropped and normalised by the client: planar red, green, blue, as
    /// little-endian f32.
    Tensor {
        /// Width of a plane.
        width: u32,
        /// Height of a plane.
        height: u32,
        /// 12 × width × height bytes.
        values: Bytes,
    },
}

impl Source {
    /// Number of bytes that the client sent.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::File(bytes) | Self::Pixels { rgb: bytes, .. } | Self::Tensor { values: bytes, .. } => bytes.len(),
        }
    }

    /// Whether the client sent no bytes.
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

/// Takes pixels that the client decoded.
///
/// # Errors
/// The image is over a limit, has no pixels, or has another number of bytes than its sides say.
pub(super) fn accept_pixels(width: u32, height: u32, rgb: &[u8], limits: ImageLimits) -> Result<Pixels, ImageError> {
    limits.check_size(width, height)?;
    if width == 0 || height == 0 {
        return Err(ImageError::Empty);
    }
    let mismatch = || ImageError::Tensor(format!("{} bytes are not {width}x{height} pixels of three", rgb.len()));
    let expected = 3 * width as usize * height as usize;
    let rgb = (rgb.len() == expected).then(|| RgbImage::from_raw(width, height, rgb.to_vec())).flatten();
    let rgb = rgb.ok_or_else(mismatch)?;
    Ok(Pixels { rgb, stored: (width, height), scale: Scale::Full, orientation: Orientation::NoTransforms })
}

/// Checks that a tensor of these sides is an input of this `size`: height, width.
///
/// # Errors
/// The tensor has another size, or a value is not finite.
pub(super) fn check_tensor(width: u32, height: u32, values: &[u8], size: [usize; 2]) -> Result<(), ImageError> {
    let [rows, columns] = size;
    if [height as usize, width as usize] != size || values.len() != 12 * rows * columns {
        return Err(ImageError::Tensor(format!(
            "the network's input is {columns}x{rows}, found {width}x{height} in {} bytes; \
             send an image file, and the server resizes it",
            values.len()
        )));
    }
    if !values.as_chunks::<4>().0.iter().all(|value| f32::from_le_bytes(*value).is_finite()) {
        return Err(ImageError::Tensor("the network's input must be finite, found infinity or NaN".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_pixels_must_match_their_sides() {
        let limits = ImageLimits { max_pixels: 100, max_side: 50, ..ImageLimits::default() };
        assert!(accept_pixels(3, 2, &[7; 18], limits).is_ok_and(|pixels| pixels.rgb.dimensions() == (3, 2)));
        for (width, height, bytes) in [(3, 2, 17), (0, 2, 0), (51, 1, 153), (11, 10, 330), (u32::MAX, u32::MAX, 3)] {
            assert!(accept_pixels(width, height, &vec![0; bytes], limits).is_err(), "{width}x{height} in {bytes}");
        }
    }

    #[test]
    fn a_tensor_must_be_the_whole_input_and_finite() {
        let of = |value: f32| -> Vec<u8> { [value; 12].iter().flat_map(|v| v.to_le_bytes()).collect() };
        assert_eq!(check_tensor(2, 2, &of(0.5), [2, 2]), Ok(()));
        assert!(check_tensor(2, 2, &of(f32::NAN), [2, 2]).is_err());
        assert!(check_tensor(2, 2, &of(f32::INFINITY), [2, 2]).is_err());
        assert!(check_tensor(1, 4, &of(0.5), [2, 2]).is_err());
        assert!(check_tensor(2, 2, &of(0.5)[4..], [2, 2]).is_err());
    }
}
