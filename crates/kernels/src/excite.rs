//! Squeeze-and-excitation on a blocked map: each channel's mean, two small matrices, and the channels multiplied by the
//! result.

use super::lanes::Scratch;
use super::{KernelError, Lanes, MapSize, check, kernel};

/// Operands of [`squeeze_excite`].
#[derive(Clone, Copy, Debug)]
pub struct SqueezeExcite<'a> {
    /// `images × slots × height × width`, blocked.
    pub x: &'a [f32],
    /// The first matrix: `squeezed × slots`.
    pub reduce: &'a [f32],
    /// One value per squeezed channel.
    pub reduce_bias: &'a [f32],
    /// The second matrix, transposed: `squeezed × slots`.
    pub expand: &'a [f32],
    /// One value per slot.
    pub expand_bias: &'a [f32],
    /// Size of `x` and of the output.
    pub size: MapSize,
}

kernel! {
    /// Multiplies each channel of `x` by the hard sigmoid of expand(relu(reduce(means of `x`))). The output has the
    /// shape of `x`; `block` is the number of channels per block, 8 or 16.
    ///
    /// # Errors
    /// The operands' sizes do not match, or `block` is neither 8 nor 16.
    ///
    /// # Panics
    /// A side of the map is zero, or there are no slots.
    squeeze_excite => squeeze_excite_body(operands: &SqueezeExcite<'_>, out: &mut [f32])
}

#[inline(always)]
fn squeeze_excite_body<const B: usize, L: Lanes<B>>(
    op: &SqueezeExcite<'_>,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let pixels = op.size[0] * op.size[1];
    let slots = op.expand_bias.len();
    let (blocks, squeezed) = (slots / B, op.reduce_bias.len());
    check("input elements", out.len(), op.x.len())?;
    check("matrix elements", squeezed * slots, op.reduce.len())?;
    check("matrix elements", op.reduce.len(), op.expand.len())?;
    check("slots", blocks * B, slots)?;
    check("input elements", op.x.len() / (slots * pixels).max(1) * slots * pixels, op.x.len())?;

    let chunks = |values| <[f32]>::as_chunks::<B>(values).0;
    let (mut means, mut gates) = (Scratch::zeros::<B>(blocks), Scratch::zeros::<B>(blocks));
    let (means, gates) = (means.blocks::<B>(), gates.blocks::<B>());
    let images = chunks(op.x).chunks_exact(blocks * pixels);
    for (x, out) in images.zip(out.as_chunks_mut::<B>().0.chunks_exact_mut(blocks * pixels)) {
        for (mean, plane) in means.iter_mut().zip(x.chunks_exact(pixels)) {
            sum_plane::<B, L>(plane).multiply(L::splat(1.0 / pixels as f32)).store(mean);
        }
        gates.copy_from_slice(chunks(op.expand_bias));
        let rows = chunks(op.reduce).chunks_exact(blocks).zip(chunks(op.expand).chunks_exact(blocks));
        for ((reduce, expand), bias) in rows.zip(op.reduce_bias) {
            let value = (bias + dot::<B, L>(reduce, means)).max(0.0);
            // A zero behind the rectifier contributes nothing.
            if value > 0.0 {
                let value = L::splat(value);
                for (gate, expand) in gates.iter_mut().zip(expand) {
                    L::load(expand).multiply_add(value, L::load(gate)).store(gate);
                }
            }
        }
        let planes = x.chunks_exact(pixels).zip(out.chunks_exact_mut(pixels));
        for (gate, (plane, out)) in gates.iter().zip(planes) {
            let gate = L::load(gate).hard_sigmoid();
            for (out, value) in out.iter_mut().zip(plane) {
                L::load(value).multiply(gate).store(out);
            }
        }
    }
    Ok(())
}

/// The sum of a plane, in four parts so that additions do not wait for each other.
#[inline(always)]
fn sum_plane<const B: usize, L: Lanes<B>>(plane: &[[f32; B]]) -> L {
    let zero = L::splat(0.0);
    let (mut a, mut b, mut c, mut d) = (zero, zero, zero, zero);
    let (runs, rest) = plane.as_chunks::<4>();
    for run in runs {
        a = a.add(L::load(&run[0]));
        b = b.add(L::load(&run[1]));
        c = c.add(L::load(&run[2]));
        d = d.add(L::load(&run[3]));
    }
    for value in rest {
        a = a.add(L::load(value));
    }
    a.add(b).add(c.add(d))
}

/// The dot product of two rows of blocks, in two parts for the same reason.
#[inline(always)]
fn dot<const B: usize, L: Lanes<B>>(x: &[[f32; B]], y: &[[f32; B]]) -> f32 {
    let (mut a, mut b) = (L::splat(0.0), L::splat(0.0));
    let (x_pairs, x_rest) = x.as_chunks::<2>();
    let (y_pairs, y_rest) = y.as_chunks::<2>();
    for (x, y) in x_pairs.iter().zip(y_pairs) {
        a = L::load(&x[0]).multiply_add(L::load(&y[0]), a);
        b = L::load(&x[1]).multiply_add(L::load(&y[1]), b);
    }
    for (x, y) in x_rest.iter().zip(y_rest) {
        a = L::load(x).multiply_add(L::load(y), a);
    }
    a.add(b).sum()
}
