//! What a network is: the numbers of the papers' tables, before any channel is resolved.

/// A GhostNetV2 of any width, as data.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What it is called in tables and in the written graph.
    pub name: String,
    /// Multiplies every channel count (then rounded by [`make_divisible`] to a multiple of 4).
    pub width: f64,
    /// Outputs of the classifier.
    pub classes: usize,
    /// Channels of the input image.
    pub input_channels: usize,
    /// Channels of the stem convolution at width 1.
    pub stem_channels: usize,
    /// The bottlenecks, grouped in stages as in the checkpoints' `blocks.S.B`.
    pub stages: Vec<Vec<BottleneckConfig>>,
    /// Channels of the last 1×1 convolution before pooling, at width 1.
    pub final_channels: usize,
    /// Units of the hidden layer between pooling and classifier; not scaled by the width.
    pub head_features: usize,
    /// Squeeze-excite: squeezed channels as a share of the expanded ones.
    pub se_ratio: f64,
    /// The attention branch.
    pub dfc: DfcConfig,
}

/// One row of the stage table, at width 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BottleneckConfig {
    /// Side of the depthwise kernels of the stride and of the shortcut, pixels.
    pub kernel: usize,
    /// Channels between the two Ghost modules.
    pub expanded: usize,
    /// Channels that leave the bottleneck.
    pub output: usize,
    /// Whether a squeeze-excite stands between the Ghost modules.
    pub squeeze_excite: bool,
    /// 1, or 2 to halve the resolution.
    pub stride: usize,
}

/// DFC ("decoupled fully connected") attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DfcConfig {
    /// Length of the horizontal and of the vertical strip, pixels of the pooled map.
    pub kernel: usize,
    /// Bottlenecks without attention at the start of the network; the first two are at the highest resolutions.
    pub skip_first: usize,
}

/// A configuration that is no network.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ConfigError {
    /// The width does not scale.
    #[error("width must be a positive number, found {0}")]
    Width(f64),
    /// A count that must not be zero.
    #[error("{field} must be at least 1, found 0")]
    Zero {
        /// Which.
        field: &'static str,
    },
    /// An even kernel has no centre.
    #[error("{field} must be odd, found {found}")]
    EvenKernel {
        /// Which.
        field: &'static str,
        /// The size.
        found: usize,
    },
}

impl Config {
    /// Checks the numbers that would make no network.
    ///
    /// # Errors
    /// The first number that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(self.width.is_finite() && self.width > 0.0) {
            return Err(ConfigError::Width(self.width));
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
        let row_counts = rows().flat_map(|r| [("expanded", r.expanded), ("output", r.output), ("stride", r.stride)]);
        if let Some((field, _)) = counts.into_iter().chain(row_counts).find(|(_, n)| *n == 0) {
            return Err(ConfigError::Zero { field });
        }
        let kernels = rows().map(|r| ("kernel", r.kernel)).chain([("dfc.kernel", self.dfc.kernel)]);
        match kernels.into_iter().find(|(_, k)| k.is_multiple_of(2)) {
            Some((field, found)) => Err(ConfigError::EvenKernel { field, found }),
            None => Ok(()),
        }
    }

    /// `channels` at this network's width.
    #[must_use]
    pub fn scaled(&self, channels: usize) -> usize {
        make_divisible(channels as f64 * self.width, 4)
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
mod tests {
    use super::*;
    use crate::ghostnet::preset;

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
        let ok = preset("ghostnetv2_100").unwrap_or_else(|| unreachable!());
        assert_eq!(ok.validate(), Ok(()));
        assert_eq!(Config { width: -1.0, ..ok.clone() }.validate(), Err(ConfigError::Width(-1.0)));
        assert_eq!(Config { classes: 0, ..ok.clone() }.validate(), Err(ConfigError::Zero { field: "classes" }));
        let dfc = DfcConfig { kernel: 4, ..ok.dfc };
        let even = Err(ConfigError::EvenKernel { field: "dfc.kernel", found: 4 });
        assert_eq!(Config { dfc, ..ok }.validate(), even);
    }
}
