//! Huffman tables: from the counts and values of a DHT segment (C.2, F.2.2.3) to tables that are indexed by bits.
//!
//! A table is built when a scan uses it, not when it is read: a file may define any number of tables without using
//! them.

use super::bits::BitReader;
use super::error::{JpegError, Result};

/// Length of the longest codes that one look-up decodes, in bits.
const LOOKUP_BITS: u32 = 10;

/// Bits of the look-up that skips coefficients. With more bits it would skip more coefficients at once, but the table
/// would push other tables out of the fastest cache.
const SKIP_LOOKUP_BITS: u32 = 12;

/// A table as its segment defines it.
#[derive(Clone, Copy)]
pub(super) struct TableSpec<'a> {
    /// Number of codes of each length from 1 to 16 bits.
    pub(super) counts: [u8; 16],
    /// The values that the codes stand for, in the order of the codes.
    pub(super) values: &'a [u8],
}

/// The meaning of a table's values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TableClass {
    /// The size of a difference between DC coefficients.
    Dc,
    /// A run of zeros and the size of the AC coefficient after it.
    Ac,
}

/// A table ready for decoding.
pub(super) struct HuffmanTable {
    /// By the next [`LOOKUP_BITS`] bits: the value in the high byte and its code's length in the low one; 0 for longer
    /// codes.
    symbols: [u16; 1 << LOOKUP_BITS],
    /// By the next [`LOOKUP_BITS`] bits: a packed [`CoefficientEntry`].
    coefficients: [u32; 1 << LOOKUP_BITS],
    /// By the next [`SKIP_LOOKUP_BITS`] bits: a packed [`SkipEntry`]. Empty until [`HuffmanTable::build_skips`].
    skips: Vec<u16>,
    /// For each length, the first 16-bit string that is beyond the codes of that length.
    limits: [u32; 17],
    /// For each length, the number to add to a code to get its value's position, modulo 2^32.
    offsets: [u32; 17],
    values: [u8; 256],
}

/// The result of looking up an AC code that announces a coefficient.
///
/// It has the number of bits that code and coefficient take together, so that the next look-up need not wait until the
/// coefficient is made.
#[derive(Clone, Copy)]
pub(super) struct CoefficientEntry(u32);

impl CoefficientEntry {
    fn new(length: u32, run: u32, size: u32) -> Self {
        Self((length + size) | (length << 8) | (size << 16) | (run << 24))
    }

    /// Whether the bits contained such a code. If not, the other methods have no meaning.
    #[inline(always)]
    pub(super) fn is_some(self) -> bool {
        self.0 != 0
    }

    /// Number of zero coefficients before it.
    #[inline(always)]
    pub(super) fn run(self) -> usize {
        (self.0 >> 24) as usize
    }

    /// Takes code and coefficient, and returns the coefficient, which is not zero.
    #[inline(always)]
    pub(super) fn take(self, bits: &mut BitReader<'_>) -> i32 {
        let value = bits.peek_signed(self.0 >> 8 & 0xFF, self.0 >> 16 & 0xFF);
        bits.skip(self.0 & 0xFF);
        value
    }
}

/// The result of looking up one or more consecutive AC codes, with the bits that follow each.
#[derive(Clone, Copy)]
pub(super) struct SkipEntry(u16);

impl SkipEntry {
    fn new(length: u32, advance: usize, ends_block: bool) -> Self {
        Self(length as u16 | u16::from(ends_block) << 7 | (advance as u16) << 8)
    }

    /// Whether the bits contained a code. If not, the other methods have no meaning.
    #[inline(always)]
    pub(super) fn is_some(self) -> bool {
        self.0 != 0
    }

    /// Number of bits of all the codes and coefficients together: at most 32.
    #[inline(always)]
    pub(super) fn length(self) -> u32 {
        u32::from(self.0 & 0x7F)
    }

    /// Number of coefficients that the codes stand for.
    #[inline(always)]
    pub(super) fn advance(self) -> usize {
        usize::from(self.0 >> 8)
    }

    /// Whether the last code ends the block.
    #[inline(always)]
    pub(super) fn ends_block(self) -> bool {
        self.0 & 0x80 != 0
    }
}

