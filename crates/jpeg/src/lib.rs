//! A decoder for JPEG files, whose pixels are bit for bit those of libjpeg-turbo and Pillow.
//!
//! From the bytes of a file to gray or RGB pixels, in safe code that never panics and allocates only what
//! [`Jpeg::working_bytes`] announces. It decodes what ITU-T T.81 calls baseline, extended sequential and progressive
//! DCT-based coding with Huffman codes and 8 bits a sample; comments give that standard's sections. It is strict where
//! other decoders fill in: a file that lacks part of its picture is an error. [`Jpeg::reduce`] has it make a smaller
//! picture, for less.
//!
//! A file passes through [`header`] (segments), [`sequential`] or [`progressive`] (entropy-coded data, by [`bits`] and
//! [`huffman`]), [`idct`] (samples, in [`plane`]s), [`upsample`] and [`colour`] (pixels, in a [`picture`]).

mod bits;
mod colour;
mod error;
mod frame;
mod header;
mod huffman;
mod idct;
mod idct_reduced;
#[cfg(target_arch = "x86_64")]
mod idct_reduced_x86;
#[cfg(target_arch = "x86_64")]
mod idct_x86;
mod marker;
mod picture;
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
use picture::Picture;
use plane::Plane;
use progressive::Coefficients;
use upsample::Upsampler;

/// More than the tables of a scan take.
const TABLE_BYTES: u64 = 128 << 10;

/// A JPEG file whose header has been read.
pub struct Jpeg<'a> {
    parser: Parser<'a>,
    frame: Frame,
    scan: Scan,
    colour: Colour,
}

/// The pixels of a file, row by row from the top, without padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// One byte a pixel.
    Gray(Vec<u8>),
    /// Three bytes a pixel.
    Rgb(Vec<u8>),
}

impl<'a> Jpeg<'a> {
    /// Reads a file up to the data of its first scan.
    pub fn open(bytes: &'a [u8]) -> Result<Self> {
        let mut parser = Parser::new(bytes)?;
        let scan = parser.next_scan()?.ok_or(JpegError::Corrupt("it has no picture"))?;
        let frame = parser.frame.clone().ok_or(JpegError::Corrupt("it has no frame header"))?;
        let identifiers = frame.components.iter().map(|c| c.id).collect::<Vec<_>>();
        let colour = Colour::of(&parser, &identifiers);
        Ok(Self { parser, frame, scan, colour })
    }

    /// Width and height of the picture in pixels, neither zero.
    pub fn size(&self) -> (u32, u32) {
        // They were read from 16 bits.
        (self.frame.width as u32, self.frame.height as u32)
    }

    /// Chooses the size at which [`Jpeg::decode`] makes the picture.
    pub fn reduce(&mut self, scale: Scale) {
        self.frame.set_scale(scale);
    }

    /// Width and height of the decoded picture.
    pub fn scaled_size(&self) -> (u32, u32) {
        (self.frame.scaled_width as u32, self.frame.scaled_height as u32)
    }

