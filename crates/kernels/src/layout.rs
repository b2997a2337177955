//! Into the blocked layout and out of it, in any order of channels.

use super::{KernelError, Pixels, check};

/// From blocks to N×C×H×W: channel `c` of the output comes from slot `positions[c]`.
///
/// # Errors
/// The operands' sizes do not fit.
pub fn unblock(
    (x, slots): (&[f32], usize),
    (positions, block): (&[i64], usize),
    [height, width]: Pixels,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let pixels = height * width;
    let image = slots * pixels;
    check("slots", slots / block.max(1) * block, slots)?;
    check("input elements", x.len() / image.max(1) * positions.len() * pixels, out.len())?;
    for (x, out) in x.chunks_exact(image).zip(out.chunks_exact_mut(positions.len() * pixels)) {
        for (out, slot) in out.chunks_exact_mut(pixels).zip(positions) {
            let Some(slot) = usize::try_from(*slot).ok().filter(|s| *s < slots) else {
                return check("a slot below", slots, usize::MAX);
            };
            let plane = &x[slot / block * block * pixels..][..block * pixels];
            for (out, pixel) in out.iter_mut().zip(plane.chunks_exact(block)) {
                *out = pixel[slot % block];
            }
        }
    }
    Ok(())
}

/// From N×C×H×W to blocks: slot `s` of the output holds channel `sources[s]`, or 0 if there is none of that number.
///
/// # Errors
/// The operands' sizes do not fit.
pub fn reblock(
    (x, channels): (&[f32], usize),
    (sources, block): (&[i64], usize),
    [height, width]: Pixels,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let pixels = height * width;
    let (from, to) = (channels * pixels, sources.len() * pixels);
    check("slots", sources.len() / block.max(1) * block, sources.len())?;
    check("input elements", out.len() / to.max(1) * from, x.len())?;
    for (x, out) in x.chunks_exact(from).zip(out.chunks_exact_mut(to)) {
        for (slot, source) in sources.iter().enumerate() {
            let source = usize::try_from(*source).ok().filter(|c| *c < channels);
            let plane = &mut out[slot / block * block * pixels..][..block * pixels];
            for (pixel, out) in plane.chunks_exact_mut(block).enumerate() {
                out[slot % block] = source.map_or(0.0, |c| x[c * pixels + pixel]);
            }
        }
    }
    Ok(())
}
