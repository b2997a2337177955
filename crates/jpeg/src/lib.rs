//! A JPEG decoder whose pixels are bit for bit those of libjpeg-turbo and Pillow.
//!
//! [`Jpeg::open`] reads the header of a file in memory, [`Jpeg::decode`] turns the file into 8-bit gray or RGB pixels.
//! [`Jpeg::reduce`] in between selects a smaller image, 1/2, 1/4 or 1/8 of the width and height, for less time and
//! memory.
//!
//! The decoder supports what ITU-T T.81 calls baseline, extended sequential and progressive DCT-based coding, with
//! Huffman codes and 8 bits per sample; comments in the source give that standard's sections. It is strict where other
//! decoders fill in: a file that lacks part of its image is an error. It does not panic on damaged files, and it
//! allocates at most [`Jpeg::working_bytes`].
//!
//! # Example
//!
//! ```
//! use ghostserve_jpeg::{Decoded, Jpeg, JpegError, Scale};
//!
//! fn decode(file: &[u8], scale: Scale) -> Result<(u32, u32, Decoded), JpegError> {
//!     let mut jpeg = Jpeg::open(file)?;
//!     jpeg.reduce(scale);
//!     let (width, height) = jpeg.scaled_size();
//!     Ok((width, height, jpeg.decode()?))
//! }
//!
//! // A small file, usually read from a disk or a network: 8 by 8 pixels of one gray.
//! let mut file: Vec<u8> = vec![0xFF, 0xD8];
//! // Quantisation table 0: 64 steps of 8.
//! file.extend([0xFF, 0xDB, 0, 67, 0x00]);
//! file.extend([8; 64]);
//! // Frame: 8 bits per sample, 8 rows of 8 pixels, one component.
//! file.extend([0xFF, 0xC0, 0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0]);
//! // Huffman tables of one code each: a DC coefficient of 6 bits follows; the block ends.
//! file.extend([0xFF, 0xC4, 0, 20, 0x00, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6]);
//! file.extend([0xFF, 0xC4, 0, 20, 0x10, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
//! // Scan of all 64 coefficients, its data (DC coefficient 40), end of image.
//! file.extend([0xFF, 0xDA, 0, 8, 1, 1, 0x00, 0, 63, 0]);
//! file.extend([0b0_101000_0, 0xFF, 0xD9]);
//!
//! // 40 steps of 8, divided by 8, above the middle gray of 128.
//! assert_eq!(decode(&file, Scale::Full)?, (8, 8, Decoded::Gray(vec![168; 64])));
//! assert_eq!(decode(&file, Scale::Quarter)?, (2, 2, Decoded::Gray(vec![168; 4])));
//! assert_eq!(decode(&file[..file.len() - 3], Scale::Full), Err(JpegError::Truncated));
//! # Ok::<(), JpegError>(())
//! ```
//!
//! # Modules
//!
//! A file passes through `header` (segments), `sequential` or `progressive` (entropy-coded data, read by `bits` and
//! `huffman`), `idct` (samples, stored in a `plane`), `upsample` and `colour` (pixels, stored in `output`).

mod bits;
mod block;
mod colour;
mod error;
mod frame;
mod header;
mod huffman;
mod idct;
mod marker;
mod output;
mod plane;
mod progressive;
mod scale;
mod scan;
mod sequential;
mod simd;
#[cfg(test)]
#[allow(clippy::expect_used, clippy::panic)]
mod tests;
mod upsample;

pub use error::JpegError;
pub use scale::Scale;

use colour::Colour;
use error::Result;
use frame::{Component, Frame};
use header::{Parser, Scan};
use output::OutputImage;
use plane::Plane;
use progressive::Coefficients;
use upsample::Upsampler;

/// Upper bound of the memory of a scan's tables, in bytes.
const TABLE_BYTES: u64 = 128 << 10;

/// A JPEG file whose header has been read.
pub struct Jpeg<'a> {
    parser: Parser<'a>,
    frame: Frame,
    scan: Scan,
    colour: Colour,
}

/// The pixels of an image, row by row from the top, without padding, as [`Jpeg::scaled_size`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// One byte per pixel.
    Gray(Vec<u8>),
    /// Three bytes per pixel: red, green, blue.
    Rgb(Vec<u8>),
}

impl<'a> Jpeg<'a> {
    /// Reads a file up to the data of its first scan. Decodes no pixels.
    ///
    /// # Errors
    /// The bytes are not a JPEG file, or its header is incomplete, damaged, or of a kind that this decoder does not
    /// support.
    pub fn open(bytes: &'a [u8]) -> Result<Self> {
        let mut parser = Parser::new(bytes)?;
        let scan = parser.next_scan()?.ok_or(JpegError::Corrupt("it has no picture"))?;
        let frame = parser.frame.clone().ok_or(JpegError::Corrupt("it has no frame header"))?;
        let identifiers = frame.components.iter().map(|c| c.id).collect::<Vec<_>>();
        let colour = Colour::detect(&parser, &identifiers);
        Ok(Self { parser, frame, scan, colour })
    }

    /// Width and height of the image in the file, in pixels, neither zero.
    pub fn size(&self) -> (u32, u32) {
        // Both come from 16-bit fields.
        (self.frame.width as u32, self.frame.height as u32)
    }

    /// Selects the size at which [`Jpeg::decode`] makes the image. Without a call it is [`Scale::Full`].
    pub fn reduce(&mut self, scale: Scale) {
        self.frame.set_scale(scale);
    }

    /// Width and height of the decoded image, in pixels: those of [`Jpeg::size`] times the scale, rounded up.
    pub fn scaled_size(&self) -> (u32, u32) {
        (self.frame.scaled_width as u32, self.frame.scaled_height as u32)
    }

