//! The inverse DCTs of [`super::idct_reduced`] in the vector instructions that every x86-64 processor has.

use std::arch::x86_64::*;

use super::idct::Block;
use super::idct_reduced::{COLUMN_SHIFT_2, COLUMN_SHIFT_4, ROW_SHIFT_2, ROW_SHIFT_4, weight::*};
use super::idct_x86::{Sums, add, dequantise, narrow, rotate, sub};

/// The 4 by 4 samples of a block.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn four(coefficients: &Block, table: &[u16; 64]) -> [[u8; 4]; 4] {
    let row = |k: usize| dequantise(&coefficients.as_chunks::<8>().0[k], &table.as_chunks::<8>().0[k]);
    let zero = _mm_setzero_si128();

    // Down the columns, eight at a time; the fifth is not used afterwards.
    let x0 = row(0);
    let half = _mm_set1_epi32(1 << (COLUMN_SHIFT_4 - 1));
    let mean = (_mm_srai_epi32::<2>(_mm_unpacklo_epi16(zero, x0)), _mm_srai_epi32::<2>(_mm_unpackhi_epi16(zero, x0)));
    let mean = add(mean, (half, half));
    let even = rotate(row(2), row(6), FOUR_EVEN[0], FOUR_EVEN[1]);
    let (x1, x3, x5, x7) = (row(1), row(3), row(5), row(7));
    let odd = |w: [i16; 4]| add(rotate(x1, x3, w[0], w[1]), rotate(x5, x7, w[2], w[3]));
    let (outer, inner) = (odd(FOUR_OUTER), odd(FOUR_INNER));
    let (ends, middle) = (add(mean, even), sub(mean, even));
    let down = |sums: Sums| narrow::<{ COLUMN_SHIFT_4 as i32 }>(sums);
    let rows = [down(add(ends, outer)), down(add(middle, inner)), down(sub(middle, inner)), down(sub(ends, outer))];

    // Columns 0 and 1, 2 and 3, 4 and 5, 6 and 7 of the four rows.
    let (upper, lower) = (_mm_unpacklo_epi16(rows[0], rows[1]), _mm_unpacklo_epi16(rows[2], rows[3]));
    let (x01, x23) = (_mm_unpacklo_epi32(upper, lower), _mm_unpackhi_epi32(upper, lower));
    let (upper, lower) = (_mm_unpackhi_epi16(rows[0], rows[1]), _mm_unpackhi_epi16(rows[2], rows[3]));
    let (x45, x67) = (_mm_unpacklo_epi32(upper, lower), _mm_unpackhi_epi32(upper, lower));

    // Along the rows, all four at once.
    let pair = |a: i16, b: i16| _mm_setr_epi16(a, b, a, b, a, b, a, b);
    let half = _mm_set1_epi32(1 << (ROW_SHIFT_4 - 1));
    let mean = _mm_add_epi32(_mm_srai_epi32::<2>(_mm_unpacklo_epi16(zero, x01)), half);
    let even = _mm_madd_epi16(_mm_unpacklo_epi16(x23, x67), pair(FOUR_EVEN[0], FOUR_EVEN[1]));
    let (x15, x37) = (_mm_unpackhi_epi16(x01, x45), _mm_unpackhi_epi16(x23, x67));
    let odd = |w: [i16; 4]| _mm_add_epi32(_mm_madd_epi16(x15, pair(w[0], w[2])), _mm_madd_epi16(x37, pair(w[1], w[3])));
    let (outer, inner) = (odd(FOUR_OUTER), odd(FOUR_INNER));
    let (ends, middle) = (_mm_add_epi32(mean, even), _mm_sub_epi32(mean, even));
    let along = |a, b| narrow::<{ ROW_SHIFT_4 as i32 }>((a, b));
    let left = along(_mm_add_epi32(ends, outer), _mm_add_epi32(middle, inner));
    let right = along(_mm_sub_epi32(middle, inner), _mm_sub_epi32(ends, outer));

    // The samples column by column; interleaved twice, row by row.
    let samples = _mm_xor_si128(_mm_packs_epi16(left, right), _mm_set1_epi8(-128));
    let samples = _mm_unpacklo_epi8(samples, _mm_unpackhi_epi64(samples, samples));
    let samples = _mm_unpacklo_epi8(samples, _mm_unpackhi_epi64(samples, samples));
    let [upper, lower] = [samples, _mm_unpackhi_epi64(samples, samples)].map(|half| _mm_cvtsi128_si64(half) as u64);
    [upper as u32, (upper >> 32) as u32, lower as u32, (lower >> 32) as u32].map(u32::to_le_bytes)
}

/// The 2 by 2 samples of a block.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn two(coefficients: &Block, table: &[u16; 64]) -> [[u8; 2]; 2] {
    let row = |k: usize| dequantise(&coefficients.as_chunks::<8>().0[k], &table.as_chunks::<8>().0[k]);
    let zero = _mm_setzero_si128();

    // Down the columns.
    let x0 = row(0);
    let half = _mm_set1_epi32(1 << (COLUMN_SHIFT_2 - 1));
    let mean = (_mm_srai_epi32::<1>(_mm_unpacklo_epi16(zero, x0)), _mm_srai_epi32::<1>(_mm_unpackhi_epi16(zero, x0)));
    let mean = add(mean, (half, half));
    let [w1, w3, w5, w7] = TWO_ODD;
    let odd = add(rotate(row(1), row(3), w1, w3), rotate(row(5), row(7), w5, w7));
    let upper = narrow::<{ COLUMN_SHIFT_2 as i32 }>(add(mean, odd));
    let lower = narrow::<{ COLUMN_SHIFT_2 as i32 }>(sub(mean, odd));

    // Along the two rows: the products of each, added up across.
    let weights = _mm_setr_epi16(0, w1, 0, w3, 0, w5, 0, w7);
    let (a, b) = (_mm_madd_epi16(upper, weights), _mm_madd_epi16(lower, weights));
    let odd = _mm_add_epi32(_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
    let odd = _mm_add_epi32(odd, _mm_unpackhi_epi64(odd, odd));
    let half = _mm_set1_epi32(1 << (ROW_SHIFT_2 - 1));
    // The first column of both rows, in the upper halves of the first two 32 bits.
    let first = _mm_unpacklo_epi32(_mm_unpacklo_epi16(zero, upper), _mm_unpacklo_epi16(zero, lower));
    let mean = _mm_add_epi32(_mm_srai_epi32::<1>(first), half);
    let columns = _mm_unpacklo_epi32(_mm_add_epi32(mean, odd), _mm_sub_epi32(mean, odd));
    let values = narrow::<{ ROW_SHIFT_2 as i32 }>((columns, columns));
    let samples = _mm_xor_si128(_mm_packs_epi16(values, values), _mm_set1_epi8(-128));
    let [a, b, c, d] = _mm_cvtsi128_si32(samples).to_le_bytes();
    [[a, b], [c, d]]
}
