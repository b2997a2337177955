//! Scans of progressive files (annex G): each adds to the coefficients of all blocks, which are kept until the last scan.
//!
//! Where a block becomes one sample, only its DC coefficient is kept, and the scans of the others are stepped over.

use super::bits::BitReader;
use super::error::{JpegError, Result};
use super::frame::{Component, Frame};
use super::header::{Parser, Scan, ZIGZAG};
use super::huffman::HuffmanTable;
use super::idct::{self, Block};
use super::plane::Plane;
use super::scan::{self, Restarts, Tables};

/// Says of a coefficient that no scan had it yet.
const ABSENT: u8 = u8::MAX;

/// The coefficients of all components.
pub(super) struct Coefficients {
    /// By component: blocks row by row, as many coefficients each as are kept.
    components: Vec<Vec<i16>>,
    /// By component and position in zigzag order: how many low bits are missing.
    missing: [[u8; 64]; 4],
}

impl Coefficients {
    /// Makes room for a frame's coefficients.
    pub(super) fn new(frame: &Frame) -> Self {
        let components = frame.components.iter().map(|c| vec![0; c.padded_wide * c.padded_high * kept(c)]).collect();
        Self { components, missing: [[ABSENT; 64]; 4] }
    }

    /// What those of a component take.
    pub(super) fn bytes(component: &Component) -> u64 {
        (component.padded_wide * component.padded_high) as u64 * kept(component) as u64 * 2
    }

    /// Whether every component has its DC coefficients, if not all bits of them: a picture can be made.
    pub(super) fn usable(&self) -> bool {
        self.missing[..self.components.len()].iter().all(|bits| bits[0] != ABSENT)
    }

    /// Whether nothing is missing.
    pub(super) fn complete(&self) -> bool {
        self.missing[..self.components.len()].iter().flatten().all(|&bits| bits == 0)
    }

    /// Decodes a scan; gives where its data ends.
    pub(super) fn decode(&mut self, parser: &Parser<'_>, frame: &Frame, scan: &Scan) -> Result<usize> {
        let parts = || scan.components.iter().map(|c| &frame.components[c.index]);
        let stepped_over = scan.first > 0 && parts().all(|c| kept(c) == 1);
        if stepped_over {
            self.note(scan);
            return scan::end(parser);
        }
        let mut bits = BitReader::new(parser.data, parser.at);
        let tables = Tables::build(parser, scan, scan.first == 0 && scan.high == 0, scan.first > 0)?;
        let result = if scan.first == 0 {
            self.dc_scan(&mut bits, parser, frame, scan, &tables)
        } else {
            self.ac_scan(&mut bits, parser, frame, scan, &tables)
        };
        result.map_err(|e| scan::explain(e, &bits))?;
        self.note(scan);
        bits.finish()
    }

    /// Remembers which coefficients a scan had.
    fn note(&mut self, scan: &Scan) {
        for component in &scan.components {
            self.missing[component.index][scan.first..=scan.last].fill(scan.low);
        }
    }

