//! What the outputs of a network look like, without making a graph.

use super::{Cut, Dfc, Network, Output, Size, StageRow};

/// The shape of an output, for one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputShape {
    /// Channels, height and width of maps; the number of elements of a row.
    pub shape: Vec<usize>,
    /// Pixels of the input for one of the map, in one direction; 0 for a row.
    pub stride: usize,
}

impl OutputShape {
    /// Elements for one image.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The shapes of a network's outputs at one input size.
#[derive(Clone, Debug)]
pub struct Shapes<'a> {
    network: &'a Network,
    input: Size,
    table: Vec<StageRow>,
}

impl Network {
    /// The shapes of its outputs at an input size.
    #[must_use]
    pub fn shapes(&self, input: Size) -> Shapes<'_> {
        Shapes { network: self, input, table: self.table(input) }
    }
}

impl Shapes<'_> {
    /// The shape of an output; `None` if the network does not have it.
    #[must_use]
    pub fn of(&self, output: Output) -> Option<OutputShape> {
        let network = self.network;
        let row = |elements: usize| OutputShape { shape: vec![elements], stride: 0 };
        let maps = |channels: usize, size: Size, stride: usize| OutputShape {
            shape: vec![channels, size.height, size.width],
            stride,
        };
        let leaving = |row: &StageRow| maps(row.channels, row.size, row.stride);
        let gate = |dfc: &Dfc, at: Size| {
            let (channels, size) = dfc.gate(at);
            maps(channels, size, self.input.height / size.height.max(1))
        };
        // The table begins with the stem: the row before a block's own is its input.
        let entering =
            |stage: usize, block: usize| network.stages.iter().take(stage).map(Vec::len).sum::<usize>() + block;
        match output {
            Output::Logits => Some(row(network.config().classes)),
            Output::Embedding => Some(row(network.features())),
            Output::Features { cut: Cut::Timm, level: 1 } if network.hidden.is_some() => {
                self.table.first().map(leaving)
            }
            Output::Features { cut, level } => {
                let &(stage, block) = network.levels(cut).get(&level)?;
                self.table.get(entering(stage, block) + 1).map(leaving)
            }
            Output::Attention { stage, block } => {
                let dfc = network.stages.get(stage)?.get(block)?.dfc()[0]?;
                Some(gate(dfc, self.table.get(entering(stage, block))?.size))
            }
            Output::OutputAttention { stage, block } => {
                let at = self.table.get(entering(stage, block))?.size;
                let block = network.stages.get(stage)?.get(block)?;
                Some(gate(block.dfc()[1]?, block.output_size(at)))
            }
        }
    }
}
