//! The tail of a Ghost module: depthwise convolution, concatenation, attention gate and residual in one pass.

use super::lanes::Scratch;
use super::{KernelError, Lanes, MapSize, check, kernel};

/// Operands of [`ghost`]. All maps are blocked.
#[derive(Clone, Copy, Debug)]
pub struct Ghost<'a> {
    /// `images × slots × height × width`.
    pub x: &'a [f32],
    /// Depthwise 3×3 kernels: blocks × 9 × block.
    pub weight: &'a [f32],
    /// One value per slot of `x`.
    pub bias: &'a [f32],
    /// Multiplies the output (nearest neighbour): a map with the output's slots, and its own size, at most the
    /// output's.
    pub gate: Option<(&'a [f32], MapSize)>,
    /// Added to the output; has the output's shape.
    pub residual: Option<&'a [f32]>,
    /// Number of images.
    pub images: usize,
    /// Size of `x` and of the output.
    pub size: MapSize,
    /// Number of slots, whole blocks, that are copied from the start of `x`. They precede the convolved slots in the
    /// output.
    pub copied: usize,
    /// Whether a rectifier follows the convolution.
    pub relu: bool,
    /// Distance between taps, in pixels.
    pub dilation: usize,
}

kernel! {
    /// Writes the first slots of `x` followed by the depthwise convolution of `x` (padded with zeros, then rectified if
    /// `relu`), times the gate, plus the residual: `images × (copied + slots) × height × width` values. `block` is the
    /// number of channels per block, 8 or 16.
    ///
    /// # Errors
    /// The operands' sizes do not match, or `block` is neither 8 nor 16.
    ///
    /// # Panics
    /// A side of the map or of the gate is zero, or there are no slots.
    ghost => ghost_body(operands: &Ghost<'_>, out: &mut [f32])
}

kernel! {
    /// Writes `x` times the gate, plus the residual. The output has the shape of `x`; `block` is the number of channels
    /// per block, 8 or 16.
    ///
    /// # Errors
    /// The operands' sizes do not match, or `block` is neither 8 nor 16.
    ///
    /// # Panics
    /// A side of the map or of the gate is zero.
    gate => gate_body(operands: &Gate<'_>, out: &mut [f32])
}

/// Operands of [`gate`]. All maps are blocked.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// `planes` blocks of height × width pixels.
    pub x: &'a [f32],
    /// Multiplies `x` (nearest neighbour): a map with as many blocks, and its own size, at most that of `x`.
    pub gate: (&'a [f32], MapSize),
    /// Added to the output; has the output's shape.
    pub residual: Option<&'a [f32]>,
    /// Number of blocks in the batch: images times blocks per image.
    pub planes: usize,
    /// Size of `x` and of the output.
    pub size: MapSize,
}

/// The steps between a row of results and its storage.
struct RowEpilogue<'a, const B: usize> {
    gate: Option<&'a [[f32; B]]>,
    /// For each column of the output, the column of the gate.
    columns: &'a [usize],
    residual: Option<&'a [[f32; B]]>,
    relu: bool,
}

impl<const B: usize> RowEpilogue<'_, B> {
    #[inline(always)]
    fn store<L: Lanes<B>>(&self, mut value: L, x: usize, out: &mut [f32; B]) {
        if self.relu {
            value = value.max(L::splat(0.0));
        }
        if let Some(gate) = self.gate {
            value = value.multiply(L::load(&gate[self.columns[x]]));
        }
        if let Some(residual) = self.residual {
            value = value.add(L::load(&residual[x]));
        }
        value.store(out);
    }
}

/// Gate and residual of one block of the output.
struct BlockEpilogue<'a, const B: usize> {
    gate: Option<(&'a [[f32; B]], MapSize)>,
    residual: Option<&'a [[f32; B]]>,
    columns: &'a [usize],
    size: MapSize,
}

impl<'a, const B: usize> BlockEpilogue<'a, B> {
    #[inline(always)]
    fn row(&self, y: usize, relu: bool) -> RowEpilogue<'a, B> {
        let [height, width] = self.size;
        RowEpilogue {
            gate: self.gate.map(|(gate, [gh, gw])| &gate[y * gh / height * gw..][..gw]),
            columns: self.columns,
            residual: self.residual.map(|r| &r[y * width..][..width]),
            relu,
        }
    }
}

