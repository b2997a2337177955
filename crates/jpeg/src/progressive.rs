//! Scans of progressive files (annex G): each adds to the coefficients of all blocks, which stay in memory until the
//! last scan.
//!
//! Where a block becomes one sample, only its DC coefficient is stored, and the scans of the others are skipped.

use super::bits::BitReader;
use super::block::{Block, ZIGZAG};
use super::error::{JpegError, Result};
use super::frame::{Component, Frame};
use super::header::{Parser, Scan};
use super::huffman::HuffmanTable;
use super::idct;
use super::plane::Plane;
use super::scan::{self, HuffmanTables, Restarts};

/// Marks a coefficient that no scan has had yet.
const ABSENT: u8 = u8::MAX;

/// The coefficients of all components.
pub(super) struct Coefficients {
    /// By component: blocks row by row, each with its stored coefficients.
    components: Vec<Vec<i16>>,
    /// By component and position in zigzag order: number of low bits that are missing.
    missing_bits: [[u8; 64]; 4],
}

impl Coefficients {
    /// Allocates a frame's coefficients.
    pub(super) fn new(frame: &Frame) -> Self {
        let zeros = |c: &Component| vec![0; c.padded_wide * c.padded_high * stored_per_block(c)];
        Self { components: frame.components.iter().map(zeros).collect(), missing_bits: [[ABSENT; 64]; 4] }
    }

    /// Bytes that the coefficients of a component take.
    pub(super) fn bytes(component: &Component) -> u64 {
        (component.padded_wide * component.padded_high) as u64 * stored_per_block(component) as u64 * 2
    }

    /// Whether every component has its DC coefficients, though perhaps not all bits of them: an image can be made.
    pub(super) fn has_all_dc(&self) -> bool {
        self.missing_bits[..self.components.len()].iter().all(|bits| bits[0] != ABSENT)
    }

    /// Whether all bits of all coefficients are there.
    pub(super) fn is_complete(&self) -> bool {
        self.missing_bits[..self.components.len()].iter().flatten().all(|&bits| bits == 0)
    }

    /// Decodes a scan and returns the position where its data ends.
    pub(super) fn decode(&mut self, parser: &Parser<'_>, frame: &Frame, scan: &Scan) -> Result<usize> {
        let mut components = scan.components.iter().map(|c| &frame.components[c.index]);
        let can_skip = scan.first > 0 && components.all(|c| stored_per_block(c) == 1);
        if can_skip {
            self.record(scan);
            return scan::find_end(parser);
        }
        let mut bits = BitReader::new(parser.data, parser.position);
        let tables = HuffmanTables::build(parser, scan, scan.first == 0 && scan.high == 0, scan.first > 0)?;
        let result = if scan.first == 0 {
            self.dc_scan(&mut bits, parser, frame, scan, &tables)
        } else {
            self.ac_scan(&mut bits, parser, frame, scan, &tables)
        };
        result.map_err(|e| scan::prefer_truncated(e, &bits))?;
        self.record(scan);
        bits.finish()
    }

    /// Records which coefficients a scan had, and which of their bits are still missing.
    fn record(&mut self, scan: &Scan) {
        for component in &scan.components {
            self.missing_bits[component.index][scan.first..=scan.last].fill(scan.low);
        }
    }

