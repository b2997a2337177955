//! The published networks by name.

use super::config::{BottleneckConfig, Config, DfcConfig};

/// Names that [`preset`] knows, with the width each stands for. They are timm's.
pub const PRESETS: [(&str, f64); 3] = [("ghostnetv2_100", 1.0), ("ghostnetv2_130", 1.3), ("ghostnetv2_160", 1.6)];

const fn row(kernel: usize, expanded: usize, output: usize, squeeze_excite: bool, stride: usize) -> BottleneckConfig {
    BottleneckConfig { kernel, expanded, output, squeeze_excite, stride }
}

/// The stage table of the GhostNet paper, which V2 keeps.
const STAGES: [&[BottleneckConfig]; 9] = [
    &[row(3, 16, 16, false, 1)],
    &[row(3, 48, 24, false, 2)],
    &[row(3, 72, 24, false, 1)],
    &[row(5, 72, 40, true, 2)],
    &[row(5, 120, 40, true, 1)],
    &[row(3, 240, 80, false, 2)],
    &[
        row(3, 200, 80, false, 1),
        row(3, 184, 80, false, 1),
        row(3, 184, 80, false, 1),
        row(3, 480, 112, true, 1),
        row(3, 672, 112, true, 1),
    ],
    &[row(5, 672, 160, true, 2)],
    &[row(5, 960, 160, false, 1), row(5, 960, 160, true, 1), row(5, 960, 160, false, 1), row(5, 960, 160, true, 1)],
];

/// The network called `name`, with ImageNet's 1000 classes.
#[must_use]
pub fn preset(name: &str) -> Option<Config> {
    let (name, width) = PRESETS.into_iter().find(|(known, _)| *known == name)?;
    Some(Config {
        name: name.to_owned(),
        width,
        classes: 1000,
        input_channels: 3,
        stem_channels: 16,
        stages: STAGES.iter().map(|stage| stage.to_vec()).collect(),
        final_channels: 960,
        head_features: 1280,
        se_ratio: 0.25,
        dfc: DfcConfig { kernel: 5, skip_first: 2 },
    })
}
