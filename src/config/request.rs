//! Bounds of one request.

use clap::Args;
use clap::builder::BoolishValueParser;

use super::values;
use crate::preprocess::ImageLimits;

/// Bounds of one request.
#[derive(Clone, Copy, Debug, Args)]
pub struct RequestLimits {
    /// Maximum size of a body that is one image.
    #[arg(
        long,
        env = "GHOSTSERVE_MAX_BODY_BYTES",
        default_value = "10MiB",
        value_parser = values::size,
        value_name = "SIZE"
    )]
    pub max_body_bytes: usize,

    /// Maximum size of a multipart or JSON body, which may hold several images.
    #[arg(
        long,
        env = "GHOSTSERVE_MAX_MULTI_BODY_BYTES",
        default_value = "32MiB",
        value_parser = values::size,
        value_name = "SIZE"
    )]
    pub max_multi_body_bytes: usize,

    /// Maximum number of images in a request.
    #[arg(long, env = "GHOSTSERVE_MAX_IMAGES_PER_REQUEST", default_value_t = 32, value_name = "N")]
    pub max_images_per_request: usize,

    /// Maximum number of parts in a multipart body.
    #[arg(long, env = "GHOSTSERVE_MAX_MULTIPART_PARTS", default_value_t = 64, value_name = "N")]
    pub max_multipart_parts: usize,

    /// Maximum number of header lines in a part of a multipart body.
    #[arg(long, env = "GHOSTSERVE_MAX_PART_HEADERS", default_value_t = 16, value_name = "N")]
    pub max_part_headers: usize,

    /// Maximum width times height of an image.
    #[arg(
        long,
        env = "GHOSTSERVE_MAX_IMAGE_PIXELS",
        default_value_t = ImageLimits::default().max_pixels,
        value_name = "N"
    )]
    pub max_image_pixels: u64,

    /// Maximum width and maximum height of an image.
    #[arg(
        long,
        env = "GHOSTSERVE_MAX_IMAGE_SIDE",
        default_value_t = ImageLimits::default().max_side,
        value_name = "N"
    )]
    pub max_image_side: u32,

    /// Maximum number of scans in a progressive JPEG file.
    #[arg(
        long,
        env = "GHOSTSERVE_MAX_JPEG_SCANS",
        default_value_t = ImageLimits::default().max_jpeg_scans,
        value_name = "N"
    )]
    pub max_jpeg_scans: usize,

    /// Decode large JPEG files at their full size. By default they are decoded at 1/2, 1/4 or 1/8 of it, where the
    /// model's input is still much smaller.
    #[arg(long, env = "GHOSTSERVE_EXACT_DECODE", value_parser = BoolishValueParser::new())]
    pub exact_decode: bool,
}

impl RequestLimits {
    /// The bounds that the decoders check.
    #[must_use]
    pub fn image_limits(&self) -> ImageLimits {
        ImageLimits {
            max_pixels: self.max_image_pixels,
            max_side: self.max_image_side,
            max_jpeg_scans: self.max_jpeg_scans,
        }
    }
}
