//! Decoding, behind limits and a panic guard.

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
use super::declared::Declared;
use super::scan::{jpeg_scans, png_picture, webp_check, webp_extent};
use super::tiff_check::{self, TiffLimits};
use super::{Format, ImageError, ImageInfo, ImageLimits};
use ghostserve_jpeg::{Decoded, Jpeg, JpegError, Scale};

/// An image file whose header has been read and found within the limits.
pub struct Header<'a> {
    format: Format,
    width: u32,
    height: u32,
    orientation: Orientation,
    scale: Scale,
    /// Of the file, bytes.
    length: usize,
    limit: CpuLimit,
    decoder: Decoder<'a>,
}

enum Decoder<'a> {
    Jpeg(Box<Jpeg<'a>>),
    Other(Box<dyn ImageDecoder + 'a>),
}

/// A decoded image: 8-bit RGB as stored, and how to turn it for display.
pub struct Pixels {
    pub(super) rgb: RgbImage,
    /// Width and height that the file has.
    pub(super) stored: (u32, u32),
    /// What [`Header::reduce`] asked for, where it could be had.
    pub(super) scale: Scale,
    pub(super) orientation: Orientation,
}

impl Header<'_> {
    /// What the client is told.
    #[must_use]
    pub fn info(&self) -> ImageInfo {
        let (width, height) = displayed(self.orientation, self.width, self.height);
        ImageInfo { format: Some(self.format), width, height }
    }

    /// Has [`decode()`] make the image smaller, for less time and memory; what [`Header::info`] tells stays. Formats other
    /// than JPEG have one size only.
    #[must_use]
    pub fn reduce(mut self, scale: Scale) -> Self {
        if let Decoder::Jpeg(jpeg) = &mut self.decoder {
            jpeg.reduce(scale);
            self.scale = scale;
        }
        self
    }

    /// Bytes that decoding allocates: what the decoder works on, and RGB where that is another layout. At most
    /// [`MAX_BYTES_PER_PIXEL`] for every pixel.
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
                // What the decoders were found to hold at their peak: the result, RGB beside it where that is another layout, and
                // what they build it from.
                match self.format {
                    Format::Tiff => pixels * (2 * native).max(native + 3),
                    Format::WebP => pixels * 12,
                    Format::Gif => pixels * 9 + (5 << 20),
                    // A file with texts and profiles is copied without them.
                    Format::Png if native == 3 => pixels * 3 + self.length as u64,
                    Format::Png => pixels * (native + 3) + self.length as u64,
                    Format::Jpeg | Format::Bmp if native == 3 => pixels * 3,
                    Format::Jpeg | Format::Bmp => pixels * (native + 3),
                }
            }
        }
    }
}

/// The most that decoding takes, but for padding and small constants: a TIFF of 16-bit RGBA. A progressive CMYK JPEG, with coefficients
/// and pixels, takes 12.
pub const MAX_BYTES_PER_PIXEL: u64 = 16;

/// Width and height after the orientation.
pub(super) fn displayed(orientation: Orientation, width: u32, height: u32) -> (u32, u32) {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    match orientation {
        Rotate90 | Rotate90FlipH | Rotate270 | Rotate270FlipH => (height, width),
        _ => (width, height),
    }
}

/// Reads the header of an image file and holds it against `limits`. No pixel is decoded.
///
/// # Errors
/// The bytes are no image of a format served, the header is damaged, or the image is over a limit.
pub fn probe(bytes: &[u8], limits: ImageLimits) -> Result<Header<'_>, ImageError> {
    probe_within(bytes, limits, Duration::MAX)
}

