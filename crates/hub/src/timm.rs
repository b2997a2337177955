//! Turns timm's `config.json` into the parts of a manifest: architecture, pre-processing, labels. A configuration
//! that this server would compute differently from timm is refused with the reason: a slightly wrong model looks as
//! if it worked.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::catalogue::{CATALOGUE_OWNER, IMAGENET_CLASSES, IMAGENET_LABELS};
use super::{HubError, Reference};
use ghostserve_manifest::{CropMode, InputSpec, Interpolation, Resize};

// timm's defaults for settings that a configuration does not have.
const DEFAULT_CROP: f64 = 0.875;
const DEFAULT_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEFAULT_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Largest number of classes. No classifier has more, and labels are allocated for each.
const MAX_CLASSES: usize = 100_000;

/// Arguments of timm's model constructors that do not change the inference.
const HARMLESS_ARGUMENTS: [&str; 3] = ["drop_rate", "drop_path_rate", "pretrained"];

/// timm's names for the average of all positions.
const AVERAGE_POOLS: [&str; 3] = ["avg", "fast", "fastavg"];

/// The parts of a repository's configuration that a manifest holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TimmConfig {
    /// One of the architectures that can be served.
    pub(super) architecture: String,
    /// The evaluation transform.
    pub(super) input: InputSpec,
    /// The text of a labels file.
    pub(super) labels: String,
    /// Assumptions, for the user.
    pub(super) notes: Vec<String>,
}

#[derive(Deserialize)]
struct RawConfig {
    architecture: String,
    num_classes: Option<usize>,
    global_pool: Option<String>,
    #[serde(default)]
    model_args: Map<String, Value>,
    #[serde(alias = "labels")]
    label_names: Option<LabelNames>,
    label_descriptions: Option<BTreeMap<String, String>>,
    /// Missing in old exports, which keep its fields at the top.
    pretrained_cfg: Option<Pretrained>,
}

#[derive(Deserialize)]
struct Pretrained {
    tag: Option<String>,
    num_classes: Option<usize>,
    input_size: Option<[usize; 3]>,
    interpolation: Option<String>,
    crop_pct: Option<f64>,
    crop_mode: Option<String>,
    mean: Option<[f32; 3]>,
    std: Option<[f32; 3]>,
    label_offset: Option<i64>,
    label_names: Option<LabelNames>,
    label_descriptions: Option<BTreeMap<String, String>>,
}

/// A list, or an object from index to name, which may have gaps.
#[derive(Deserialize)]
#[serde(untagged)]
enum LabelNames {
    List(Vec<String>),
    ByIndex(BTreeMap<String, String>),
}

impl TimmConfig {
    /// Parses the text of a `config.json`. `architectures` are those that can be served.
    pub(super) fn parse(text: &str, reference: &Reference, architectures: &[&str]) -> Result<Self, HubError> {
        read_config(text, reference, architectures)
            .map_err(|reason| HubError::Config { repository: reference.repository(), reason })
    }
}

