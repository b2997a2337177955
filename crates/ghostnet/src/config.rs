//! Configurations of networks: the numbers of the papers' tables and the settings of their ablations, before any
//! channel count is resolved.

use serde::{Deserialize, Serialize};

/// A network of the GhostNet family, or MobileNetV2, as data.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The network's name in tables and in the written graph.
    pub name: String,
    /// The kind of bottleneck that each row of the stage table becomes.
    pub block: BlockKind,
    /// The factor of every channel count. [`make_divisible`] rounds the product.
    pub width: f64,
    /// Number of outputs of the classifier.
    pub classes: usize,
    /// Number of channels of the input image.
    pub input_channels: usize,
    /// Input pixels per pixel of the deepest maps, in one direction: 32, or 16 or 8, where dilation replaces strides.
    pub output_stride: usize,
    /// Number of channels of the stem convolution at width 1.
    pub stem_channels: usize,
    /// The bottlenecks, grouped in stages as by the keys `blocks.S.B` of the checkpoints.
    pub stages: Vec<Vec<BottleneckConfig>>,
    /// Number of channels of the last 1×1 convolution before pooling, at width 1. Unused for
    /// [`BlockKind::InvertedResidual`].
    pub final_channels: usize,
    /// Number of units of the hidden layer between pooling and classifier. The width does not scale it. For
    /// [`BlockKind::InvertedResidual`]: number of channels of the last 1×1 convolution, which the width only enlarges.
    pub head_features: usize,
    /// Squeezed channels of a squeeze-excite as a fraction of the expanded channels.
    pub se_ratio: f64,
    /// The attention branch.
    pub dfc: DfcConfig,
}

/// The kind of bottleneck of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockKind {
    /// Two Ghost modules (GhostNet and GhostNetV2).
    Ghost,
    /// Two Ghost modules trained with parallel branches (GhostNetV3). Loading adds the branches up to one convolution.
    GhostReparameterized,
    /// Expansion, depthwise convolution, projection (MobileNetV2).
    InvertedResidual,
}

impl BlockKind {
    /// The number that divides every scaled channel count.
    #[must_use]
    pub fn divisor(self) -> usize {
        if self == Self::InvertedResidual { 8 } else { 4 }
    }
}

/// One row of the stage table, at width 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BottleneckConfig {
    /// Side of the depthwise kernels of the strided convolution and of the shortcut, in pixels.
    pub kernel: usize,
    /// Number of channels between the two Ghost modules. For an inverted residual: the expansion factor, a multiple of
    /// its input channels.
    pub expanded: usize,
    /// Number of output channels.
    pub output: usize,
    /// Whether a squeeze-excite is between the Ghost modules.
    #[serde(default)]
    pub squeeze_excite: bool,
    /// The stride: 1, or 2 to halve the resolution.
    pub stride: usize,
}

/// The settings of DFC ("decoupled fully connected") attention. The defaults are the paper's, with the pooling and the
/// upsampling of the released weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DfcConfig {
    /// Length of the horizontal and of the vertical strip for each stage, in pixels of the pooled map; `None` for a
    /// stage without attention.
    pub kernels: Vec<Option<usize>>,
    /// The features that the gate multiplies.
    pub enhance: Enhance,
    /// The gate function.
    pub gate: Gate,
    /// The position of the gate function.
    pub gate_at: GateAt,
    /// The pooling that halves the input.
    pub pool: Pool,
    /// The interpolation that brings the gate to the features' size.
    pub upsample: Upsample,
}

/// The features of a bottleneck that attention enhances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Enhance {
    /// The features between the two Ghost modules.
    #[default]
    Expanded,
    /// The output of the second Ghost module.
    Output,
    /// Both, each with a separate branch.
    Both,
}

impl Enhance {
    /// Whether the expanded features are enhanced.
    pub(super) fn expanded(self) -> bool {
        self != Self::Output
    }

    /// Whether the output features are enhanced.
    pub(super) fn output(self) -> bool {
        self != Self::Expanded
    }
}

/// The gate function: makes a factor of the strips' result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// `1 / (1 + exp(-x))`.
    #[default]
    Sigmoid,
    /// `clip(x / 6 + 1/2, 0, 1)`.
    HardSigmoid,
    /// `clip(x, 0, 1)`.
    Clip,
}

/// The position of the gate function relative to the upsampling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GateAt {
    /// On the small maps, before the upsampling.
    #[default]
    Before,
    /// On the upsampled maps.
    After,
}

/// The kind of 2×2 pooling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// The mean.
    #[default]
    Average,
    /// The largest value.
    Max,
}

