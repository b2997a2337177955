//! Tests of the inverse DCTs against their definition and against one another.

use super::{idct_2x2, idct_4x4, idct_8x8, scalar};
use crate::block::{Block, ZIGZAG};

/// The transform by its definition (A.3.3).
fn reference(coefficients: &Block, table: &[u16; 64]) -> [f64; 64] {
    let angle = |x: usize, u: usize| ((2 * x + 1) as f64 * u as f64 * std::f64::consts::PI / 16.0).cos();
    let scale = |u: usize| if u == 0 { 0.5f64.sqrt() } else { 1.0 };
    std::array::from_fn(|sample| {
        let sum = (0..64).map(|from| {
            let (u, v) = (from % 8, from / 8);
            let value = f64::from(coefficients[from]) * f64::from(table[from]);
            scale(u) * scale(v) * value * angle(sample % 8, u) * angle(sample / 8, v)
        });
        (sum.sum::<f64>() / 4.0 + 128.0).clamp(0.0, 255.0)
    })
}

#[test]
fn the_inverse_dct_is_near_its_definition_and_the_same_in_every_implementation() {
    let mut state = 1u32;
    let mut random = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    for round in 0..2000 {
        let table = std::array::from_fn(|_| (random() % 20 + 1) as u16);
        // Nonzero coefficients up to `last`, in zigzag order: each way of omitting coefficients occurs.
        let last = round % 64;
        let mut block = [0i16; 64];
        for k in 0..=last {
            block[usize::from(ZIGZAG[k])] = (random() % 41) as i16 - 20;
        }
        let (mut selected, mut portable) = ([0; 64], [0; 64]);
        idct_8x8(&block, &table, last, &mut selected, 8);
        scalar::idct_8x8(&block, &table, &mut portable, 8);
        assert_eq!(selected, portable, "{last}");
        for (&sample, exact) in selected.iter().zip(reference(&block, &table)) {
            assert!((f64::from(sample) - exact).abs() < 1.0, "{sample} {exact}");
        }
        let (mut four, mut two) = ([0; 16], [0; 4]);
        idct_4x4(&block, &table, &mut four, 4);
        idct_2x2(&block, &table, &mut two, 2);
        assert_eq!(four.as_slice(), scalar::idct_4x4(&block, &table).as_flattened(), "{last}");
        assert_eq!(two.as_slice(), scalar::idct_2x2(&block, &table).as_flattened(), "{last}");
    }
}