fn read_config(text: &str, reference: &Reference, architectures: &[&str]) -> Result<TimmConfig, String> {
    let syntax = |e: serde_json::Error| format!("not a timm configuration: {e}");
    let config: RawConfig = serde_json::from_str(text).map_err(syntax)?;
    let RawConfig { architecture, num_classes, global_pool, model_args, label_names, label_descriptions, .. } = config;
    let pretrained = match config.pretrained_cfg {
        Some(pretrained) => pretrained,
        None => serde_json::from_str(text).map_err(syntax)?,
    };

    if !architectures.contains(&&architecture[..]) {
        return Err(format!(
            "`architecture`: expected one of {}, found `{}`",
            architectures.join(", "),
            architecture.escape_debug()
        ));
    }
    if global_pool.as_deref().is_some_and(|pool| !AVERAGE_POOLS.contains(&pool)) {
        return Err(unsupported("global_pool", "avg", global_pool));
    }
    if pretrained.label_offset.unwrap_or(0) != 0 {
        return Err("`label_offset` shifts the classes: not supported".to_owned());
    }
    let input = input_spec(&pretrained)?;
    let classes = num_classes.or(pretrained.num_classes).unwrap_or(IMAGENET_CLASSES);
    if !(1..=MAX_CLASSES).contains(&classes) {
        return Err(format!("`num_classes`: expected 1 to {MAX_CLASSES}, found {classes}"));
    }
    check_arguments(&model_args, classes)?;

    let mut notes = Vec::new();
    let imagenet = reference.repository().starts_with(&format!("{CATALOGUE_OWNER}/"))
        || [reference.repository(), pretrained.tag.unwrap_or_default()]
            .iter()
            .any(|hint| hint.contains("in1k") || hint.contains("imagenet"));
    let labels = match label_names.or(pretrained.label_names) {
        Some(names) => {
            let descriptions = label_descriptions.or(pretrained.label_descriptions).unwrap_or_default();
            labels_text(&names, &descriptions, classes)?
        }
        None if classes == IMAGENET_CLASSES && imagenet => IMAGENET_LABELS.to_owned(),
        None => {
            notes.push("the repository names no classes: labels.txt numbers them, put their names there".to_owned());
            (0..classes).map(|i| format!("class {i}\n")).collect()
        }
    };
    Ok(TimmConfig { architecture, input, labels, notes })
}

/// The message for a setting that only has one supported value.
fn unsupported(field: &str, expected: &str, found: Option<String>) -> String {
    let found = found.unwrap_or_default();
    format!("`{field}`: expected {expected}, found `{}`: our pre-processing has no other", found.escape_debug())
}

/// Checks the arguments of timm's model constructor. timm 1.0.31 writes all three that are named here.
fn check_arguments(arguments: &Map<String, Value>, classes: usize) -> Result<(), String> {
    for (key, value) in arguments {
        let expected = match &key[..] {
            "in_chans" if *value != 3 => "3".to_owned(),
            "num_classes" if *value != classes => format!("{classes}, as in `num_classes`"),
            "global_pool" if !AVERAGE_POOLS.iter().any(|pool| *value == *pool) => "avg".to_owned(),
            "in_chans" | "num_classes" | "global_pool" => continue,
            key if HARMLESS_ARGUMENTS.contains(&key) => continue,
            _ => return Err(format!("`model_args.{}` changes the network: not supported", key.escape_debug())),
        };
        return Err(format!("`model_args.{key}`: expected {expected}, found {}", shorten(&value.to_string())));
    }
    Ok(())
}

/// The first characters of a text from a hub, without control characters.
fn shorten(text: &str) -> String {
    text.escape_debug().take(40).collect()
}

/// The evaluation transform.
fn input_spec(pretrained: &Pretrained) -> Result<InputSpec, String> {
    let Pretrained { interpolation, crop_mode, .. } = pretrained;
    let interpolation = match interpolation.as_deref() {
        None | Some("bicubic") => Interpolation::Bicubic,
        Some("bilinear") => Interpolation::Bilinear,
        Some("lanczos") => Interpolation::Lanczos,
        Some(_) => return Err(unsupported("interpolation", "bicubic, bilinear or lanczos", interpolation.clone())),
    };
    let crop_mode = match crop_mode.as_deref() {
        None | Some("center") => CropMode::Center,
        Some("squash") => CropMode::Squash,
        Some("border") => CropMode::Border,
        Some(_) => return Err(unsupported("crop_mode", "center, squash or border", crop_mode.clone())),
    };
    let [channels, height, width] = pretrained.input_size.unwrap_or([3, 224, 224]);
    if channels != 3 {
        return Err(format!("`input_size`: expected 3 channels, found {channels}x{height}x{width}"));
    }
    let crop = pretrained.crop_pct.unwrap_or(DEFAULT_CROP);
    if !(crop > 0.0 && crop <= 1.0) {
        return Err(format!("`crop_pct`: expected more than 0, at most 1, found {crop}"));
    }
    // In f64 and rounded down, as in timm. The cast saturates; the manifest's check refuses values that are too large.
    let [resize_height, resize_width] = [height, width].map(|side| (side as f64 / crop).floor() as usize);
    Ok(InputSpec {
        crop: [height, width],
        crop_mode,
        interpolation,
        source: None,
        // timm resizes by torchvision's rule if the input is a square, and by its own if not.
        resize: if height == width {
            Resize::Side(resize_height)
        } else {
            Resize::Sides([resize_height, resize_width])
        },
        mean: pretrained.mean.unwrap_or(DEFAULT_MEAN),
        std: pretrained.std.unwrap_or(DEFAULT_STD),
    })
}

