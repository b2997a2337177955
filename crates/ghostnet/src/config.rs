//! What a network is: the numbers of the papers' tables and the knobs of their ablations, before any channel is resolved.

use serde::{Deserialize, Serialize};

/// A network of the GhostNet family, or MobileNetV2, as data.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What it is called in tables and in the written graph.
    pub name: String,
    /// What the rows of the stage table are built as.
    pub block: BlockKind,
    /// Multiplies every channel count (then rounded by [`make_divisible`]).
    pub width: f64,
    /// Outputs of the classifier.
    pub classes: usize,
    /// Channels of the input image.
    pub input_channels: usize,
    /// Input pixels per pixel of the deepest maps, in one direction: 32, or 16 or 8 by dilation in place of strides.
    pub output_stride: usize,
    /// Channels of the stem convolution at width 1.
    pub stem_channels: usize,
    /// The bottlenecks, grouped in stages as in the checkpoints' `blocks.S.B`.
    pub stages: Vec<Vec<BottleneckConfig>>,
    /// Channels of the last 1×1 convolution before pooling, at width 1; not of [`BlockKind::InvertedResidual`].
    pub final_channels: usize,
    /// Units of the hidden layer between pooling and classifier, not scaled by the width. In a network of
    /// [`BlockKind::InvertedResidual`], channels of the last 1×1 convolution, which the width only enlarges.
    pub head_features: usize,
    /// Squeeze-excite: squeezed channels as a share of the expanded ones.
    pub se_ratio: f64,
    /// The attention branch.
    pub dfc: DfcConfig,
}

/// The bottlenecks of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockKind {
    /// Two Ghost modules (GhostNet and GhostNetV2).
    Ghost,
    /// The same, trained with parallel branches that are added up into one convolution when loaded (GhostNetV3).
    GhostReparameterized,
    /// Expansion, depthwise convolution, projection (MobileNetV2).
    InvertedResidual,
}

impl BlockKind {
    /// Channel counts are multiples of this.
    #[must_use]
    pub fn divisor(self) -> usize {
        if self == Self::InvertedResidual { 8 } else { 4 }
    }
}

/// One row of the stage table, at width 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BottleneckConfig {
    /// Side of the depthwise kernels of the stride and of the shortcut, pixels.
    pub kernel: usize,
    /// Channels between the two Ghost modules; of an inverted residual, as a multiple of its input's.
    pub expanded: usize,
    /// Channels that leave the bottleneck.
    pub output: usize,
    /// Whether a squeeze-excite stands between the Ghost modules.
    #[serde(default)]
    pub squeeze_excite: bool,
    /// 1, or 2 to halve the resolution.
    pub stride: usize,
}

/// DFC ("decoupled fully connected") attention. The defaults are the paper's, and what the released weights need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DfcConfig {
    /// Length of the horizontal and of the vertical strip in each stage, pixels of the pooled map; none where the stage's
    /// bottlenecks carry no attention.
    pub kernels: Vec<Option<usize>>,
    /// Which features are multiplied by it.
    pub enhance: Enhance,
    /// What makes a gate of the strips' result.
    pub gate: Gate,
    /// Where the gate function stands.
    pub gate_at: GateAt,
    /// How the input is halved.
    pub pool: Pool,
    /// How the gate is brought to the features' size.
    pub upsample: Upsample,
}

/// Which of a bottleneck's features attention enhances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Enhance {
    /// Those between the two Ghost modules.
    #[default]
    Expanded,
    /// Those that leave the second one.
    Output,
    /// Both, each with a branch of its own.
    Both,
}

impl Enhance {
    pub(super) fn expanded(self) -> bool {
        self != Self::Output
    }

    pub(super) fn output(self) -> bool {
        self != Self::Expanded
    }
}

/// A function from the strips' result to a factor.
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

/// Where the gate function is applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GateAt {
    /// On the small maps.
    #[default]
    Before,
    /// On the upsampled ones.
    After,
}

/// A 2×2 pooling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// Mean.
    #[default]
    Average,
    /// Largest value.
    Max,
}

/// An interpolation, as PyTorch's `interpolate` without `align_corners`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Upsample {
    /// The nearest pixel to the left and above.
    #[default]
    Nearest,
    /// Of four pixels.
    Bilinear,
    /// Of sixteen pixels.
    Bicubic,
}