    /// The first Exif block before the first scan, starting at its TIFF header. Its content is not checked.
    pub fn exif(&self) -> Option<&'a [u8]> {
        self.parser.exif
    }

    /// Number of components in the file: 1 for gray, 3 for colour, 4 for inks.
    pub fn components(&self) -> usize {
        self.frame.components.len()
    }

    /// Upper bound of the bytes that [`Jpeg::decode`] allocates at the selected scale, its result included.
    pub fn working_bytes(&self) -> u64 {
        let bytes = |component: &Component| {
            let stride = (component.padded_wide * component.block_side) as u64;
            let plane = stride * (self.plane_block_rows(component) * component.block_side) as u64;
            let coefficients = if self.frame.progressive { Coefficients::bytes(component) } else { 0 };
            plane + coefficients + Upsampler::bytes(component)
        };
        let channels = if self.colour == Colour::Gray { 1 } else { 3 };
        let pixels = self.frame.scaled_width as u64 * self.frame.scaled_height as u64 * channels;
        self.frame.components.iter().map(bytes).sum::<u64>() + pixels + TABLE_BYTES
    }

    /// Whether the first scan contains the whole image.
    fn has_single_scan(&self) -> bool {
        !self.frame.progressive && self.scan.components.len() == self.frame.components.len()
    }

    /// Number of block rows of a component in memory. All are, where no scan has all components: then no pixel can be
    /// made before the last scan.
    fn plane_block_rows(&self, component: &Component) -> usize {
        if self.frame.progressive || self.has_single_scan() {
            self.frame.window_block_rows(component)
        } else {
            component.padded_high
        }
    }

    /// Decodes the file at the selected scale. One component gives [`Decoded::Gray`], more give [`Decoded::Rgb`].
    ///
    /// # Errors
    /// The file ends before its image is complete, breaks the format's rules, or, where addresses have 32 bits, needs
    /// more memory than can be addressed.
    pub fn decode(mut self) -> Result<Decoded> {
        // On a 64-bit system any size that a file can have fits; elsewhere the largest do not.
        if usize::try_from(self.working_bytes()).is_err() {
            return Err(JpegError::Unsupported("JPEG of this size"));
        }
        let planes = self.frame.components.iter().map(|c| Plane::new(c, self.plane_block_rows(c)));
        let mut planes = planes.collect::<Vec<_>>();
        let mut output = OutputImage::new(&self.frame, self.colour);
        if self.frame.progressive {
            self.decode_progressive(&mut planes, &mut output)?;
        } else {
            self.decode_sequential(&mut planes, &mut output)?;
        }
        let pixels = output.into_pixels();
        Ok(if self.colour == Colour::Gray { Decoded::Gray(pixels) } else { Decoded::Rgb(pixels) })
    }

    fn decode_sequential(&mut self, planes: &mut [Plane], output: &mut OutputImage) -> Result<()> {
        let single_scan = self.has_single_scan();
        let mut quantisation = QuantisationTables::NONE;
        let mut missing = self.frame.components.iter().map(|_| true).collect::<Vec<_>>();
        loop {
            let Self { parser, frame, scan, .. } = &mut *self;
            quantisation.record(parser, frame, scan)?;
            let on_mcu_row = |planes: &[Plane], mcu_rows: usize| {
                if single_scan {
                    output.make_rows(planes, mcu_rows);
                }
            };
            parser.position = sequential::decode(parser, frame, scan, &quantisation.tables, planes, on_mcu_row)?;
            scan.components.iter().for_each(|c| missing[c.index] = false);
            if !missing.contains(&true) {
                break;
            }
            *scan = parser.next_scan()?.ok_or(JpegError::Corrupt("it lacks a scan of one of its components"))?;
        }
        if !single_scan {
            output.make_rows(planes, self.frame.mcus_high);
        }
        Ok(())
    }

    fn decode_progressive(&mut self, planes: &mut [Plane], output: &mut OutputImage) -> Result<()> {
        let Self { parser, frame, scan, .. } = self;
        let mut quantisation = QuantisationTables::NONE;
        let mut coefficients = Coefficients::new(frame);
        loop {
            quantisation.record(parser, frame, scan)?;
            parser.position = coefficients.decode(parser, frame, scan)?;
            // The marker that ends the image may be missing if nothing else is.
            if coefficients.is_complete() {
                break;
            }
            match parser.next_scan()? {
                Some(next) => *scan = next,
                None if coefficients.has_all_dc() => break,
                None => return Err(JpegError::Corrupt("it lacks a scan of one of its components")),
            }
        }
        let on_mcu_row = |planes: &[Plane], mcu_rows| output.make_rows(planes, mcu_rows);
        coefficients.make_samples(frame, &quantisation.tables, planes, on_mcu_row);
        Ok(())
    }
}

/// Each component's quantisation table, as it is when the component's first scan begins: a file may redefine tables
/// after that.
struct QuantisationTables {
    tables: [[u16; 64]; 4],
    defined: [bool; 4],
}

impl QuantisationTables {
    const NONE: Self = Self { tables: [[0; 64]; 4], defined: [false; 4] };

    /// Copies the tables of the components whose first scan this is.
    fn record(&mut self, parser: &Parser<'_>, frame: &Frame, scan: &Scan) -> Result<()> {
        for component in &scan.components {
            let index = component.index;
            if !self.defined[index] {
                let table = parser.quantisation[frame.components[index].table];
                self.tables[index] = table.ok_or(JpegError::Corrupt("a quantisation table is not defined"))?;
                self.defined[index] = true;
            }
        }
        Ok(())
    }
}
