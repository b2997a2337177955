//! DFC attention: the branch that looks along a whole cross of pixels.

use super::BuildError;
use super::blocks::load;
use super::config::{DfcConfig, GateAt};
use super::layers::{Activation, ConvBn, ConvShape, Cost, Size};
use super::lowering::AttentionParts;
use ghostserve_weights::Scope;

/// Decoupled fully connected attention: at half resolution, a 1×1 convolution, then a horizontal and a vertical
/// depthwise strip, through a gate function and up again. Between them the strips reach a whole cross of pixels at
/// O(K·H·W) where full attention needs O((H·W)²).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dfc {
    /// Scope of its keys below the module's.
    scope: &'static str,
    kernel: usize,
    project: ConvBn,
    horizontal: ConvBn,
    vertical: ConvBn,
    config: DfcConfig,
}

/// The resolved numbers that make a [`Dfc`].
pub(super) struct DfcShape<'a> {
    pub(super) scope: &'static str,
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) kernel: usize,
    pub(super) dilation: usize,
    pub(super) config: &'a DfcConfig,
}

impl Dfc {
    pub(super) fn new(shape: DfcShape<'_>) -> Self {
        let DfcShape { scope, input, output, kernel, dilation, config } = shape;
        let layer = |conv, norm, shape| ConvBn::new(conv, norm, shape, Activation::None);
        let strip = |kernel| ConvShape::depthwise(output, kernel, 1, dilation);
        Self {
            scope,
            kernel,
            project: layer("0", "1", ConvShape::pointwise(input, output)),
            horizontal: layer("2", "3", strip([1, kernel])),
            vertical: layer("4", "5", strip([kernel, 1])),
            config: config.clone(),
        }
    }

    /// Length of its strips, pixels of the pooled map.
    #[must_use]
    pub fn kernel(&self) -> usize {
        self.kernel
    }

    /// Channels and size of its gate, as it is put out, where it gates what is made of maps of a size.
    pub(super) fn gate(&self, at: Size) -> (usize, Size) {
        let size = if self.config.gate_at == GateAt::Before { at.pooled() } else { at };
        (self.project.shape.output, size)
    }

    pub(super) fn cost(&self, at: Size) -> Cost {
        [&self.project, &self.horizontal, &self.vertical].into_iter().map(|layer| layer.cost(at.pooled())).sum()
    }

    /// Reads its weights; `scope` is the module's.
    pub(super) fn load<'a, M>(
        &'a self,
        scope: &Scope<'_>,
        x: &'a M,
        output: Option<String>,
    ) -> Result<AttentionParts<'a, M>, BuildError> {
        let scope = scope.sub(self.scope);
        Ok(AttentionParts {
            name: scope.key("dfc"),
            x,
            project: load(&self.project, &scope)?,
            horizontal: load(&self.horizontal, &scope)?,
            vertical: load(&self.vertical, &scope)?,
            config: &self.config,
            output,
        })
    }
}
