//! The published networks by name.

use super::config::{BlockKind, BottleneckConfig, Config, DfcConfig};

/// The names that [`preset`] knows. They are timm's, except the last: timm has no MobileNetV2 with the DFC branch.
pub const PRESETS: [&str; 14] = [
    "ghostnet_050",
    "ghostnet_100",
    "ghostnet_130",
    "ghostnetv2_100",
    "ghostnetv2_130",
    "ghostnetv2_160",
    "ghostnetv3_050",
    "ghostnetv3_100",
    "ghostnetv3_130",
    "ghostnetv3_160",
    "mobilenetv2_050",
    "mobilenetv2_100",
    "mobilenetv2_140",
    "mobilenetv2_dfc_100",
];

const fn bottleneck(
    kernel: usize,
    expanded: usize,
    output: usize,
    squeeze_excite: bool,
    stride: usize,
) -> BottleneckConfig {
    BottleneckConfig { kernel, expanded, output, squeeze_excite, stride }
}

/// The stage table of the GhostNet paper. V2 and V3 use it unchanged.
const GHOST_STAGES: [&[BottleneckConfig]; 9] = [
    &[bottleneck(3, 16, 16, false, 1)],
    &[bottleneck(3, 48, 24, false, 2)],
    &[bottleneck(3, 72, 24, false, 1)],
    &[bottleneck(5, 72, 40, true, 2)],
    &[bottleneck(5, 120, 40, true, 1)],
    &[bottleneck(3, 240, 80, false, 2)],
    &[
        bottleneck(3, 200, 80, false, 1),
        bottleneck(3, 184, 80, false, 1),
        bottleneck(3, 184, 80, false, 1),
        bottleneck(3, 480, 112, true, 1),
        bottleneck(3, 672, 112, true, 1),
    ],
    &[bottleneck(5, 672, 160, true, 2)],
    &[
        bottleneck(5, 960, 160, false, 1),
        bottleneck(5, 960, 160, true, 1),
        bottleneck(5, 960, 160, false, 1),
        bottleneck(5, 960, 160, true, 1),
    ],
];

/// The stage table of MobileNetV2 (Sandler et al., CVPR 2018, table 2). Per stage: number of bottlenecks, expansion
/// factor, output channels, stride of the first bottleneck.
const MOBILENET_STAGES: [(usize, usize, usize, usize); 7] =
    [(1, 1, 16, 1), (2, 6, 24, 2), (3, 6, 32, 2), (4, 6, 64, 2), (3, 6, 96, 1), (3, 6, 160, 2), (1, 6, 320, 1)];

/// The configuration of the network called `name`, with ImageNet's 1000 classes; `None` for an unknown name.
#[must_use]
pub fn preset(name: &str) -> Option<Config> {
    let name = PRESETS.into_iter().find(|known| *known == name)?;
    let (family, percent) = name.rsplit_once('_')?;
    let width = percent.parse::<f64>().ok()? / 100.0;
    let config = match family {
        "ghostnet" => ghostnet(BlockKind::Ghost, DfcConfig::none()),
        // The first two bottlenecks work at the highest resolutions and carry no attention.
        "ghostnetv2" => ghostnet(BlockKind::Ghost, DfcConfig::in_stages(2..9, 5)),
        "ghostnetv3" => ghostnet(BlockKind::GhostReparameterized, DfcConfig::in_stages(2..9, 5)),
        "mobilenetv2" => mobilenet(DfcConfig::none()),
        "mobilenetv2_dfc" => mobilenet(DfcConfig::in_stages(2..7, 5)),
        _ => return None,
    };
    Some(Config { name: name.to_owned(), width, ..config })
}

fn ghostnet(block: BlockKind, dfc: DfcConfig) -> Config {
    Config {
        name: String::new(),
        block,
        width: 1.0,
        classes: 1000,
        input_channels: 3,
        output_stride: 32,
        stem_channels: 16,
        stages: GHOST_STAGES.iter().map(|stage| stage.to_vec()).collect(),
        final_channels: 960,
        head_features: 1280,
        se_ratio: 0.25,
        dfc,
    }
}

fn mobilenet(dfc: DfcConfig) -> Config {
    let stage = |(repetitions, expansion, output, stride)| {
        (0..repetitions).map(|i| bottleneck(3, expansion, output, false, if i == 0 { stride } else { 1 })).collect()
    };
    Config {
        stem_channels: 32,
        stages: MOBILENET_STAGES.into_iter().map(stage).collect(),
        ..ghostnet(BlockKind::InvertedResidual, dfc)
    }
}
