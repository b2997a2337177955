//! The shapes of a network's outputs, computed without building a graph.

use super::{Cut, Dfc, Network, Output, Size, StageRow};

/// The shape of one output for one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputShape {
    /// Channels, height and width of feature maps; the number of elements of a vector.
    pub shape: Vec<usize>,
    /// Input pixels per map pixel, in one direction; 0 for a vector.
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
    input: Size,
    table: Vec<StageRow>,
}

impl Network {
    /// The shapes of the network's outputs at an input size.
    #[must_use]
    pub fn shapes(&self, input: Size) -> OutputShapes<'_> {
        OutputShapes { network: self, input, table: self.table(input) }
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
        let gate = |dfc: &Dfc, features: Size| {
            let (channels, size) = dfc.gate_shape(features);
            maps(channels, size, self.input.height / size.height.max(1))
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
                Some(gate(dfc, self.table.get(input_row(stage, block))?.size))
            }
            Output::OutputAttention { stage, block } => {
                let input = self.table.get(input_row(stage, block))?.size;
                let block = network.stages.get(stage)?.get(block)?;
                Some(gate(block.dfc()[1]?, block.output_size(input)))
            }
        }
    }
}
