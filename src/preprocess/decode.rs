//! Decodes images within limits and behind a panic guard.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::tiff::TiffDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, ImageDecoder, ImageResult, RgbImage};

use super::cpu::{CpuLimit, LimitedReader};
use super::header::HeaderInfo;
use super::scan::{check_webp, count_jpeg_scans, strip_png};
use super::tiff_check::{self, TiffLimits};
use super::{Format, ImageError, ImageInfo, ImageLimits};
use ghostserve_jpeg::{Decoded, Jpeg, JpegError, Scale};

/// An image file whose header has been read and is within the limits.
pub struct ProbedImage<'a> {
    format: Format,
    width: u32,
    height: u32,
    orientation: Orientation,
    scale: Scale,
    /// Length of the file in bytes.
    length: usize,
    cpu_limit: CpuLimit,
    decoder: Decoder<'a>,
}

enum Decoder<'a> {
    Jpeg(Box<Jpeg<'a>>),
    Other(Box<dyn ImageDecoder + 'a>),
}

/// A decoded image: 8-bit RGB as stored, and the orientation in which it is displayed.
pub struct Pixels {
    pub(super) rgb: RgbImage,
    /// Width and height in the file.
    pub(super) stored: (u32, u32),
    /// The scale that [`ProbedImage::reduce`] requested, where the format has it.
    pub(super) scale: Scale,
    pub(super) orientation: Orientation,
}

impl ProbedImage<'_> {
    /// Returns the facts that the answer contains.
    #[must_use]
    pub fn info(&self) -> ImageInfo {
        let (width, height) = displayed(self.orientation, self.width, self.height);
        ImageInfo { format: Some(self.format), width, height }
    }

    /// Makes [`decode()`] return a smaller image, in less time and memory. [`ProbedImage::info`] stays the same.
    /// Formats other than JPEG have only one size.
    #[must_use]
    pub fn reduce(mut self, scale: Scale) -> Self {
        if let Decoder::Jpeg(jpeg) = &mut self.decoder {
            jpeg.reduce(scale);
            self.scale = scale;
        }
        self
    }

    /// Number of bytes that decoding allocates: the decoder's working memory, and RGB where that is another layout.
    /// At most [`MAX_BYTES_PER_PIXEL`] per pixel.
    #[must_use]
    pub fn decoded_bytes(&self) -> u64 {
        let pixels = u64::from(self.width) * u64::from(self.height);
        match &self.decoder {
            Decoder::Jpeg(jpeg) if jpeg.components() == 1 => {
                let (width, height) = jpeg.scaled_size();
                jpeg.working_bytes() + 3 * u64::from(width) * u64::from(height)
            }
            Decoder::Jpeg(jpeg) => jpeg.working_bytes(),
            Decoder::Other(decoder) => {
                let native = u64::from(decoder.color_type().bytes_per_pixel());
                // The measured peaks of the decoders: the result, RGB beside it where that is another layout, and the
                // data that the result is built from.
                match self.format {
                    Format::Tiff => pixels * (2 * native).max(native + 3),
                    Format::WebP => pixels * 12,
                    Format::Gif => pixels * 9 + (5 << 20),
                    // A file with texts and profiles is copied without these.
                    Format::Png if native == 3 => pixels * 3 + self.length as u64,
                    Format::Png => pixels * (native + 3) + self.length as u64,
                    Format::Jpeg | Format::Bmp if native == 3 => pixels * 3,
                    Format::Jpeg | Format::Bmp => pixels * (native + 3),
                }
            }
        }
    }
}

/// Maximum number of bytes per pixel that decoding takes, without padding and small constants. A TIFF of 16-bit RGBA
/// takes as much. A progressive CMYK JPEG takes 12, with coefficients and pixels.
pub const MAX_BYTES_PER_PIXEL: u64 = 16;

/// Returns width and height after the orientation is applied.
pub(super) fn displayed(orientation: Orientation, width: u32, height: u32) -> (u32, u32) {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    match orientation {
        Rotate90 | Rotate90FlipH | Rotate270 | Rotate270FlipH => (height, width),
        _ => (width, height),
    }
}

/// Reads the header of an image file and compares it with `limits`. No pixel is decoded.
///
/// # Errors
/// The bytes are not an image of a supported format, the header is damaged, or the image is over a limit.
pub fn probe(bytes: &[u8], limits: ImageLimits) -> Result<ProbedImage<'_>, ImageError> {
    probe_within(bytes, limits, Duration::MAX)
}

