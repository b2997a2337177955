//! The two strips of DFC attention and its gate function, block by block in the processor's first-level cache.

use super::lanes::Scratch;
use super::{KernelError, Lanes, MapSize, check, kernel};

/// The function that turns a value into a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateKind {
    /// The value itself.
    None,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `clip(x / 6 + 1/2, 0, 1)`.
    HardSigmoid,
    /// `clip(x, 0, 1)`.
    Clip,
}

/// Operands of [`strips`]. All maps are blocked.
#[derive(Clone, Copy, Debug)]
pub struct Strips<'a> {
    /// `images × slots × height × width`.
    pub x: &'a [f32],
    /// Taps of the horizontal strip: blocks × length × block.
    pub horizontal: &'a [f32],
    /// One value per slot.
    pub horizontal_bias: &'a [f32],
    /// Taps of the vertical strip: blocks × length × block.
    pub vertical: &'a [f32],
    /// One value per slot.
    pub vertical_bias: &'a [f32],
    /// Number of images.
    pub images: usize,
    /// Size of `x` and of the output.
    pub size: MapSize,
    /// Distance between taps, in pixels.
    pub dilation: usize,
    /// The function that follows the vertical strip.
    pub function: GateKind,
}

kernel! {
    /// Convolves each channel of `x` with a horizontal strip, the result with a vertical strip, both with a bias and
    /// padded with zeros, and applies the gate function. The output has the shape of `x`; `block` is the number of
    /// channels per block, 8 or 16.
    ///
    /// # Errors
    /// The operands' sizes do not match, or `block` is neither 8 nor 16.
    ///
    /// # Panics
    /// A side of the map is zero.
    strips => strips_body(operands: &Strips<'_>, out: &mut [f32])
}

#[inline(always)]
fn strips_body<const B: usize, L: Lanes<B>>(op: &Strips<'_>, out: &mut [f32]) -> Result<(), KernelError> {
    // The usual lengths are constants here, so that their taps need no loop.
    match op.horizontal.len() / op.horizontal_bias.len().max(1) {
        3 => strips_of_length::<B, L, 3>(op, out, 3),
        5 => strips_of_length::<B, L, 5>(op, out, 5),
        7 => strips_of_length::<B, L, 7>(op, out, 7),
        length => strips_of_length::<B, L, 0>(op, out, length),
    }
}

/// Strips of `KNOWN` taps, or of `length` taps if `KNOWN` is 0.
#[inline(always)]
fn strips_of_length<const B: usize, L: Lanes<B>, const KNOWN: usize>(
    op: &Strips<'_>,
    out: &mut [f32],
    length: usize,
) -> Result<(), KernelError> {
    let length = if KNOWN > 0 { KNOWN } else { length };
    let [height, width] = op.size;
    let pixels = height * width;
    let blocks = op.horizontal_bias.len() / B;
    check("input elements", op.images * blocks * pixels * B, op.x.len())?;
    check("output elements", op.x.len(), out.len())?;
    check("kernel elements", blocks * length * B, op.horizontal.len())?;
    check("vertical kernel elements", op.horizontal.len(), op.vertical.len())?;
    check("vertical biases", blocks * B, op.vertical_bias.len())?;

    let chunks = |values| <[f32]>::as_chunks::<B>(values).0;
    let reach = length / 2 * op.dilation;
    // Zeros on both sides of a row and above and below the plane stand for the padding.
    let mut padded_row = Scratch::zeros::<B>(width + 2 * reach);
    let padded_row = padded_row.blocks::<B>();
    let mut padded_plane = Scratch::zeros::<B>((height + 2 * reach) * width);
    let padded_plane = padded_plane.blocks::<B>();
    let planes = chunks(op.x).chunks_exact(pixels).zip(out.as_chunks_mut::<B>().0.chunks_exact_mut(pixels));
    for (plane, (x, out)) in planes.enumerate() {
        let block = plane % blocks;
        let taps = block * length..(block + 1) * length;
        let (across, down) = (&chunks(op.horizontal)[taps.clone()], &chunks(op.vertical)[taps]);
        let bias = L::load(&chunks(op.horizontal_bias)[block]);
        let convolved_rows = padded_plane[reach * width..].chunks_exact_mut(width);
        for (row, convolved) in x.chunks_exact(width).zip(convolved_rows) {
            for (to, from) in padded_row[reach..].iter_mut().zip(row) {
                L::load(from).store(to);
            }
            for (x, value) in convolved.iter_mut().enumerate() {
                convolve::<B, L>(across, &padded_row[x..], op.dilation, bias).store(value);
            }
        }
        let bias = L::load(&chunks(op.vertical_bias)[block]);
        for (pixel, value) in out.iter_mut().enumerate() {
            let sum = convolve::<B, L>(down, &padded_plane[pixel..], op.dilation * width, bias);
            let gate = match op.function {
                GateKind::None => sum,
                GateKind::Sigmoid => sum.sigmoid(),
                GateKind::HardSigmoid => sum.hard_sigmoid(),
                GateKind::Clip => sum.clip(),
            };
            gate.store(value);
        }
    }
    Ok(())
}

/// The bias plus the products of `taps` and of pixels that lie `step` apart.
#[inline(always)]
fn convolve<const B: usize, L: Lanes<B>>(taps: &[[f32; B]], pixels: &[[f32; B]], step: usize, bias: L) -> L {
    let mut sum = bias;
    for (tap, weight) in taps.iter().enumerate() {
        sum = L::load(&pixels[tap * step]).multiply_add(L::load(weight), sum);
    }
    sum
}
