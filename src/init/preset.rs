//! The pre-processing of a model that does not say it: two presets, and the guess which of them fits.

use std::fmt;

use ghostserve_manifest::{CropMode, InputSpec, Interpolation, Resize};

/// The evaluation transform of a library's published models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputPreset {
    /// timm's default: bicubic to `size / 0.875`, rounded down, then the centre crop.
    Timm,
    /// torchvision's: bilinear to 256 for an input of 224 and in that ratio for others, then the centre crop.
    Torchvision,
}

impl InputPreset {
    /// The library's name, as on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Timm => "timm",
            Self::Torchvision => "torchvision",
        }
    }

    /// The transform to an input of this height and width.
    #[must_use]
    pub fn input(self, size: [usize; 2]) -> InputSpec {
        let (interpolation, resize) = match self {
            Self::Timm => {
                let sides = size.map(|side| (side as f64 / 0.875).floor() as usize);
                let resize = if size[0] == size[1] { Resize::Side(sides[0]) } else { Resize::Sides(sides) };
                (Interpolation::Bicubic, resize)
            }
            Self::Torchvision => {
                let side = size[0].max(size[1]) as f64 * 256.0 / 224.0;
                (Interpolation::Bilinear, Resize::Side(side.round() as usize))
            }
        };
        InputSpec { crop: size, resize, interpolation, ..InputSpec::imagenet() }
    }
}

/// Values of the transform that the user gives. Each replaces that of the preset.
#[derive(Clone, Copy, Debug, Default)]
pub struct InputOptions {
    /// The preset.
    pub preset: Option<InputPreset>,
    /// Height and width of the input, pixels.
    pub size: Option<[usize; 2]>,
    /// The shorter side before the crop, pixels.
    pub resize: Option<usize>,
    /// The filter.
    pub interpolation: Option<Interpolation>,
    /// How the resized photograph becomes the input.
    pub crop_mode: Option<CropMode>,
    /// Mean of R, G and B on a scale of 0 to 1.
    pub mean: Option<[f32; 3]>,
    /// Standard deviation of R, G and B.
    pub std: Option<[f32; 3]>,
}

impl InputOptions {
    /// Whether nothing is left for a preset to say.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.preset.is_some()
            || (self.resize.is_some() && self.interpolation.is_some() && self.mean.is_some() && self.std.is_some())
    }

    /// The transform: the preset's with these values in its place.
    #[must_use]
    pub fn apply(&self, preset: InputPreset, size: [usize; 2]) -> InputSpec {
        let base = preset.input(size);
        InputSpec {
            resize: self.resize.map_or(base.resize, Resize::Side),
            interpolation: self.interpolation.unwrap_or(base.interpolation),
            crop_mode: self.crop_mode.unwrap_or(base.crop_mode),
            mean: self.mean.unwrap_or(base.mean),
            std: self.std.unwrap_or(base.std),
            ..base
        }
    }
}

/// A guessed preset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresetGuess {
    /// The preset.
    pub preset: InputPreset,
    /// What speaks for it: `because …`.
    pub reason: String,
}

impl fmt::Display for PresetGuess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.preset.name(), self.reason)
    }
}

/// Parts of names that only timm's models have.
const TIMM_PARTS: [&str; 8] =
    ["timm", "in1k", "in21k", "in12k", "ghostnet", "mobilenetv2_", "mobilenetv3_", "tf_efficientnet"];

/// Beginnings of the names of torchvision's models.
const TORCHVISION_PARTS: [&str; 20] = [
    "torchvision",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext",
    "mobilenet_v2",
    "mobilenet_v3",
    "efficientnet_b",
    "efficientnet_v2",
    "shufflenet_v2",
    "squeezenet1",
    "densenet",
    "googlenet",
    "inception_v3",
    "alexnet",
    "vgg1",
    "regnet_",
    "convnext_",
];

/// Guesses from the names of a file and its folder. `own_family`: the network is one of timm's that this server knows.
#[must_use]
pub fn guess_preset(names: &[String], own_family: Option<&str>) -> PresetGuess {
    let found = |parts: &[&str]| {
        let lower = names.iter().map(|name| (name, name.to_lowercase()));
        lower.into_iter().find(|(_, lower)| parts.iter().any(|part| lower.contains(part))).map(|(name, _)| name)
    };
    if let Some(network) = own_family {
        return PresetGuess { preset: InputPreset::Timm, reason: format!("because {network} is a network of timm") };
    }
    if let Some(name) = found(&TIMM_PARTS) {
        return PresetGuess { preset: InputPreset::Timm, reason: format!("because of the name `{name}`") };
    }
    let preset = InputPreset::Torchvision;
    let reason = match found(&TORCHVISION_PARTS) {
        Some(name) => format!("because of the name `{name}`"),
        None => "because most exports use it: nothing in the file says so".to_owned(),
    };
    PresetGuess { preset, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_presets_resize_as_their_libraries_do() {
        let sizes = |preset: InputPreset| [224, 160, 299].map(|side| preset.input([side, side]).resize);
        assert_eq!(sizes(InputPreset::Timm), [256, 182, 341].map(Resize::Side));
        assert_eq!(sizes(InputPreset::Torchvision), [256, 183, 342].map(Resize::Side));
        assert_eq!(InputPreset::Torchvision.input([224, 320]).resize, Resize::Side(366), "the longer side fits");
        assert_eq!(InputPreset::Timm.input([224, 320]).resize, Resize::Sides([256, 365]));
    }

    #[test]
    fn names_decide_the_preset() {
        let guess = |name: &str| guess_preset(&[name.to_owned()], None).preset;
        for name in ["resnet50.a1_in1k", "GhostNet-flowers", "mobilenetv3_large_100"] {
            assert_eq!(guess(name), InputPreset::Timm, "{name}");
        }
        for name in ["resnet50", "mobilenet_v3_large", "model"] {
            assert_eq!(guess(name), InputPreset::Torchvision, "{name}");
        }
        assert_eq!(guess_preset(&["resnet50".to_owned()], Some("ghostnet_100")).preset, InputPreset::Timm);
    }
}
