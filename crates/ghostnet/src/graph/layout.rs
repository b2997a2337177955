//! The blocked layout (NCHWc): where each channel of a feature map lies in memory, and weights arranged to match.
//!
//! A blocked map is stored as N × C/b × H × W × b: `b` channels of one pixel side by side, as wide as a vector register.
//! Its channels are padded to whole blocks, and they need not be in order: a [`Layout`] says which channel each *slot*
//! holds. A convolution does not care, as long as its weights are arranged for the layouts on both sides, which
//! [`Layout::pack_dense`] and its siblings do.

use super::Tensor;

/// What each slot of a blocked map holds: a channel, or nothing (finite values that no weight looks at). A channel may
/// be held twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    block: usize,
    slots: Vec<Option<usize>>,
}

impl Layout {
    /// Channels in order, padded to whole blocks of `block`.
    #[must_use]
    pub fn in_order(channels: usize, block: usize) -> Self {
        Self::new((0..channels).map(Some).collect(), block)
    }

    /// The given slots, padded to whole blocks.
    #[must_use]
    pub fn new(mut slots: Vec<Option<usize>>, block: usize) -> Self {
        slots.resize(slots.len().next_multiple_of(block), None);
        Self { block, slots }
    }

    /// Channels a block.
    #[must_use]
    pub fn block(&self) -> usize {
        self.block
    }

    /// The slots: a whole number of blocks.
    #[must_use]
    pub fn slots(&self) -> &[Option<usize>] {
        &self.slots
    }

    /// The first slot of every channel from 0 to `channels`, or `None` if one has no slot.
    #[must_use]
    pub fn positions(&self, channels: usize) -> Option<Vec<usize>> {
        (0..channels).map(|c| self.slots.iter().position(|s| *s == Some(c))).collect()
    }

    /// One value a channel becomes one value a slot, 0 where nothing is held.
    #[must_use]
    pub fn pack_vector(&self, values: &[f32]) -> Vec<f32> {
        self.slots.iter().map(|slot| slot.and_then(|c| values.get(c).copied()).unwrap_or_default()).collect()
    }

    /// A dense kernel `[out, in, kh, kw]` for an input in `input`'s layout and an output in this one: blocks of outputs,
    /// blocks of inputs, taps, inputs of a block, outputs of a block. A channel that the input holds twice is read once.
    #[must_use]
    pub fn pack_dense(&self, weight: &Tensor, input: &Self) -> Tensor {
        let taps: usize = weight.shape[2..].iter().product();
        let channels = weight.shape[1];
        let mut seen = vec![false; channels];
        let sources: Vec<Option<usize>> =
            input.slots.iter().map(|slot| slot.filter(|c| !std::mem::replace(&mut seen[*c], true))).collect();
        let mut data = Vec::with_capacity(self.slots.len() * sources.len() * taps);
        for outputs in self.slots.chunks_exact(self.block) {
            for inputs in sources.chunks_exact(self.block) {
                for tap in 0..taps {
                    for from in inputs {
                        let value = |(o, i): (usize, usize)| weight.data[(o * channels + i) * taps + tap];
                        data.extend(outputs.iter().map(|to| to.zip(*from).map(value).unwrap_or_default()));
                    }
                }
            }
        }
        Tensor { shape: vec![self.slots.len(), sources.len(), weight.shape[2], weight.shape[3]], data }
    }

    /// A dense kernel for an input that is not blocked (an image of a few channels): blocks of outputs, inputs, taps,
    /// outputs of a block. Also a depthwise kernel `[channels, 1, kh, kw]`, whose input has this layout too.
    #[must_use]
    pub fn pack_rows(&self, weight: &Tensor) -> Tensor {
        let row: usize = weight.shape[1..].iter().product();
        let mut data = Vec::with_capacity(self.slots.len() * row);
        for outputs in self.slots.chunks_exact(self.block) {
            for at in 0..row {
                data.extend(outputs.iter().map(|to| to.map(|o| weight.data[o * row + at]).unwrap_or_default()));
            }
        }
        let mut shape = weight.shape.clone();
        shape[0] = self.slots.len();
        Tensor { shape, data }
    }

    /// A matrix `[out, in]` whose input rows are in this layout.
    #[must_use]
    pub fn pack_columns(&self, weight: &Tensor) -> Tensor {
        let [rows, columns] = [weight.shape[0], weight.shape[1]];
        let data = weight.data.chunks_exact(columns).flat_map(|row| self.pack_vector(row)).collect();
        Tensor { shape: vec![rows, self.slots.len()], data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dense_kernels_follow_both_layouts() {
        // Two outputs of two inputs: out 0 = [1, 2], out 1 = [3, 4].
        let weight = Tensor { shape: vec![2, 2, 1, 1], data: vec![1.0, 2.0, 3.0, 4.0] };
        let swapped = Layout::new(vec![Some(1), Some(0)], 2);
        let padded = Layout::new(vec![Some(0), Some(1), Some(1)], 2);
        // One block of outputs (1, 0); two blocks of inputs (0, 1) and (1 again, nothing).
        let packed = swapped.pack_dense(&weight, &padded);
        assert_eq!(packed.shape, [2, 4, 1, 1]);
        assert_eq!(packed.data, [3.0, 1.0, 4.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn depthwise_kernels_lie_tap_by_tap() {
        let weight = Tensor { shape: vec![3, 1, 1, 2], data: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0] };
        let packed = Layout::in_order(3, 2).pack_rows(&weight);
        assert_eq!(packed.shape, [4, 1, 1, 2]);
        assert_eq!(packed.data, [1.0, 3.0, 2.0, 4.0, 5.0, 0.0, 6.0, 0.0]);
    }
}
