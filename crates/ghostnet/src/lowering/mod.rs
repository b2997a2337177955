//! From the network's modules to a graph.
//!
//! The blocks read their weights and say what they compute in the terms of [`Lowering`]; an implementation says with
//! which operators. [`Plain`] writes standard ONNX that any runtime loads; [`Blocked`] writes what ONNX Runtime's blocked
//! convolutions and our own operators run fastest.

mod blocked;
mod plain;

pub(super) use blocked::Blocked;
pub use blocked::ModuleNote;
pub(super) use plain::Plain;

use super::config::DfcConfig;
use super::layers::{Activation, Size};
use crate::graph::{Conv2d, GraphError, Linear, Tensor};

/// The target of a network's blocks.
pub(super) trait Lowering {
    /// A batch of feature maps.
    type Map: Clone;
    /// A batch of rows.
    type Row: Clone;

    /// The graph's input.
    fn image(&mut self, channels: usize, size: Size) -> Result<Self::Map, GraphError>;

    /// A convolution, to whose result `residual` is added before the activation.
    fn conv(&mut self, conv: NamedConv, x: &Self::Map, residual: Option<&Self::Map>) -> Result<Self::Map, GraphError>;

    /// A whole Ghost module, with its attention and what is added to its result.
    fn ghost(&mut self, module: GhostParts<'_, Self::Map>) -> Result<Self::Map, GraphError>;

    /// `maps` times the attention, plus `residual`.
    fn attend(
        &mut self,
        name: &str,
        maps: &Self::Map,
        attention: AttentionParts<'_, Self::Map>,
        residual: Option<&Self::Map>,
    ) -> Result<Self::Map, GraphError>;

    /// Channel attention.
    fn squeeze_excite(&mut self, name: &str, x: &Self::Map, parts: ExciteParts) -> Result<Self::Map, GraphError>;

    /// The mean of every map.
    fn mean(&mut self, name: &str, x: &Self::Map) -> Result<Self::Row, GraphError>;

    /// A fully connected layer, rectified if asked.
    fn linear(&mut self, name: &str, x: &Self::Row, linear: Linear, relu: bool) -> Result<Self::Row, GraphError>;

    /// Makes maps an output of the graph.
    fn output_map(&mut self, name: &str, x: &Self::Map) -> Result<(), GraphError>;

    /// Makes rows an output of the graph.
    fn output_row(&mut self, name: &str, x: &Self::Row) -> Result<(), GraphError>;
}

/// A convolution and the name of its node.
pub(super) struct NamedConv {
    pub(super) name: String,
    pub(super) conv: Conv2d,
    pub(super) activation: Activation,
}

/// A Ghost module with its weights.
pub(super) struct GhostParts<'a, M> {
    /// Its scope: the prefix of its nodes' names.
    pub(super) name: String,
    pub(super) x: &'a M,
    /// 1×1: makes the intrinsic maps.
    pub(super) primary: NamedConv,
    /// 3×3 depthwise: makes the ghost maps of those.
    pub(super) cheap: NamedConv,
    /// Channels kept of both together.
    pub(super) output: usize,
    pub(super) attention: Option<AttentionParts<'a, M>>,
    pub(super) residual: Option<Residual<'a, M>>,
}

/// What is added to a module's result.
pub(super) enum Residual<'a, M> {
    /// Maps as they are.
    Map(&'a M),
    /// Maps through a 1×1 convolution.
    Projected(M, NamedConv),
}

/// DFC attention with its weights.
pub(super) struct AttentionParts<'a, M> {
    /// The prefix of its nodes' names.
    pub(super) name: String,
    pub(super) x: &'a M,
    pub(super) project: NamedConv,
    pub(super) horizontal: NamedConv,
    pub(super) vertical: NamedConv,
    pub(super) config: &'a DfcConfig,
    /// The graph output that the gate shall also be.
    pub(super) output: Option<String>,
}

/// A squeeze-excite with its weights.
pub(super) struct ExciteParts {
    /// `[squeezed, channels]`.
    pub(super) reduce: Tensor,
    pub(super) reduce_bias: Vec<f32>,
    /// `[channels, squeezed]`.
    pub(super) expand: Tensor,
    pub(super) expand_bias: Vec<f32>,
}