impl HuffmanTable {
    /// Builds the look-up tables.
    ///
    /// # Errors
    /// The codes do not fit their lengths, or a value is out of range.
    pub(super) fn build(spec: &TableSpec<'_>, class: TableClass) -> Result<Box<Self>> {
        let total = spec.counts.iter().map(|&n| usize::from(n)).sum::<usize>();
        if total > 256 || total != spec.values.len() {
            return Err(JpegError::Corrupt("a Huffman table has more than 256 codes"));
        }
        if class == TableClass::Dc && spec.values.iter().any(|&size| size > 15) {
            return Err(JpegError::Corrupt("a Huffman table for DC coefficients has a size above 15"));
        }
        let mut table = Box::new(Self {
            symbols: [0; 1 << LOOKUP_BITS],
            coefficients: [0; 1 << LOOKUP_BITS],
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
                if length <= LOOKUP_BITS {
                    let first = (code << (LOOKUP_BITS - length)) as usize;
                    let entry = u16::from(table.values[position as usize]) << 8 | length as u16;
                    table.symbols[first..first + (1 << (LOOKUP_BITS - length))].fill(entry);
                }
                code += 1;
                position += 1;
            }
            table.limits[length as usize] = code << (16 - length);
            code <<= 1;
        }
        if class == TableClass::Ac {
            table.fill_coefficients();
        }
        Ok(table)
    }

    fn fill_coefficients(&mut self) {
        for (entry, &symbol) in self.coefficients.iter_mut().zip(&self.symbols) {
            let (length, run, size) = (u32::from(symbol & 0xFF), u32::from(symbol >> 12), u32::from(symbol >> 8 & 15));
            if size != 0 {
                *entry = CoefficientEntry::new(length, run, size).0;
            }
        }
    }

    /// Builds the table behind [`HuffmanTable::skip_entry`], if it is not there.
    pub(super) fn build_skips(&mut self) {
        if self.skips.is_empty() {
            self.skips = (0..1 << SKIP_LOOKUP_BITS).map(|bits| self.pack_skip(bits).0).collect();
        }
    }

    /// Goes from code to code while the codes lie within `bits`; the bits that follow the last code may lie beyond.
    fn pack_skip(&self, bits: u32) -> SkipEntry {
        let (mut used, mut advance, mut ends_block) = (0, 0, false);
        while used < SKIP_LOOKUP_BITS && !ends_block {
            let rest = bits << used & ((1 << SKIP_LOOKUP_BITS) - 1);
            let entry = self.symbols[(rest >> (SKIP_LOOKUP_BITS - LOOKUP_BITS)) as usize];
            let (length, run, size) = (u32::from(entry & 0xFF), usize::from(entry >> 12), u32::from(entry >> 8 & 15));
            if length == 0 || used + length > SKIP_LOOKUP_BITS {
                break;
            }
            used += length + size;
            ends_block = size == 0 && run < 15;
            advance += if ends_block { 0 } else { run + 1 };
        }
        SkipEntry::new(used, advance, ends_block)
    }

    /// Looks up the next bits as one or more AC codes. The bits must be available, and are not taken.
    #[inline(always)]
    pub(super) fn skip_entry(&self, bits: &BitReader<'_>) -> SkipEntry {
        SkipEntry(self.skips.get(bits.peek(SKIP_LOOKUP_BITS) as usize).copied().unwrap_or(0))
    }

    /// Looks up the next bits as an AC code that announces a coefficient. The bits must be available, and are not
    /// taken.
    #[inline(always)]
    pub(super) fn coefficient(&self, bits: &BitReader<'_>) -> CoefficientEntry {
        CoefficientEntry(self.coefficients[bits.peek(LOOKUP_BITS) as usize])
    }

    /// Takes one code and returns its value. At least 16 bits must be available.
    #[inline(always)]
    pub(super) fn symbol(&self, bits: &mut BitReader<'_>) -> Result<u8> {
        let entry = self.symbols[bits.peek(LOOKUP_BITS) as usize];
        if entry != 0 {
            bits.skip(u32::from(entry & 0xFF));
            return Ok((entry >> 8) as u8);
        }
        self.long_symbol(bits)
    }

    #[inline(never)]
    fn long_symbol(&self, bits: &mut BitReader<'_>) -> Result<u8> {
        let next = bits.peek(16);
        for length in LOOKUP_BITS + 1..=16 {
            if next < self.limits[length as usize] {
                let position = (next >> (16 - length)).wrapping_add(self.offsets[length as usize]);
                bits.skip(length);
                return Ok(self.values[position as usize & 0xFF]);
            }
        }
        Err(JpegError::Corrupt("its data has a code that no Huffman table defines"))
    }
}
