//! Scans of sequential files (F.2): every block is complete as it is read, and goes straight into the planes.

use super::bits::BitReader;
use super::error::{JpegError, Result};
use super::frame::Frame;
use super::header::{Parser, Scan, ZIGZAG};
use super::huffman::HuffmanTable;
use super::idct::{self, Block};
use super::plane::Plane;
use super::scan::{self, Restarts, Tables};

/// A component's part in a scan.
struct Part<'t> {
    index: usize,
    h: usize,
    v: usize,
    /// Samples along each side of a block.
    size: usize,
    dc: &'t HuffmanTable,
    ac: &'t HuffmanTable,
    quantisation: &'t [u16; 64],
    /// The DC coefficient of the block before.
    previous: i32,
}

/// Decodes a scan into the planes, calling `done` after each row of MCUs with how many there are; gives where its data
/// ends.
pub(super) fn decode(
    parser: &Parser<'_>,
    frame: &Frame,
    scan: &Scan,
    quantisation: &[[u16; 64]; 4],
    planes: &mut [Plane],
    mut done: impl FnMut(&[Plane], usize),
) -> Result<usize> {
    let mut tables = Tables::build(parser, scan, true, true)?;
    for component in &scan.components {
        if frame.components[component.index].size == 1 {
            tables.prepare_skipping(component.ac);
        }
    }
    let mut parts = Vec::with_capacity(4);
    for component in &scan.components {
        let index = component.index;
        let (h, v) = scan::factors(frame, scan, index);
        let (dc, ac) = (tables.dc(component.dc)?, tables.ac(component.ac)?);
        let size = frame.components[index].size;
        parts.push(Part { index, h, v, size, dc, ac, quantisation: &quantisation[index], previous: 0 });
    }

    let (wide, high) = scan::extent(frame, scan);
    let mut bits = BitReader::new(parser.data, parser.at);
    let mut restarts = Restarts::new(parser.restart_interval);
    for row in 0..high {
        mcu_row(&mut bits, &mut restarts, &mut parts, planes, (row, wide)).map_err(|e| scan::explain(e, &bits))?;
        bits.check()?;
        done(planes, row + 1);
    }
    bits.finish()
}

fn mcu_row(
    bits: &mut BitReader<'_>,
    restarts: &mut Restarts,
    parts: &mut [Part<'_>],
    planes: &mut [Plane],
    (row, wide): (usize, usize),
) -> Result<()> {
    // By the frame's order of components; a scan may have another.
    let mut strips: [(&mut [u8], usize); 4] = Default::default();
    for (index, (strip, plane)) in strips.iter_mut().zip(planes).enumerate() {
        if let Some(part) = parts.iter().find(|part| part.index == index) {
            let stride = plane.stride;
            *strip = (plane.block_rows(row * part.v, part.v), stride);
        }
    }
    let mut block: Block = [0; 64];
    for column in 0..wide {
        if restarts.next(bits)? {
            parts.iter_mut().for_each(|part| part.previous = 0);
        }
        for part in &mut *parts {
            let (strip, stride) = &mut strips[part.index];
            for y in 0..part.v {
                for x in 0..part.h {
                    let size = part.size;
                    let at = y * size * *stride + (column * part.h + x) * size;
                    let out = &mut strip[at..];
                    if size == 1 {
                        let dc = skip_block(bits, part)?;
                        idct::flat::<1>(dc, part.quantisation[0], out, *stride);
                        continue;
                    }
                    block.fill(0);
                    let last = decode_block(bits, part, &mut block)?;
                    idct::samples(size, &block, part.quantisation, last, out, *stride);
                }
            }
        }
    }
    Ok(())
}

/// Reads one block (F.2.2); gives the position in zigzag order of the last coefficient that it has.
#[inline(always)]
fn decode_block(reader: &mut BitReader<'_>, part: &mut Part<'_>, block: &mut Block) -> Result<usize> {
    // A copy, which the compiler keeps in registers.
    let mut bits = *reader;
    let result = read_coefficients(&mut bits, part, block);
    *reader = bits;
    result
}

/// The same for the DC coefficient alone.
#[inline(always)]
fn skip_block(reader: &mut BitReader<'_>, part: &mut Part<'_>) -> Result<i16> {
    let mut bits = *reader;
    let dc = read_dc(&mut bits, part).and_then(|dc| skip_coefficients(&mut bits, part.ac).map(|()| dc));
    *reader = bits;
    dc
}

#[inline(always)]
fn read_dc(bits: &mut BitReader<'_>, part: &mut Part<'_>) -> Result<i16> {
    bits.need_32();
    let size = part.dc.symbol(bits)?;
    part.previous = part.previous.wrapping_add(bits.take_signed(size.into()));
    Ok(part.previous as i16)
}

/// Steps over the AC coefficients of a block, with the same errors as if they were read.
#[inline(always)]
fn skip_coefficients(bits: &mut BitReader<'_>, table: &HuffmanTable) -> Result<()> {
    let mut k = 1;
    while k < 64 {
        bits.need_32();
        let several = table.several(bits);
        // The block may end within what was looked up: then its codes are taken one by one.
        if several.is_some() && k + several.advance() < 64 {
            bits.skip(several.length());
            k += several.advance();
            if several.ends_block() {
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
    if k > 64 { Err(TOO_FAR) } else { Ok(()) }
}

#[inline(always)]
fn read_coefficients(bits: &mut BitReader<'_>, part: &mut Part<'_>, block: &mut Block) -> Result<usize> {
    block[0] = read_dc(bits, part)?;
    let (mut k, mut last) = (1, 0);
    while k < 64 {
        bits.need_32();
        let coefficient = part.ac.coefficient(bits);
        if coefficient.is_some() {
            k += coefficient.run();
            let value = coefficient.take(bits);
            if k > 63 {
                return Err(TOO_FAR);
            }
            block[usize::from(ZIGZAG[k])] = value as i16;
            last = k;
            k += 1;
            continue;
        }
        let symbol = part.ac.symbol(bits)?;
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
            return Err(TOO_FAR);
        }
        block[usize::from(ZIGZAG[k])] = bits.take_signed(size) as i16;
        last = k;
        k += 1;
    }
    // Sixteen zeros may not lead beyond the block either.
    if k > 64 { Err(TOO_FAR) } else { Ok(last) }
}

const TOO_FAR: JpegError = JpegError::Corrupt("a block has more than 64 coefficients");
