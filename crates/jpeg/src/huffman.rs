//! Huffman tables: from the counts and values of a DHT segment (C.2, F.2.2.3) to tables that are looked up by bits.
//!
//! A table is built when a scan uses it, not when it is read: a file may define any number without using them.

use super::bits::BitReader;
use super::error::{JpegError, Result};

/// Codes up to this long are decoded by one look-up.
const LOOK: u32 = 10;

/// Bits that are looked at to step over coefficients. More would find more of them at once, but the table would crowd out
/// others from the fastest cache.
const LOOK_FAR: u32 = 12;

/// A table as its segment defines it.
#[derive(Clone, Copy)]
pub(super) struct TableSpec<'a> {
    /// How many codes there are of each length from 1 to 16 bits.
    pub(super) counts: [u8; 16],
    /// What the codes stand for, in the order of their codes.
    pub(super) values: &'a [u8],
}

/// What a table's values mean.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// The size of a difference between DC coefficients.
    Dc,
    /// A run of zeros and the size of the AC coefficient after it.
    Ac,
}

/// A table ready for decoding.
pub(super) struct HuffmanTable {
    /// By the next [`LOOK`] bits: the value in the high byte and its code's length in the low one; 0 for longer codes.
    symbols: [u16; 1 << LOOK],
    /// By the next [`LOOK`] bits: what [`Coefficient`] unpacks.
    coefficients: [u32; 1 << LOOK],
    /// By the next [`LOOK_FAR`] bits: what [`Several`] unpacks. Empty until [`HuffmanTable::fill_skips`].
    skips: Vec<u16>,
    /// For each length, the first 16-bit string that is beyond the codes of that length.
    limits: [u32; 17],
    /// For each length, what to add to a code to have its value's position, modulo 2^32.
    offsets: [u32; 17],
    values: [u8; 256],
}

/// A look-up of an AC code that announces a coefficient.
///
/// It knows at once how many bits code and coefficient take together, so that the next look-up need not wait for the
/// coefficient to be made.
#[derive(Clone, Copy)]
pub(super) struct Coefficient(u32);

impl Coefficient {
    fn new(length: u32, run: u32, size: u32) -> Self {
        Self((length + size) | (length << 8) | (size << 16) | (run << 24))
    }

    /// Whether such a code lay within the bits looked at, so that the other methods mean something.
    #[inline(always)]
    pub(super) fn is_some(self) -> bool {
        self.0 != 0
    }

    /// How many zero coefficients stand before it.
    #[inline(always)]
    pub(super) fn run(self) -> usize {
        (self.0 >> 24) as usize
    }

    /// Takes code and coefficient, and gives the coefficient; it is not zero.
    #[inline(always)]
    pub(super) fn take(self, bits: &mut BitReader<'_>) -> i32 {
        let value = bits.peek_signed(self.0 >> 8 & 0xFF, self.0 >> 16 & 0xFF);
        bits.skip(self.0 & 0xFF);
        value
    }
}

/// A look-up of one AC code or several in a row, with the bits that follow each.
#[derive(Clone, Copy)]
pub(super) struct Several(u16);

impl Several {
    fn new(length: u32, advance: usize, ends_block: bool) -> Self {
        Self(length as u16 | u16::from(ends_block) << 7 | (advance as u16) << 8)
    }

    /// Whether there was a code within the bits looked at, so that the other methods mean something.
    #[inline(always)]
    pub(super) fn is_some(self) -> bool {
        self.0 != 0
    }

    /// The bits that all of them take: at most 32.
    #[inline(always)]
    pub(super) fn length(self) -> u32 {
        u32::from(self.0 & 0x7F)
    }

    /// How many coefficients they stand for.
    #[inline(always)]
    pub(super) fn advance(self) -> usize {
        usize::from(self.0 >> 8)
    }

    /// Whether the last one says that there are no more in this block.
    #[inline(always)]
    pub(super) fn ends_block(self) -> bool {
        self.0 & 0x80 != 0
    }
}

