//! Inverse DCTs that make fewer samples of a block: 4 by 4, 2 by 2 or 1, bit for bit as libjpeg-turbo makes them.
//!
//! They are the full transform followed by averaging, worked out together: each pass yields half or a quarter of the
//! values, from sums in which the terms that cancel, or that the average would divide away, are left out (fast reduced
//! transforms, after the same method as [`super::idct`] and with the same fixed point). Unlike a transform of the lowest
//! frequencies alone they take from nearly all of them, so that nothing rings at edges.

use super::idct::{Block, COLUMN_SHIFT, ROW_SHIFT};

/// How much further than in the full transform the sums are shifted down: half as many values of twice the size, and
/// again.
const FOUR: u32 = 1;
const TWO: u32 = 2;
pub(super) const COLUMN_SHIFT_4: u32 = COLUMN_SHIFT + FOUR;
pub(super) const ROW_SHIFT_4: u32 = ROW_SHIFT + FOUR;
pub(super) const COLUMN_SHIFT_2: u32 = COLUMN_SHIFT + TWO;
pub(super) const ROW_SHIFT_2: u32 = ROW_SHIFT + TWO;

/// The weights of the frequencies, times 2^13. In the order in which they are named, frequencies 2 and 6, then 1, 3, 5
/// and 7.
pub(super) mod weight {
    /// Of four values: what the even frequencies add to the outer two and take from the inner two.
    pub(crate) const FOUR_EVEN: [i16; 2] = [15137, -6270];
    /// What the odd ones add to the first value and take from the last.
    pub(crate) const FOUR_OUTER: [i16; 4] = [20995, 7373, -4926, -4176];
    /// What they add to the second and take from the third.
    pub(crate) const FOUR_INNER: [i16; 4] = [8697, -17799, 11893, -1730];
    /// Of two values: what the odd frequencies add to the first and take from the second. The even ones cancel.
    pub(crate) const TWO_ODD: [i16; 4] = [29692, -10426, 6967, -5906];
}

/// Writes the 4 by 4 samples of a block to `out`, whose rows are `stride` apart.
#[inline(always)]
pub(super) fn four(coefficients: &Block, table: &[u16; 64], out: &mut [u8], stride: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: SSE2 is part of x86-64.
        #[allow(unsafe_code)]
        let samples = unsafe { super::idct_reduced_x86::four(coefficients, table) };
        store(&samples, out, stride);
    }
    #[cfg(not(target_arch = "x86_64"))]
    store(&portable_four(coefficients, table), out, stride);
}

/// Writes the 2 by 2 samples of a block.
#[inline(always)]
pub(super) fn two(coefficients: &Block, table: &[u16; 64], out: &mut [u8], stride: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: SSE2 is part of x86-64.
        #[allow(unsafe_code)]
        let samples = unsafe { super::idct_reduced_x86::two(coefficients, table) };
        store(&samples, out, stride);
    }
    #[cfg(not(target_arch = "x86_64"))]
    store(&portable_two(coefficients, table), out, stride);
}

#[inline(always)]
fn store<const N: usize>(samples: &[[u8; N]; N], out: &mut [u8], stride: usize) {
    for (to, samples) in out.chunks_mut(stride).zip(samples) {
        if let Some(to) = to.first_chunk_mut::<N>() {
            *to = *samples;
        }
    }
}

/// The transform to 4 by 4 in plain Rust, for processors without a version of their own.
#[cfg_attr(target_arch = "x86_64", allow(dead_code))]
pub(super) fn portable_four(coefficients: &Block, table: &[u16; 64]) -> [[u8; 4]; 4] {
    let columns: [[i32; 4]; 8] = std::array::from_fn(|x| {
        pass_four::<COLUMN_SHIFT_4>(std::array::from_fn(|y| dequantised(coefficients, table, y * 8 + x)))
    });
    let rows: [[i32; 8]; 4] = std::array::from_fn(|y| std::array::from_fn(|x| columns[x][y]));
    rows.map(|row| pass_four::<ROW_SHIFT_4>(row).map(sample))
}

/// The transform to 2 by 2 in plain Rust.
#[cfg_attr(target_arch = "x86_64", allow(dead_code))]
pub(super) fn portable_two(coefficients: &Block, table: &[u16; 64]) -> [[u8; 2]; 2] {
    let columns: [[i32; 2]; 8] = std::array::from_fn(|x| {
        pass_two::<COLUMN_SHIFT_2>(std::array::from_fn(|y| dequantised(coefficients, table, y * 8 + x)))
    });
    let rows: [[i32; 8]; 2] = std::array::from_fn(|y| std::array::from_fn(|x| columns[x][y]));
    rows.map(|row| pass_two::<ROW_SHIFT_2>(row).map(sample))
}

fn dequantised(coefficients: &Block, table: &[u16; 64], at: usize) -> i32 {
    i32::from(coefficients[at].wrapping_mul(table[at] as i16))
}

fn sample(value: i32) -> u8 {
    (value + 128).clamp(0, 255) as u8
}

fn weighted<const N: usize>(values: [i32; N], weights: [i16; N]) -> i32 {
    let products = values.into_iter().zip(weights).map(|(value, weight)| value.wrapping_mul(weight.into()));
    products.fold(0, i32::wrapping_add)
}

fn shift<const SHIFT: u32>(value: i32) -> i32 {
    (value.wrapping_add(1 << (SHIFT - 1)) >> SHIFT).clamp(-0x8000, 0x7FFF)
}

fn pass_four<const SHIFT: u32>(x: [i32; 8]) -> [i32; 4] {
    let mean = x[0] << 14;
    let even = weighted([x[2], x[6]], weight::FOUR_EVEN);
    let odd = [x[1], x[3], x[5], x[7]];
    let (outer, inner) = (weighted(odd, weight::FOUR_OUTER), weighted(odd, weight::FOUR_INNER));
    let (ends, middle) = (mean.wrapping_add(even), mean.wrapping_sub(even));
    let values =
        [ends.wrapping_add(outer), middle.wrapping_add(inner), middle.wrapping_sub(inner), ends.wrapping_sub(outer)];
    values.map(shift::<SHIFT>)
}

fn pass_two<const SHIFT: u32>(x: [i32; 8]) -> [i32; 2] {
    let mean = x[0] << 15;
    let odd = weighted([x[1], x[3], x[5], x[7]], weight::TWO_ODD);
    [mean.wrapping_add(odd), mean.wrapping_sub(odd)].map(shift::<SHIFT>)
}
