//! The samples of one component, as far as they are kept in memory.

use super::frame::Component;

/// Rows of samples, padded to whole blocks. May be a window that moves down the picture: then the rows of a block row
/// take the place of those decoded a window's height earlier.
pub(super) struct Plane {
    samples: Vec<u8>,
    /// Samples from one row to the next.
    pub(super) stride: usize,
    /// Samples along each side of a block.
    size: usize,
    /// Rows that are kept.
    rows: usize,
    /// The component's size without padding.
    width: usize,
    height: usize,
}

impl Plane {
    /// Makes room for `block_rows` rows of blocks of a component.
    pub(super) fn new(component: &Component, block_rows: usize) -> Self {
        let &Component { size, width, height, padded_wide, .. } = component;
        let (stride, rows) = (padded_wide * size, block_rows * size);
        Self { samples: vec![0; stride * rows], stride, size, rows, width, height }
    }

    /// The component's samples in row `y`, or in its last row if that is above `y`.
    pub(super) fn row(&self, y: usize) -> &[u8] {
        let y = y.min(self.height - 1) % self.rows;
        &self.samples[y * self.stride..][..self.width]
    }

    /// The samples of some rows of blocks, from the row `first`, for writing. In a window they must lie in one half.
    pub(super) fn block_rows(&mut self, first: usize, count: usize) -> &mut [u8] {
        let y = first * self.size % self.rows;
        &mut self.samples[y * self.stride..][..self.stride * self.size * count]
    }
}
