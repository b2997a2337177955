//! The blocked layout (NCHWc): the position of each channel of a feature map in memory, and weights packed to match.
//!
//! A blocked map is stored as N × C/b × H × W × b: `b` channels of one pixel side by side, as wide as a vector
//! register. Its channels are padded to whole blocks and may be in any order: a [`Layout`] records which channel each
//! *slot* holds. A convolution works with any layout if its weights are packed for the layouts of its input and of its
//! output. [`Layout::pack_dense`] and the other `pack_` methods do that.

use super::Tensor;

/// The content of each slot of a blocked map: a channel, or nothing (finite values that no weight reads). Two slots may
/// hold the same channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    block: usize,
    slots: Vec<Option<usize>>,
}

impl Layout {
    /// The layout with the channels in order, padded to whole blocks of `block` slots.
    #[must_use]
    pub fn in_order(channels: usize, block: usize) -> Self {
        Self::new((0..channels).map(Some).collect(), block)
    }

    /// The layout with the given slots, padded to whole blocks of `block` slots.
    #[must_use]
    pub fn new(mut slots: Vec<Option<usize>>, block: usize) -> Self {
        slots.resize(slots.len().next_multiple_of(block), None);
        Self { block, slots }
    }

    /// Channels per block.
    #[must_use]
    pub fn block(&self) -> usize {
        self.block
    }

    /// The slots, a whole number of blocks.
    #[must_use]
    pub fn slots(&self) -> &[Option<usize>] {
        &self.slots
    }

    /// The first slot of each of the channels below `channels`; `None` if one of them has no slot.
    #[must_use]
    pub fn positions(&self, channels: usize) -> Option<Vec<usize>> {
        (0..channels).map(|c| self.slots.iter().position(|s| *s == Some(c))).collect()
    }

    /// Packs one value per channel into one value per slot. Empty slots get 0.
    #[must_use]
    pub fn pack_vector(&self, values: &[f32]) -> Vec<f32> {
        self.slots.iter().map(|slot| slot.and_then(|c| values.get(c).copied()).unwrap_or_default()).collect()
    }

    /// Packs a dense kernel `[out, in, kh, kw]` for an input in the layout `input` and an output in this layout. The
    /// order is: blocks of outputs, blocks of inputs, taps, inputs of a block, outputs of a block. A channel that two
    /// slots of the input hold is read once.
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
                    for source in inputs {
                        let value = |(out, input): (usize, usize)| weight.data[(out * channels + input) * taps + tap];
                        data.extend(outputs.iter().map(|slot| slot.zip(*source).map(value).unwrap_or_default()));
                    }
                }
            }
        }
        Tensor { shape: vec![self.slots.len(), sources.len(), weight.shape[2], weight.shape[3]], data }
    }

    /// Packs a dense kernel for an input that is not blocked (an image of a few channels). The order is: blocks of
    /// outputs, inputs, taps, outputs of a block. Also packs a depthwise kernel `[channels, 1, kh, kw]` whose input and
    /// output have this layout.
    #[must_use]
    pub fn pack_rows(&self, weight: &Tensor) -> Tensor {
        let row: usize = weight.shape[1..].iter().product();
        let mut data = Vec::with_capacity(self.slots.len() * row);
        for outputs in self.slots.chunks_exact(self.block) {
            for offset in 0..row {
                let value = |out: usize| weight.data[out * row + offset];
                data.extend(outputs.iter().map(|slot| slot.map(value).unwrap_or_default()));
            }
        }
        let mut shape = weight.shape.clone();
        shape[0] = self.slots.len();
        Tensor { shape, data }
    }

    /// Packs a matrix `[out, in]` for input vectors in this layout.
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
    fn dense_kernels_are_packed_for_both_layouts() {
        // Two outputs, two inputs: the weights of output 0 are [1, 2], those of output 1 are [3, 4].
        let weight = Tensor { shape: vec![2, 2, 1, 1], data: vec![1.0, 2.0, 3.0, 4.0] };
        let swapped = Layout::new(vec![Some(1), Some(0)], 2);
        let padded = Layout::new(vec![Some(0), Some(1), Some(1)], 2);
        // One block of outputs (1, 0) and two blocks of inputs: (0, 1), then (1 again, empty).
        let packed = swapped.pack_dense(&weight, &padded);
        assert_eq!(packed.shape, [2, 4, 1, 1]);
        assert_eq!(packed.data, [3.0, 1.0, 4.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn depthwise_kernels_are_packed_tap_by_tap() {
        let weight = Tensor { shape: vec![3, 1, 1, 2], data: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0] };
        let packed = Layout::in_order(3, 2).pack_rows(&weight);
        assert_eq!(packed.shape, [4, 1, 1, 2]);
        assert_eq!(packed.data, [1.0, 3.0, 2.0, 4.0, 5.0, 0.0, 6.0, 0.0]);
    }
}
