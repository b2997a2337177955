//! The inverse DCTs in plain Rust, for processors without an implementation of their own.

use super::constants::*;
use crate::block::Block;

/// Eight values, one from each column or each row: a pass processes eight columns or rows at a time.
type Lanes = [i32; 8];

/// Writes the 8 by 8 samples of a block to `out`, whose rows are `stride` apart.
#[cfg_attr(target_arch = "x86_64", allow(dead_code))]
pub(super) fn idct_8x8(coefficients: &Block, table: &[u16; 64], out: &mut [u8], stride: usize) {
    let mut rows = [[0; 8]; 8];
    let steps = table.as_chunks::<8>().0;
    for (row, (from, steps)) in rows.iter_mut().zip(coefficients.as_chunks::<8>().0.iter().zip(steps)) {
        for (value, (coefficient, step)) in row.iter_mut().zip(from.iter().zip(steps)) {
            *value = i32::from(coefficient.wrapping_mul(*step as i16));
        }
    }
    let columns = transpose(&pass_8::<COLUMN_SHIFT>(&rows));
    let rows = transpose(&pass_8::<ROW_SHIFT>(&columns));
    for (to, row) in out.chunks_mut(stride).zip(&rows) {
        for (sample, value) in to.iter_mut().zip(row) {
            *sample = (value + 128).clamp(0, 255) as u8;
        }
    }
}

/// Exchanges rows and columns.
fn transpose(from: &[Lanes; 8]) -> [Lanes; 8] {
    let mut to = [[0; 8]; 8];
    for (i, row) in from.iter().enumerate() {
        for (j, value) in row.iter().enumerate() {
            to[j][i] = *value;
        }
    }
    to
}

/// One pass of the full transform.
fn pass_8<const SHIFT: u32>(x: &[Lanes; 8]) -> [Lanes; 8] {
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

/// The 4 by 4 samples of a block.
#[cfg_attr(target_arch = "x86_64", allow(dead_code))]
pub(super) fn idct_4x4(coefficients: &Block, table: &[u16; 64]) -> [[u8; 4]; 4] {
    let columns: [[i32; 4]; 8] = std::array::from_fn(|x| {
        pass_4::<COLUMN_SHIFT_4>(std::array::from_fn(|y| dequantise(coefficients, table, y * 8 + x)))
    });
    let rows: [[i32; 8]; 4] = std::array::from_fn(|y| std::array::from_fn(|x| columns[x][y]));
    rows.map(|row| pass_4::<ROW_SHIFT_4>(row).map(to_sample))
}

/// The 2 by 2 samples of a block.
#[cfg_attr(target_arch = "x86_64", allow(dead_code))]
pub(super) fn idct_2x2(coefficients: &Block, table: &[u16; 64]) -> [[u8; 2]; 2] {
    let columns: [[i32; 2]; 8] = std::array::from_fn(|x| {
        pass_2::<COLUMN_SHIFT_2>(std::array::from_fn(|y| dequantise(coefficients, table, y * 8 + x)))
    });
    let rows: [[i32; 8]; 2] = std::array::from_fn(|y| std::array::from_fn(|x| columns[x][y]));
    rows.map(|row| pass_2::<ROW_SHIFT_2>(row).map(to_sample))
}

fn dequantise(coefficients: &Block, table: &[u16; 64], index: usize) -> i32 {
    i32::from(coefficients[index].wrapping_mul(table[index] as i16))
}

fn to_sample(value: i32) -> u8 {
    (value + 128).clamp(0, 255) as u8
}

fn weighted_sum<const N: usize>(values: [i32; N], weights: [i16; N]) -> i32 {
    let products = values.into_iter().zip(weights).map(|(value, weight)| value.wrapping_mul(weight.into()));
    products.fold(0, i32::wrapping_add)
}

/// Shifts down with rounding and saturates to 16 bits.
fn shift_down<const SHIFT: u32>(value: i32) -> i32 {
    (value.wrapping_add(1 << (SHIFT - 1)) >> SHIFT).clamp(-0x8000, 0x7FFF)
}

/// One pass of the transform to four values.
fn pass_4<const SHIFT: u32>(x: [i32; 8]) -> [i32; 4] {
    let mean = x[0] << 14;
    let even = weighted_sum([x[2], x[6]], FOUR_EVEN);
    let odd = [x[1], x[3], x[5], x[7]];
    let (outer, inner) = (weighted_sum(odd, FOUR_OUTER), weighted_sum(odd, FOUR_INNER));
    let (ends, middle) = (mean.wrapping_add(even), mean.wrapping_sub(even));
    let values =
        [ends.wrapping_add(outer), middle.wrapping_add(inner), middle.wrapping_sub(inner), ends.wrapping_sub(outer)];
    values.map(shift_down::<SHIFT>)
}

/// One pass of the transform to two values.
fn pass_2<const SHIFT: u32>(x: [i32; 8]) -> [i32; 2] {
    let mean = x[0] << 15;
    let odd = weighted_sum([x[1], x[3], x[5], x[7]], TWO_ODD);
    [mean.wrapping_add(odd), mean.wrapping_sub(odd)].map(shift_down::<SHIFT>)
}