    /// G.1.2.1: differences of DC coefficients without their low bits, then those bits one by one.
    fn dc_scan(
        &mut self,
        bits: &mut BitReader<'_>,
        parser: &Parser<'_>,
        frame: &Frame,
        scan: &Scan,
        tables: &HuffmanTables,
    ) -> Result<()> {
        let (mcus_wide, mcus_high) = scan::mcu_extent(frame, scan);
        let mut restarts = Restarts::new(parser.restart_interval);
        let mut previous = [0i32; 4];
        for row in 0..mcus_high {
            for column in 0..mcus_wide {
                if restarts.before_mcu(bits)? {
                    previous = [0; 4];
                }
                for component in &scan.components {
                    let (h, v) = scan::blocks_per_mcu(frame, scan, component.index);
                    let Component { padded_wide: stride, .. } = frame.components[component.index];
                    let stored = stored_per_block(&frame.components[component.index]);
                    let blocks = &mut self.components[component.index];
                    for (y, x) in (0..v).flat_map(|y| (0..h).map(move |x| (y, x))) {
                        let dc = &mut blocks[((row * v + y) * stride + column * h + x) * stored];
                        if scan.high == 0 {
                            bits.ensure_32();
                            let size = tables.dc(component.dc)?.symbol(bits)?;
                            let value = &mut previous[component.index];
                            *value = value.wrapping_add(bits.take_signed(size.into()));
                            *dc = (*value << scan.low) as i16;
                        } else if bits.take_bit() {
                            *dc |= 1 << scan.low;
                        }
                    }
                }
            }
            bits.check_overrun()?;
        }
        Ok(())
    }

    /// G.1.2.2 and G.1.2.3: a band of AC coefficients of one component.
    fn ac_scan(
        &mut self,
        bits: &mut BitReader<'_>,
        parser: &Parser<'_>,
        frame: &Frame,
        scan: &Scan,
        tables: &HuffmanTables,
    ) -> Result<()> {
        let (blocks_wide, blocks_high) = scan::mcu_extent(frame, scan);
        let mut restarts = Restarts::new(parser.restart_interval);
        for component in &scan.components {
            let stride = frame.components[component.index].padded_wide;
            let table = tables.ac(component.ac)?;
            let mut band = Band { table, first: scan.first, last: scan.last, low: scan.low, end_run: 0 };
            let blocks = self.components[component.index].as_chunks_mut::<64>().0;
            for row in 0..blocks_high {
                for block in &mut blocks[row * stride..][..blocks_wide] {
                    if restarts.before_mcu(bits)? {
                        band.end_run = 0;
                    }
                    if scan.high == 0 {
                        band.first_pass(bits, block)?;
                    } else {
                        band.refine(bits, block)?;
                    }
                }
                bits.check_overrun()?;
            }
        }
        Ok(())
    }

    /// Makes the samples of all blocks, a row of MCUs at a time. Calls `on_mcu_row` after each with the number of rows
    /// so far.
    pub(super) fn make_samples(
        &self,
        frame: &Frame,
        quantisation: &[[u16; 64]; 4],
        planes: &mut [Plane],
        mut on_mcu_row: impl FnMut(&[Plane], usize),
    ) {
        for row in 0..frame.mcus_high {
            for (index, (plane, component)) in planes.iter_mut().zip(&frame.components).enumerate() {
                let (stride, side, table) = (plane.stride, component.block_side, &quantisation[index]);
                let strip = plane.block_rows_mut(row * component.v, component.v).chunks_exact_mut(stride * side);
                let stored = stored_per_block(component);
                let blocks = self.components[index].chunks_exact(component.padded_wide * stored);
                for (out, blocks) in strip.zip(blocks.skip(row * component.v)) {
                    if stored == 1 {
                        for (out, &dc) in out.iter_mut().zip(blocks) {
                            idct::flat::<1>(dc, table[0], std::slice::from_mut(out), 1);
                        }
                        continue;
                    }
                    for (x, block) in blocks.as_chunks::<64>().0.iter().take(component.blocks_wide).enumerate() {
                        idct::samples(side, block, table, last_nonzero_bound(block), &mut out[x * side..], stride);
                    }
                }
            }
            on_mcu_row(planes, row + 1);
        }
    }
}

/// Number of coefficients of each block that a component's samples need.
fn stored_per_block(component: &Component) -> usize {
    if component.block_side == 1 { 1 } else { 64 }
}