/// The interpolation, as PyTorch's `interpolate` without `align_corners`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Upsample {
    /// Takes the nearest pixel to the left and above.
    #[default]
    Nearest,
    /// Interpolates between four pixels.
    Bilinear,
    /// Interpolates between sixteen pixels.
    Bicubic,
}

/// Reasons why a configuration is not a valid network.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ConfigError {
    /// A number that must be positive.
    #[error("`{field}` must be a positive number, found {found}")]
    Positive {
        /// The field's name.
        field: &'static str,
        /// The number in the configuration.
        found: f64,
    },
    /// A count that must not be zero.
    #[error("`{field}` must be at least 1, found 0")]
    Zero {
        /// The field's name.
        field: &'static str,
    },
    /// An even kernel size: such a kernel has no centre.
    #[error("`{field}` must be odd, found {found}")]
    EvenKernel {
        /// The field's name.
        field: &'static str,
        /// The kernel's size.
        found: usize,
    },
    /// A number that would make a network too large for memory.
    #[error("`{field}` must be at most {limit}, found {found}")]
    TooLarge {
        /// The field's name.
        field: &'static str,
        /// The largest valid number.
        limit: usize,
        /// The number in the configuration.
        found: usize,
    },
    /// A stride that the papers do not use.
    #[error("`stride` must be 1 or 2, found {0}")]
    Stride(usize),
    /// An output stride that dilation cannot produce.
    #[error("`output_stride` must be 8, 16 or 32, found {0}")]
    OutputStride(usize),
    /// Attention in a stage that the network does not have.
    #[error("`dfc` names stage {found}, but the network has stages 0 to {last}")]
    Stage {
        /// The stage in the configuration.
        found: usize,
        /// The network's last stage.
        last: usize,
    },
    /// Settings that exclude each other.
    #[error("{0}")]
    Combination(&'static str),
    /// A configuration file that cannot be parsed.
    #[error("{0}")]
    Syntax(String),
}

/// The largest number of channels or classes. A larger one is a typing error.
const MAX_CHANNELS: usize = 1 << 16;
/// The largest number of bottlenecks, far more than any trained network has.
const MAX_BOTTLENECKS: usize = 1024;
/// The largest kernel size and strip length.
const MAX_KERNEL: usize = 63;

impl Config {
    /// Checks that every number is in range and that the settings fit each other.
    ///
    /// # Errors
    /// The first number out of range, or the settings that exclude each other.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, found) in [("width", self.width), ("se_ratio", self.se_ratio)] {
            if !(found.is_finite() && found > 0.0) {
                return Err(ConfigError::Positive { field, found });
            }
        }
        let rows = || self.stages.iter().flatten();
        let counts = [
            ("classes", self.classes),
            ("input_channels", self.input_channels),
            ("stem_channels", self.stem_channels),
            ("final_channels", self.final_channels),
            ("head_features", self.head_features),
            ("stages", rows().count()),
        ];
        let row_counts = || rows().flat_map(|r| [("expanded", r.expanded), ("output", r.output), ("kernel", r.kernel)]);
        for (field, found) in counts.into_iter().chain(row_counts()) {
            let scaled = found as f64 * self.width.max(1.0);
            if found == 0 {
                return Err(ConfigError::Zero { field });
            }
            if scaled > MAX_CHANNELS as f64 {
                return Err(ConfigError::TooLarge { field, limit: MAX_CHANNELS, found: scaled as usize });
            }
        }
        if rows().count() > MAX_BOTTLENECKS {
            return Err(ConfigError::TooLarge { field: "stages", limit: MAX_BOTTLENECKS, found: rows().count() });
        }
        let strips = self.dfc.kernels.iter().flatten().map(|k| ("dfc.kernel", *k));
        for (field, found) in rows().map(|r| ("kernel", r.kernel)).chain(strips) {
            if found.is_multiple_of(2) {
                return Err(ConfigError::EvenKernel { field, found });
            }
            if found > MAX_KERNEL {
                return Err(ConfigError::TooLarge { field, limit: MAX_KERNEL, found });
            }
        }
        if let Some(row) = rows().find(|r| !matches!(r.stride, 1 | 2)) {
            return Err(ConfigError::Stride(row.stride));
        }
        if !matches!(self.output_stride, 8 | 16 | 32) {
            return Err(ConfigError::OutputStride(self.output_stride));
        }
        let last = self.stages.len() - 1;
        if self.dfc.kernels.len() > self.stages.len() {
            return Err(ConfigError::Stage { found: self.dfc.kernels.len() - 1, last });
        }
        if self.block == BlockKind::InvertedResidual && rows().any(|r| r.squeeze_excite) {
            return Err(ConfigError::Combination(
                "`squeeze_excite` is not part of an inverted residual: MobileNetV2 has none",
            ));
        }
        // A bottleneck that expands nothing has no expanded features to enhance.
        let expands_nothing = |(s, rows): (usize, &Vec<BottleneckConfig>)| {
            self.dfc_kernel(s).is_some() && rows.iter().any(|r| r.expanded == 1)
        };
        let inverted = self.block == BlockKind::InvertedResidual;
        if inverted && self.dfc.enhance.expanded() && self.stages.iter().enumerate().any(expands_nothing) {
            return Err(ConfigError::Combination(
                "`dfc` enhances the expanded features of a stage that expands nothing: take the stage out of \
                 `dfc.stages`, or set `dfc.enhance` to `output`",
            ));
        }
        Ok(())
    }

    /// The channel count `channels` at this network's width.
    #[must_use]
    pub fn scaled(&self, channels: usize) -> usize {
        make_divisible(channels as f64 * self.width, self.block.divisor())
    }

    /// Length of the DFC strips in a stage; `None` if the stage has no attention.
    #[must_use]
    pub fn dfc_kernel(&self, stage: usize) -> Option<usize> {
        self.dfc.kernels.get(stage).copied().flatten()
    }
}

