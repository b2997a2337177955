//! Configuration files in TOML: a preset as the base, and the fields that differ from it.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::config::{
    BlockKind, BottleneckConfig, Config, ConfigError, DfcConfig, Enhance, Gate, GateAt, Pool, Upsample,
};
use super::presets::{PRESETS, preset};

/// The fields of a file. All but `base` are optional. serde's messages contain the names of these structs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    base: String,
    name: Option<String>,
    width: Option<f64>,
    classes: Option<usize>,
    input_channels: Option<usize>,
    output_stride: Option<usize>,
    stem_channels: Option<usize>,
    final_channels: Option<usize>,
    head_features: Option<usize>,
    se_ratio: Option<f64>,
    stages: Option<Vec<Vec<BottleneckConfig>>>,
    #[serde(default)]
    dfc: DfcTable,
}

/// The table `[dfc]` of a file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DfcTable {
    stages: Option<Vec<usize>>,
    kernel: Option<usize>,
    #[serde(default)]
    kernels: BTreeMap<String, usize>,
    enhance: Option<Enhance>,
    gate: Option<Gate>,
    gate_at: Option<GateAt>,
    pool: Option<Pool>,
    upsample: Option<Upsample>,
}

impl Config {
    /// Parses the text of a configuration file.
    ///
    /// # Errors
    /// The first fault: the syntax, an unknown field or base, a number out of range, settings that exclude each other.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|e| ConfigError::Syntax(e.to_string().trim_end().to_owned()))?;
        let Some(base) = preset(&file.base) else {
            let known = PRESETS.join(", ");
            return Err(ConfigError::Syntax(format!("`base`: expected one of {known}, found `{}`", file.base)));
        };
        if base.block == BlockKind::InvertedResidual && (file.final_channels.is_some() || file.se_ratio.is_some()) {
            return Err(ConfigError::Combination(
                "`final_channels` and `se_ratio` are not part of MobileNetV2: `head_features` sets its last \
                 convolution",
            ));
        }
        let stages = file.stages.unwrap_or_else(|| base.stages.clone());
        let config = Self {
            name: file.name.unwrap_or(base.name),
            block: base.block,
            width: file.width.unwrap_or(base.width),
            classes: file.classes.unwrap_or(base.classes),
            input_channels: file.input_channels.unwrap_or(base.input_channels),
            output_stride: file.output_stride.unwrap_or(base.output_stride),
            stem_channels: file.stem_channels.unwrap_or(base.stem_channels),
            final_channels: file.final_channels.unwrap_or(base.final_channels),
            head_features: file.head_features.unwrap_or(base.head_features),
            se_ratio: file.se_ratio.unwrap_or(base.se_ratio),
            dfc: file.dfc.apply_to(base.dfc, stages.len())?,
            stages,
        };
        config.validate()?;
        Ok(config)
    }
}

impl DfcTable {
    /// The settings of `base` with those of the table in their place, for a network of `stages` stages.
    fn apply_to(self, base: DfcConfig, stages: usize) -> Result<DfcConfig, ConfigError> {
        let last = stages.saturating_sub(1);
        let mut kernels = base.kernels;
        if let Some(attention_stages) = self.stages {
            let default = kernels.iter().flatten().next().copied().unwrap_or(5);
            if let Some(&found) = attention_stages.iter().find(|s| **s > last) {
                return Err(ConfigError::Stage { found, last });
            }
            kernels = DfcConfig::in_stages(attention_stages, default).kernels;
        }
        if let Some(kernel) = self.kernel {
            kernels.iter_mut().flatten().for_each(|k| *k = kernel);
        }
        for (stage, kernel) in self.kernels {
            let Ok(found) = stage.parse::<usize>() else {
                return Err(ConfigError::Syntax(format!("`dfc.kernels`: expected a stage's number, found `{stage}`")));
            };
            match kernels.get_mut(found) {
                Some(Some(slot)) => *slot = kernel,
                _ if found > last => return Err(ConfigError::Stage { found, last }),
                _ => {
                    return Err(ConfigError::Combination(
                        "`dfc.kernels` sets the kernel of a stage that carries no attention: add it to `dfc.stages`",
                    ));
                }
            }
        }
        Ok(DfcConfig {
            kernels,
            enhance: self.enhance.unwrap_or(base.enhance),
            gate: self.gate.unwrap_or(base.gate),
            gate_at: self.gate_at.unwrap_or(base.gate_at),
            pool: self.pool.unwrap_or(base.pool),
            upsample: self.upsample.unwrap_or(base.upsample),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_names_only_its_base_is_the_preset() {
        for name in PRESETS {
            assert_eq!(Config::parse(&format!("base = \"{name}\"")).unwrap(), preset(name).unwrap(), "{name}");
        }
    }

    #[test]
    fn stages_and_kernels_of_attention_are_set_by_the_file() {
        let text =
            "base = \"ghostnetv2_100\"\n[dfc]\nstages = [3, 5]\nkernel = 7\nkernels = { 5 = 3 }\ngate = \"clip\"";
        let dfc = Config::parse(text).unwrap().dfc;
        assert_eq!(dfc.kernels, [None, None, None, Some(7), None, Some(3)]);
        assert_eq!((dfc.gate, dfc.pool), (Gate::Clip, Pool::Average));
    }

    #[test]
    fn errors_name_what_is_wrong() {
        for (text, expected) in [
            ("base = \"resnet50\"", "`base`: expected one of ghostnet_050"),
            ("width = 1.0", "base"),
            ("base = \"ghostnetv2_100\"\nwidht = 1.0", "widht"),
            ("base = \"ghostnetv2_100\"\n[dfc]\ngate = \"tanh\"", "tanh"),
            ("base = \"ghostnetv2_100\"\n[dfc]\nstages = [9]", "`dfc` names stage 9"),
            ("base = \"ghostnetv2_100\"\n[dfc]\nkernels = { 0 = 3 }", "carries no attention"),
            ("base = \"ghostnetv2_100\"\n[dfc]\nkernel = 4", "`dfc.kernel` must be odd, found 4"),
            ("base = \"ghostnetv2_100\"\noutput_stride = 64", "`output_stride` must be 8, 16 or 32, found 64"),
            ("base = \"mobilenetv2_100\"\nse_ratio = 0.5", "not part of MobileNetV2"),
            ("base = \"mobilenetv2_100\"\n[dfc]\nstages = [0]", "expands nothing"),
            ("base = \"ghostnetv2_100\"\nstages = []", "`stages` must be at least 1"),
        ] {
            let error = Config::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
