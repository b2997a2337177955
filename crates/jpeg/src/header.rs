//! Reads the segments of a file: tables, application data, and the headers of the frame and of each scan (annex B).
//!
//! Allocates nothing by what a header says; tables stay where they are in the file until a scan uses them.

use super::error::{JpegError, Result};
use super::frame::Frame;
use super::huffman::TableSpec;
use super::marker;

/// For each position in zigzag order, the coefficient's position in its block (figure A.6).
pub(super) const ZIGZAG: [u8; 64] = zigzag();

const fn zigzag() -> [u8; 64] {
    let mut order = [0; 64];
    let (mut at, mut row, mut column) = (0, 0u8, 0u8);
    while at < 64 {
        order[at] = row * 8 + column;
        // Up and to the right on even diagonals, down and to the left on odd ones, turning at the sides.
        if (row + column) % 2 == 0 {
            if column == 7 {
                row += 1;
            } else {
                column += 1;
                row = row.saturating_sub(1);
            }
        } else if row == 7 {
            column += 1;
        } else {
            row += 1;
            column = column.saturating_sub(1);
        }
        at += 1;
    }
    order
}

/// Reads segment by segment, and keeps what later ones refer to.
pub(super) struct Parser<'a> {
    pub(super) data: &'a [u8],
    /// The next byte to read.
    pub(super) at: usize,
    pub(super) frame: Option<Frame>,
    /// Quantisation tables, in the order of a block.
    pub(super) quantisation: [Option<[u16; 64]>; 4],
    pub(super) dc: [Option<TableSpec<'a>>; 4],
    pub(super) ac: [Option<TableSpec<'a>>; 4],
    /// MCUs between restart markers; 0 for none.
    pub(super) restart_interval: u16,
    pub(super) exif: Option<&'a [u8]>,
    pub(super) jfif: bool,
    /// The colour transform of an Adobe segment.
    pub(super) adobe: Option<u8>,
}

/// One component's part in a scan.
#[derive(Clone, Copy, Default)]
pub(super) struct ScanComponent {
    /// Which of the frame's components.
    pub(super) index: usize,
    pub(super) dc: usize,
    pub(super) ac: usize,
}

/// What a SOS segment says (B.2.3).
pub(super) struct Scan {
    pub(super) components: Vec<ScanComponent>,
    /// First and last coefficient, in zigzag order.
    pub(super) first: usize,
    pub(super) last: usize,
    /// Low bits missing after the scan before, and after this one.
    pub(super) high: u8,
    pub(super) low: u8,
}

impl<'a> Parser<'a> {
    /// Starts a file, which must begin with SOI.
    pub(super) fn new(data: &'a [u8]) -> Result<Self> {
        match data {
            [0xFF, marker::SOI, ..] => {}
            [] | [0xFF] => return Err(JpegError::Truncated),
            _ => return Err(JpegError::Corrupt("it does not begin like a JPEG file")),
        }
        Ok(Self {
            data,
            at: 2,
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

    /// Reads on to the next scan, up to its data; `None` at the end of the picture.
    pub(super) fn next_scan(&mut self) -> Result<Option<Scan>> {
        loop {
            let (code, after) = marker::next(self.data, self.at).ok_or(JpegError::Truncated)?;
            self.at = after;
            match code {
                marker::EOI => return Ok(None),
                marker::RST0..=marker::RST7 | marker::TEM => continue,
                marker::SOI => return Err(JpegError::Corrupt("it begins twice")),
                _ => {}
            }
            let segment = self.segment()?;
            match code {
                marker::SOS => return self.scan(segment).map(Some),
                marker::DQT => self.quantisation_tables(segment)?,
                marker::DHT => self.huffman_tables(segment)?,
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

    /// What follows a marker, by the length that stands before it.
    fn segment(&mut self) -> Result<&'a [u8]> {
        let rest = self.data.get(self.at..).ok_or(JpegError::Truncated)?;
        let length =
            rest.first_chunk::<2>().map(|&b| usize::from(u16::from_be_bytes(b))).ok_or(JpegError::Truncated)?;
        if length < 2 {
            return Err(JpegError::Corrupt("a segment's length is below 2"));
        }
        self.at += length;
        rest.get(2..length).ok_or(JpegError::Truncated)
    }

    /// A DQT segment (B.2.4.1).
    fn quantisation_tables(&mut self, mut rest: &[u8]) -> Result<()> {
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

    /// A DHT segment (B.2.4.2).
    fn huffman_tables(&mut self, mut rest: &'a [u8]) -> Result<()> {
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

    /// A SOS segment (B.2.3), held against the frame.
    fn scan(&self, segment: &[u8]) -> Result<Scan> {
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
        // A sequential scan has all coefficients, whatever its header says: other decoders take no notice of it either.
        Ok(Scan { components, first, last, high, low })
    }
}