impl HuffmanTable {
    /// Builds the look-up tables. Codes that do not fit their lengths and values out of range are errors.
    pub(super) fn build(spec: &TableSpec<'_>, class: Class) -> Result<Box<Self>> {
        let total = spec.counts.iter().map(|&n| usize::from(n)).sum::<usize>();
        if total > 256 || total != spec.values.len() {
            return Err(JpegError::Corrupt("a Huffman table has more than 256 codes"));
        }
        if class == Class::Dc && spec.values.iter().any(|&size| size > 15) {
            return Err(JpegError::Corrupt("a Huffman table for DC coefficients has a size above 15"));
        }
        let mut table = Box::new(Self {
            symbols: [0; 1 << LOOK],
            coefficients: [0; 1 << LOOK],
            skips: Vec::new(),
            limits: [0; 17],
            offsets: [0; 17],
            values: [0; 256],
        });
        table.values[..total].copy_from_slice(spec.values);

        let (mut code, mut position) = (0u32, 0u32);
        for (length, &count) in (1u32..).zip(&spec.counts) {
            table.offsets[length as usize] = position.wrapping_sub(code);
            for _ in 0..count {
                if code >> length != 0 {
                    return Err(JpegError::Corrupt("a Huffman table has more codes than fit their lengths"));
                }
                if length <= LOOK {
                    let first = (code << (LOOK - length)) as usize;
                    let entry = u16::from(table.values[position as usize]) << 8 | length as u16;
                    table.symbols[first..first + (1 << (LOOK - length))].fill(entry);
                }
                code += 1;
                position += 1;
            }
            table.limits[length as usize] = code << (16 - length);
            code <<= 1;
        }
        if class == Class::Ac {
            table.fill_coefficients();
        }
        Ok(table)
    }

    fn fill_coefficients(&mut self) {
        for (entry, &symbol) in self.coefficients.iter_mut().zip(&self.symbols) {
            let (length, run, size) = (u32::from(symbol & 0xFF), u32::from(symbol >> 12), u32::from(symbol >> 8 & 15));
            if size != 0 {
                *entry = Coefficient::new(length, run, size).0;
            }
        }
    }

    /// Makes [`HuffmanTable::several`] usable.
    pub(super) fn fill_skips(&mut self) {
        if self.skips.is_empty() {
            self.skips = (0..1 << LOOK_FAR).map(|bits| self.walk(bits).0).collect();
        }
    }

    /// Goes from code to code while they lie within the bits looked at; what follows the last one need not.
    fn walk(&self, bits: u32) -> Several {
        let (mut used, mut advance, mut ends_block) = (0, 0, false);
        while used < LOOK_FAR && !ends_block {
            let rest = bits << used & ((1 << LOOK_FAR) - 1);
            let entry = self.symbols[(rest >> (LOOK_FAR - LOOK)) as usize];
            let (length, run, size) = (u32::from(entry & 0xFF), usize::from(entry >> 12), u32::from(entry >> 8 & 15));
            if length == 0 || used + length > LOOK_FAR {
                break;
            }
            used += length + size;
            ends_block = size == 0 && run < 15;
            advance += if ends_block { 0 } else { run + 1 };
        }
        Several::new(used, advance, ends_block)
    }

    /// Looks the next bits up as one or several AC codes. They must be available, and are not taken.
    #[inline(always)]
    pub(super) fn several(&self, bits: &BitReader<'_>) -> Several {
        Several(self.skips.get(bits.peek(LOOK_FAR) as usize).copied().unwrap_or(0))
    }

    /// Looks the next bits up as an AC code that announces a coefficient. They must be available, and are not taken.
    #[inline(always)]
    pub(super) fn coefficient(&self, bits: &BitReader<'_>) -> Coefficient {
        Coefficient(self.coefficients[bits.peek(LOOK) as usize])
    }

    /// Takes one code and gives its value. At least 16 bits must be available.
    #[inline(always)]
    pub(super) fn symbol(&self, bits: &mut BitReader<'_>) -> Result<u8> {
        let entry = self.symbols[bits.peek(LOOK) as usize];
        if entry != 0 {
            bits.skip(u32::from(entry & 0xFF));
            return Ok((entry >> 8) as u8);
        }
        self.long_symbol(bits)
    }

    #[inline(never)]
    fn long_symbol(&self, bits: &mut BitReader<'_>) -> Result<u8> {
        let next = bits.peek(16);
        for length in LOOK + 1..=16 {
            if next < self.limits[length as usize] {
                let position = (next >> (16 - length)).wrapping_add(self.offsets[length as usize]);
                bits.skip(length);
                return Ok(self.values[position as usize & 0xFF]);
            }
        }
        Err(JpegError::Corrupt("its data has a code that no Huffman table defines"))
    }
}
