//! The inverse DCTs in the vector instructions that every x86-64 processor has.
//!
//! They process eight 16-bit values at a time: `madd` multiplies two rows, interleaved, by two constants and adds the
//! products in 32 bits, so each rotation of the method becomes two of them with its constants added up beforehand.

use std::arch::x86_64::*;

use super::constants::*;
use crate::block::Block;

/// 32-bit sums, of the lower four and the upper four of eight values.
type Sums = (__m128i, __m128i);

/// Writes the 8 by 8 samples of a block to `out`, whose rows are `stride` apart. `last` is the position in zigzag order
/// of the last coefficient that may not be zero.
#[target_feature(enable = "sse2")]
pub(super) fn idct_8x8(coefficients: &Block, table: &[u16; 64], last: usize, out: &mut [u8], stride: usize) {
    // The first ten coefficients in zigzag order lie in the upper left quarter: four of eight rows, then four of eight
    // columns, are zero, and so are the products with them, which the compiler omits.
    let columns = if last < 10 { upper_left(coefficients, table) } else { full(coefficients, table) };
    let samples = to_samples(columns);
    for (row, samples) in out.chunks_mut(stride).zip(samples) {
        if let Some(row) = row.first_chunk_mut::<8>() {
            *row = samples;
        }
    }
}

/// The values of a block's samples, column by column.
#[inline]
#[target_feature(enable = "sse2")]
fn full(coefficients: &Block, table: &[u16; 64]) -> [__m128i; 8] {
    let mut rows = [_mm_setzero_si128(); 8];
    let from = coefficients.as_chunks::<8>().0.iter().zip(table.as_chunks::<8>().0);
    for (row, (coefficients, steps)) in rows.iter_mut().zip(from) {
        *row = dequantise(coefficients, steps);
    }
    pass_8::<{ ROW_SHIFT as i32 }>(transpose(pass_8::<{ COLUMN_SHIFT as i32 }>(rows)))
}

/// The same for a block whose coefficients outside the upper left quarter are zero.
#[inline]
#[target_feature(enable = "sse2")]
fn upper_left(coefficients: &Block, table: &[u16; 64]) -> [__m128i; 8] {
    let zero = _mm_setzero_si128();
    let mut rows = [zero; 8];
    let from = coefficients.as_chunks::<8>().0.iter().zip(table.as_chunks::<8>().0).take(4);
    for (row, (coefficients, steps)) in rows.iter_mut().zip(from) {
        *row = dequantise(coefficients, steps);
    }
    let mut columns = transpose(pass_8::<{ COLUMN_SHIFT as i32 }>(rows));
    columns[4..].fill(zero);
    pass_8::<{ ROW_SHIFT as i32 }>(columns)
}

/// A row of coefficients times their quantisation steps, in 16 bits.
#[inline]
#[target_feature(enable = "sse2")]
fn dequantise(coefficients: &[i16; 8], steps: &[u16; 8]) -> __m128i {
    let [a, b, c, d, e, f, g, h] = *coefficients;
    let coefficients = _mm_setr_epi16(a, b, c, d, e, f, g, h);
    let [a, b, c, d, e, f, g, h] = steps.map(|step| step as i16);
    _mm_mullo_epi16(coefficients, _mm_setr_epi16(a, b, c, d, e, f, g, h))
}

/// `x * a + y * b` in 32 bits.
#[inline]
#[target_feature(enable = "sse2")]
fn rotate(x: __m128i, y: __m128i, a: i16, b: i16) -> Sums {
    let constants = _mm_setr_epi16(a, b, a, b, a, b, a, b);
    (_mm_madd_epi16(_mm_unpacklo_epi16(x, y), constants), _mm_madd_epi16(_mm_unpackhi_epi16(x, y), constants))
}

/// `x + y`.
#[inline]
#[target_feature(enable = "sse2")]
fn add(x: Sums, y: Sums) -> Sums {
    (_mm_add_epi32(x.0, y.0), _mm_add_epi32(x.1, y.1))
}

/// `x - y`.
#[inline]
#[target_feature(enable = "sse2")]
fn sub(x: Sums, y: Sums) -> Sums {
    (_mm_sub_epi32(x.0, y.0), _mm_sub_epi32(x.1, y.1))
}

/// `x * 2^13` in 32 bits.
#[inline]
#[target_feature(enable = "sse2")]
fn widen(x: __m128i) -> Sums {
    let zero = _mm_setzero_si128();
    // In the upper half of each 32 bits it is x * 2^16, signed.
    (_mm_srai_epi32::<3>(_mm_unpacklo_epi16(zero, x)), _mm_srai_epi32::<3>(_mm_unpackhi_epi16(zero, x)))
}

/// Shifts down and saturates to 16 bits.
#[inline]
#[target_feature(enable = "sse2")]
fn narrow<const SHIFT: i32>(x: Sums) -> __m128i {
    _mm_packs_epi32(_mm_srai_epi32::<SHIFT>(x.0), _mm_srai_epi32::<SHIFT>(x.1))
}