/// The text of a labels file from the names in the configuration. A WordNet id precedes its description.
fn labels_text(names: &LabelNames, descriptions: &BTreeMap<String, String>, classes: usize) -> Result<String, String> {
    let name_of = |index: usize| match names {
        LabelNames::List(list) => list.get(index),
        LabelNames::ByIndex(map) => map.get(&index.to_string()),
    };
    if let LabelNames::List(list) = names
        && list.len() != classes
    {
        return Err(format!("`label_names`: expected {classes}, one a class, found {}", list.len()));
    }
    // A label is one line, and a tab ends an id: control characters become spaces.
    let one_line = |text: &str| text.split(|c: char| c.is_control()).collect::<Vec<_>>().join(" ").trim().to_owned();
    let label = |index: usize| {
        let name = name_of(index).map(|n| one_line(n)).filter(|n| !n.is_empty());
        let name = name.unwrap_or_else(|| format!("class {index}"));
        let description = descriptions.get(&name).map(|d| one_line(d)).filter(|d| !d.is_empty());
        match description {
            Some(description) if is_wnid(&name) => format!("{name}\t{description}\n"),
            Some(description) => format!("{description}\n"),
            None if is_wnid(&name) => match IMAGENET_LABELS.lines().find(|line| line.starts_with(&name)) {
                Some(known) => format!("{known}\n"),
                None => format!("{name}\t{name}\n"),
            },
            None => format!("{name}\n"),
        }
    };
    Ok((0..classes).map(label).collect())
}

