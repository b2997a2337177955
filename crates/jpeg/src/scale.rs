//! The sizes at which a file can be decoded.

use super::frame::BLOCK;

/// The part of a picture's width and height that decoding gives.
///
/// A JPEG file holds its picture as frequencies, from which a smaller picture is made with less work than from pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scale {
    /// 1/8.
    Eighth,
    /// 1/4.
    Quarter,
    /// 1/2.
    Half,
    /// Every pixel.
    Full,
}

impl Scale {
    /// All, the smallest first.
    pub const ALL: [Self; 4] = [Self::Eighth, Self::Quarter, Self::Half, Self::Full];

    /// As a number: a point of the picture times this is the point's place in the decoded one. That is exact; it is the
    /// decoded sides that are rounded up.
    #[must_use]
    pub fn factor(self) -> f64 {
        self.block() as f64 / BLOCK as f64
    }

    /// Pixels along each side of what a block becomes.
    pub(super) fn block(self) -> usize {
        match self {
            Self::Eighth => 1,
            Self::Quarter => 2,
            Self::Half => 4,
            Self::Full => BLOCK,
        }
    }

    /// Pixels that a side of `pixels` becomes.
    pub(super) fn side(self, pixels: usize) -> usize {
        (pixels * self.block()).div_ceil(BLOCK)
    }
}
