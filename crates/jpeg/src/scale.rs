//! The sizes at which a file can be decoded.

use super::block::BLOCK_SIDE;

/// The fraction of an image's width and height at which it is decoded.
///
/// A JPEG file stores an image as frequencies. Making a smaller image from these takes less work than from pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scale {
    /// 1/8.
    Eighth,
    /// 1/4.
    Quarter,
    /// 1/2.
    Half,
    /// 1: every pixel.
    Full,
}

impl Scale {
    /// All scales, the smallest first.
    pub const ALL: [Self; 4] = [Self::Eighth, Self::Quarter, Self::Half, Self::Full];

    /// The scale as a number: a point of the image in the file, times this, is the same point in the decoded image.
    /// This is exact; only the width and height of the decoded image are rounded, upwards.
    #[must_use]
    pub fn factor(self) -> f64 {
        self.block_side() as f64 / BLOCK_SIDE as f64
    }

    /// Pixels along each side of the square that a block becomes.
    pub(super) fn block_side(self) -> usize {
        match self {
            Self::Eighth => 1,
            Self::Quarter => 2,
            Self::Half => 4,
            Self::Full => BLOCK_SIDE,
        }
    }

    /// Decoded length of a side that has `pixels` in the file.
    pub(super) fn scaled(self, pixels: usize) -> usize {
        (pixels * self.block_side()).div_ceil(BLOCK_SIDE)
    }
}