/// For each of `width` columns of the output, the column of a gate that has `gate_width`.
fn gate_columns(width: usize, gate_width: usize) -> Vec<usize> {
    (0..width).map(|x| x * gate_width / width).collect()
}

#[inline(always)]
fn ghost_body<const B: usize, L: Lanes<B>>(op: &Ghost<'_>, out: &mut [f32]) -> Result<(), KernelError> {
    let [height, width] = op.size;
    let pixels = height * width;
    let (sources, copied) = (op.bias.len() / B, op.copied / B);
    let blocks = copied + sources;
    check("input elements", op.images * sources * pixels * B, op.x.len())?;
    check("kernel elements", sources * 9 * B, op.weight.len())?;
    check("output elements", op.images * blocks * pixels * B, out.len())?;
    check("copied slots", copied.min(sources) * B, op.copied)?;
    check("residual elements", out.len(), op.residual.map_or(out.len(), <[f32]>::len))?;
    if let Some((gate, [gh, gw])) = op.gate {
        check("gate elements", op.images * blocks * gh * gw * B, gate.len())?;
    }

    let (x, weight, bias) = (op.x.as_chunks::<B>().0, op.weight.as_chunks::<B>().0, op.bias.as_chunks::<B>().0);
    let residual = op.residual.map(|r| r.as_chunks::<B>().0);
    let gate = op.gate.map(|(gate, size)| (gate.as_chunks::<B>().0, size));
    let columns = gate_columns(width, gate.map_or(width, |(_, [_, gw])| gw));
    let mut zeros = Scratch::zeros::<B>(width);
    let zeros = &*zeros.blocks::<B>();

    for (image, out) in out.as_chunks_mut::<B>().0.chunks_exact_mut(blocks * pixels).enumerate() {
        let (copies, convolved) = out.split_at_mut(copied * pixels);
        let epilogue_of = |block: usize| {
            let plane = image * blocks + block;
            BlockEpilogue {
                gate: gate.map(|(gate, [gh, gw])| (&gate[plane * gh * gw..][..gh * gw], [gh, gw])),
                residual: residual.map(|r| &r[plane * pixels..][..pixels]),
                columns: &columns,
                size: op.size,
            }
        };
        for source in 0..sources {
            let plane = &x[(image * sources + source) * pixels..][..pixels];
            if source < copied {
                let block_epilogue = epilogue_of(source);
                let rows = copies[source * pixels..][..pixels].chunks_exact_mut(width).zip(plane.chunks_exact(width));
                for (y, (out, row)) in rows.enumerate() {
                    let epilogue = block_epilogue.row(y, false);
                    for x in 0..width {
                        epilogue.store(L::load(&row[x]), x, &mut out[x]);
                    }
                }
            }
            let taps: &[[f32; B]; 9] = match weight[source * 9..].first_chunk() {
                Some(taps) => taps,
                None => return check("kernel taps", 9, 0),
            };
            let block_epilogue = epilogue_of(copied + source);
            for (y, out) in convolved[source * pixels..][..pixels].chunks_exact_mut(width).enumerate() {
                let row = |y: Option<usize>| match y.filter(|y| *y < height) {
                    Some(y) => &plane[y * width..][..width],
                    None => zeros,
                };
                let d = op.dilation;
                let rows = [row(y.checked_sub(d)), row(Some(y)), row(Some(y + d))];
                depthwise_row::<B, L>(rows, taps, &bias[source], d, &block_epilogue.row(y, op.relu), out);
            }
        }
    }
    Ok(())
}

