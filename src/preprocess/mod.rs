//! Turns the bytes of an image file into a row of the network's input.
//!
//! The steps run in this order, and each step rejects what the next one must not see: magic bytes decide the format
//! ([`Format`]); the size in the header is compared with the limits before a pixel is decoded; the decoder runs
//! within its own limits and behind a panic guard ([`decode()`]); the pixels are resized, cropped, oriented and
//! normalised ([`Transform`]). [`Preprocessor`] runs these steps on a bounded number of threads.
//!
//! Image codecs are used only in this module. An error concerns one image and affects only that image.

mod cpu;
mod decode;
mod estimate;
mod expensive;
mod format;
mod geometry;
mod header;
mod pool;
mod scan;
mod source;
mod tiff_check;
mod transform;
mod vp8l;

pub use decode::{MAX_BYTES_PER_PIXEL, Pixels, ProbedImage, decode, probe};
pub use estimate::{CostClass, Estimate};
pub use expensive::QueueRejection;
pub use format::Format;
pub use geometry::{Fit, Geometry};
pub use ghostserve_jpeg::Scale;
pub use pool::{PoolConfig, PrepareError, PreparedImage, Preprocessor, RequestContext};
pub use source::Source;
pub use transform::{Crop, Transform};

use schemars::JsonSchema;
use serde::Serialize;

/// Limits on one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageLimits {
    /// Maximum of width times height. An image takes 3 to 16 bytes per pixel while it is decoded.
    pub max_pixels: u64,
    /// Maximum of the width and of the height, in pixels.
    pub max_side: u32,
    /// Maximum number of scans of a JPEG file. A progressive file has about ten; each scan costs a pass over the
    /// whole image.
    pub max_jpeg_scans: usize,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self { max_pixels: 50_000_000, max_side: 16_384, max_jpeg_scans: 100 }
    }
}

impl ImageLimits {
    /// Checks an image's size, in pixels.
    ///
    /// # Errors
    /// [`ImageError::TooManyPixels`].
    fn check_size(&self, width: u32, height: u32) -> Result<(), ImageError> {
        let Self { max_pixels, max_side, .. } = *self;
        if width.max(height) > max_side || u64::from(width) * u64::from(height) > max_pixels {
            return Err(ImageError::TooManyPixels { width, height, max_side, max_pixels });
        }
        Ok(())
    }
}

/// Facts about an image that its answer contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ImageInfo {
    /// The file's format, by its magic bytes; none if the image was not sent as a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Width in pixels as displayed: after the EXIF orientation is applied.
    pub width: u32,
    /// Height in pixels as displayed.
    pub height: u32,
}

/// The reason why one image cannot be used. The messages are for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The image has no bytes.
    #[error("the image is empty (0 bytes); send the contents of an image file")]
    Empty,
    /// The format is not supported.
    #[error("{found}; send one of {}", Format::LIST)]
    UnsupportedFormat {
        /// The format that the bytes look like.
        found: String,
    },
    /// The format is supported, this variant of it is not.
    #[error("this {format} file cannot be read: {detail}; save it again as plain 8-bit {format} or as PNG")]
    UnsupportedVariant {
        /// The file's format.
        format: Format,
        /// The variant.
        detail: String,
    },
    /// The format is supported and the content is broken.
    #[error("this {format} file is damaged or incomplete: {detail}")]
    Undecodable {
        /// The file's format.
        format: Format,
        /// The damage that the decoder found.
        detail: String,
    },
    /// The decoder panicked: the file has damage that the decoder did not expect, which is a bug in the decoder.
    #[error("this {0} file is damaged in a way that its decoder cannot handle")]
    DecoderPanic(Format),
    /// The image has more pixels than the limits allow.
    #[error("the image is {width}x{height} pixels; at most {max_side} a side and {max_pixels} in all are accepted")]
    TooManyPixels {
        /// The image's width in pixels.
        width: u32,
        /// The image's height in pixels.
        height: u32,
        /// The limit on width and height.
        max_side: u32,
        /// The limit on width times height.
        max_pixels: u64,
    },
    /// The JPEG file has too many scans: it is made to be slow.
    #[error("the JPEG file has more than {0} scans; save it again as a baseline JPEG")]
    TooManyScans(usize),
    /// Decoding took too much processor time: the file is made to be slow.
    #[error("this {0} file takes far longer to decode than a picture of its size should; save it again")]
    TooSlow(Format),
    /// A tensor's shape or values cannot be an input.
    #[error("{0}")]
    Tensor(String),
    /// An internal error; the panic is in the log.
    #[error("pre-processing failed")]
    Internal,
}