    /// The first Exif block, from its TIFF header on.
    pub fn exif(&self) -> Option<&'a [u8]> {
        self.parser.exif
    }

    /// How many components the file has: 1 for gray, 3 for colour, 4 for inks.
    pub fn components(&self) -> usize {
        self.frame.components.len()
    }

    /// At most what [`Jpeg::decode`] allocates, its result included.
    pub fn working_bytes(&self) -> u64 {
        let bytes = |component: &Component| {
            let stride = (component.padded_wide * component.size) as u64;
            let plane = stride * (self.plane_blocks(component) * component.size) as u64;
            let coefficients = if self.frame.progressive { Coefficients::bytes(component) } else { 0 };
            plane + coefficients + Upsampler::bytes(component)
        };
        let channels = if self.colour == Colour::Gray { 1 } else { 3 };
        let pixels = self.frame.scaled_width as u64 * self.frame.scaled_height as u64 * channels;
        self.frame.components.iter().map(bytes).sum::<u64>() + pixels + TABLE_BYTES
    }

    /// Whether the first scan has all of the picture.
    fn has_one_scan(&self) -> bool {
        !self.frame.progressive && self.scan.components.len() == self.frame.components.len()
    }

    /// Block rows of a component to keep: all where a scan does not have all components, so that the pixels have to wait.
    fn plane_blocks(&self, component: &Component) -> usize {
        if self.frame.progressive || self.has_one_scan() {
            self.frame.window_blocks(component)
        } else {
            component.padded_high
        }
    }

    /// Decodes the file.
    pub fn decode(mut self) -> Result<Decoded> {
        // On a 64-bit system any size that a file can have fits; elsewhere the largest do not.
        if usize::try_from(self.working_bytes()).is_err() {
            return Err(JpegError::Unsupported("JPEG of this size"));
        }
        let mut planes = self.frame.components.iter().map(|c| Plane::new(c, self.plane_blocks(c))).collect::<Vec<_>>();
        let mut picture = Picture::new(&self.frame, self.colour);
        if self.frame.progressive {
            self.decode_progressive(&mut planes, &mut picture)?;
        } else {
            self.decode_sequential(&mut planes, &mut picture)?;
        }
        let pixels = picture.into_pixels();
        Ok(if self.colour == Colour::Gray { Decoded::Gray(pixels) } else { Decoded::Rgb(pixels) })
    }

    fn decode_sequential(&mut self, planes: &mut [Plane], picture: &mut Picture) -> Result<()> {
        let at_once = self.has_one_scan();
        let mut quantisation = Quantisation::NONE;
        let mut left = self.frame.components.iter().map(|_| true).collect::<Vec<_>>();
        loop {
            let Self { parser, frame, scan, .. } = &mut *self;
            quantisation.keep(parser, frame, scan)?;
            let done = |planes: &[Plane], rows: usize| {
                if at_once {
                    picture.make_rows(planes, rows);
                }
            };
            parser.at = sequential::decode(parser, frame, scan, &quantisation.tables, planes, done)?;
            scan.components.iter().for_each(|c| left[c.index] = false);
            if !left.contains(&true) {
                break;
            }
            *scan = parser.next_scan()?.ok_or(JpegError::Corrupt("it lacks a scan of one of its components"))?;
        }
        if !at_once {
            picture.make_rows(planes, self.frame.mcus_high);
        }
        Ok(())
    }

    fn decode_progressive(&mut self, planes: &mut [Plane], picture: &mut Picture) -> Result<()> {
        let Self { parser, frame, scan, .. } = self;
        let mut quantisation = Quantisation::NONE;
        let mut coefficients = Coefficients::new(frame);
        loop {
            quantisation.keep(parser, frame, scan)?;
            parser.at = coefficients.decode(parser, frame, scan)?;
            // The marker that ends the picture may be missing if nothing else is.
            if coefficients.complete() {
                break;
            }
            match parser.next_scan()? {
                Some(next) => *scan = next,
                None if coefficients.usable() => break,
                None => return Err(JpegError::Corrupt("it lacks a scan of one of its components")),
            }
        }
        coefficients.make_samples(frame, &quantisation.tables, planes, |planes, rows| picture.make_rows(planes, rows));
        Ok(())
    }
}

/// Each component's quantisation table, as it was when its first scan began: a file may redefine tables after that.
struct Quantisation {
    tables: [[u16; 64]; 4],
    kept: [bool; 4],
}

impl Quantisation {
    const NONE: Self = Self { tables: [[0; 64]; 4], kept: [false; 4] };

    /// Takes the tables of the components that have their first scan.
    fn keep(&mut self, parser: &Parser<'_>, frame: &Frame, scan: &Scan) -> Result<()> {
        for component in &scan.components {
            let index = component.index;
            if !self.kept[index] {
                let table = parser.quantisation[frame.components[index].table];
                self.tables[index] = table.ok_or(JpegError::Corrupt("a quantisation table is not defined"))?;
                self.kept[index] = true;
            }
        }
        Ok(())
    }
}
