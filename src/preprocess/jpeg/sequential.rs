//! Scans of sequential files (F.2): every block is complete as it is read, and goes straight into the planes.

use super::bits::BitReader;
use super::error::{JpegError, Result};
use super::frame::{BLOCK, Frame};
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
    let tables = Tables::build(parser, scan, true, true)?;
    let mut parts = Vec::with_capacity(4);
    for component in &scan.components {
        let index = component.index;
        let (h, v) = scan::factors(frame, scan, index);
        let (dc, ac) = (tables.dc(component.dc)?, tables.ac(component.ac)?);
        parts.push(Part { index, h, v, dc, ac, quantisation: &quantisation[index], previous: 0 });
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
                    block.fill(0);
                    let last = decode_block(bits, part, &mut block)?;
                    let at = y * BLOCK * *stride + (column * part.h + x) * BLOCK;
                    idct::block(&block, part.quantisation, last, &mut strip[at..], *stride);
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

#[inline(always)]
fn read_coefficients(bits: &mut BitReader<'_>, part: &mut Part<'_>, block: &mut Block) -> Result<usize> {
    bits.need_32();
    let size = part.dc.symbol(bits)?;
    part.previous = part.previous.wrapping_add(bits.take_signed(size.into()));
    block[0] = part.previous as i16;

    let (mut k, mut last) = (1, 0);
    while k < 64 {
        bits.need_32();
        let coefficient = part.ac.coefficient(bits);
        if coefficient.is_complete() {
            k += coefficient.run();
            bits.skip(coefficient.length());
            if k > 63 {
                return Err(TOO_FAR);
            }
            block[usize::from(ZIGZAG[k])] = coefficient.value();
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
