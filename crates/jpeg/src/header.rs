//! Parses the segments of a file: tables, application data, and the headers of the frame and of each scan (annex B).
//!
//! Allocates nothing in proportion to a header's content; tables stay where they are in the file until a scan uses
//! them.

use super::block::ZIGZAG;
use super::error::{JpegError, Result};
use super::frame::Frame;
use super::huffman::TableSpec;
use super::marker;

/// Reads segment by segment, and stores the content that later segments refer to.
pub(super) struct Parser<'a> {
    pub(super) data: &'a [u8],
    /// Position of the next byte to read.
    pub(super) position: usize,
    pub(super) frame: Option<Frame>,
    /// Quantisation tables by number, each in the order of a block.
    pub(super) quantisation: [Option<[u16; 64]>; 4],
    /// Huffman tables by number.
    pub(super) dc: [Option<TableSpec<'a>>; 4],
    pub(super) ac: [Option<TableSpec<'a>>; 4],
    /// MCUs between restart markers; 0 if there are none.
    pub(super) restart_interval: u16,
    /// The first Exif block, starting at its TIFF header.
    pub(super) exif: Option<&'a [u8]>,
    /// Whether there is a JFIF segment.
    pub(super) jfif: bool,
    /// The colour transform that an Adobe segment states.
    pub(super) adobe: Option<u8>,
}

/// A component of a scan.
#[derive(Clone, Copy, Default)]
pub(super) struct ScanComponent {
    /// Index into the frame's components.
    pub(super) index: usize,
    /// Numbers of its Huffman tables.
    pub(super) dc: usize,
    pub(super) ac: usize,
}

/// The content of a SOS segment (B.2.3).
pub(super) struct Scan {
    pub(super) components: Vec<ScanComponent>,
    /// First and last coefficient, as positions in zigzag order.
    pub(super) first: usize,
    pub(super) last: usize,
    /// Number of low bits missing before this scan, and after it.
    pub(super) high: u8,
    pub(super) low: u8,
}

impl<'a> Parser<'a> {
    /// Starts a file. It must begin with SOI.
    pub(super) fn new(data: &'a [u8]) -> Result<Self> {
        match data {
            [0xFF, marker::SOI, ..] => {}
            [] | [0xFF] => return Err(JpegError::Truncated),
            _ => return Err(JpegError::Corrupt("it does not begin like a JPEG file")),
        }
        Ok(Self {
            data,
            position: 2,
            frame: None,
            quantisation: [None; 4],
            dc: [None; 4],
            ac: [None; 4],
            restart_interval: 0,
            exif: None,
            jfif: false,
            adobe: None,
        })
    }

    /// Reads up to the data of the next scan; `None` at the end of the image.
    pub(super) fn next_scan(&mut self) -> Result<Option<Scan>> {
        loop {
            let (code, after) = marker::next(self.data, self.position).ok_or(JpegError::Truncated)?;
            self.position = after;
            match code {
                marker::EOI => return Ok(None),
                marker::RST0..=marker::RST7 | marker::TEM => continue,
                marker::SOI => return Err(JpegError::Corrupt("it begins twice")),
                _ => {}
            }
            let segment = self.read_segment()?;
            match code {
                marker::SOS => return self.parse_scan(segment).map(Some),
                marker::DQT => self.parse_quantisation_tables(segment)?,
                marker::DHT => self.parse_huffman_tables(segment)?,
                marker::DRI => {
                    let &[high, low] = segment else {
                        return Err(JpegError::Corrupt("its restart interval has the wrong length"));
                    };
                    self.restart_interval = u16::from_be_bytes([high, low]);
                }
                marker::APP0 => self.jfif |= segment.len() >= 14 && segment.starts_with(b"JFIF\0"),
                marker::APP1 => self.exif = self.exif.or(segment.strip_prefix(b"Exif\0\0")),
                marker::APP14 if segment.len() >= 12 && segment.starts_with(b"Adobe") => {
                    self.adobe = Some(segment[11]);
                }
                marker::DAC => {}
                marker::SOF0..=marker::SOF2 => {
                    if self.frame.is_some() {
                        return Err(JpegError::Corrupt("it has two frames"));
                    }
                    self.frame = Some(Frame::parse(segment, code == marker::SOF2)?);
                }
                marker::SOF3..=marker::SOF15 => {
                    return Err(JpegError::Unsupported(match code {
                        marker::SOF3 => "lossless JPEG",
                        0xC5..=0xC7 => "hierarchical JPEG",
                        0xC9..=0xCB => "JPEG with arithmetic coding",
                        marker::JPG => "a JPEG extension",
                        _ => "hierarchical JPEG with arithmetic coding",
                    }));
                }
                _ => {}
            }
        }
    }

    /// Reads the content of a segment, whose length precedes it.
    fn read_segment(&mut self) -> Result<&'a [u8]> {
        let rest = self.data.get(self.position..).ok_or(JpegError::Truncated)?;
        let length =
            rest.first_chunk::<2>().map(|&b| usize::from(u16::from_be_bytes(b))).ok_or(JpegError::Truncated)?;
        if length < 2 {
            return Err(JpegError::Corrupt("a segment's length is below 2"));
        }
        self.position += length;
        rest.get(2..length).ok_or(JpegError::Truncated)
    }

    /// Parses a DQT segment (B.2.4.1).
    fn parse_quantisation_tables(&mut self, mut rest: &[u8]) -> Result<()> {
        const SHORT: JpegError = JpegError::Corrupt("a quantisation table is too short");
        while let Some((&head, body)) = rest.split_first() {
            let wide = match head >> 4 {
                0 => false,
                1 => true,
                _ => return Err(JpegError::Corrupt("a quantisation table has an unknown precision")),
            };
            let slot = self.quantisation.get_mut(usize::from(head & 15));
            let slot = slot.ok_or(JpegError::Corrupt("a quantisation table has a number above 3"))?;
            let (values, after) = body.split_at_checked(if wide { 128 } else { 64 }).ok_or(SHORT)?;
            let mut table = [0; 64];
            for (k, &position) in ZIGZAG.iter().enumerate() {
                table[usize::from(position)] =
                    if wide { u16::from_be_bytes([values[2 * k], values[2 * k + 1]]) } else { values[k].into() };
            }
            *slot = Some(table);
            rest = after;
        }
        Ok(())
    }

    /// Parses a DHT segment (B.2.4.2).
    fn parse_huffman_tables(&mut self, mut rest: &'a [u8]) -> Result<()> {
        const SHORT: JpegError = JpegError::Corrupt("a Huffman table is too short");
        while let Some((&head, body)) = rest.split_first() {
            let tables = match head >> 4 {
                0 => &mut self.dc,
                1 => &mut self.ac,
                _ => return Err(JpegError::Corrupt("a Huffman table is for neither DC nor AC")),
            };
            let slot = tables.get_mut(usize::from(head & 15));
            let slot = slot.ok_or(JpegError::Corrupt("a Huffman table has a number above 3"))?;
            let (&counts, body) = body.split_first_chunk::<16>().ok_or(SHORT)?;
            let total = counts.iter().map(|&n| usize::from(n)).sum();
            let (values, after) = body.split_at_checked(total).ok_or(SHORT)?;
            *slot = Some(TableSpec { counts, values });
            rest = after;
        }
        Ok(())
    }

    /// Parses a SOS segment (B.2.3) and checks it against the frame.
    fn parse_scan(&self, segment: &[u8]) -> Result<Scan> {
        const LENGTH: JpegError = JpegError::Corrupt("a scan header has the wrong length");
        let frame = self.frame.as_ref().ok_or(JpegError::Corrupt("a scan comes before the frame"))?;
        let (&count, rest) = segment.split_first().ok_or(LENGTH)?;
        if !(1..=4).contains(&count) {
            return Err(JpegError::Corrupt("a scan does not have one to four components"));
        }
        let (specs, rest) = rest.split_at_checked(2 * usize::from(count)).ok_or(LENGTH)?;
        let &[first, last, approximation] = rest else { return Err(LENGTH) };
        let mut components: Vec<ScanComponent> = Vec::with_capacity(4);
        for &[id, tables] in specs.as_chunks::<2>().0 {
            let index = frame.components.iter().position(|c| c.id == id);
            let index = index.ok_or(JpegError::Corrupt("a scan has a component that the frame does not have"))?;
            if components.iter().any(|c| c.index == index) {
                return Err(JpegError::Corrupt("a scan has the same component twice"));
            }
            if tables >> 4 > 3 || tables & 15 > 3 {
                return Err(JpegError::Corrupt("a scan uses a Huffman table above 3"));
            }
            components.push(ScanComponent { index, dc: usize::from(tables >> 4), ac: usize::from(tables & 15) });
        }
        let blocks = components.iter().map(|c| frame.components[c.index].h * frame.components[c.index].v);
        if count > 1 && blocks.sum::<usize>() > 10 {
            return Err(JpegError::Corrupt("a scan has more than ten blocks in an MCU"));
        }
        let (high, low) = (approximation >> 4, approximation & 15);
        let (first, last) = (usize::from(first), usize::from(last));
        if frame.progressive {
            let band = if first == 0 { last == 0 } else { first <= last && last <= 63 && count == 1 };
            if !band || low > 13 || (high != 0 && high != low + 1) {
                return Err(JpegError::Corrupt("a progressive scan has impossible parameters"));
            }
        }
        // A sequential scan has all coefficients, whatever its header says: other decoders ignore these fields, too.
        Ok(Scan { components, first, last, high, low })
    }
}
