//! Enlarges rows of samples to the picture's size, bit for bit as libjpeg-turbo does it by default.
//!
//! By 2 in either direction or both it interpolates with a triangle filter (3/4 of the nearer sample, 1/4 of the
//! further), rounding up and down at alternate pixels; by other factors, and where there are too few columns, it repeats
//! samples.

use super::frame::{Component, Frame};
use super::plane::Plane;
use super::scale::Scale;
use super::simd::vectorised;

/// How the samples of one component become those of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// There is one for each pixel.
    Whole,
    Wider,
    Higher,
    WiderAndHigher,
    Repeat {
        h: usize,
        v: usize,
    },
}

/// Enlarges one component, a row at a time.
pub(super) struct Upsampler {
    method: Method,
    /// A row enlarged; empty where the plane's own will do.
    row: Vec<u8>,
    /// Weighted sums of two rows, with the first and the last repeated on the outside.
    sums: Vec<u16>,
}

impl Upsampler {
    /// Chooses the method for a component.
    pub(super) fn new(frame: &Frame, component: &Component) -> Self {
        // At an eighth of the size nothing is interpolated. The interpolation of columns wants a first, a last and one
        // between; that of rows alone is not left out for that.
        let smooth = frame.scale != Scale::Eighth;
        let columns = smooth && component.width > 2;
        // Larger blocks than the picture's make up for lower sampling factors.
        let (h, v) = (component.h * component.size, component.v * component.size);
        let size = frame.scale.block();
        let method = match (frame.max_h * size / h, frame.max_v * size / v) {
            (1, 1) => Method::Whole,
            (2, 1) if columns => Method::Wider,
            (1, 2) if smooth => Method::Higher,
            (2, 2) if columns => Method::WiderAndHigher,
            (h, v) => Method::Repeat { h, v },
        };
        let (row, sums) = match method {
            Method::Whole => (0, 0),
            Method::Higher => (component.width, 0),
            Method::Wider | Method::WiderAndHigher => (component.width * 2, component.width + 2),
            Method::Repeat { h, .. } => (component.width * h, 0),
        };
        Self { method, row: vec![0; row], sums: vec![0; sums] }
    }

    /// At most what one of these takes.
    pub(super) fn bytes(component: &Component) -> u64 {
        component.width as u64 * 6 + 4
    }

    /// Row `y` of the picture: at least as wide as that. The plane must hold the rows of samples on both sides.
    pub(super) fn row<'a>(&'a mut self, plane: &'a Plane, y: usize) -> &'a [u8] {
        // Of two rows from one, the upper is nearer to the row above and the lower to the row below.
        let (near, upper) = (y / 2, y.is_multiple_of(2));
        let far = if upper { near.saturating_sub(1) } else { near + 1 };
        match self.method {
            Method::Whole => return plane.row(y),
            Method::Wider => {
                copy(plane.row(y), &mut self.sums);
                pad(&mut self.sums);
                widen_copied(&self.sums, &mut self.row);
            }
            Method::Higher if upper => blend::<1>(plane.row(near), plane.row(far), &mut self.row),
            Method::Higher => blend::<2>(plane.row(near), plane.row(far), &mut self.row),
            Method::WiderAndHigher => {
                weigh(plane.row(near), plane.row(far), &mut self.sums);
                pad(&mut self.sums);
                widen_weighed(&self.sums, &mut self.row);
            }
            Method::Repeat { h, v } => {
                for (to, &from) in self.row.chunks_exact_mut(h).zip(plane.row(y / v)) {
                    to.fill(from);
                }
            }
        }
        &self.row
    }
}

/// Repeats the outermost sums on the outside, so that the first and last columns need no cases of their own.
fn pad(sums: &mut [u16]) {
    if let [outer, first, .., last, other] = sums {
        (*outer, *other) = (*first, *last);
    }
}

vectorised! {
    /// Enlarges a row of samples, not weighted.
    fn widen_copied(sums: &[u16], out: &mut [u8]) = widen_row::<1, 2, 2>
}

vectorised! {
    /// Enlarges a row of sums with the weights 3 and 1.
    fn widen_weighed(sums: &[u16], out: &mut [u8]) = widen_row::<8, 7, 4>
}

#[inline(always)]
fn widen_row<const LEFT: u16, const RIGHT: u16, const SHIFT: u32>(sums: &[u16], out: &mut [u8]) {
    let out = out.as_chunks_mut::<2>().0;
    let n = out.len();
    let (Some(before), Some(here), Some(after)) = (sums.get(..n), sums.get(1..n + 1), sums.get(2..n + 2)) else {
        return;
    };
    for i in 0..n {
        let left = (here[i] * 3 + before[i] + LEFT) >> SHIFT;
        let right = (here[i] * 3 + after[i] + RIGHT) >> SHIFT;
        // Both fit a byte.
        out[i] = (left | right << 8).to_le_bytes();
    }
}

vectorised! {
    /// Weighs the nearer of two rows by 3 and the further by 1.
    fn weigh(near: &[u8], far: &[u8], sums: &mut [u16]) = weigh_row
}

#[inline(always)]
fn weigh_row(near: &[u8], far: &[u8], sums: &mut [u16]) {
    for (sum, (&near, &far)) in sums[1..].iter_mut().zip(near.iter().zip(far)) {
        *sum = u16::from(near) * 3 + u16::from(far);
    }
}

vectorised! {
    /// Takes a row as it is.
    fn copy(from: &[u8], sums: &mut [u16]) = copy_row
}

#[inline(always)]
fn copy_row(from: &[u8], sums: &mut [u16]) {
    for (sum, &from) in sums[1..].iter_mut().zip(from) {
        *sum = u16::from(from);
    }
}

#[inline(always)]
fn blend<const ROUND: u16>(near: &[u8], far: &[u8], out: &mut [u8]) {
    for (out, (&near, &far)) in out.iter_mut().zip(near.iter().zip(far)) {
        *out = ((u16::from(near) * 3 + u16::from(far) + ROUND) >> 2) as u8;
    }
}
