//! Reads the bits of entropy-coded data: undoes byte stuffing, stops at markers, and knows when it was read past its end.
//!
//! Below the Huffman decoders; knows nothing of what the bits mean. Past the end of the data it supplies zeros, so that
//! the loops above need no check for each symbol; they ask [`BitReader::overrun`] once in a while instead.

use super::error::{JpegError, Result};
use super::marker;

/// A position in the entropy-coded data of one scan.
#[derive(Clone, Copy)]
pub(super) struct BitReader<'a> {
    data: &'a [u8],
    /// The next byte to take; never beyond the marker that ends the data.
    at: usize,
    /// The bits to come, from the top. Below the first `count` there may be a few more of the data that follows: taking
    /// those bytes again sets the same bits.
    buffer: u64,
    count: u32,
    /// How many zeros have been appended since the data ended.
    padding: u64,
}

impl<'a> BitReader<'a> {
    /// Starts at the byte `at` of a file.
    pub(super) fn new(data: &'a [u8], at: usize) -> Self {
        Self { data, at, buffer: 0, count: 0, padding: 0 }
    }

    /// Makes at least 32 bits available: a Huffman code and the bits that follow it.
    #[inline(always)]
    pub(super) fn need_32(&mut self) {
        if self.count < 32 {
            self.refill();
        }
    }

    #[inline(always)]
    fn refill(&mut self) {
        if let Some(next) = self.data.get(self.at..).and_then(|rest| rest.first_chunk::<8>()) {
            let word = u64::from_be_bytes(*next);
            // Nonzero where a byte is FF: the usual test for a zero byte, on the complement.
            let has_ff = (!word).wrapping_sub(0x0101_0101_0101_0101) & word & 0x8080_8080_8080_8080;
            if has_ff == 0 {
                let bytes = (63 - self.count) >> 3;
                self.buffer |= word >> self.count;
                self.count += bytes * 8;
                self.at += bytes as usize;
                return;
            }
        }
        self.refill_by_byte();
    }

    #[inline(never)]
    fn refill_by_byte(&mut self) {
        while self.count <= 56 {
            // Once the data has ended it stays so. Looking again would go over all fill bytes at the end for every few bits.
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

    /// The next byte of data; `None`, and no step forward, at a marker and at the end of the file.
    fn take_byte(&mut self) -> Option<u8> {
        let byte = *self.data.get(self.at)?;
        if byte != 0xFF {
            self.at += 1;
            return Some(byte);
        }
        // Any number of fill bytes may stand before the byte that says whether this is data or a marker.
        let rest = self.data.get(self.at..)?;
        let fill = rest.iter().position(|&b| b != 0xFF)?;
        (rest[fill] == 0).then(|| {
            self.at += fill + 1;
            0xFF
        })
    }

    /// The next `n` bits, 1 to 32 of them, without taking them.
    #[inline(always)]
    pub(super) fn peek(&self, n: u32) -> u32 {
        (self.buffer >> (64 - n)) as u32
    }

    /// Takes `n` bits, which [`BitReader::need_32`] has made available.
    #[inline(always)]
    pub(super) fn skip(&mut self, n: u32) {
        self.buffer <<= n;
        self.count -= n;
    }

    /// Takes `n` bits, 0 to 16, as a number. They must be available.
    #[inline(always)]
    pub(super) fn take(&mut self, n: u32) -> u32 {
        // Two shifts, since a shift by 64 is none.
        let value = (self.buffer >> 1 >> (63 - n)) as u32;
        self.skip(n);
        value
    }

    /// Takes one bit, making it available first.
    #[inline(always)]
    pub(super) fn bit(&mut self) -> bool {
        self.need_32();
        self.take(1) != 0
    }

    /// Takes the `size` bits, 0 to 16, that follow a Huffman code, as the signed number they stand for (F.2.2.1, EXTEND).
    #[inline(always)]
    pub(super) fn take_signed(&mut self, size: u32) -> i32 {
        let value = self.peek_signed(0, size);
        self.skip(size);
        value
    }

    /// The same of the `size` bits that follow the next `before`, without taking any.
    #[inline(always)]
    pub(super) fn peek_signed(&self, before: u32, size: u32) -> i32 {
        let buffer = self.buffer << before;
        // A first bit of 0 marks a negative number, offset by 2^size - 1.
        let negative = !((buffer as i64) >> 63) as i32;
        let offset = (1i32 << size) - 1;
        (buffer >> 1 >> (63 - size)) as i32 - (offset & negative)
    }

    /// Whether more bits were taken than there were.
    pub(super) fn overrun(&self) -> bool {
        self.padding > u64::from(self.count)
    }

    /// An error if more bits were taken than there were.
    pub(super) fn check(&self) -> Result<()> {
        if self.overrun() { Err(JpegError::Truncated) } else { Ok(()) }
    }

    /// Drops what is left of this restart interval, and steps over the marker that starts the next: number `expected`.
    pub(super) fn restart(&mut self, expected: u8) -> Result<()> {
        self.check()?;
        match marker::next(self.data, self.at) {
            Some((code, after)) if code == marker::RST0 + expected => {
                *self = Self::new(self.data, after);
                Ok(())
            }
            Some((marker::RST0..=marker::RST7, _)) => Err(JpegError::Corrupt("a restart marker is out of order")),
            _ => Err(JpegError::Truncated),
        }
    }

    /// Where the data that was not taken begins, once a scan is complete.
    pub(super) fn finish(self) -> Result<usize> {
        self.check()?;
        Ok(self.at)
    }
}