/// A configuration that is no network.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ConfigError {
    /// A number that must be positive.
    #[error("`{field}` must be a positive number, found {found}")]
    Positive {
        /// Which.
        field: &'static str,
        /// The number.
        found: f64,
    },
    /// A count that must not be zero.
    #[error("`{field}` must be at least 1, found 0")]
    Zero {
        /// Which.
        field: &'static str,
    },
    /// An even kernel has no centre.
    #[error("`{field}` must be odd, found {found}")]
    EvenKernel {
        /// Which.
        field: &'static str,
        /// The size.
        found: usize,
    },
    /// A number that would make a network nobody can hold in memory.
    #[error("`{field}` must be at most {most}, found {found}")]
    TooLarge {
        /// Which.
        field: &'static str,
        /// The limit.
        most: usize,
        /// The number.
        found: usize,
    },
    /// Strides other than those of the papers.
    #[error("`stride` must be 1 or 2, found {0}")]
    Stride(usize),
    /// An output stride that dilation cannot make.
    #[error("`output_stride` must be 8, 16 or 32, found {0}")]
    OutputStride(usize),
    /// Attention in a stage that is not there.
    #[error("`dfc` names stage {found}, but the network has stages 0 to {last}")]
    Stage {
        /// The stage named.
        found: usize,
        /// The last there is.
        last: usize,
    },
    /// Settings that exclude each other.
    #[error("{0}")]
    Combination(&'static str),
    /// A configuration file that cannot be read as one.
    #[error("{0}")]
    Syntax(String),
}

/// More channels or classes than this are a typing error.
const MAX_CHANNELS: usize = 1 << 16;
/// More bottlenecks than this are no network anybody has trained.
const MAX_BOTTLENECKS: usize = 1024;
/// The longest strip or kernel.
const MAX_KERNEL: usize = 63;

impl Config {
    /// Checks the numbers that would make no network.
    ///
    /// # Errors
    /// The first number that is out of range, or the settings that exclude each other.
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
                return Err(ConfigError::TooLarge { field, most: MAX_CHANNELS, found: scaled as usize });
            }
        }
        if rows().count() > MAX_BOTTLENECKS {
            return Err(ConfigError::TooLarge { field: "stages", most: MAX_BOTTLENECKS, found: rows().count() });
        }
        let strips = self.dfc.kernels.iter().flatten().map(|k| ("dfc.kernel", *k));
        for (field, found) in rows().map(|r| ("kernel", r.kernel)).chain(strips) {
            if found.is_multiple_of(2) {
                return Err(ConfigError::EvenKernel { field, found });
            }
            if found > MAX_KERNEL {
                return Err(ConfigError::TooLarge { field, most: MAX_KERNEL, found });
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
        // Where nothing is expanded there are no expanded features to enhance.
        let flat = |(s, rows): (usize, &Vec<BottleneckConfig>)| {
            self.dfc_kernel(s).is_some() && rows.iter().any(|r| r.expanded == 1)
        };
        let inverted = self.block == BlockKind::InvertedResidual;
        if inverted && self.dfc.enhance.expanded() && self.stages.iter().enumerate().any(flat) {
            return Err(ConfigError::Combination(
                "`dfc` enhances the expanded features of a stage that expands nothing: take the stage out of \
                 `dfc.stages`, or set `dfc.enhance` to `output`",
            ));
        }
        Ok(())
    }

    /// `channels` at this network's width.
    #[must_use]
    pub fn scaled(&self, channels: usize) -> usize {
        make_divisible(channels as f64 * self.width, self.block.divisor())
    }

    /// Length of the DFC strips in a stage, if its bottlenecks carry attention.
    #[must_use]
    pub fn dfc_kernel(&self, stage: usize) -> Option<usize> {
        self.dfc.kernels.get(stage).copied().flatten()
    }
}

impl DfcConfig {
    /// The paper's settings, with strips of length `kernel` in the given stages.
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

    /// No attention.
    #[must_use]
    pub fn none() -> Self {
        Self::in_stages([], 5)
    }
}

/// Rounds a channel count to a multiple of `divisor`, at least one multiple, and never more than a tenth down. This is
/// the rule of the MobileNet family, which checkpoints depend on.
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
