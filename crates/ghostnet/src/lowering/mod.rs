//! The lowering of a network's modules to a graph.
//!
//! The blocks read their weights and describe their computation through the trait [`Lowering`]. An implementation of
//! the trait chooses the operators. [`PlainLowering`] writes standard ONNX that any runtime loads. [`BlockedLowering`]
//! writes the form that ONNX Runtime's blocked convolutions and our own operators run fastest.

mod blocked;
mod plain;

pub(super) use blocked::BlockedLowering;
pub use blocked::ModulePacking;
pub(super) use plain::PlainLowering;

use super::config::DfcConfig;
use super::layers::{Activation, ConvBn, Size};
use crate::graph::{Conv2d, GraphError, Linear, Tensor};
use ghostserve_weights::{Scope, WeightsError};

/// Writes the computations of a network's blocks as operators of a graph.
pub(super) trait Lowering {
    /// A batch of feature maps.
    type Map: Clone;
    /// A batch of feature vectors, one row per image.
    type Row: Clone;

    /// Declares the graph's input.
    fn image(&mut self, channels: usize, size: Size) -> Result<Self::Map, GraphError>;

    /// Adds a convolution. `residual` is added to its result before the activation.
    fn conv(&mut self, conv: NamedConv, x: &Self::Map, residual: Option<&Self::Map>) -> Result<Self::Map, GraphError>;

    /// Adds a whole Ghost module with its attention and its residual.
    fn ghost(&mut self, module: GhostParts<'_, Self::Map>) -> Result<Self::Map, GraphError>;

    /// Multiplies `maps` by the attention and adds `residual`.
    fn attend(
        &mut self,
        name: &str,
        maps: &Self::Map,
        attention: AttentionParts<'_, Self::Map>,
        residual: Option<&Self::Map>,
    ) -> Result<Self::Map, GraphError>;

    /// Adds a squeeze-excite.
    fn squeeze_excite(&mut self, name: &str, x: &Self::Map, parts: SqueezeExciteParts)
    -> Result<Self::Map, GraphError>;

    /// Takes the mean of every map.
    fn mean(&mut self, name: &str, x: &Self::Map) -> Result<Self::Row, GraphError>;

    /// Adds a fully connected layer, followed by a rectifier if `relu` is set.
    fn linear(&mut self, name: &str, x: &Self::Row, linear: Linear, relu: bool) -> Result<Self::Row, GraphError>;

    /// Makes maps an output of the graph.
    fn output_map(&mut self, name: &str, x: &Self::Map) -> Result<(), GraphError>;

    /// Makes vectors an output of the graph.
    fn output_row(&mut self, name: &str, x: &Self::Row) -> Result<(), GraphError>;
}

/// A convolution and the name of its node.
pub(super) struct NamedConv {
    pub(super) name: String,
    pub(super) conv: Conv2d,
    pub(super) activation: Activation,
}

impl NamedConv {
    /// Reads the weights of `layer`, whose keys are below `scope`.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub(super) fn load(layer: &ConvBn, scope: &Scope<'_>) -> Result<Self, WeightsError> {
        Ok(Self { name: scope.key(layer.key()), conv: layer.load(scope)?, activation: layer.activation })
    }
}

/// A Ghost module with its weights and its input.
pub(super) struct GhostParts<'a, M> {
    /// The prefix of its nodes' names: its checkpoint scope and `.ghost`.
    pub(super) name: String,
    pub(super) x: &'a M,
    /// The 1×1 convolution that makes the intrinsic maps.
    pub(super) primary: NamedConv,
    /// The 3×3 depthwise convolution that makes the ghost maps from them.
    pub(super) cheap: NamedConv,
    /// Number of output channels; the rest of the joined maps is cut off.
    pub(super) output: usize,
    pub(super) attention: Option<AttentionParts<'a, M>>,
    pub(super) residual: Option<Residual<'a, M>>,
}

/// The maps that are added to a module's result.
pub(super) enum Residual<'a, M> {
    /// Maps without a further operation.
    Map(&'a M),
    /// Maps that first pass a 1×1 convolution.
    Projected(M, NamedConv),
}

/// A DFC attention with its weights and its input.
pub(super) struct AttentionParts<'a, M> {
    /// The prefix of its nodes' names.
    pub(super) name: String,
    pub(super) x: &'a M,
    pub(super) project: NamedConv,
    pub(super) horizontal: NamedConv,
    pub(super) vertical: NamedConv,
    pub(super) config: &'a DfcConfig,
    /// Name of the graph output for the gate, if it is requested.
    pub(super) output: Option<String>,
}

/// A squeeze-excite with its weights.
pub(super) struct SqueezeExciteParts {
    /// `[squeezed, channels]`.
    pub(super) reduce: Tensor,
    pub(super) reduce_bias: Vec<f32>,
    /// `[channels, squeezed]`.
    pub(super) expand: Tensor,
    pub(super) expand_bias: Vec<f32>,
}
