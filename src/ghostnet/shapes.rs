//! What the outputs of a network look like, without making a graph.

use super::{Cut, Network, Output, Size};

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

impl Network {
    /// The shape of an output at an input size; `None` if the network does not have it.
    #[must_use]
    pub fn output_shape(&self, output: Output, input: Size) -> Option<OutputShape> {
        if !self.outputs().contains(&output) {
            return None;
        }
        let row = |elements: usize| OutputShape { shape: vec![elements], stride: 0 };
        let maps = |channels: usize, size: Size, stride: usize| OutputShape {
            shape: vec![channels, size.height, size.width],
            stride,
        };
        let table = self.table(input);
        let block = |stage: usize, block: usize| {
            let key = format!("blocks.{stage}.{block}");
            let at = table.iter().position(|row| row.key == key)?;
            Some((&table[at], &table[at.checked_sub(1)?]))
        };
        Some(match output {
            Output::Logits => row(self.config().classes),
            Output::Embedding => row(self.features()),
            Output::Features { cut, level } => match self.levels(cut).get(&level) {
                Some(&(s, b)) => block(s, b).map(|(row, _)| maps(row.channels, row.size, row.stride))?,
                // The stem.
                None if cut == Cut::Timm => table.first().map(|row| maps(row.channels, row.size, row.stride))?,
                None => return None,
            },
            Output::Attention { stage, block: b } => {
                let (_, before) = block(stage, b)?;
                let (channels, size) = self.stages[stage][b].dfc()[0]?.gate(before.size);
                maps(channels, size, input.height / size.height.max(1))
            }
            Output::OutputAttention { stage, block: b } => {
                let (_, before) = block(stage, b)?;
                let block = &self.stages[stage][b];
                let (channels, size) = block.dfc()[1]?.gate(block.output_size(before.size));
                maps(channels, size, input.height / size.height.max(1))
            }
        })
    }
}