/// Whether `text` is a WordNet id, such as `n02123045`.
fn is_wnid(text: &str) -> bool {
    text.len() == 9 && text.starts_with('n') && text.bytes().skip(1).all(|b| b.is_ascii_digit())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(config: Value) -> Result<TimmConfig, String> {
        read_config(&config.to_string(), &Reference::parse("me/net").unwrap(), &["ghostnetv2_100"])
    }

    fn sample_config() -> Value {
        json!({"architecture": "ghostnetv2_100", "num_classes": 2, "global_pool": "avg", "pretrained_cfg": {
            "input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "pool_size": [7, 7]}})
    }

    #[test]
    fn the_transform_equals_timms() {
        let parsed = parse(sample_config()).unwrap();
        assert_eq!(
            (parsed.input.crop, parsed.input.resize),
            ([224, 224], Resize::Side(235)),
            "224 / 0.95 = 235.8, rounded down"
        );
        assert_eq!((parsed.input.mean, parsed.labels.as_str()), ([0.5; 3], "class 0\nclass 1\n"));
        assert_eq!(parsed.notes.len(), 1);

        let flat = json!({"architecture": "ghostnetv2_100", "num_classes": 1, "crop_pct": 1.0, "labels": ["a"]});
        let parsed = parse(flat).unwrap();
        assert_eq!(
            (parsed.input.resize, parsed.input.mean, &parsed.labels[..]),
            (Resize::Side(224), DEFAULT_MEAN, "a\n")
        );
    }

    #[test]
    fn every_filter_and_crop_mode_of_timm_is_read() {
        let with = |interpolation: &str, crop_mode: &str, size: [usize; 3]| {
            let mut config = sample_config();
            config["pretrained_cfg"]["interpolation"] = interpolation.into();
            config["pretrained_cfg"]["crop_mode"] = crop_mode.into();
            config["pretrained_cfg"]["input_size"] = json!(size);
            let input = parse(config).unwrap().input;
            (input.interpolation, input.crop_mode, input.crop, input.resize)
        };
        let square = with("bilinear", "squash", [3, 224, 224]);
        assert_eq!(square, (Interpolation::Bilinear, CropMode::Squash, [224, 224], Resize::Side(235)));
        let wide = with("lanczos", "border", [3, 192, 256]);
        assert_eq!(wide, (Interpolation::Lanczos, CropMode::Border, [192, 256], Resize::Sides([202, 269])));
        assert_eq!(with("bicubic", "center", [3, 256, 192]).3, Resize::Sides([269, 202]));
    }

    #[test]
    fn an_export_of_timm_1_0_31_is_read() {
        let mut config = sample_config();
        for pool in AVERAGE_POOLS {
            config["model_args"] = json!({"in_chans": 3, "num_classes": 2, "global_pool": pool});
            parse(config.clone()).unwrap();
        }
    }

    #[test]
    fn labels_come_from_the_configuration_or_are_imagenets() {
        let with = |names: Value, descriptions: Value| {
            let mut config = sample_config();
            config["label_names"] = names;
            config["label_descriptions"] = descriptions;
            parse(config).map(|parsed| parsed.labels)
        };
        assert_eq!(with(json!(["a\tb\nc", ""]), json!({})).unwrap(), "a b c\nclass 1\n");
        assert_eq!(with(json!({"1": "dog"}), json!({"dog": "a dog"})).unwrap(), "class 0\na dog\n");
        let wnids = with(json!(["n01440764", "n99999999"]), json!({"n99999999": "new"})).unwrap();
        assert_eq!(wnids, "n01440764\ttench\nn99999999\tnew\n");
        assert!(with(json!(["a"]), json!({})).unwrap_err().contains("expected 2, one a class, found 1"));

        let mut imagenet = sample_config();
        imagenet["num_classes"] = 1000.into();
        assert!(parse(imagenet.clone()).unwrap().labels.starts_with("class 0\n"), "1000 classes may be any");
        imagenet["pretrained_cfg"]["tag"] = "in1k".into();
        assert_eq!(parse(imagenet).unwrap().labels, IMAGENET_LABELS);
    }

    #[test]
    fn settings_that_would_be_computed_differently_are_refused() {
        for (pointer, value, words) in [
            ("/architecture", json!("resnet50"), "expected one of ghostnetv2_100, found `resnet50`"),
            (
                "/pretrained_cfg/interpolation",
                json!("nearest"),
                "`interpolation`: expected bicubic, bilinear or lanczos",
            ),
            ("/pretrained_cfg/crop_mode", json!("stretch"), "`crop_mode`: expected center, squash or border"),
            ("/pretrained_cfg/input_size", json!([1, 224, 224]), "3 channels"),
            ("/pretrained_cfg/crop_pct", json!(0.0), "`crop_pct`"),
            ("/pretrained_cfg/mean", json!([0.5]), "not a timm configuration"),
            ("/global_pool", json!("max"), "`global_pool`"),
            ("/num_classes", json!(0), "`num_classes`"),
            ("/num_classes", json!(4_000_000_000_u64), "`num_classes`"),
        ] {
            let mut config = sample_config();
            *config.pointer_mut(pointer).unwrap() = value;
            let error = parse(config).unwrap_err();
            assert!(error.contains(words), "{pointer}: {error}");
        }
        for (arguments, words) in [
            (json!({"width": 2.0}), "`model_args.width` changes the network"),
            (json!({"in_chans": 1}), "`model_args.in_chans`: expected 3, found 1"),
            (json!({"num_classes": 3}), "`model_args.num_classes`: expected 2, as in `num_classes`, found 3"),
            (json!({"global_pool": "max"}), "`model_args.global_pool`: expected avg, found \\\"max\\\""),
        ] {
            let mut config = sample_config();
            config["model_args"] = arguments;
            let error = parse(config).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let mut shifted = sample_config();
        shifted["pretrained_cfg"]["label_offset"] = 1.into();
        assert!(parse(shifted).unwrap_err().contains("label_offset"));
    }
}