/// An upper bound of the position in zigzag order of the last coefficient that is not zero, as precise as the inverse
/// DCT needs it.
fn last_nonzero_bound(block: &Block) -> usize {
    let any = |row: &[i16]| row.iter().fold(0, |any, &c| any | c) != 0;
    if any(&block[32..]) {
        return 63;
    }
    let right = block[..32].as_chunks::<8>().0.iter().fold(0, |all, row| all | row[4] | row[5] | row[6] | row[7]);
    match right {
        0 if any(&block[1..32]) => 9,
        0 => 0,
        _ => 63,
    }
}

/// The state of a scan of AC coefficients.
struct Band<'t> {
    table: &'t HuffmanTable,
    first: usize,
    last: usize,
    low: u8,
    /// Number of blocks, starting with the next, in which the band has no more coefficients (EOBRUN).
    end_run: u32,
}

impl Band<'_> {
    /// Reads a block in the first scan of these coefficients.
    #[inline(always)]
    fn first_pass(&mut self, bits: &mut BitReader<'_>, block: &mut Block) -> Result<()> {
        if self.end_run > 0 {
            self.end_run -= 1;
            return Ok(());
        }
        let mut k = self.first;
        while k <= self.last {
            bits.ensure_32();
            let coefficient = self.table.coefficient(bits);
            let value = if coefficient.is_some() {
                k += coefficient.run();
                coefficient.take(bits)
            } else {
                let symbol = self.table.symbol(bits)?;
                let (run, size) = (symbol >> 4, u32::from(symbol & 15));
                if size == 0 && run < 15 {
                    self.end_run = (1 << run) + bits.take(run.into()) - 1;
                    return Ok(());
                }
                k += usize::from(run);
                if size == 0 {
                    k += 1;
                    continue;
                }
                bits.take_signed(size)
            };
            if k > self.last {
                return Err(TOO_MANY_COEFFICIENTS);
            }
            block[usize::from(ZIGZAG[k])] = (value << self.low) as i16;
            k += 1;
        }
        if k > self.last + 1 { Err(TOO_MANY_COEFFICIENTS) } else { Ok(()) }
    }

    /// Reads a block in a later scan, which adds one bit: it corrects the coefficients that are not zero, and sets
    /// those that become nonzero.
    fn refine(&mut self, bits: &mut BitReader<'_>, block: &mut Block) -> Result<()> {
        let one = 1i16 << self.low;
        let mut k = self.first;
        while self.end_run == 0 && k <= self.last {
            bits.ensure_32();
            let symbol = self.table.symbol(bits)?;
            let (run, size) = (symbol >> 4, symbol & 15);
            let new = match size {
                0 if run < 15 => {
                    self.end_run = (1 << run) + bits.take(run.into());
                    break;
                }
                0 => 0,
                1 if bits.take(1) != 0 => one,
                1 => -one,
                _ => return Err(JpegError::Corrupt("a later scan has a coefficient of more than one bit")),
            };
            k = self.correct(bits, block, k, run.into());
            if k > self.last {
                return Err(TOO_MANY_COEFFICIENTS);
            }
            if new != 0 {
                block[usize::from(ZIGZAG[k])] = new;
            }
            k += 1;
        }
        if self.end_run > 0 {
            self.correct(bits, block, k, usize::MAX);
            self.end_run -= 1;
        }
        Ok(())
    }

    /// Reads a correction for each nonzero coefficient from `k` on, until it has passed `zeros` coefficients that are
    /// zero. Returns the position of the next zero, or a position beyond the band.
    #[inline(always)]
    fn correct(&self, bits: &mut BitReader<'_>, block: &mut Block, mut k: usize, mut zeros: usize) -> usize {
        let one = 1i16 << self.low;
        while k <= self.last {
            let value = &mut block[usize::from(ZIGZAG[k & 63])];
            if *value == 0 {
                if zeros == 0 {
                    break;
                }
                zeros -= 1;
            } else if bits.take_bit() && (value.unsigned_abs() & one as u16) == 0 {
                *value = value.wrapping_add(if *value > 0 { one } else { -one });
            }
            k += 1;
        }
        k
    }
}

const TOO_MANY_COEFFICIENTS: JpegError = JpegError::Corrupt("a block has more coefficients than its scan");
