//! Detects a file's format by its first bytes. File names and headers that a client sends are ignored.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ImageError;

/// Image formats that can be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Format {
    Jpeg,
    Png,
    WebP,
    Gif,
    Bmp,
    Tiff,
}

impl Format {
    pub(super) const LIST: &'static str = "JPEG, PNG, WebP, GIF, BMP or TIFF";

    /// Detects the format by the magic bytes.
    ///
    /// # Errors
    /// [`ImageError::Empty`], or [`ImageError::UnsupportedFormat`] with what the bytes look like.
    pub fn sniff(bytes: &[u8]) -> Result<Self, ImageError> {
        match bytes {
            [] => Err(ImageError::Empty),
            [0xFF, 0xD8, 0xFF, ..] => Ok(Self::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Ok(Self::Png),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Self::WebP),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Self::Gif),
            [b'B', b'M', ..] => Ok(Self::Bmp),
            [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => Ok(Self::Tiff),
            other => Err(ImageError::UnsupportedFormat { found: describe(other) }),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
        })
    }
}

/// Guesses what unsupported bytes are, as a hint for the client.
fn describe(bytes: &[u8]) -> String {
    let brand = bytes.get(4..12).and_then(|b| b.strip_prefix(b"ftyp"));
    let text = bytes.iter().take(64).all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace());
    let found = match (bytes, brand) {
        (_, Some(b"avif" | b"avis")) => "an AVIF image",
        (_, Some(b"heic" | b"heix" | b"mif1" | b"hevc")) => "a HEIC image",
        (_, Some(_)) => "a video or an image container of the MP4 family",
        ([0xFF, 0x0A, ..] | [0, 0, 0, 0x0C, b'J', b'X', b'L', ..], _) => "a JPEG XL image",
        ([0, 0, 0, 0x0C, b'j', b'P', ..], _) => "a JPEG 2000 image",
        ([b'I', b'I', 43, 0, ..] | [b'M', b'M', 0, 43, ..], _) => "a BigTIFF image",
        ([b'%', b'P', b'D', b'F', ..], _) => "a PDF document",
        ([b'P', b'K', 3, 4, ..], _) => "a ZIP archive",
        ([0x1F, 0x8B, ..], _) => "gzip-compressed data",
        _ if bytes.trim_ascii_start().starts_with(b"<svg") || bytes.starts_with(b"<?xml") => "an SVG or XML document",
        _ if text => "text",
        _ => "data in no image format known here",
    };
    format!("the file is {found}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magic_bytes_decide_the_format() {
        assert_eq!(Format::sniff(b"\xFF\xD8\xFF\xE0rest"), Ok(Format::Jpeg));
        assert_eq!(Format::sniff(b"RIFF\0\0\0\0WEBPVP8 "), Ok(Format::WebP));
        assert_eq!(Format::sniff(b"GIF89a=1;alert(1)"), Ok(Format::Gif));
        assert_eq!(Format::sniff(b""), Err(ImageError::Empty));
    }

    #[test]
    fn unsupported_formats_are_named() {
        for (bytes, name) in [
            (&b"\0\0\0\x1cftypavif"[..], "AVIF"),
            (b"%PDF-1.7", "PDF"),
            (b"<svg xmlns=''/>", "SVG"),
            (b"hello", "text"),
            (b"\x01\x02\x03", "no image format"),
            (b"RIFF\0\0\0\0WAVE", "no image format"),
        ] {
            let error = Format::sniff(bytes).map_err(|e| e.to_string());
            assert!(matches!(&error, Err(e) if e.contains(name) && e.contains("JPEG, PNG")), "{error:?}");
        }
    }
}
