//! Compares every kernel with the same arithmetic written pixel by pixel in f64, for both block sizes. Each size runs
//! in this processor's registers or, where it has none of that size, in the portable code; the result is the same to
//! rounding.

use super::*;
use ghostserve_weights::synthetic_tensor;

const TOLERANCE: f64 = 1e-5;

/// An element of a blocked map.
fn element(data: &[f32], block: usize, slots: usize, [h, w]: MapSize, [image, slot, y, x]: [usize; 4]) -> f64 {
    let plane = image * slots / block + slot / block;
    f64::from(data[((plane * h + y) * w + x) * block + slot % block])
}

/// An element of a kernel that is packed tap by tap.
fn tap(data: &[f32], block: usize, taps: usize, slot: usize, tap: usize) -> f64 {
    f64::from(data[(slot / block * taps + tap) * block + slot % block])
}

/// Calls `f` with the image, slot, row and column of every element.
fn for_each_element(images: usize, slots: usize, [h, w]: MapSize, mut f: impl FnMut([usize; 4])) {
    for i in 0..images * slots * h * w {
        f([i / (slots * h * w), i / (h * w) % slots, i / w % h, i % w]);
    }
}

/// The row or column that a tap reads, if it is not negative.
fn offset(y: usize, tap: usize, dilation: usize, reach: usize) -> Option<usize> {
    (y + tap * dilation).checked_sub(reach)
}

#[test]
fn the_tail_of_a_ghost_module_is_four_operators_in_one() {
    for (block, size, dilation) in [
        (16, [14, 14], 1),
        (16, [7, 5], 1),
        (16, [1, 1], 1),
        (16, [9, 12], 2),
        (16, [3, 2], 4),
        (8, [7, 9], 1),
        (8, [2, 6], 3),
    ] {
        let (images, slots, copied) = (2, 3 * block, 2 * block);
        let [h, w]: MapSize = size;
        let (small, outputs) = ([h.div_ceil(2), w.div_ceil(2)], slots + copied);
        let x = synthetic_tensor("x", &[images * slots * h * w]);
        let weight = synthetic_tensor("w", &[slots * 9]);
        let bias = synthetic_tensor("b", &[slots]);
        let gate = synthetic_tensor("g", &[images * outputs * small[0] * small[1]]);
        let residual = synthetic_tensor("r", &[images * outputs * h * w]);
        for (gated, added, relu) in
            [(true, true, true), (false, false, true), (false, true, false), (true, false, false)]
        {
            let operands = Ghost {
                x: &x,
                weight: &weight,
                bias: &bias,
                gate: gated.then_some((&gate[..], small)),
                residual: added.then_some(&residual[..]),
                images,
                size,
                copied,
                relu,
                dilation,
            };
            let mut out = vec![f32::NAN; images * outputs * h * w];
            ghost(block, &operands, &mut out).unwrap();
            for_each_element(images, outputs, size, |[i, slot, py, px]| {
                let mut value = if slot < copied {
                    element(&x, block, slots, size, [i, slot, py, px])
                } else {
                    let from = slot - copied;
                    let mut sum = f64::from(bias[from]);
                    for t in 0..9 {
                        let (y, x_) = (offset(py, t / 3, dilation, dilation), offset(px, t % 3, dilation, dilation));
                        if let (Some(y), Some(x_)) = (y.filter(|y| *y < h), x_.filter(|x| *x < w)) {
                            sum += element(&x, block, slots, size, [i, from, y, x_]) * tap(&weight, block, 9, from, t);
                        }
                    }
                    if relu { sum.max(0.0) } else { sum }
                };
                if gated {
                    value *= element(&gate, block, outputs, small, [i, slot, py * small[0] / h, px * small[1] / w]);
                }
                if added {
                    value += element(&residual, block, outputs, size, [i, slot, py, px]);
                }
                let found = element(&out, block, outputs, size, [i, slot, py, px]);
                assert!((found - value).abs() <= TOLERANCE * value.abs().max(10.0), "{size:?} {slot}: {found} {value}");
            });
        }
    }
}

