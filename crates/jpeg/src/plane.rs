//! The samples of one component that are in memory.

use super::frame::Component;

/// Rows of samples, padded to whole blocks. May be a window that moves down the image: then the rows of a block row
/// replace those decoded a window's height earlier.
pub(super) struct Plane {
    samples: Vec<u8>,
    /// Samples from one row to the next.
    pub(super) stride: usize,
    /// Samples along each side of a block.
    block_side: usize,
    /// Number of rows in memory.
    rows: usize,
    /// The component's size in samples, without padding.
    width: usize,
    height: usize,
}

impl Plane {
    /// Allocates `block_rows` rows of blocks of a component.
    pub(super) fn new(component: &Component, block_rows: usize) -> Self {
        let &Component { block_side, width, height, padded_wide, .. } = component;
        let (stride, rows) = (padded_wide * block_side, block_rows * block_side);
        Self { samples: vec![0; stride * rows], stride, block_side, rows, width, height }
    }

    /// The component's samples in row `y`, or in its last row if `y` is below that.
    pub(super) fn row(&self, y: usize) -> &[u8] {
        let y = y.min(self.height - 1) % self.rows;
        &self.samples[y * self.stride..][..self.width]
    }

    /// The samples of `count` rows of blocks, starting with the row of blocks `first`, for writing. In a window they
    /// must lie in one half.
    pub(super) fn block_rows_mut(&mut self, first: usize, count: usize) -> &mut [u8] {
        let y = first * self.block_side % self.rows;
        &mut self.samples[y * self.stride..][..self.stride * self.block_side * count]
    }
}
