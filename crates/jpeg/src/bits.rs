//! Reads the bits of entropy-coded data: undoes byte stuffing, stops at markers, and detects reads past the end.
//!
//! Used by the Huffman decoders; does not interpret the bits. Past the end of the data it supplies zeros, so that the
//! loops above need no check for each symbol; they call [`BitReader::check_overrun`] after each row of MCUs instead.

use super::error::{JpegError, Result};
use super::marker;

/// A position in the entropy-coded data of one scan.
#[derive(Clone, Copy)]
pub(super) struct BitReader<'a> {
    data: &'a [u8],
    /// Position of the next byte to take; never beyond the marker that ends the data.
    position: usize,
    /// The next bits, starting at the highest. Below the first `count` there may be a few more bits of the data that
    /// follows: taking those bytes again sets the same bits.
    buffer: u64,
    count: u32,
    /// Number of zero bits appended since the data ended.
    padding: u64,
}

impl<'a> BitReader<'a> {
    /// Starts at the byte `position` of a file.
    pub(super) fn new(data: &'a [u8], position: usize) -> Self {
        Self { data, position, buffer: 0, count: 0, padding: 0 }
    }

    /// Makes at least 32 bits available: a Huffman code and the bits that follow it.
    #[inline(always)]
    pub(super) fn ensure_32(&mut self) {
        if self.count < 32 {
            self.refill();
        }
    }

    #[inline(always)]
    fn refill(&mut self) {
        if let Some(next) = self.data.get(self.position..).and_then(|rest| rest.first_chunk::<8>()) {
            let word = u64::from_be_bytes(*next);
            // Nonzero where a byte is FF: the usual test for a zero byte, on the complement.
            let has_ff = (!word).wrapping_sub(0x0101_0101_0101_0101) & word & 0x8080_8080_8080_8080;
            if has_ff == 0 {
                let bytes = (63 - self.count) >> 3;
                self.buffer |= word >> self.count;
                self.count += bytes * 8;
                self.position += bytes as usize;
                return;
            }
        }
        self.refill_by_byte();
    }

    #[inline(never)]
    fn refill_by_byte(&mut self) {
        while self.count <= 56 {
            // Data that has ended stays so. Looking again would read all fill bytes at the end for every few bits.
            let byte = if self.padding == 0 { self.take_byte() } else { None };
            let Some(byte) = byte else {
                let bits = 64 - self.count;
                self.padding += u64::from(bits);
                self.count = 64;
                return;
            };
            self.buffer |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
    }

    /// Takes the next byte of data. At a marker and at the end of the file it takes none and returns `None`.
    fn take_byte(&mut self) -> Option<u8> {
        let byte = *self.data.get(self.position)?;
        if byte != 0xFF {
            self.position += 1;
            return Some(byte);
        }
        // Any number of fill bytes may precede the byte that tells data from a marker.
        let rest = self.data.get(self.position..)?;
        let fill = rest.iter().position(|&b| b != 0xFF)?;
        (rest[fill] == 0).then(|| {
            self.position += fill + 1;
            0xFF
        })
    }

    /// The next `n` bits, 1 to 32 of them, without taking them.
    #[inline(always)]
    pub(super) fn peek(&self, n: u32) -> u32 {
        (self.buffer >> (64 - n)) as u32
    }

    /// Drops `n` bits, which [`BitReader::ensure_32`] has made available.
    #[inline(always)]
    pub(super) fn skip(&mut self, n: u32) {
        self.buffer <<= n;
        self.count -= n;
    }

    /// Takes `n` bits, 0 to 16, as a number. They must be available.
    #[inline(always)]
    pub(super) fn take(&mut self, n: u32) -> u32 {
        // Two shifts, because a shift by 64 is not allowed.
        let value = (self.buffer >> 1 >> (63 - n)) as u32;
        self.skip(n);
        value
    }

    /// Makes one bit available and takes it.
    #[inline(always)]
    pub(super) fn take_bit(&mut self) -> bool {
        self.ensure_32();
        self.take(1) != 0
    }

    /// Takes the `size` bits, 0 to 16, that follow a Huffman code, as the signed number they stand for (F.2.2.1,
    /// EXTEND).
    #[inline(always)]
    pub(super) fn take_signed(&mut self, size: u32) -> i32 {
        let value = self.peek_signed(0, size);
        self.skip(size);
        value
    }

    /// The signed number in the `size` bits that follow the next `before` bits, without taking any.
    #[inline(always)]
    pub(super) fn peek_signed(&self, before: u32, size: u32) -> i32 {
        let buffer = self.buffer << before;
        // A first bit of 0 marks a negative number, offset by 2^size - 1.
        let negative = !((buffer as i64) >> 63) as i32;
        let offset = (1i32 << size) - 1;
        (buffer >> 1 >> (63 - size)) as i32 - (offset & negative)
    }

    /// Whether more bits were taken than the data has.
    pub(super) fn is_overrun(&self) -> bool {
        self.padding > u64::from(self.count)
    }

    /// Fails if more bits were taken than the data has.
    pub(super) fn check_overrun(&self) -> Result<()> {
        if self.is_overrun() { Err(JpegError::Truncated) } else { Ok(()) }
    }

    /// Drops the rest of this restart interval and skips the marker that starts the next one, which must have the
    /// number `expected`.
    pub(super) fn restart(&mut self, expected: u8) -> Result<()> {
        self.check_overrun()?;
        match marker::next(self.data, self.position) {
            Some((code, after)) if code == marker::RST0 + expected => {
                *self = Self::new(self.data, after);
                Ok(())
            }
            Some((marker::RST0..=marker::RST7, _)) => Err(JpegError::Corrupt("a restart marker is out of order")),
            _ => Err(JpegError::Truncated),
        }
    }

    /// Ends a scan and returns the position of the first byte that was not taken.
    pub(super) fn finish(self) -> Result<usize> {
        self.check_overrun()?;
        Ok(self.position)
    }
}
