//! Scans of sequential files (F.2): every block is complete when it is read, and its samples go straight into the
//! planes.

use super::bits::BitReader;
use super::block::{Block, ZIGZAG};
use super::error::{JpegError, Result};
use super::frame::Frame;
use super::header::{Parser, Scan};
use super::huffman::HuffmanTable;
use super::idct;
use super::plane::Plane;
use super::scan::{self, HuffmanTables, Restarts};

/// The decoding state of one component of a scan.
struct ComponentState<'t> {
    /// Index into the frame's components.
    index: usize,
    /// Blocks in each MCU: in a row, and rows of them.
    h: usize,
    v: usize,
    /// Samples along each side of a block.
    block_side: usize,
    dc: &'t HuffmanTable,
    ac: &'t HuffmanTable,
    quantisation: &'t [u16; 64],
    /// The DC coefficient of the block before.
    previous_dc: i32,
}

/// Decodes a scan into the planes and returns the position where its data ends. Calls `on_mcu_row` after each row of
/// MCUs with the number of rows so far.
pub(super) fn decode(
    parser: &Parser<'_>,
    frame: &Frame,
    scan: &Scan,
    quantisation: &[[u16; 64]; 4],
    planes: &mut [Plane],
    mut on_mcu_row: impl FnMut(&[Plane], usize),
) -> Result<usize> {
    let mut tables = HuffmanTables::build(parser, scan, true, true)?;
    for component in &scan.components {
        if frame.components[component.index].block_side == 1 {
            tables.prepare_skipping(component.ac);
        }
    }
    let mut components = Vec::with_capacity(4);
    for component in &scan.components {
        let index = component.index;
        let (h, v) = scan::blocks_per_mcu(frame, scan, index);
        let (dc, ac) = (tables.dc(component.dc)?, tables.ac(component.ac)?);
        let block_side = frame.components[index].block_side;
        let quantisation = &quantisation[index];
        components.push(ComponentState { index, h, v, block_side, dc, ac, quantisation, previous_dc: 0 });
    }

    let (mcus_wide, mcus_high) = scan::mcu_extent(frame, scan);
    let mut bits = BitReader::new(parser.data, parser.position);
    let mut restarts = Restarts::new(parser.restart_interval);
    for row in 0..mcus_high {
        decode_mcu_row(&mut bits, &mut restarts, &mut components, planes, row, mcus_wide)
            .map_err(|e| scan::prefer_truncated(e, &bits))?;
        bits.check_overrun()?;
        on_mcu_row(planes, row + 1);
    }
    bits.finish()
}

/// Decodes row `row` of MCUs, which has `mcus_wide` of them.
fn decode_mcu_row(
    bits: &mut BitReader<'_>,
    restarts: &mut Restarts,
    components: &mut [ComponentState<'_>],
    planes: &mut [Plane],
    row: usize,
    mcus_wide: usize,
) -> Result<()> {
    // The samples and the stride of each plane, in the frame's order of components; a scan may have another order.
    let mut strips: [(&mut [u8], usize); 4] = Default::default();
    for (index, (strip, plane)) in strips.iter_mut().zip(planes).enumerate() {
        if let Some(component) = components.iter().find(|component| component.index == index) {
            let stride = plane.stride;
            *strip = (plane.block_rows_mut(row * component.v, component.v), stride);
        }
    }
    let mut block: Block = [0; 64];
    for column in 0..mcus_wide {
        if restarts.before_mcu(bits)? {
            components.iter_mut().for_each(|component| component.previous_dc = 0);
        }
        for component in &mut *components {
            let (strip, stride) = &mut strips[component.index];
            for y in 0..component.v {
                for x in 0..component.h {
                    let side = component.block_side;
                    let start = y * side * *stride + (column * component.h + x) * side;
                    let out = &mut strip[start..];
                    if side == 1 {
                        let dc = decode_dc_only(bits, component)?;
                        idct::flat::<1>(dc, component.quantisation[0], out, *stride);
                        continue;
                    }
                    block.fill(0);
                    let last = decode_block(bits, component, &mut block)?;
                    idct::samples(side, &block, component.quantisation, last, out, *stride);
                }
            }
        }
    }
    Ok(())
}

/// Reads one block (F.2.2) and returns the position in zigzag order of its last coefficient.
#[inline(always)]
fn decode_block(reader: &mut BitReader<'_>, component: &mut ComponentState<'_>, block: &mut Block) -> Result<usize> {
    // A copy, which the compiler keeps in registers.
    let mut bits = *reader;
    let result = read_coefficients(&mut bits, component, block);
    *reader = bits;
    result
}

/// Reads one block and returns its DC coefficient. The other coefficients are skipped.
#[inline(always)]
fn decode_dc_only(reader: &mut BitReader<'_>, component: &mut ComponentState<'_>) -> Result<i16> {
    let mut bits = *reader;
    let dc = read_dc(&mut bits, component).and_then(|dc| skip_coefficients(&mut bits, component.ac).map(|()| dc));
    *reader = bits;
    dc
}

#[inline(always)]
fn read_dc(bits: &mut BitReader<'_>, component: &mut ComponentState<'_>) -> Result<i16> {
    bits.ensure_32();
    let size = component.dc.symbol(bits)?;
    component.previous_dc = component.previous_dc.wrapping_add(bits.take_signed(size.into()));
    Ok(component.previous_dc as i16)
}

/// Skips the AC coefficients of a block, with the same errors as if they were read.
#[inline(always)]
fn skip_coefficients(bits: &mut BitReader<'_>, table: &HuffmanTable) -> Result<()> {
    let mut k = 1;
    while k < 64 {
        bits.ensure_32();
        let entry = table.skip_entry(bits);
        // The block may end within the codes of the entry: then they are taken one by one.
        if entry.is_some() && k + entry.advance() < 64 {
            bits.skip(entry.length());
            k += entry.advance();
            if entry.ends_block() {
                return Ok(());
            }
            continue;
        }
        let symbol = table.symbol(bits)?;
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 && run < 15 {
            return Ok(());
        }
        bits.skip(size);
        k += run + 1;
    }
    if k > 64 { Err(TOO_MANY_COEFFICIENTS) } else { Ok(()) }
}

#[inline(always)]
fn read_coefficients(bits: &mut BitReader<'_>, component: &mut ComponentState<'_>, block: &mut Block) -> Result<usize> {
    block[0] = read_dc(bits, component)?;
    let (mut k, mut last) = (1, 0);
    while k < 64 {
        bits.ensure_32();
        let coefficient = component.ac.coefficient(bits);
        if coefficient.is_some() {
            k += coefficient.run();
            let value = coefficient.take(bits);
            if k > 63 {
                return Err(TOO_MANY_COEFFICIENTS);
            }
            block[usize::from(ZIGZAG[k])] = value as i16;
            last = k;
            k += 1;
            continue;
        }
        let symbol = component.ac.symbol(bits)?;
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 {
            if run < 15 {
                break;
            }
            k += 16;
            continue;
        }
        k += run;
        if k > 63 {
            return Err(TOO_MANY_COEFFICIENTS);
        }
        block[usize::from(ZIGZAG[k])] = bits.take_signed(size) as i16;
        last = k;
        k += 1;
    }
    // A run of sixteen zeros may not lead beyond the block either.
    if k > 64 { Err(TOO_MANY_COEFFICIENTS) } else { Ok(last) }
}

const TOO_MANY_COEFFICIENTS: JpegError = JpegError::Corrupt("a block has more than 64 coefficients");