/// One pass of the full transform.
#[inline]
#[target_feature(enable = "sse2")]
fn pass_8<const SHIFT: i32>(x: [__m128i; 8]) -> [__m128i; 8] {
    // The even half, with the rounding of the shift at the end.
    let half = _mm_set1_epi32(1 << (SHIFT - 1));
    let a2 = rotate(x[2], x[6], F0_541, F0_541 - F1_847);
    let a3 = rotate(x[2], x[6], F0_541 + F0_765, F0_541);
    let a0 = add(widen(_mm_add_epi16(x[0], x[4])), (half, half));
    let a1 = add(widen(_mm_sub_epi16(x[0], x[4])), (half, half));
    let even = [add(a0, a3), add(a1, a2), sub(a1, a2), sub(a0, a3)];

    // The odd half.
    let (s37, s15) = (_mm_add_epi16(x[3], x[7]), _mm_add_epi16(x[1], x[5]));
    let b37 = rotate(s37, s15, F1_175 - F1_961, F1_175);
    let b15 = rotate(s37, s15, F1_175, F1_175 - F0_390);
    let odd = [
        add(rotate(x[1], x[7], F1_501 - F0_899, -F0_899), b15),
        add(rotate(x[3], x[5], F3_072 - F2_562, -F2_562), b37),
        add(rotate(x[3], x[5], -F2_562, F2_053 - F2_562), b15),
        add(rotate(x[1], x[7], -F0_899, F0_298 - F0_899), b37),
    ];

    [
        narrow::<SHIFT>(add(even[0], odd[0])),
        narrow::<SHIFT>(add(even[1], odd[1])),
        narrow::<SHIFT>(add(even[2], odd[2])),
        narrow::<SHIFT>(add(even[3], odd[3])),
        narrow::<SHIFT>(sub(even[3], odd[3])),
        narrow::<SHIFT>(sub(even[2], odd[2])),
        narrow::<SHIFT>(sub(even[1], odd[1])),
        narrow::<SHIFT>(sub(even[0], odd[0])),
    ]
}

/// Interleaves the values of row `k` with those of row `k + 4`. Done three times, this transposes.
#[inline]
#[target_feature(enable = "sse2")]
fn interleave(x: [__m128i; 8]) -> [__m128i; 8] {
    [
        _mm_unpacklo_epi16(x[0], x[4]),
        _mm_unpackhi_epi16(x[0], x[4]),
        _mm_unpacklo_epi16(x[1], x[5]),
        _mm_unpackhi_epi16(x[1], x[5]),
        _mm_unpacklo_epi16(x[2], x[6]),
        _mm_unpackhi_epi16(x[2], x[6]),
        _mm_unpacklo_epi16(x[3], x[7]),
        _mm_unpackhi_epi16(x[3], x[7]),
    ]
}

/// Exchanges rows and columns.
#[inline]
#[target_feature(enable = "sse2")]
fn transpose(x: [__m128i; 8]) -> [__m128i; 8] {
    interleave(interleave(interleave(x)))
}

/// Converts values column by column to samples row by row.
#[inline]
#[target_feature(enable = "sse2")]
fn to_samples(columns: [__m128i; 8]) -> [[u8; 8]; 8] {
    // Saturated to signed bytes: columns 0 and 4, 1 and 5, 2 and 6, 3 and 7, interleaved as in `interleave`.
    let centre = _mm_set1_epi8(-128);
    let pair = |k: usize| {
        let both = _mm_xor_si128(_mm_packs_epi16(columns[k], columns[k + 4]), centre);
        _mm_unpacklo_epi8(both, _mm_unpackhi_epi64(both, both))
    };
    let (c04, c15, c26, c37) = (pair(0), pair(1), pair(2), pair(3));
    let (c0246, c1357) = (
        (_mm_unpacklo_epi8(c04, c26), _mm_unpackhi_epi8(c04, c26)),
        (_mm_unpacklo_epi8(c15, c37), _mm_unpackhi_epi8(c15, c37)),
    );
    let rows = [
        _mm_unpacklo_epi8(c0246.0, c1357.0),
        _mm_unpackhi_epi8(c0246.0, c1357.0),
        _mm_unpacklo_epi8(c0246.1, c1357.1),
        _mm_unpackhi_epi8(c0246.1, c1357.1),
    ];
    let mut out = [[0; 8]; 8];
    for (out, rows) in out.as_chunks_mut::<2>().0.iter_mut().zip(rows) {
        let upper = _mm_unpackhi_epi64(rows, rows);
        *out = [_mm_cvtsi128_si64(rows).to_ne_bytes(), _mm_cvtsi128_si64(upper).to_ne_bytes()];
    }
    out
}

/// The 4 by 4 samples of a block.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn idct_4x4(coefficients: &Block, table: &[u16; 64]) -> [[u8; 4]; 4] {
    let row = |k: usize| dequantise(&coefficients.as_chunks::<8>().0[k], &table.as_chunks::<8>().0[k]);
    let zero = _mm_setzero_si128();

    // Down the columns, eight at a time. The fifth column is not used afterwards.
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
pub(super) fn idct_2x2(coefficients: &Block, table: &[u16; 64]) -> [[u8; 2]; 2] {
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
