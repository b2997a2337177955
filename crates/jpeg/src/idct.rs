//! The inverse DCT: from a block's coefficients to its samples, bit for bit as libjpeg-turbo's default ("islow") does it.
//!
//! The method is that of Loeffler, Ligtenberg and Moschytz (ICASSP 1989): twelve multiplications for eight values, here
//! in fixed point with 13 bits of fraction, first down the columns, keeping 2 more bits than the result needs, then
//! along the rows. To agree on damaged files too, steps that libjpeg-turbo's vector code does in 16 bits wrap or
//! saturate here at 16 bits.

use super::frame::BLOCK;
use super::idct_reduced;

/// Coefficients or samples of a block, row by row.
pub(super) type Block = [i16; 64];

/// Bits of fraction of the constants.
const FRACTION: u32 = 13;
/// Bits kept beyond the integer between the two passes.
const EXTRA: u32 = 2;
/// How far the sums of each pass are shifted down. The second also divides by 8: each pass yields sqrt(8) times the DCT.
pub(super) const COLUMN_SHIFT: u32 = FRACTION - EXTRA;
pub(super) const ROW_SHIFT: u32 = FRACTION + EXTRA + 3;

/// The constants of the method, named by their value, times 2^13. Each is sqrt(2) times a sum of cosines of multiples of
/// pi/16.
pub(super) mod constant {
    pub(crate) const F0_298: i16 = 2446;
    pub(crate) const F0_390: i16 = 3196;
    pub(crate) const F0_541: i16 = 4433;
    pub(crate) const F0_765: i16 = 6270;
    pub(crate) const F0_899: i16 = 7373;
    pub(crate) const F1_175: i16 = 9633;
    pub(crate) const F1_501: i16 = 12299;
    pub(crate) const F1_847: i16 = 15137;
    pub(crate) const F1_961: i16 = 16069;
    pub(crate) const F2_053: i16 = 16819;
    pub(crate) const F2_562: i16 = 20995;
    pub(crate) const F3_072: i16 = 25172;
}

/// Writes the samples of a block, `size` along each side, to `out`, whose rows are `stride` apart.
///
/// `last` is the position in zigzag order of the last coefficient that may not be zero.
#[inline(always)]
pub(super) fn samples(
    size: usize,
    coefficients: &Block,
    table: &[u16; 64],
    last: usize,
    out: &mut [u8],
    stride: usize,
) {
    match (size, last) {
        (BLOCK, 0) => flat::<BLOCK>(coefficients[0], table[0], out, stride),
        (BLOCK, _) => block(coefficients, table, last, out, stride),
        (4, 0) => flat::<4>(coefficients[0], table[0], out, stride),
        (4, _) => idct_reduced::four(coefficients, table, out, stride),
        (2, 0) => flat::<2>(coefficients[0], table[0], out, stride),
        (2, _) => idct_reduced::two(coefficients, table, out, stride),
        _ => flat::<1>(coefficients[0], table[0], out, stride),
    }
}

/// The full transform: 8 by 8 samples.
#[inline(always)]
pub(super) fn block(coefficients: &Block, table: &[u16; 64], last: usize, out: &mut [u8], stride: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: SSE2 is part of x86-64.
        #[allow(unsafe_code)]
        unsafe {
            super::idct_x86::block(coefficients, table, last, out, stride);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    portable(coefficients, table, out, stride);
}

/// A block whose AC coefficients are zero, or cancel in its only sample: every sample is the same.
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

/// Eight values, one from each column or each row: the passes treat eight columns or rows at a time.
type Lanes = [i32; 8];

/// The transform in plain Rust, for processors without a version of their own.
#[cfg_attr(target_arch = "x86_64", allow(dead_code))]
pub(super) fn portable(coefficients: &Block, table: &[u16; 64], out: &mut [u8], stride: usize) {
    let mut rows = [[0; 8]; 8];
    let steps = table.as_chunks::<8>().0;
    for (row, (from, steps)) in rows.iter_mut().zip(coefficients.as_chunks::<8>().0.iter().zip(steps)) {
        for (value, (coefficient, step)) in row.iter_mut().zip(from.iter().zip(steps)) {
            *value = i32::from(coefficient.wrapping_mul(*step as i16));
        }
    }
    let columns = transpose(&pass::<COLUMN_SHIFT>(&rows));
    let rows = transpose(&pass::<ROW_SHIFT>(&columns));
    for (to, row) in out.chunks_mut(stride).zip(&rows) {
        for (sample, value) in to.iter_mut().zip(row) {
            *sample = (value + 128).clamp(0, 255) as u8;
        }
    }
}

fn transpose(from: &[Lanes; 8]) -> [Lanes; 8] {
    let mut to = [[0; 8]; 8];
    for (i, row) in from.iter().enumerate() {
        for (j, value) in row.iter().enumerate() {
            to[j][i] = *value;
        }
    }
    to
}

fn pass<const SHIFT: u32>(x: &[Lanes; 8]) -> [Lanes; 8] {
    use constant::*;
    let wide = |constant: i16| i32::from(constant);
    let mut out = [[0; 8]; 8];
    for i in 0..8 {
        // The even half: a four-point transform of the even coefficients.
        let sum = x[2][i].wrapping_add(x[6][i]).wrapping_mul(wide(F0_541));
        let (a2, a3) = (
            sum.wrapping_sub(x[6][i].wrapping_mul(wide(F1_847))),
            sum.wrapping_add(x[2][i].wrapping_mul(wide(F0_765))),
        );
        let a0 = i32::from((x[0][i] as i16).wrapping_add(x[4][i] as i16)) << FRACTION;
        let a1 = i32::from((x[0][i] as i16).wrapping_sub(x[4][i] as i16)) << FRACTION;
        let even = [a0.wrapping_add(a3), a1.wrapping_add(a2), a1.wrapping_sub(a2), a0.wrapping_sub(a3)];

        // The odd half.
        let (x1, x3, x5, x7) = (x[1][i], x[3][i], x[5][i], x[7][i]);
        let s37 = i32::from((x3 as i16).wrapping_add(x7 as i16));
        let s15 = i32::from((x1 as i16).wrapping_add(x5 as i16));
        let both = s37.wrapping_add(s15).wrapping_mul(wide(F1_175));
        let s37 = both.wrapping_sub(s37.wrapping_mul(wide(F1_961)));
        let s15 = both.wrapping_sub(s15.wrapping_mul(wide(F0_390)));
        let s17 = x1.wrapping_add(x7).wrapping_mul(wide(F0_899));
        let s35 = x3.wrapping_add(x5).wrapping_mul(wide(F2_562));
        let odd = [
            x1.wrapping_mul(wide(F1_501)).wrapping_sub(s17).wrapping_add(s15),
            x3.wrapping_mul(wide(F3_072)).wrapping_sub(s35).wrapping_add(s37),
            x5.wrapping_mul(wide(F2_053)).wrapping_sub(s35).wrapping_add(s15),
            x7.wrapping_mul(wide(F0_298)).wrapping_sub(s17).wrapping_add(s37),
        ];

        let shift = |value: i32| (value.wrapping_add(1 << (SHIFT - 1)) >> SHIFT).clamp(-0x8000, 0x7FFF);
        for k in 0..4 {
            out[k][i] = shift(even[k].wrapping_add(odd[k]));
            out[7 - k][i] = shift(even[k].wrapping_sub(odd[k]));
        }
    }
    out
}
