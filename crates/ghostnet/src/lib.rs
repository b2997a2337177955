//! The GhostNet family as data: GhostNet, GhostNetV2, GhostNetV3, and MobileNetV2 with and without their attention.
//!
//! A [`Config`] says what the network is (the stage table, the width, where DFC attention sits and how it works), from a
//! [`preset`] or a TOML file ([`Config::parse`]); [`Network`] is the same thing with every channel count resolved and
//! every layer named after its key in timm's checkpoints. From a `Network` come the parameter and multiply-add counts,
//! the stage table that `ghostserve inspect` prints, and, with weights, a graph ([`Network::lower`]) in one of two forms:
//! plain ONNX, or the blocked form that ONNX Runtime runs fastest.
//!
//! Sources: Tang et al., *GhostNetV2: Enhance Cheap Operation with Long-Range Attention*, NeurIPS 2022
//! (arXiv 2211.12905); Han et al., *GhostNet: More Features from Cheap Operations*, CVPR 2020 (arXiv 1911.11907); Liu et
//! al., *GhostNetV3: Exploring the Training Strategies for Compact Models*, 2024 (arXiv 2404.11202); Sandler et al.,
//! *MobileNetV2: Inverted Residuals and Linear Bottlenecks*, CVPR 2018 (arXiv 1801.04381). Key names and results are
//! those of timm 1.0.31. Where the released weights differ from the text (average pooling and nearest upsampling in
//! DFC), the defaults follow the weights.

mod blocks;
mod config;
mod dfc;
mod file;
pub mod graph;
mod layers;
mod lowering;
mod mobile;
mod network;
mod outputs;
mod presets;
mod shapes;

pub use blocks::{Bottleneck, GhostModule, Shortcut, SqueezeExcite};
pub use config::{
    BlockKind, BottleneckConfig, Config, ConfigError, DfcConfig, Enhance, Gate, GateAt, Pool, Upsample, make_divisible,
};
pub use dfc::Dfc;
pub use layers::{Activation, Cost, Size};
pub use lowering::ModuleNote;
pub use mobile::InvertedResidual;
pub use network::{Form, Lowered, Network, StageRow, Target};
pub use outputs::{Cut, Output, UnknownOutput};
pub use presets::{PRESETS, preset};
pub use shapes::{OutputShape, Shapes};

use crate::graph::GraphError;
use ghostserve_weights::WeightsError;

/// Why a network could not be lowered to a graph.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BuildError {
    /// The weights do not fit the network.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The layers do not fit each other, or the input size.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A network for something else than photographs, where a photograph's is needed.
    #[error("a served network takes images of 3 channels, this one takes {0}")]
    Channels(usize),
    /// An output that this network does not have.
    #[error("this network has no output `{found}`: it has {known}")]
    Output {
        /// What was asked for.
        found: String,
        /// What there is.
        known: String,
    },
}
