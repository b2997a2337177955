//! Converts a file's components to RGB, bit for bit as libjpeg-turbo and, for inks, Pillow do it.

use super::header::Parser;
use super::simd::vectorised;

/// The meaning of a file's components.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Gray,
    Rgb,
    /// Brightness and two colour differences.
    YCbCr,
    /// Inks.
    Cmyk,
    /// Inks, the first three converted to brightness and colour differences.
    Ycck,
}

impl Colour {
    /// Decides by the application segments, and without them by the components' identifiers, as libjpeg does.
    pub(super) fn detect(parser: &Parser<'_>, identifiers: &[u8]) -> Self {
        match (identifiers.len(), parser.adobe) {
            (1, _) => Self::Gray,
            (3, _) if parser.jfif => Self::YCbCr,
            (3, Some(0)) => Self::Rgb,
            (3, None) if identifiers == b"RGB" => Self::Rgb,
            (3, _) => Self::YCbCr,
            (_, None | Some(0)) => Self::Cmyk,
            _ => Self::Ycck,
        }
    }
}

vectorised! {
    /// Converts rows of brightness and colour differences to RGB.
    fn ycbcr_to_rgb(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) = ycbcr_row
}

/// The differences are weighted in fixed point with 16 bits of fraction: 1.402 is 91881, 1.772 is 116130, 0.34414 is
/// 22554 and 0.71414 is 46802. Whole multiples are taken out of each weight, so that more of the arithmetic fits 16-bit
/// lanes; this leaves a remainder within 16 bits and does not change the result.
#[inline(always)]
fn ycbcr_row(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    let out = out.as_chunks_mut::<3>().0;
    let n = out.len();
    let (Some(y), Some(cb), Some(cr)) = (y.get(..n), cb.get(..n), cr.get(..n)) else { return };
    // The product of twice a difference without its lower 16 bits, halved with rounding, is the product rounded.
    let weigh = |difference: i16, weight: i16| -> i16 {
        let product = (i32::from(2 * difference) * i32::from(weight)) >> 16;
        (product as i16 + 1) >> 1
    };
    for i in 0..n {
        let (y, cb, cr) = (i16::from(y[i]), i16::from(cb[i]) - 128, i16::from(cr[i]) - 128);
        let red = y + cr + weigh(cr, 26345);
        let both = (i32::from(cb) * -22554 + i32::from(cr) * 18734 + 0x8000) >> 16;
        let green = y - cr + both as i16;
        let blue = y + 2 * cb + weigh(cb, -14942);
        out[i] = [red, green, blue].map(|value| value.clamp(0, 255) as u8);
    }
}

/// Interleaves rows of red, green and blue.
pub(super) fn interleave(red: &[u8], green: &[u8], blue: &[u8], out: &mut [u8]) {
    for (out, ((&r, &g), &b)) in out.as_chunks_mut::<3>().0.iter_mut().zip(red.iter().zip(green).zip(blue)) {
        *out = [r, g, b];
    }
}

/// Converts a row of inks to RGB in place. `black` is the amount of light that black ink leaves, as files store it; the
/// others are amounts of ink.
pub(super) fn inks_to_rgb(black: &[u8], out: &mut [u8]) {
    for (out, &light) in out.as_chunks_mut::<3>().0.iter_mut().zip(black) {
        *out = out.map(|ink| {
            let product = u32::from(ink) * u32::from(light) + 128;
            let absorbed = (product + (product >> 8)) >> 8;
            light.saturating_sub(absorbed as u8)
        });
    }
}