impl DfcConfig {
    /// The default settings, with strips of length `kernel` in the given stages.
    #[must_use]
    pub fn in_stages(stages: impl IntoIterator<Item = usize>, kernel: usize) -> Self {
        let mut kernels = Vec::new();
        for stage in stages {
            if kernels.len() <= stage {
                kernels.resize(stage + 1, None);
            }
            kernels[stage] = Some(kernel);
        }
        Self {
            kernels,
            enhance: Enhance::default(),
            gate: Gate::default(),
            gate_at: GateAt::default(),
            pool: Pool::default(),
            upsample: Upsample::default(),
        }
    }

    /// The settings of a network without attention.
    #[must_use]
    pub fn none() -> Self {
        Self::in_stages([], 5)
    }
}

/// Rounds a channel count to the nearest multiple of `divisor`. The result is at least `divisor` and at least nine
/// tenths of `channels`. This is the rule of the MobileNet family; the shapes in checkpoints depend on it.
#[must_use]
pub fn make_divisible(channels: f64, divisor: usize) -> usize {
    let rounded = ((channels + divisor as f64 / 2.0) as usize / divisor * divisor).max(divisor);
    if (rounded as f64) < 0.9 * channels { rounded + divisor } else { rounded }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::preset;

    #[test]
    fn channels_round_to_the_nearest_multiple_but_not_far_down() {
        assert_eq!(make_divisible(20.8, 4), 20);
        assert_eq!(make_divisible(25.6, 4), 24);
        assert_eq!(make_divisible(1.0, 4), 4);
        // 5.9 rounds to 4, which would lose a third.
        assert_eq!(make_divisible(5.9, 4), 8);
    }

    #[test]
    fn impossible_numbers_are_refused_by_name() {
        let ok = preset("ghostnetv2_100").unwrap();
        assert_eq!(ok.validate(), Ok(()));
        let refused = |change: &dyn Fn(&mut Config)| {
            let mut config = ok.clone();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert_eq!(refused(&|c| c.width = -1.0), "`width` must be a positive number, found -1");
        assert_eq!(refused(&|c| c.classes = 0), "`classes` must be at least 1, found 0");
        assert_eq!(refused(&|c| c.classes = 1 << 20), "`classes` must be at most 65536, found 1048576");
        assert_eq!(refused(&|c| c.dfc.kernels[4] = Some(4)), "`dfc.kernel` must be odd, found 4");
        assert_eq!(refused(&|c| c.stages[1][0].stride = 3), "`stride` must be 1 or 2, found 3");
        assert_eq!(refused(&|c| c.output_stride = 4), "`output_stride` must be 8, 16 or 32, found 4");
        assert_eq!(refused(&|c| c.stages.clear()), "`stages` must be at least 1, found 0");
        let error = refused(&|c| c.dfc.kernels.resize(11, Some(5)));
        assert_eq!(error, "`dfc` names stage 10, but the network has stages 0 to 8");
        let error = refused(&|c| c.block = BlockKind::InvertedResidual);
        assert!(error.contains("MobileNetV2 has none"), "{error}");
    }
}
