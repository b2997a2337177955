//! The GhostNet family as data: GhostNet, GhostNetV2, GhostNetV3, and MobileNetV2 with and without DFC attention.
//!
//! A [`Config`] describes a network: the stage table, the width, and the position and kind of DFC attention. It comes
//! from a [`preset`] or from a TOML file ([`Config::parse`]). A [`Network`] is the same network with every channel
//! count resolved and every layer named after its key in timm's checkpoints. A `Network` gives the parameter and
//! multiply-add counts, the stage table that `ghostserve inspect` prints, and, with weights, a graph
//! ([`Network::lower`]). A graph has one of two forms ([`Form`]): plain ONNX, or the blocked form, which ONNX Runtime
//! runs fastest.
//!
//! ```
//! use ghostserve_ghostnet::{Form, Network, Output, Size, Target, preset};
//! use ghostserve_weights::Synthetic;
//!
//! let config = preset("ghostnet_050").ok_or("unknown preset")?;
//! let network = Network::new(config)?;
//! let size = Size { height: 224, width: 224 };
//!
//! let cost = network.cost(size);
//! println!("{} parameters, {} multiply-adds", cost.parameters, cost.macs);
//! assert_eq!((cost.parameters, cost.macs), (2_587_292, 42_328_152));
//!
//! let target = Target { size, outputs: &[Output::Logits], form: Form::Plain };
//! let lowered = network.lower(&Synthetic, &target)?;
//! let onnx: Vec<u8> = lowered.graph.into_onnx(&[("weights", "synthetic".to_owned())]);
//! assert!(onnx.len() > 4 * 1280 * 1000, "the classifier's matrix alone is larger");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Sources: Tang et al., *GhostNetV2: Enhance Cheap Operation with Long-Range Attention*, NeurIPS 2022 (arXiv
//! 2211.12905); Han et al., *GhostNet: More Features from Cheap Operations*, CVPR 2020 (arXiv 1911.11907); Liu et al.,
//! *GhostNetV3: Exploring the Training Strategies for Compact Models*, 2024 (arXiv 2404.11202); Sandler et al.,
//! *MobileNetV2: Inverted Residuals and Linear Bottlenecks*, CVPR 2018 (arXiv 1801.04381). Key names and results are
//! those of timm 1.0.31. The released weights differ from the text of the GhostNetV2 paper: they need average pooling
//! and nearest upsampling in DFC. The defaults follow the weights.

mod blocks;
mod config;
mod dfc;
mod file;
pub mod graph;
mod identify;
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
pub use identify::{Difference, Identification, classes_of, identify};
pub use layers::{Activation, Cost, Size};
pub use lowering::ModulePacking;
pub use mobile::InvertedResidual;
pub use network::{Form, LoweredGraph, Network, StageRow, Target};
pub use outputs::{Cut, Output, UnknownOutput};
pub use presets::{PRESETS, preset};
pub use shapes::{OutputShape, OutputShapes};

use crate::graph::GraphError;
use ghostserve_weights::WeightsError;

/// Reasons why a network cannot be lowered to a graph.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BuildError {
    /// The weights do not fit the network.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The layers do not fit each other, or the input size.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The network does not take images of 3 channels, but a served network must. Holds its number of channels.
    #[error("a served network takes images of 3 channels, this one takes {0}")]
    Channels(usize),
    /// The network does not have the requested output.
    #[error("this network has no output `{found}`: it has {known}")]
    Output {
        /// The requested output.
        found: String,
        /// The outputs that the network has, separated by commas.
        known: String,
    },
}
