//! The shapes of a network's outputs, computed without building a graph.

use super::{Cut, Dfc, Network, Output, Size, StageRow};

/// The shape of one output for one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputShape {
    /// Channels, height and width of feature maps; the number of elements of a vector.
    pub shape: Vec<usize>,
    /// Input pixels per map pixel, in one direction; 0 for a vector. Where it does not divide the input, pooling leaves
    /// the rest out: a gate of stride 64 at an input of 224 has 3 pixels in one direction, of the first 192.
    pub stride: usize,
}

impl OutputShape {
    /// Number of elements for one image.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The shapes of a network's outputs at one input size, from [`Network::shapes`].
#[derive(Clone, Debug)]
pub struct OutputShapes<'a> {
    network: &'a Network,
    table: Vec<StageRow>,
}

impl Network {
    /// The shapes of the network's outputs at an input size.
    #[must_use]
    pub fn shapes(&self, input: Size) -> OutputShapes<'_> {
        OutputShapes { network: self, table: self.table(input) }
    }
}

impl OutputShapes<'_> {
    /// The shape of an output; `None` if the network does not have it.
    #[must_use]
    pub fn of(&self, output: Output) -> Option<OutputShape> {
        let network = self.network;
        let vector = |elements: usize| OutputShape { shape: vec![elements], stride: 0 };
        let maps = |channels: usize, size: Size, stride: usize| OutputShape {
            shape: vec![channels, size.height, size.width],
            stride,
        };
        let row_output = |row: &StageRow| maps(row.channels, row.size, row.stride);
        let gate = |dfc: &Dfc, features: Size, stride: usize| {
            let (channels, size) = dfc.gate_shape(features);
            maps(channels, size, stride * dfc.gate_stride())
        };
        // The table begins with the stem, so the row before a block's row describes the block's input.
        let input_row =
            |stage: usize, block: usize| network.stages.iter().take(stage).map(Vec::len).sum::<usize>() + block;
        match output {
            Output::Logits => Some(vector(network.config().classes)),
            Output::Embedding => Some(vector(network.features())),
            Output::Features { cut: Cut::Timm, level: 1 } if network.hidden.is_some() => {
                self.table.first().map(row_output)
            }
            Output::Features { cut, level } => {
                let &(stage, block) = network.levels(cut).get(&level)?;
                self.table.get(input_row(stage, block) + 1).map(row_output)
            }
            Output::Attention { stage, block } => {
                let dfc = network.stages.get(stage)?.get(block)?.dfc()[0]?;
                let input = self.table.get(input_row(stage, block))?;
                Some(gate(dfc, input.size, input.stride))
            }
            Output::OutputAttention { stage, block } => {
                let output = self.table.get(input_row(stage, block) + 1)?;
                let dfc = network.stages.get(stage)?.get(block)?.dfc()[1]?;
                Some(gate(dfc, output.size, output.stride))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{GateAt, preset};

    fn gate(gate_at: GateAt, input: [usize; 2], layer: &str) -> OutputShape {
        let mut config = preset("ghostnetv2_100").unwrap();
        config.dfc.gate_at = gate_at;
        let network = Network::new(config).unwrap();
        let [height, width] = input;
        network.shapes(Size { height, width }).of(format!("attention.{layer}").parse().unwrap()).unwrap()
    }

    #[test]
    fn a_gates_stride_is_that_of_its_features_times_the_pooling() {
        for (input, layer, shape, stride) in [
            ([224, 224], "2.0", [72, 28, 28], 8),
            ([224, 224], "7.0", [672, 7, 7], 32),
            // 7 pixels are pooled to 3, and the last is in none of them.
            ([224, 224], "8.3", [960, 3, 3], 64),
            ([320, 416], "8.3", [960, 5, 6], 64),
            ([64, 64], "8.3", [960, 1, 1], 64),
        ] {
            let expected = OutputShape { shape: shape.to_vec(), stride };
            assert_eq!(gate(GateAt::Before, input, layer), expected, "{input:?} {layer}");
        }
        let after = OutputShape { shape: vec![960, 7, 7], stride: 32 };
        assert_eq!(gate(GateAt::After, [224, 224], "8.3"), after, "as large as the features");
    }
}
