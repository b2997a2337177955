//! GhostNetV2 as data.
//!
//! A [`Config`] says what the network is (the stage table, the width, where DFC attention sits); [`Network`] is the same
//! thing with every channel count resolved and every layer named after its key in timm's checkpoints. From a `Network`
//! come the parameter and multiply-add counts, the stage table that `ghostserve inspect` prints, and, with weights,
//! the ONNX graph that is served.
//!
//! Sources: Tang et al., *GhostNetV2: Enhance Cheap Operation with Long-Range Attention*, NeurIPS 2022
//! (arXiv 2211.12905); Han et al., *GhostNet: More Features from Cheap Operations*, CVPR 2020 (arXiv 1911.11907). Where
//! the released weights differ from the text (average pooling and nearest upsampling in DFC), this follows the weights.

mod blocks;
mod config;
mod layers;
mod network;
mod presets;

pub use blocks::{Bottleneck, Dfc, GhostModule, Shortcut, SqueezeExcite};
pub use config::{BottleneckConfig, Config, ConfigError, DfcConfig, make_divisible};
pub use layers::{Activation, Cost, Size};
pub use network::{Network, StageRow};
pub use presets::{PRESETS, preset};

use crate::graph::GraphError;
use crate::weights::WeightsError;

/// Why a network could not be lowered to a graph.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BuildError {
    /// The weights do not fit the network.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The layers do not fit each other, or the input size.
    #[error(transparent)]
    Graph(#[from] GraphError),
}
