//! From the bytes of an image file to a row of the network's input.
//!
//! In order, each step refusing what the next must not see: magic bytes decide the format ([`Format`]); the header's
//! size is held against the limits before a pixel is decoded; the decoder runs inside its own limits and behind a panic
//! guard ([`decode()`]); the pixels are resized, cropped, oriented and normalised ([`Transform`]). [`Preprocessor`] runs
//! this on a bounded number of threads.
//!
//! Image codecs are used here and nowhere else. An error is about one image and costs only that image.

mod cpu;
mod declared;
mod decode;
mod estimate;
mod format;
mod geometry;
mod line;
mod pool;
mod scan;
mod source;
mod tiff_check;
mod transform;
mod vp8l;

pub use decode::{Header, MAX_BYTES_PER_PIXEL, Pixels, decode, probe};
pub use estimate::{Class, Estimate};
pub use format::Format;
pub use geometry::{Fit, Geometry};
pub use ghostserve_jpeg::Scale;
pub use line::LineRefused;
pub use pool::{Origin, PoolConfig, PrepareError, Prepared, Preprocessor};
pub use source::Source;
pub use transform::{Crop, Transform};

use schemars::JsonSchema;
use serde::Serialize;

/// What an image may be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageLimits {
    /// Width times height. An image takes 3 to 16 bytes a pixel while it is decoded.
    pub max_pixels: u64,
    /// Width and height, each.
    pub max_side: u32,
    /// Scans of a JPEG file: a progressive one has about ten; each costs a pass over the whole image.
    pub max_jpeg_scans: usize,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self { max_pixels: 50_000_000, max_side: 16_384, max_jpeg_scans: 100 }
    }
}

/// What is told about an image with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ImageInfo {
    /// By its magic bytes; none if it did not come as a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Pixels, as displayed: after the EXIF orientation.
    pub width: u32,
    /// Pixels, as displayed.
    pub height: u32,
}

/// Why one image cannot be used. The messages are for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// No bytes.
    #[error("the image is empty (0 bytes); send the contents of an image file")]
    Empty,
    /// Not a format that is served.
    #[error("{found}; send one of {}", Format::LIST)]
    UnsupportedFormat {
        /// What it seems to be.
        found: String,
    },
    /// A format that is served, in a variant that is not.
    #[error("this {format} file cannot be read: {detail}; save it again as plain 8-bit {format} or as PNG")]
    UnsupportedVariant {
        /// Which format.
        format: Format,
        /// Which variant.
        detail: String,
    },
    /// The right format with broken content.
    #[error("this {format} file is damaged or incomplete: {detail}")]
    Undecodable {
        /// Which format.
        format: Format,
        /// What the decoder found.
        detail: String,
    },
    /// The decoder panicked: damage that it did not expect, and a bug in it.
    #[error("this {0} file is damaged in a way that its decoder cannot handle")]
    DecoderPanic(Format),
    /// More pixels than are accepted.
    #[error("the image is {width}x{height} pixels; at most {max_side} a side and {max_pixels} in all are accepted")]
    TooManyPixels {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
        /// The limit.
        max_side: u32,
        /// The limit.
        max_pixels: u64,
    },
    /// A JPEG made to be slow.
    #[error("the JPEG file has more than {0} scans; save it again as a baseline JPEG")]
    TooManyScans(usize),
    /// A file made to be slow.
    #[error("this {0} file takes far longer to decode than a picture of its size should; save it again")]
    TooSlow(Format),
    /// Values of a tensor that cannot be an input.
    #[error("{0}")]
    Values(String),
    /// A mistake of ours; the panic is in the log.
    #[error("pre-processing failed")]
    Internal,
}
