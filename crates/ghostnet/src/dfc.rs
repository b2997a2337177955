//! DFC attention: the branch that covers a whole cross of pixels.

use super::config::{DfcConfig, GateAt};
use super::layers::{Activation, ConvBn, ConvShape, Cost, Size};
use super::lowering::{AttentionParts, NamedConv};
use ghostserve_weights::{Scope, WeightsError};

/// Decoupled fully connected attention. The input is pooled to half its resolution. A 1×1 convolution, a horizontal and
/// a vertical depthwise strip follow, then a gate function and the upsampling. The two strips together cover a whole
/// cross of pixels at O(K·H·W), where full attention needs O((H·W)²).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dfc {
    /// Scope of the branch's keys below the scope of its module.
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

    /// Length of the strips, in pixels of the pooled map.
    #[must_use]
    pub fn kernel(&self) -> usize {
        self.kernel
    }

    /// Channels and size of the gate as a graph output, for features of the size `features`.
    pub(super) fn gate_shape(&self, features: Size) -> (usize, Size) {
        let size = if self.config.gate_at == GateAt::Before { features.pooled() } else { features };
        (self.project.shape.output, size)
    }

    /// Pixels of the features for one of the gate as a graph output, in one direction.
    pub(super) fn gate_stride(&self) -> usize {
        if self.config.gate_at == GateAt::Before { 2 } else { 1 }
    }

    pub(super) fn cost(&self, input: Size) -> Cost {
        [&self.project, &self.horizontal, &self.vertical].into_iter().map(|layer| layer.cost(input.pooled())).sum()
    }

    /// Reads the weights. `scope` is the module's scope, `output` the name of the graph output for the gate.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub(super) fn load<'a, M>(
        &'a self,
        scope: &Scope<'_>,
        x: &'a M,
        output: Option<String>,
    ) -> Result<AttentionParts<'a, M>, WeightsError> {
        let scope = scope.sub(self.scope);
        Ok(AttentionParts {
            name: scope.key("dfc"),
            x,
            project: NamedConv::load(&self.project, &scope)?,
            horizontal: NamedConv::load(&self.horizontal, &scope)?,
            vertical: NamedConv::load(&self.vertical, &scope)?,
            config: &self.config,
            output,
        })
    }
}
