//! Reads what an image file declares in its header: enough to estimate the cost of decoding before any of it is done.
//!
//! This is not a decoder, and it does not trust the file. If it does not understand a file, the file is left to its
//! decoder, which has limits of its own.

use super::scan::{check_png_chunks, count_jpeg_scans, gif_first_frame, webp_extent};
use super::tiff_check::{self, TiffLimits};
use super::{Format, ImageError};

/// Facts that a file's header declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeaderInfo {
    pub(super) format: Format,
    pub(super) width: u32,
    pub(super) height: u32,
    /// Bits of a pixel as it is stored, before compression.
    pub(super) bits_per_pixel: u32,
    /// Number of scans of a progressive JPEG; 1 for every other file.
    pub(super) scans: usize,
    /// Maximum number of pixels that a file of this length can code. `None` for formats that can code any number of
    /// equal pixels in no bits.
    codable: Option<u64>,
}

/// Number of pixels by which a file may exceed its format's limit: headers count, too, and decoders read on past the
/// end.
const SLACK: u64 = 1 << 16;

/// Maximum number of pixels of a GIF's canvas of which the first frame may cover only a small part.
const MAX_EMPTY_CANVAS: u64 = 1 << 20;

/// Maximum number of pixels of a progressive JPEG, times its scans. Encoders write about ten scans.
const MAX_SCANNED_PIXELS: u64 = 1_000_000_000;

impl HeaderInfo {
    /// Reads the header of a file; `None` if it is not understood.
    pub(super) fn read(file: &[u8]) -> Option<Self> {
        let format = Format::sniff(file).ok()?;
        let length = file.len() as u64;
        let info = |(width, height): (u32, u32), bits_per_pixel: u32, codable| {
            Some(Self { format, width, height, bits_per_pixel, scans: 1, codable })
        };
        match format {
            Format::Png => {
                let header = file.get(16..26)?;
                let channels = match header[9] {
                    2 => 3,
                    4 => 2,
                    6 => 4,
                    _ => 1,
                };
                let bits = channels * u32::from(header[8]);
                // Deflate makes at most 1,032 bytes of one.
                let codable = length.saturating_mul(8 * 1032) / u64::from(bits.max(1));
                info((big_endian(&header[..4])?, big_endian(&header[4..8])?), bits, Some(codable))
            }
            Format::Gif => {
                let side = |at: usize| Some(u32::from(u16::from_le_bytes([*file.get(at)?, *file.get(at + 1)?])));
                // A code grows to 12 bits and stands for at most 4,096 pixels.
                info((side(6)?, side(8)?), 8, Some(length.saturating_mul(4096 * 8 / 12)))
            }
            Format::Bmp => {
                let header = file.get(14..34)?;
                let little_endian = |at: usize| {
                    header.get(at..at + 4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]).unsigned_abs())
                };
                if little_endian(0)? == 12 {
                    let side = |at: usize| u32::from(u16::from_le_bytes([header[at], header[at + 1]]));
                    return info((side(4), side(6)), 24, None);
                }
                let bits = u32::from(u16::from_le_bytes([header[14], header[15]]));
                // Run lengths: two bytes code at most 255 pixels.
                let codable = matches!(little_endian(16)?, 1 | 2).then(|| length.saturating_mul(128));
                info((little_endian(4)?, little_endian(8)?), bits.max(8), codable)
            }
            Format::WebP => info(webp_extent(file), 32, None),
            Format::Jpeg => {
                let (marker, size) = jpeg_frame(file)?;
                let is_progressive = marker == 0xC2;
                let scans = if is_progressive { count_jpeg_scans(file, 1000).max(1) } else { 1 };
                // A block of 64 pixels takes at least one bit.
                let codable = Some(length.saturating_mul(8 * 64));
                info(size, 24, codable).map(|header| Self { scans, ..header })
            }
            Format::Tiff => {
                // The configured limits are checked when the file is opened.
                let no_limits = TiffLimits { max_side: u32::MAX, max_pixels: u64::MAX };
                let header = tiff_check::check(file, &no_limits).ok()?;
                // Tiles may be much larger than the image.
                let pixels = u64::from(header.width) * u64::from(header.height);
                let unpacked =
                    u32::try_from(header.unpacked_bytes.saturating_mul(8) / pixels.max(1)).unwrap_or(u32::MAX);
                info((header.width, header.height), header.bits_per_pixel.max(unpacked), None)
            }
        }
    }

    pub(super) fn pixels(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// Checks whether the file can hold what its header declares. Its decoder would find that out only at the end.
    ///
    /// # Errors
    /// The file is too short for its pixels, its first frame is too small, or it has too many chunks or scans.
    pub(super) fn check(&self, file: &[u8]) -> Result<(), ImageError> {
        let undecodable = |detail: String| Err(ImageError::Undecodable { format: self.format, detail });
        let Self { width, height, .. } = *self;
        if let Some(codable) = self.codable
            && self.pixels() > codable.saturating_add(SLACK)
        {
            let bytes = file.len();
            return undecodable(format!("{bytes} bytes cannot hold the {width}x{height} pixels that it declares"));
        }
        match self.format {
            Format::Gif => {
                let Some((w, h)) = gif_first_frame(file) else { return Ok(()) };
                let frame = u64::from(w) * u64::from(h);
                // The first frame of an animation is a whole image. This file is a canvas with hardly anything
                // painted on it.
                if self.pixels() > MAX_EMPTY_CANVAS && self.pixels() > 16 * frame {
                    return undecodable(format!(
                        "its first frame, {w}x{h}, is a small part of the {width}x{height} pixels that it declares"
                    ));
                }
                Ok(())
            }
            Format::Png => match check_png_chunks(file) {
                Ok(()) => Ok(()),
                Err(detail) => undecodable(detail.to_owned()),
            },
            Format::Jpeg if self.scans > 1 && self.pixels().saturating_mul(self.scans as u64) > MAX_SCANNED_PIXELS => {
                Err(ImageError::TooManyScans((MAX_SCANNED_PIXELS / self.pixels().max(1)) as usize))
            }
            _ => Ok(()),
        }
    }
}

