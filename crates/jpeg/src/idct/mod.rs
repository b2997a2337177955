//! The inverse DCT: from a block's coefficients to its samples, bit for bit as libjpeg-turbo's default ("islow") does
//! it.
//!
//! The method is that of Loeffler, Ligtenberg and Moschytz (ICASSP 1989): twelve multiplications for eight values, here
//! in fixed point with 13 bits of fraction, first down the columns, with 2 more bits than the result needs, then along
//! the rows. To agree on damaged files too, steps that libjpeg-turbo's vector code does in 16 bits wrap or saturate
//! here at 16 bits.
//!
//! The reduced transforms make fewer samples of a block: 4 by 4, 2 by 2 or 1. They are the full transform followed by
//! averaging, combined: each pass yields half or a quarter of the values, from sums without the terms that cancel or
//! that the average would divide away (fast reduced transforms, after the same method and with the same fixed point). A
//! transform of the lowest frequencies alone would ring at edges; these use nearly all frequencies and do not.
//!
//! This module selects an implementation: `scalar` is plain Rust, `x86` uses vector instructions.

mod constants;
mod scalar;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::block::{BLOCK_SIDE, Block};

/// Writes the samples of a block, `side` along each side, to `out`, whose rows are `stride` apart.
///
/// `last` is the position in zigzag order of the last coefficient that may not be zero.
#[inline(always)]
pub(super) fn samples(
    side: usize,
    coefficients: &Block,
    table: &[u16; 64],
    last: usize,
    out: &mut [u8],
    stride: usize,
) {
    match (side, last) {
        (BLOCK_SIDE, 0) => flat::<BLOCK_SIDE>(coefficients[0], table[0], out, stride),
        (BLOCK_SIDE, _) => idct_8x8(coefficients, table, last, out, stride),
        (4, 0) => flat::<4>(coefficients[0], table[0], out, stride),
        (4, _) => idct_4x4(coefficients, table, out, stride),
        (2, 0) => flat::<2>(coefficients[0], table[0], out, stride),
        (2, _) => idct_2x2(coefficients, table, out, stride),
        _ => flat::<1>(coefficients[0], table[0], out, stride),
    }
}

/// Writes a block whose AC coefficients are zero, or cancel in its only sample: every sample is the same.
#[inline(always)]
pub(super) fn flat<const N: usize>(dc: i16, step: u16, out: &mut [u8], stride: usize) {
    let dc = i32::from(dc.wrapping_mul(step as i16));
    let sample = (((dc + 4) >> 3) + 128).clamp(0, 255) as u8;
    for row in out.chunks_mut(stride).take(N) {
        if let Some(row) = row.first_chunk_mut::<N>() {
            *row = [sample; N];
        }
    }
}

/// Writes the 8 by 8 samples of a block.
#[inline(always)]
fn idct_8x8(coefficients: &Block, table: &[u16; 64], last: usize, out: &mut [u8], stride: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: SSE2 is part of x86-64.
        #[allow(unsafe_code)]
        unsafe {
            x86::idct_8x8(coefficients, table, last, out, stride);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    scalar::idct_8x8(coefficients, table, out, stride);
}

/// Writes the 4 by 4 samples of a block.
#[inline(always)]
fn idct_4x4(coefficients: &Block, table: &[u16; 64], out: &mut [u8], stride: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: SSE2 is part of x86-64.
        #[allow(unsafe_code)]
        let samples = unsafe { x86::idct_4x4(coefficients, table) };
        store(&samples, out, stride);
    }
    #[cfg(not(target_arch = "x86_64"))]
    store(&scalar::idct_4x4(coefficients, table), out, stride);
}

/// Writes the 2 by 2 samples of a block.
#[inline(always)]
fn idct_2x2(coefficients: &Block, table: &[u16; 64], out: &mut [u8], stride: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: SSE2 is part of x86-64.
        #[allow(unsafe_code)]
        let samples = unsafe { x86::idct_2x2(coefficients, table) };
        store(&samples, out, stride);
    }
    #[cfg(not(target_arch = "x86_64"))]
    store(&scalar::idct_2x2(coefficients, table), out, stride);
}

#[inline(always)]
fn store<const N: usize>(samples: &[[u8; N]; N], out: &mut [u8], stride: usize) {
    for (to, samples) in out.chunks_mut(stride).zip(samples) {
        if let Some(to) = to.first_chunk_mut::<N>() {
            *to = *samples;
        }
    }
}
