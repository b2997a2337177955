//! The inverse DCT of [`super::idct`] in the vector instructions that every x86-64 processor has.
//!
//! Eight 16-bit values at a time: `madd` multiplies two rows, interleaved, by two constants and adds the products in 32
//! bits, so each rotation of the method becomes two of them with its constants added up beforehand.

use std::arch::x86_64::*;

use super::idct::{Block, COLUMN_SHIFT, ROW_SHIFT, constant::*};

/// 32-bit sums, of the lower four and the upper four of eight values.
pub(super) type Sums = (__m128i, __m128i);

/// Writes the samples of a block, as [`super::idct::block`] says.
#[target_feature(enable = "sse2")]
pub(super) fn block(coefficients: &Block, table: &[u16; 64], last: usize, out: &mut [u8], stride: usize) {
    // The first ten coefficients in zigzag order lie in the upper left quarter: four of eight rows, then four of eight
    // columns, are zero, and so are the products with them, which the compiler leaves out.
    let rows = if last < 10 { small(coefficients, table) } else { full(coefficients, table) };
    let samples = finish(rows);
    for (row, samples) in out.chunks_mut(stride).zip(samples) {
        if let Some(row) = row.first_chunk_mut::<8>() {
            *row = samples;
        }
    }
}

#[inline]
#[target_feature(enable = "sse2")]
fn full(coefficients: &Block, table: &[u16; 64]) -> [__m128i; 8] {
    let mut rows = [_mm_setzero_si128(); 8];
    let from = coefficients.as_chunks::<8>().0.iter().zip(table.as_chunks::<8>().0);
    for (row, (coefficients, steps)) in rows.iter_mut().zip(from) {
        *row = dequantise(coefficients, steps);
    }
    pass::<{ ROW_SHIFT as i32 }>(transpose(pass::<{ COLUMN_SHIFT as i32 }>(rows)))
}

#[inline]
#[target_feature(enable = "sse2")]
fn small(coefficients: &Block, table: &[u16; 64]) -> [__m128i; 8] {
    let zero = _mm_setzero_si128();
    let mut rows = [zero; 8];
    let from = coefficients.as_chunks::<8>().0.iter().zip(table.as_chunks::<8>().0).take(4);
    for (row, (coefficients, steps)) in rows.iter_mut().zip(from) {
        *row = dequantise(coefficients, steps);
    }
    let mut columns = transpose(pass::<{ COLUMN_SHIFT as i32 }>(rows));
    columns[4..].fill(zero);
    pass::<{ ROW_SHIFT as i32 }>(columns)
}

#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn dequantise(coefficients: &[i16; 8], steps: &[u16; 8]) -> __m128i {
    let [a, b, c, d, e, f, g, h] = *coefficients;
    let coefficients = _mm_setr_epi16(a, b, c, d, e, f, g, h);
    let [a, b, c, d, e, f, g, h] = steps.map(|step| step as i16);
    _mm_mullo_epi16(coefficients, _mm_setr_epi16(a, b, c, d, e, f, g, h))
}

/// `x * a + y * b` in 32 bits.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn rotate(x: __m128i, y: __m128i, a: i16, b: i16) -> Sums {
    let constants = _mm_setr_epi16(a, b, a, b, a, b, a, b);
    (_mm_madd_epi16(_mm_unpacklo_epi16(x, y), constants), _mm_madd_epi16(_mm_unpackhi_epi16(x, y), constants))
}

#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn add(x: Sums, y: Sums) -> Sums {
    (_mm_add_epi32(x.0, y.0), _mm_add_epi32(x.1, y.1))
}

#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn sub(x: Sums, y: Sums) -> Sums {
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
pub(super) fn narrow<const SHIFT: i32>(x: Sums) -> __m128i {
    _mm_packs_epi32(_mm_srai_epi32::<SHIFT>(x.0), _mm_srai_epi32::<SHIFT>(x.1))
}

#[inline]
#[target_feature(enable = "sse2")]
fn pass<const SHIFT: i32>(x: [__m128i; 8]) -> [__m128i; 8] {
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

/// Interleaves the values of row `k` with those of row `k + 4`, which done three times transposes.
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

#[inline]
#[target_feature(enable = "sse2")]
fn transpose(x: [__m128i; 8]) -> [__m128i; 8] {
    interleave(interleave(interleave(x)))
}

/// From the samples' values, column by column, to samples row by row.
#[inline]
#[target_feature(enable = "sse2")]
fn finish(columns: [__m128i; 8]) -> [[u8; 8]; 8] {
    // Saturated to signed bytes: columns 0 and 4, 1 and 5, 2 and 6, 3 and 7, interleaved like `interleave` does.
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