fn big_endian(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// Returns the marker of a JPEG's first frame header, and the width and height in it.
fn jpeg_frame(file: &[u8]) -> Option<(u8, (u32, u32))> {
    let mut rest = file.get(2..)?;
    loop {
        let at = rest.iter().position(|&b| b == 0xFF)?;
        let marker = *rest.get(at + 1)?;
        match marker {
            0xFF => rest = &rest[at + 1..],
            0x00 | 0x01 | 0xD0..=0xD8 => rest = &rest[at + 2..],
            0xD9 | 0xDA => return None,
            _ => {
                let segment = rest.get(at + 2..)?;
                let length = usize::from(u16::from_be_bytes([*segment.first()?, *segment.get(1)?]));
                // Frame headers are all markers of this range except DHT, JPG and DAC.
                if matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC) {
                    let side =
                        |at: usize| Some(u32::from(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?])));
                    return Some((marker, (side(5)?, side(3)?)));
                }
                rest = segment.get(length.max(2)..)?;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::preprocess::{ImageLimits, probe};

    /// The decoders' sizes of all goldens are the reference.
    #[test]
    fn sizes_are_those_that_the_decoders_find() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/images");
        let mut checked = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let file = std::fs::read(&path).unwrap();
            let Ok(image) = probe(&file, ImageLimits::default()) else { continue };
            let header = HeaderInfo::read(&file).unwrap();
            let info = image.info();
            let (mut found, mut expected) = ([header.width, header.height], [info.width, info.height]);
            // One size is as stored, the other as displayed.
            found.sort_unstable();
            expected.sort_unstable();
            assert_eq!((found, Some(header.format)), (expected, info.format), "{}", path.display());
            assert_eq!(header.check(&file), Ok(()), "{}", path.display());
            checked += 1;
        }
        assert!(checked > 20, "{checked}");
    }

    #[test]
    fn files_that_are_too_short_for_their_pixels_are_rejected() {
        let gif = |width: u16, height: u16, length: usize| {
            let mut file = b"GIF89a".to_vec();
            for side in [width, height] {
                file.extend(side.to_le_bytes());
            }
            file.extend([0; 3]);
            file.extend(b",\0\0\0\0");
            for side in [width, height] {
                file.extend(side.to_le_bytes());
            }
            file.resize(length, 0);
            file
        };
        let check = |file: &[u8]| HeaderInfo::read(file).unwrap().check(file);
        assert!(check(&gif(7000, 7142, 35)).is_err());
        assert!(check(&gif(7000, 7142, 20_000)).is_ok());
        assert!(check(&gif(16, 16, 35)).is_ok());
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x1b\x58\0\0\x1b\x58\x01\0\0\0\0\0\0\0\0".to_vec();
        assert!(check(&png).is_err());
        png.resize(8000, 0);
        assert!(check(&png).is_ok(), "49 million pixels of one bit, 1,032 to one");
    }

    #[test]
    fn no_truncation_causes_a_panic() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/images");
        for entry in std::fs::read_dir(folder).unwrap() {
            let file = std::fs::read(entry.unwrap().path()).unwrap();
            for end in 0..file.len().min(600) {
                if let Some(header) = HeaderInfo::read(&file[..end]) {
                    let _ = header.check(&file[..end]);
                }
            }
        }
    }
}