/// Does the same as [`probe`], with a limit on the processor time that this function and [`decode()`] take together.
/// Both must be called on one thread. The limit applies to the decoders of the `image` crate. The time of our JPEG
/// decoder is bounded by the file's length and size.
pub(super) fn probe_within(bytes: &[u8], limits: ImageLimits, time: Duration) -> Result<ProbedImage<'_>, ImageError> {
    let format = Format::sniff(bytes)?;
    let cpu_limit = CpuLimit::new(time);
    check_before_opening(format, bytes, limits)?;
    let image = guarded(format, || {
        let (decoder, size, orientation) = match format {
            Format::Jpeg => {
                let jpeg = Jpeg::open(bytes).map_err(explain_jpeg)?;
                let exif = jpeg.exif().and_then(Orientation::from_exif_chunk);
                let (size, orientation) = (jpeg.size(), exif.unwrap_or(Orientation::NoTransforms));
                (Decoder::Jpeg(Box::new(jpeg)), size, orientation)
            }
            _ => open_other(format, bytes, limits, &cpu_limit)?,
        };
        let (width, height) = size;
        limits.check_size(width, height)?;
        if width == 0 || height == 0 {
            // Some formats can declare this size, and some decoders accept it.
            let detail = format!("it declares {width}x{height} pixels");
            return Err(ImageError::Undecodable { format, detail });
        }
        let (length, cpu_limit) = (bytes.len(), cpu_limit.clone());
        Ok(ProbedImage { format, width, height, orientation, scale: Scale::Full, length, cpu_limit, decoder })
    });
    image.map_err(|error| if cpu_limit.was_exceeded() { ImageError::TooSlow(format) } else { error })
}

/// Checks what can be checked without a decoder, in bounded time.
fn check_before_opening(format: Format, bytes: &[u8], limits: ImageLimits) -> Result<(), ImageError> {
    if format == Format::Jpeg && count_jpeg_scans(bytes, limits.max_jpeg_scans) > limits.max_jpeg_scans {
        return Err(ImageError::TooManyScans(limits.max_jpeg_scans));
    }
    if let Some(header) = HeaderInfo::read(bytes) {
        limits.check_size(header.width, header.height)?;
        header.check(bytes)?;
    }
    if format == Format::WebP {
        check_webp(bytes).map_err(|detail| ImageError::Undecodable { format, detail: detail.to_owned() })?;
    }
    if format == Format::Tiff {
        let limits = TiffLimits { max_side: limits.max_side, max_pixels: limits.max_pixels };
        tiff_check::check(bytes, &limits).map_err(|detail| ImageError::Undecodable { format, detail })?;
    }
    Ok(())
}

/// Opens a file of a format other than JPEG: its decoder, width and height, and the orientation.
fn open_other<'a>(
    format: Format,
    bytes: &'a [u8],
    limits: ImageLimits,
    cpu_limit: &CpuLimit,
) -> Result<(Decoder<'a>, (u32, u32), Orientation), ImageError> {
    let mut decoder = open(format, bytes, cpu_limit).map_err(|e| explain(format, &e))?;
    // Damaged metadata must not make the image unusable.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let (width, height) = decoder.dimensions();
    limits.check_size(width, height)?;
    let mut decoder_limits = image::Limits::no_limits();
    decoder_limits.max_image_width = Some(limits.max_side);
    decoder_limits.max_image_height = Some(limits.max_side);
    // The widest pixel is 16-bit RGBA. A decoder's own tables and rows come on top, and a TIFF's strips as they are
    // in the file.
    let overhead = (4 << 20) + bytes.len() as u64;
    decoder_limits.max_alloc = Some(u64::from(width) * u64::from(height) * 8 + overhead);
    decoder.set_limits(decoder_limits).map_err(|e| explain(format, &e))?;
    Ok((Decoder::Other(decoder), (width, height), orientation))
}

/// Decodes the image to 8-bit RGB. Grey becomes three equal channels, transparency is dropped, and 16-bit samples
/// keep their high byte. Pillow's `convert("RGB")`, which the networks' training pipelines used, does the same.
///
/// # Errors
/// The content is damaged or of a variant that is not supported. A panic in a decoder counts as damage.
pub fn decode(image: ProbedImage<'_>) -> Result<Pixels, ImageError> {
    let ProbedImage { format, width, height, orientation, scale, cpu_limit, decoder, .. } = image;
    let pixels = guarded(format, || {
        let decoded = match decoder {
            Decoder::Jpeg(jpeg) => {
                let (width, height) = jpeg.scaled_size();
                match jpeg.decode().map_err(explain_jpeg)? {
                    Decoded::Rgb(rgb) => RgbImage::from_raw(width, height, rgb).map(DynamicImage::ImageRgb8),
                    Decoded::Gray(grey) => GrayImage::from_raw(width, height, grey).map(DynamicImage::ImageLuma8),
                }
                .ok_or(ImageError::Internal)?
            }
            Decoder::Other(decoder) => DynamicImage::from_decoder(decoder).map_err(|e| explain(format, &e))?,
        };
        Ok(Pixels { rgb: to_rgb(decoded), stored: (width, height), scale, orientation })
    });
    pixels.map_err(|error| if cpu_limit.was_exceeded() { ImageError::TooSlow(format) } else { error })
}