/// Computes one row of a 3×3 depthwise convolution: the inner pixels in runs of four, the edges pixel by pixel.
#[inline(always)]
fn depthwise_row<const B: usize, L: Lanes<B>>(
    rows: [&[[f32; B]]; 3],
    taps: &[[f32; B]; 9],
    bias: &[f32; B],
    dilation: usize,
    epilogue: &RowEpilogue<'_, B>,
    out: &mut [[f32; B]],
) {
    let width = out.len();
    let first = dilation.min(width);
    let last = width.saturating_sub(dilation).max(first);
    let start = L::load(bias);
    let mut weights = [start; 9];
    for (weight, tap) in weights.iter_mut().zip(taps) {
        *weight = L::load(tap);
    }
    let mut x = first;
    // Four sums in four registers; each pixel is loaded once for the three taps of a row that use it.
    while dilation == 1 && x + 4 <= last {
        let (mut a, mut b, mut c, mut d) = (start, start, start, start);
        for (row, [left, middle, right]) in rows.iter().zip(weights.as_chunks::<3>().0) {
            let Some(pixels) = row[x - 1..].first_chunk::<6>() else { break };
            let (p, q, r) = (L::load(&pixels[0]), L::load(&pixels[1]), L::load(&pixels[2]));
            let (s, t, u) = (L::load(&pixels[3]), L::load(&pixels[4]), L::load(&pixels[5]));
            a = r.multiply_add(*right, q.multiply_add(*middle, p.multiply_add(*left, a)));
            b = s.multiply_add(*right, r.multiply_add(*middle, q.multiply_add(*left, b)));
            c = t.multiply_add(*right, s.multiply_add(*middle, r.multiply_add(*left, c)));
            d = u.multiply_add(*right, t.multiply_add(*middle, s.multiply_add(*left, d)));
        }
        let Some(out) = out[x..].first_chunk_mut::<4>() else { break };
        epilogue.store(a, x, &mut out[0]);
        epilogue.store(b, x + 1, &mut out[1]);
        epilogue.store(c, x + 2, &mut out[2]);
        epilogue.store(d, x + 3, &mut out[3]);
        x += 4;
    }
    while x < last {
        let mut value = start;
        for (row, weights) in rows.iter().zip(weights.as_chunks::<3>().0) {
            for (tap, weight) in weights.iter().enumerate() {
                value = L::load(&row[x + tap * dilation - dilation]).multiply_add(*weight, value);
            }
        }
        epilogue.store(value, x, &mut out[x]);
        x += 1;
    }
    for x in (0..first).chain(last..width) {
        let mut value = start;
        for (row, weights) in rows.iter().zip(weights.as_chunks::<3>().0) {
            for (tap, weight) in weights.iter().enumerate() {
                if let Some(pixel) = (x + tap * dilation).checked_sub(dilation).and_then(|column| row.get(column)) {
                    value = L::load(pixel).multiply_add(*weight, value);
                }
            }
        }
        epilogue.store(value, x, &mut out[x]);
    }
}

#[inline(always)]
fn gate_body<const B: usize, L: Lanes<B>>(op: &Gate<'_>, out: &mut [f32]) -> Result<(), KernelError> {
    let ([height, width], (gate, [gh, gw])) = (op.size, op.gate);
    let pixels = height * width;
    check("input elements", op.planes * pixels * B, op.x.len())?;
    check("gate elements", op.planes * gh * gw * B, gate.len())?;
    check("output elements", op.x.len(), out.len())?;
    check("residual elements", out.len(), op.residual.map_or(out.len(), <[f32]>::len))?;
    let (x, gate, out) = (op.x.as_chunks::<B>().0, gate.as_chunks::<B>().0, out.as_chunks_mut::<B>().0);
    let residual = op.residual.map(|r| r.as_chunks::<B>().0);
    let columns = gate_columns(width, gw);
    for plane in 0..op.planes {
        let block_epilogue = BlockEpilogue {
            gate: Some((&gate[plane * gh * gw..][..gh * gw], [gh, gw])),
            residual: residual.map(|r| &r[plane * pixels..][..pixels]),
            columns: &columns,
            size: op.size,
        };
        let rows = x[plane * pixels..][..pixels].chunks_exact(width);
        for (y, (row, out)) in rows.zip(out[plane * pixels..][..pixels].chunks_exact_mut(width)).enumerate() {
            let epilogue = block_epilogue.row(y, false);
            for x in 0..width {
                epilogue.store(L::load(&row[x]), x, &mut out[x]);
            }
        }
    }
    Ok(())
}
