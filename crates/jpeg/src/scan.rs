//! What the scans of sequential and progressive files have in common: their tables, and the order of their MCUs.

use super::bits::BitReader;
use super::error::{JpegError, Result};
use super::frame::Frame;
use super::header::{Parser, Scan};
use super::huffman::{Class, HuffmanTable, TableSpec};
use super::marker;

/// The Huffman tables that a scan uses, by number.
#[derive(Default)]
pub(super) struct Tables {
    dc: [Option<Box<HuffmanTable>>; 4],
    ac: [Option<Box<HuffmanTable>>; 4],
}

impl Tables {
    /// Builds those that are needed.
    pub(super) fn build(parser: &Parser<'_>, scan: &Scan, dc: bool, ac: bool) -> Result<Self> {
        let mut tables = Self::default();
        for component in &scan.components {
            if dc {
                prepare(&parser.dc, &mut tables.dc, component.dc, Class::Dc)?;
            }
            if ac {
                prepare(&parser.ac, &mut tables.ac, component.ac, Class::Ac)?;
            }
        }
        Ok(tables)
    }

    /// Makes a table for AC coefficients ready for stepping over them.
    pub(super) fn prepare_skipping(&mut self, number: usize) {
        if let Some(Some(table)) = self.ac.get_mut(number) {
            table.fill_skips();
        }
    }

    /// A table for DC coefficients.
    pub(super) fn dc(&self, number: usize) -> Result<&HuffmanTable> {
        self.dc.get(number).and_then(Option::as_deref).ok_or(MISSING)
    }

    /// A table for AC coefficients.
    pub(super) fn ac(&self, number: usize) -> Result<&HuffmanTable> {
        self.ac.get(number).and_then(Option::as_deref).ok_or(MISSING)
    }
}

const MISSING: JpegError = JpegError::Corrupt("a scan uses a Huffman table that is not defined");

fn prepare(
    specs: &[Option<TableSpec<'_>>; 4],
    built: &mut [Option<Box<HuffmanTable>>; 4],
    number: usize,
    class: Class,
) -> Result<()> {
    if built[number].is_none() {
        let spec = specs[number].as_ref().ok_or(MISSING)?;
        built[number] = Some(HuffmanTable::build(spec, class)?);
    }
    Ok(())
}

/// Blocks that a component has in each MCU of a scan.
pub(super) fn factors(frame: &Frame, scan: &Scan, index: usize) -> (usize, usize) {
    // On its own, a component's MCU is a block, and blocks that only pad others' MCUs are left out (A.2.2).
    let component = &frame.components[index];
    if scan.components.len() == 1 { (1, 1) } else { (component.h, component.v) }
}

/// MCUs in a row of a scan, and rows of them.
pub(super) fn extent(frame: &Frame, scan: &Scan) -> (usize, usize) {
    match scan.components[..] {
        [only] => (frame.components[only.index].blocks_wide, frame.components[only.index].blocks_high),
        _ => (frame.mcus_wide, frame.mcus_high),
    }
}

/// Counts MCUs to the next restart marker.
pub(super) struct Restarts {
    interval: u16,
    left: u16,
    number: u8,
}

impl Restarts {
    /// Starts a scan.
    pub(super) fn new(interval: u16) -> Self {
        Self { interval, left: interval, number: 0 }
    }

    /// To be called before each MCU: whether a restart came before it, so that what was predicted is to be forgotten.
    #[inline(always)]
    pub(super) fn next(&mut self, bits: &mut BitReader<'_>) -> Result<bool> {
        if self.interval == 0 {
            return Ok(false);
        }
        let due = self.left == 0;
        if due {
            bits.restart(self.number)?;
            self.number = (self.number + 1) % 8;
            self.left = self.interval;
        }
        self.left -= 1;
        Ok(due)
    }
}

/// Where a scan's data ends, without decoding it. The marker that follows must be there, or nothing would tell a file that
/// is cut short.
pub(super) fn end(parser: &Parser<'_>) -> Result<usize> {
    let mut at = parser.at;
    loop {
        let (code, after) = marker::next(parser.data, at).ok_or(JpegError::Truncated)?;
        match code {
            marker::RST0..=marker::RST7 => at = after,
            // The marker takes two bytes.
            _ => return Ok(after - 2),
        }
    }
}

/// Prefers to say that the data ended, where that is why something in it made no sense.
pub(super) fn explain(error: JpegError, bits: &BitReader<'_>) -> JpegError {
    if bits.overrun() { JpegError::Truncated } else { error }
}