/// The same, with a limit on the processor time that this and [`decode()`] take together. Both must be called on one thread. Decoders
/// of the `image` crate are held to it; ours of JPEG takes a time that its file's length and size bound.
pub(super) fn probe_within(bytes: &[u8], limits: ImageLimits, time: Duration) -> Result<Header<'_>, ImageError> {
    let format = Format::sniff(bytes)?;
    let limit = CpuLimit::new(time);
    if format == Format::Jpeg && jpeg_scans(bytes, limits.max_jpeg_scans) > limits.max_jpeg_scans {
        return Err(ImageError::TooManyScans(limits.max_jpeg_scans));
    }
    if format == Format::WebP {
        let (width, height) = webp_extent(bytes);
        check_upper_limits(width, height, limits)?;
        webp_check(bytes).map_err(|detail| ImageError::Undecodable { format, detail: detail.to_owned() })?;
    }
    if let Some(declared) = Declared::of(bytes) {
        check_upper_limits(declared.width, declared.height, limits)?;
        declared.check(bytes)?;
    }
    if format == Format::Tiff {
        let limits = TiffLimits { max_side: limits.max_side, max_pixels: limits.max_pixels };
        tiff_check::check(bytes, &limits).map_err(|detail| ImageError::Undecodable { format, detail })?;
    }
    let header = guarded(format, || {
        let (decoder, size, orientation) = if format == Format::Jpeg {
            let jpeg = Jpeg::open(bytes).map_err(explain_jpeg)?;
            let exif = jpeg.exif().and_then(Orientation::from_exif_chunk);
            let (size, orientation) = (jpeg.size(), exif.unwrap_or(Orientation::NoTransforms));
            (Decoder::Jpeg(Box::new(jpeg)), size, orientation)
        } else {
            let mut decoder = open(format, bytes, &limit).map_err(|e| explain(format, &e))?;
            // Damaged metadata must not cost the image.
            let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
            let (width, height) = decoder.dimensions();
            check_upper_limits(width, height, limits)?;
            let mut inner = image::Limits::no_limits();
            inner.max_image_width = Some(limits.max_side);
            inner.max_image_height = Some(limits.max_side);
            // The widest pixel decoded is 16-bit RGBA; a decoder's own tables and rows come on top, and a TIFF's strips as they
            // are in the file.
            let own = (4 << 20) + bytes.len() as u64;
            inner.max_alloc = Some(u64::from(width) * u64::from(height) * 8 + own);
            decoder.set_limits(inner).map_err(|e| explain(format, &e))?;
            (Decoder::Other(decoder), (width, height), orientation)
        };
        let (width, height) = size;
        check_upper_limits(width, height, limits)?;
        if width == 0 || height == 0 {
            // Some formats can declare it, and some decoders let it pass.
            let detail = format!("it declares {width}x{height} pixels");
            return Err(ImageError::Undecodable { format, detail });
        }
        let limit = limit.clone();
        Ok(Header { format, width, height, orientation, scale: Scale::Full, length: bytes.len(), limit, decoder })
    });
    header.map_err(|error| if limit.was_exceeded() { ImageError::TooSlow(format) } else { error })
}

/// Decodes the image to 8-bit RGB. Grey becomes three equal channels, transparency is dropped, 16-bit samples keep their
/// high byte: what Pillow's `convert("RGB")` does, which the networks' training pipelines used.
///
/// # Errors
/// The content is damaged or of a variant that is not supported. A panic in a decoder counts as damage.
pub fn decode(header: Header<'_>) -> Result<Pixels, ImageError> {
    let Header { format, width, height, orientation, scale, limit, decoder, .. } = header;
    let decoded = guarded(format, || {
        let image = match decoder {
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
        Ok(Pixels { rgb: to_rgb(image), stored: (width, height), scale, orientation })
    });
    decoded.map_err(|error| if limit.was_exceeded() { ImageError::TooSlow(format) } else { error })
}

/// What reading a PNG's header may allocate: metadata, and a row or two of the widest image.
const PNG_METADATA_BYTES: u64 = 16 << 20;

/// A decoder of the `image` crate; which is every format's but JPEG's.
fn open<'a>(format: Format, bytes: &'a [u8], limit: &CpuLimit) -> ImageResult<Box<dyn ImageDecoder + 'a>> {
    let file = if format == Format::Png { png_picture(bytes) } else { Cow::Borrowed(bytes) };
    let reader = LimitedReader::new(file, limit.clone());
    Ok(match format {
        Format::Jpeg | Format::Png => {
            // Metadata is unpacked while the header is read: without a limit, a colour profile of zeros fills the memory.
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

fn check_upper_limits(width: u32, height: u32, limits: ImageLimits) -> Result<(), ImageError> {
    let ImageLimits { max_pixels, max_side, .. } = limits;
    if width.max(height) > max_side || u64::from(width) * u64::from(height) > max_pixels {
        return Err(ImageError::TooManyPixels { width, height, max_side, max_pixels });
    }
    Ok(())
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
    // The vector has width · height · 3 elements by construction; an empty image is what a mistake here would give.
    RgbImage::from_raw(width, height, rgb).unwrap_or_default()
}

/// Runs a decoder: a panic in it must cost this image and nothing else.
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

/// The first characters of a text that may be megabytes long: decoders print values that a file has.
#[derive(Default)]
struct Short(String);

impl Write for Short {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let left = 200 - self.0.chars().count();
        self.0.extend(text.chars().filter(|c| !c.is_control()).take(left));
        if self.0.chars().count() < 200 { Ok(()) } else { Err(fmt::Error) }
    }
}

fn explain(format: Format, error: &image::ImageError) -> ImageError {
    let text = |e: &dyn std::error::Error| {
        // The innermost cause says what is wrong; the wrappers repeat the format's name.
        let mut cause = e;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let mut text = Short::default();
        // It ends with an error where there is more to write.
        let _ = write!(text, "{cause}");
        text.0
    };
    match error {
        image::ImageError::Unsupported(e) => ImageError::UnsupportedVariant { format, detail: text(e) },
        image::ImageError::Limits(e) => ImageError::Undecodable { format, detail: text(e) },
        e => ImageError::Undecodable { format, detail: text(e) },
    }
}
