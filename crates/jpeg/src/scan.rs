//! The common parts of sequential and progressive scans: their tables, and the order of their MCUs.

use super::bits::BitReader;
use super::error::{JpegError, Result};
use super::frame::Frame;
use super::header::{Parser, Scan};
use super::huffman::{HuffmanTable, TableClass, TableSpec};
use super::marker;

/// The Huffman tables that a scan uses, by number.
#[derive(Default)]
pub(super) struct HuffmanTables {
    dc: [Option<Box<HuffmanTable>>; 4],
    ac: [Option<Box<HuffmanTable>>; 4],
}

impl HuffmanTables {
    /// Builds the scan's tables: those for DC coefficients if `dc`, those for AC coefficients if `ac`.
    pub(super) fn build(parser: &Parser<'_>, scan: &Scan, dc: bool, ac: bool) -> Result<Self> {
        let mut tables = Self::default();
        for component in &scan.components {
            if dc {
                build_if_absent(&parser.dc, &mut tables.dc, component.dc, TableClass::Dc)?;
            }
            if ac {
                build_if_absent(&parser.ac, &mut tables.ac, component.ac, TableClass::Ac)?;
            }
        }
        Ok(tables)
    }

    /// Prepares a table for AC coefficients for skipping them.
    pub(super) fn prepare_skipping(&mut self, number: usize) {
        if let Some(Some(table)) = self.ac.get_mut(number) {
            table.build_skips();
        }
    }

    /// The table for DC coefficients with this number.
    pub(super) fn dc(&self, number: usize) -> Result<&HuffmanTable> {
        self.dc.get(number).and_then(Option::as_deref).ok_or(UNDEFINED_TABLE)
    }

    /// The table for AC coefficients with this number.
    pub(super) fn ac(&self, number: usize) -> Result<&HuffmanTable> {
        self.ac.get(number).and_then(Option::as_deref).ok_or(UNDEFINED_TABLE)
    }
}

const UNDEFINED_TABLE: JpegError = JpegError::Corrupt("a scan uses a Huffman table that is not defined");

fn build_if_absent(
    specs: &[Option<TableSpec<'_>>; 4],
    built: &mut [Option<Box<HuffmanTable>>; 4],
    number: usize,
    class: TableClass,
) -> Result<()> {
    if built[number].is_none() {
        let spec = specs[number].as_ref().ok_or(UNDEFINED_TABLE)?;
        built[number] = Some(HuffmanTable::build(spec, class)?);
    }
    Ok(())
}

/// Blocks that a component has in each MCU of a scan: in a row, and rows of them.
pub(super) fn blocks_per_mcu(frame: &Frame, scan: &Scan, index: usize) -> (usize, usize) {
    // The MCU of a lone component is a block, and blocks that only pad MCUs of several components are absent (A.2.2).
    let component = &frame.components[index];
    if scan.components.len() == 1 { (1, 1) } else { (component.h, component.v) }
}

/// MCUs in a row of a scan, and rows of them.
pub(super) fn mcu_extent(frame: &Frame, scan: &Scan) -> (usize, usize) {
    match scan.components[..] {
        [only] => (frame.components[only.index].blocks_wide, frame.components[only.index].blocks_high),
        _ => (frame.mcus_wide, frame.mcus_high),
    }
}

/// Counts MCUs up to the next restart marker.
pub(super) struct Restarts {
    /// MCUs between restart markers; 0 if there are none.
    interval: u16,
    /// MCUs before the next marker.
    remaining: u16,
    /// Number of the next marker, modulo 8.
    number: u8,
}

impl Restarts {
    /// Starts a scan.
    pub(super) fn new(interval: u16) -> Self {
        Self { interval, remaining: interval, number: 0 }
    }

    /// Must be called before each MCU. Returns whether a restart precedes it; then the caller resets its predictions.
    #[inline(always)]
    pub(super) fn before_mcu(&mut self, bits: &mut BitReader<'_>) -> Result<bool> {
        if self.interval == 0 {
            return Ok(false);
        }
        let due = self.remaining == 0;
        if due {
            bits.restart(self.number)?;
            self.number = (self.number + 1) % 8;
            self.remaining = self.interval;
        }
        self.remaining -= 1;
        Ok(due)
    }
}

/// Finds the end of a scan's data without decoding it. The marker that follows is required: without it, a truncated
/// file would not be detected.
pub(super) fn find_end(parser: &Parser<'_>) -> Result<usize> {
    let mut position = parser.position;
    loop {
        let (code, after) = marker::next(parser.data, position).ok_or(JpegError::Truncated)?;
        match code {
            marker::RST0..=marker::RST7 => position = after,
            // The marker has two bytes.
            _ => return Ok(after - 2),
        }
    }
}

/// Replaces an error by [`JpegError::Truncated`] where the end of the data is its cause.
pub(super) fn prefer_truncated(error: JpegError, bits: &BitReader<'_>) -> JpegError {
    if bits.is_overrun() { JpegError::Truncated } else { error }
}
