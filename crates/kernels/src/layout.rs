//! Conversion into the blocked layout and out of it, with the channels in any order.

use super::{KernelError, MapSize, check};

/// Copies a blocked map of `slots` slots, `block` of them per block, to N×C×H×W: channel `c` of the output comes from
/// slot `positions[c]`.
///
/// # Errors
/// The operands' sizes do not match, or a position is not that of a slot.
///
/// # Panics
/// A side of the map is zero, or there are no slots or no positions.
pub fn unblock(
    block: usize,
    x: &[f32],
    slots: usize,
    positions: &[i64],
    [height, width]: MapSize,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let pixels = height * width;
    let (image, channels) = (slots * pixels, positions.len() * pixels);
    check("slots", slots / block.max(1) * block, slots)?;
    check("input elements", x.len() / image.max(1) * channels, out.len())?;
    for (x, out) in x.chunks_exact(image).zip(out.chunks_exact_mut(channels)) {
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

/// Copies a map of `channels` channels in N×C×H×W to blocks of `block` slots: slot `s` of the output contains channel
/// `sources[s]`, or 0 if there is no channel with that number.
///
/// # Errors
/// The operands' sizes do not match.
///
/// # Panics
/// A side of the map is zero, or there are no channels or no sources.
pub fn reblock(
    block: usize,
    x: &[f32],
    channels: usize,
    sources: &[i64],
    [height, width]: MapSize,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let pixels = height * width;
    let (image, slots) = (channels * pixels, sources.len() * pixels);
    check("slots", sources.len() / block.max(1) * block, sources.len())?;
    check("input elements", out.len() / slots.max(1) * image, x.len())?;
    for (x, out) in x.chunks_exact(image).zip(out.chunks_exact_mut(slots)) {
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
