//! Enlarges rows of samples to the image's size, bit for bit as libjpeg-turbo does it by default.
//!
//! By a factor of 2, in one direction or both, it interpolates with a triangle filter (3/4 of the nearer sample, 1/4 of
//! the further), rounding up and down at alternate pixels. By other factors, and where there are too few columns, it
//! repeats samples.

use super::frame::{Component, Frame};
use super::plane::Plane;
use super::scale::Scale;
use super::simd::vectorised;

/// The way from the samples of one component to those of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// There is already a sample for each pixel.
    Identity,
    /// Interpolates twice as many columns.
    Horizontal,
    /// Interpolates twice as many rows.
    Vertical,
    /// Interpolates twice as many rows and columns.
    Both,
    /// Repeats each sample `h` times along its row, and each row `v` times.
    Repeat { h: usize, v: usize },
}

/// Enlarges one component, a row at a time.
pub(super) struct Upsampler {
    method: Method,
    /// The enlarged row; empty where the plane's own row serves.
    row: Vec<u8>,
    /// Weighted sums of two rows, with the first and the last sum repeated on the outside.
    sums: Vec<u16>,
}

impl Upsampler {
    /// Selects the method for a component and allocates its rows.
    pub(super) fn new(frame: &Frame, component: &Component) -> Self {
        // At an eighth of the size nothing is interpolated. The interpolation of columns needs a first, a last and one
        // between; that of rows alone does not.
        let smooth = frame.scale != Scale::Eighth;
        let columns = smooth && component.width > 2;
        // Blocks that are larger than the image's compensate for lower sampling factors.
        let (h, v) = (component.h * component.block_side, component.v * component.block_side);
        let side = frame.scale.block_side();
        let method = match (frame.max_h * side / h, frame.max_v * side / v) {
            (1, 1) => Method::Identity,
            (2, 1) if columns => Method::Horizontal,
            (1, 2) if smooth => Method::Vertical,
            (2, 2) if columns => Method::Both,
            (h, v) => Method::Repeat { h, v },
        };
        let (row, sums) = match method {
            Method::Identity => (0, 0),
            Method::Vertical => (component.width, 0),
            Method::Horizontal | Method::Both => (component.width * 2, component.width + 2),
            Method::Repeat { h, .. } => (component.width * h, 0),
        };
        Self { method, row: vec![0; row], sums: vec![0; sums] }
    }

    /// Upper bound of the bytes that the rows of a component's upsampler take.
    pub(super) fn bytes(component: &Component) -> u64 {
        component.width as u64 * 6 + 4
    }

    /// Row `y` of the image, at least as wide as the image. The plane must contain the rows of samples above and below
    /// it.
    pub(super) fn row<'a>(&'a mut self, plane: &'a Plane, y: usize) -> &'a [u8] {
        // Of two rows from one, the upper is nearer to the row above and the lower to the row below.
        let (near, upper) = (y / 2, y.is_multiple_of(2));
        let far = if upper { near.saturating_sub(1) } else { near + 1 };
        match self.method {
            Method::Identity => return plane.row(y),
            Method::Horizontal => {
                copy_samples(plane.row(y), &mut self.sums);
                pad_ends(&mut self.sums);
                widen_samples(&self.sums, &mut self.row);
            }
            Method::Vertical if upper => blend::<1>(plane.row(near), plane.row(far), &mut self.row),
            Method::Vertical => blend::<2>(plane.row(near), plane.row(far), &mut self.row),
            Method::Both => {
                weigh_rows(plane.row(near), plane.row(far), &mut self.sums);
                pad_ends(&mut self.sums);
                widen_sums(&self.sums, &mut self.row);
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

/// Repeats the outermost sums on the outside, so that the first and last columns are no special cases.
fn pad_ends(sums: &mut [u16]) {
    if let [before, first, .., last, after] = sums {
        (*before, *after) = (*first, *last);
    }
}

vectorised! {
    /// Doubles the columns of a row of samples.
    fn widen_samples(sums: &[u16], out: &mut [u8]) = widen_body::<1, 2, 2>
}

vectorised! {
    /// Doubles the columns of a row of sums, whose weights are 3 and 1.
    fn widen_sums(sums: &[u16], out: &mut [u8]) = widen_body::<8, 7, 4>
}

#[inline(always)]
fn widen_body<const LEFT: u16, const RIGHT: u16, const SHIFT: u32>(sums: &[u16], out: &mut [u8]) {
    let out = out.as_chunks_mut::<2>().0;
    let n = out.len();
    let (Some(before), Some(here), Some(after)) = (sums.get(..n), sums.get(1..n + 1), sums.get(2..n + 2)) else {
        return;
    };
    for i in 0..n {
        let left = (here[i] * 3 + before[i] + LEFT) >> SHIFT;
        let right = (here[i] * 3 + after[i] + RIGHT) >> SHIFT;
        // Each fits a byte.
        out[i] = (left | right << 8).to_le_bytes();
    }
}

vectorised! {
    /// Adds two rows, the nearer with weight 3 and the further with weight 1.
    fn weigh_rows(near: &[u8], far: &[u8], sums: &mut [u16]) = weigh_rows_body
}

#[inline(always)]
fn weigh_rows_body(near: &[u8], far: &[u8], sums: &mut [u16]) {
    for (sum, (&near, &far)) in sums[1..].iter_mut().zip(near.iter().zip(far)) {
        *sum = u16::from(near) * 3 + u16::from(far);
    }
}

vectorised! {
    /// Copies a row of samples to where sums are expected.
    fn copy_samples(from: &[u8], sums: &mut [u16]) = copy_samples_body
}

#[inline(always)]
fn copy_samples_body(from: &[u8], sums: &mut [u16]) {
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