#[test]
fn strips_are_two_convolutions_and_a_gate() {
    for (block, size, length, dilation) in [
        (16, [7, 7], 5, 1),
        (16, [3, 3], 7, 1),
        (16, [1, 4], 3, 1),
        (16, [6, 8], 5, 2),
        (16, [5, 5], 9, 1),
        (8, [7, 6], 5, 1),
    ] {
        let (images, slots, [h, w]) = (2, 2 * block, size);
        let x = synthetic_tensor("x", &[images * slots * h * w]);
        let [horizontal, vertical] = ["h", "v"].map(|key| synthetic_tensor(key, &[slots * length]));
        let [horizontal_bias, vertical_bias] = ["hb", "vb"].map(|key| synthetic_tensor(key, &[slots]));
        for function in [GateKind::None, GateKind::Sigmoid, GateKind::HardSigmoid, GateKind::Clip] {
            let operands = Strips {
                x: &x,
                horizontal: &horizontal,
                horizontal_bias: &horizontal_bias,
                vertical: &vertical,
                vertical_bias: &vertical_bias,
                images,
                size,
                dilation,
                function,
            };
            let mut out = vec![f32::NAN; x.len()];
            strips(block, &operands, &mut out).unwrap();
            let reach = length / 2 * dilation;
            for_each_element(images, slots, size, |[i, slot, py, px]| {
                let mut sum = f64::from(vertical_bias[slot]);
                for t in 0..length {
                    let Some(y) = offset(py, t, dilation, reach).filter(|y| *y < h) else { continue };
                    let mut row = f64::from(horizontal_bias[slot]);
                    for t in 0..length {
                        let Some(x_) = offset(px, t, dilation, reach).filter(|x| *x < w) else { continue };
                        row += element(&x, block, slots, size, [i, slot, y, x_])
                            * tap(&horizontal, block, length, slot, t);
                    }
                    sum += row * tap(&vertical, block, length, slot, t);
                }
                let value = match function {
                    GateKind::None => sum,
                    GateKind::Sigmoid => 1.0 / (1.0 + (-sum).exp()),
                    GateKind::HardSigmoid => (sum / 6.0 + 0.5).clamp(0.0, 1.0),
                    GateKind::Clip => sum.clamp(0.0, 1.0),
                };
                let found = element(&out, block, slots, size, [i, slot, py, px]);
                assert!(
                    (found - value).abs() <= TOLERANCE * value.abs().max(10.0),
                    "{size:?} {function:?}: {found} {value}"
                );
            });
        }
    }
}

#[test]
fn squeeze_excite_multiplies_each_channel_by_a_gate_from_all_means() {
    for (block, size, squeezed) in [(16, [7, 7], 20), (16, [1, 1], 3), (8, [3, 5], 7)] {
        let (images, slots, [h, w]) = (2, 3 * block, size);
        let x = synthetic_tensor("x", &[images * slots * h * w]);
        let [reduce, expand] = ["reduce", "expand"].map(|key| synthetic_tensor(key, &[squeezed * slots]));
        let (reduce_bias, expand_bias) = (synthetic_tensor("rb", &[squeezed]), synthetic_tensor("eb", &[slots]));
        let operands = SqueezeExcite {
            x: &x,
            reduce: &reduce,
            reduce_bias: &reduce_bias,
            expand: &expand,
            expand_bias: &expand_bias,
            size,
        };
        let mut out = vec![f32::NAN; x.len()];
        squeeze_excite(block, &operands, &mut out).unwrap();
        let mut means = vec![0.0; images * slots];
        for_each_element(images, slots, size, |[i, slot, y, px]| {
            means[i * slots + slot] += element(&x, block, slots, size, [i, slot, y, px]) / (h * w) as f64;
        });
        for_each_element(images, slots, size, |[i, slot, y, px]| {
            let mut gate = f64::from(expand_bias[slot]);
            for s in 0..squeezed {
                let row = s * slots..(s + 1) * slots;
                let sum: f64 = reduce[row].iter().zip(&means[i * slots..]).map(|(w, m)| f64::from(*w) * m).sum();
                gate += (sum + f64::from(reduce_bias[s])).max(0.0) * f64::from(expand[s * slots + slot]);
            }
            let value = element(&x, block, slots, size, [i, slot, y, px]) * (gate / 6.0 + 0.5).clamp(0.0, 1.0);
            let found = element(&out, block, slots, size, [i, slot, y, px]);
            assert!((found - value).abs() <= TOLERANCE * 10.0, "{size:?} {slot}: {found} {value}");
        });
    }
}

#[test]
fn unblocking_restores_what_was_reblocked() {
    let (block, size, channels) = (8, [3, 2], 11);
    let x = synthetic_tensor("x", &[2 * channels * 6]);
    // In reverse order, with a gap in the middle.
    let sources: Vec<i64> = (0..16).map(|s| if s == 4 { 99 } else { (15 - s) % 11 }).collect();
    let mut blocked = vec![f32::NAN; 2 * 16 * 6];
    reblock(block, &x, channels, &sources, size, &mut blocked).unwrap();
    assert_eq!(element(&blocked, block, 16, size, [1, 4, 2, 1]), 0.0);
    let positions: Vec<i64> = (0..11).map(|c| sources.iter().position(|s| *s == c).unwrap() as i64).collect();
    let mut restored = vec![f32::NAN; x.len()];
    unblock(block, &blocked, 16, &positions, size, &mut restored).unwrap();
    assert_eq!(restored, x);
}

#[test]
fn operands_of_other_sizes_are_an_error() {
    let x = [0.0; 16 * 4];
    let operands = Ghost {
        x: &x,
        weight: &[0.0; 16 * 9],
        bias: &[0.0; 16],
        gate: None,
        residual: None,
        images: 1,
        size: [2, 2],
        copied: 0,
        relu: false,
        dilation: 1,
    };
    let error = ghost(16, &operands, &mut [0.0; 8]).unwrap_err().to_string();
    assert_eq!(error, "output elements: expected 64, found 8");
    assert!(ghost(16, &Ghost { size: [3, 2], ..operands }, &mut [0.0; 96]).is_err());
    assert!(ghost(5, &operands, &mut [0.0; 64]).is_err());
    assert!(ghost(16, &Ghost { copied: 48, ..operands }, &mut [0.0; 256]).is_err());
}