/// Maximum number of bytes that reading a PNG's header may allocate: metadata, and a row or two of the widest image.
const PNG_METADATA_BYTES: u64 = 16 << 20;

/// Opens a decoder of the `image` crate. It decodes every format except JPEG.
fn open<'a>(format: Format, bytes: &'a [u8], cpu_limit: &CpuLimit) -> ImageResult<Box<dyn ImageDecoder + 'a>> {
    let file = if format == Format::Png { strip_png(bytes) } else { Cow::Borrowed(bytes) };
    let reader = LimitedReader::new(file, cpu_limit.clone());
    Ok(match format {
        Format::Jpeg | Format::Png => {
            // Metadata is unpacked while the header is read. Without a limit, a colour profile of zeros would fill
            // the memory.
            let mut limits = image::Limits::no_limits();
            limits.max_alloc = Some(PNG_METADATA_BYTES);
            Box::new(PngDecoder::with_limits(reader, limits)?)
        }
        Format::WebP => Box::new(WebPDecoder::new(reader)?),
        Format::Gif => Box::new(GifDecoder::new(reader)?),
        Format::Bmp => Box::new(BmpDecoder::new(reader)?),
        Format::Tiff => Box::new(TiffDecoder::new(reader)?),
    })
}

fn to_rgb(image: DynamicImage) -> RgbImage {
    let (width, height) = (image.width(), image.height());
    let high = |v: u16| (v >> 8) as u8;
    let rgb: Vec<u8> = match image {
        DynamicImage::ImageRgb8(rgb) => return rgb,
        DynamicImage::ImageLuma8(grey) => grey.iter().flat_map(|&v| [v; 3]).collect(),
        DynamicImage::ImageLumaA8(grey) => grey.pixels().flat_map(|p| [p[0]; 3]).collect(),
        DynamicImage::ImageRgba8(rgba) => rgba.pixels().flat_map(|p| [p[0], p[1], p[2]]).collect(),
        DynamicImage::ImageLuma16(grey) => grey.iter().flat_map(|&v| [high(v); 3]).collect(),
        DynamicImage::ImageLumaA16(grey) => grey.pixels().flat_map(|p| [high(p[0]); 3]).collect(),
        DynamicImage::ImageRgb16(rgb) => rgb.iter().map(|&v| high(v)).collect(),
        DynamicImage::ImageRgba16(rgba) => rgba.pixels().flat_map(|p| [high(p[0]), high(p[1]), high(p[2])]).collect(),
        other => return other.into_rgb8(),
    };
    // The vector has width · height · 3 elements by construction. An error in this function would give an empty image.
    RgbImage::from_raw(width, height, rgb).unwrap_or_default()
}

/// Runs a decoder. A panic in it fails this image only.
fn guarded<T>(format: Format, run: impl FnOnce() -> Result<T, ImageError>) -> Result<T, ImageError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or(Err(ImageError::DecoderPanic(format)))
}

fn explain_jpeg(error: JpegError) -> ImageError {
    let (format, detail) = (Format::Jpeg, error.to_string());
    match error {
        JpegError::Unsupported(_) => ImageError::UnsupportedVariant { format, detail },
        JpegError::Truncated | JpegError::Corrupt(_) => ImageError::Undecodable { format, detail },
    }
}

/// Collects the first 200 characters of a text that may be megabytes long: decoders print values from the file.
#[derive(Default)]
struct TruncatedText(String);

impl Write for TruncatedText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let left = 200 - self.0.chars().count();
        self.0.extend(text.chars().filter(|c| !c.is_control()).take(left));
        if self.0.chars().count() < 200 { Ok(()) } else { Err(fmt::Error) }
    }
}

fn explain(format: Format, error: &image::ImageError) -> ImageError {
    let text = |e: &dyn std::error::Error| {
        // The innermost cause names the error; the wrappers repeat the format's name.
        let mut cause = e;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let mut text = TruncatedText::default();
        // Writing ends with an error when the text is full.
        let _ = write!(text, "{cause}");
        text.0
    };
    match error {
        image::ImageError::Unsupported(e) => ImageError::UnsupportedVariant { format, detail: text(e) },
        image::ImageError::Limits(e) => ImageError::Undecodable { format, detail: text(e) },
        e => ImageError::Undecodable { format, detail: text(e) },
    }
}