    /// G.1.2.1: differences of DC coefficients without their low bits, then those bits one by one.
    fn dc_scan(
        &mut self,
        bits: &mut BitReader<'_>,
        parser: &Parser<'_>,
        frame: &Frame,
        scan: &Scan,
        tables: &Tables,
    ) -> Result<()> {
        let (wide, high) = scan::extent(frame, scan);
        let mut restarts = Restarts::new(parser.restart_interval);
        let mut previous = [0i32; 4];
        for row in 0..high {
            for column in 0..wide {
                if restarts.next(bits)? {
                    previous = [0; 4];
                }
                for component in &scan.components {
                    let (h, v) = scan::factors(frame, scan, component.index);
                    let Component { padded_wide: stride, .. } = frame.components[component.index];
                    let kept = kept(&frame.components[component.index]);
                    let blocks = &mut self.components[component.index];
                    for (y, x) in (0..v).flat_map(|y| (0..h).map(move |x| (y, x))) {
                        let dc = &mut blocks[((row * v + y) * stride + column * h + x) * kept];
                        if scan.high == 0 {
                            bits.need_32();
                            let size = tables.dc(component.dc)?.symbol(bits)?;
                            let value = &mut previous[component.index];
                            *value = value.wrapping_add(bits.take_signed(size.into()));
                            *dc = (*value << scan.low) as i16;
                        } else if bits.bit() {
                            *dc |= 1 << scan.low;
                        }
                    }
                }
            }
            bits.check()?;
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
        tables: &Tables,
    ) -> Result<()> {
        let (wide, high) = scan::extent(frame, scan);
        let mut restarts = Restarts::new(parser.restart_interval);
        for component in &scan.components {
            let stride = frame.components[component.index].padded_wide;
            let table = tables.ac(component.ac)?;
            let mut band = Band { table, first: scan.first, last: scan.last, low: scan.low, ended: 0 };
            let blocks = self.components[component.index].as_chunks_mut::<64>().0;
            for row in 0..high {
                for block in &mut blocks[row * stride..][..wide] {
                    if restarts.next(bits)? {
                        band.ended = 0;
                    }
                    if scan.high == 0 {
                        band.begin(bits, block)?;
                    } else {
                        band.refine(bits, block)?;
                    }
                }
                bits.check()?;
            }
        }
        Ok(())
    }

    /// Makes the samples of all blocks, a row of MCUs at a time, calling `done` after each with how many there are.
    pub(super) fn make_samples(
        &self,
        frame: &Frame,
        quantisation: &[[u16; 64]; 4],
        planes: &mut [Plane],
        mut done: impl FnMut(&[Plane], usize),
    ) {
        for row in 0..frame.mcus_high {
            for (index, (plane, component)) in planes.iter_mut().zip(&frame.components).enumerate() {
                let (stride, size, table) = (plane.stride, component.size, &quantisation[index]);
                let strip = plane.block_rows(row * component.v, component.v).chunks_exact_mut(stride * size);
                let blocks = self.components[index].chunks_exact(component.padded_wide * kept(component));
                for (out, blocks) in strip.zip(blocks.skip(row * component.v)) {
                    if kept(component) == 1 {
                        for (out, &dc) in out.iter_mut().zip(blocks) {
                            idct::flat::<1>(dc, table[0], std::slice::from_mut(out), 1);
                        }
                        continue;
                    }
                    for (x, block) in blocks.as_chunks::<64>().0.iter().take(component.blocks_wide).enumerate() {
                        idct::samples(size, block, table, extent(block), &mut out[x * size..], stride);
                    }
                }
            }
            done(planes, row + 1);
        }
    }
}

/// How many coefficients of each block a component's samples take.
fn kept(component: &Component) -> usize {
    if component.size == 1 { 1 } else { 64 }
}

/// A bound on the position in zigzag order of the last coefficient that is not zero, as far as it matters.
fn extent(block: &Block) -> usize {
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
    /// For how many blocks to come the band has ended before it began.
    ended: u32,
}

impl Band<'_> {
    /// The first scan of these coefficients.
    #[inline(always)]
    fn begin(&mut self, bits: &mut BitReader<'_>, block: &mut Block) -> Result<()> {
        if self.ended > 0 {
            self.ended -= 1;
            return Ok(());
        }
        let mut k = self.first;
        while k <= self.last {
            bits.need_32();
            let coefficient = self.table.coefficient(bits);
            let value = if coefficient.is_some() {
                k += coefficient.run();
                coefficient.take(bits)
            } else {
                let symbol = self.table.symbol(bits)?;
                let (run, size) = (symbol >> 4, u32::from(symbol & 15));
                if size == 0 && run < 15 {
                    self.ended = (1 << run) + bits.take(run.into()) - 1;
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
                return Err(TOO_FAR);
            }
            block[usize::from(ZIGZAG[k])] = (value << self.low) as i16;
            k += 1;
        }
        if k > self.last + 1 { Err(TOO_FAR) } else { Ok(()) }
    }

    /// A later scan, which adds one bit: it corrects the coefficients that are not zero, and sets others that become so.
    fn refine(&mut self, bits: &mut BitReader<'_>, block: &mut Block) -> Result<()> {
        let one = 1i16 << self.low;
        let mut k = self.first;
        while self.ended == 0 && k <= self.last {
            bits.need_32();
            let symbol = self.table.symbol(bits)?;
            let (run, size) = (symbol >> 4, symbol & 15);
            let new = match size {
                0 if run < 15 => {
                    self.ended = (1 << run) + bits.take(run.into());
                    break;
                }
                0 => 0,
                1 if bits.take(1) != 0 => one,
                1 => -one,
                _ => return Err(JpegError::Corrupt("a later scan has a coefficient of more than one bit")),
            };
            k = self.correct(bits, block, k, run.into());
            if k > self.last {
                return Err(TOO_FAR);
            }
            if new != 0 {
                block[usize::from(ZIGZAG[k])] = new;
            }
            k += 1;
        }
        if self.ended > 0 {
            self.correct(bits, block, k, usize::MAX);
            self.ended -= 1;
        }
        Ok(())
    }

    /// Reads a correction for each coefficient from `k` that is not zero, until `zeros` that are zero are passed; gives
    /// the position of the next that is zero, or beyond the band.
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
            } else if bits.bit() && (value.unsigned_abs() & one as u16) == 0 {
                *value = value.wrapping_add(if *value > 0 { one } else { -one });
            }
            k += 1;
        }
        k
    }
}

const TOO_FAR: JpegError = JpegError::Corrupt("a block has more coefficients than its scan");
