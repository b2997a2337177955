//! The contract of a model folder: `manifest.toml` describes the network, the pixels of its input and the meaning of
//! its outputs.
//!
//! The tool that builds a model writes the manifest, the server reads it, and they share nothing else. The text of the
//! file becomes a [`Manifest`] only after every value in it has been checked.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Component, Path};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the manifest in a model folder.
pub const MANIFEST_FILE: &str = "manifest.toml";

/// A checked manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The name the model is served under.
    pub id: String,
    /// One line that describes the model to people.
    pub description: String,
    /// The network that computes the outputs.
    pub network: NetworkSpec,
    /// The pixels that the network receives.
    pub input: InputSpec,
    /// Name of the file with one label per line, in class order. A line may be `wnid<TAB>label`.
    pub labels_file: String,
}

/// The network and the file that holds its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSpec {
    /// The origin of the network's graph.
    pub architecture: Architecture,
    /// Name of the file in the model folder.
    pub weights: String,
    /// SHA-256 of that file. Without it, any file of that name is loaded, with a warning.
    pub digest: Option<Digest>,
    /// The kind of values in the network's output rows.
    pub output: OutputKind,
}

/// The origin of a network's graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// A preset of the crate `ghostserve-ghostnet`, or a configuration file in the model folder (`….toml`). `weights`
    /// is a safetensors file or a PyTorch checkpoint.
    Preset(String),
    /// The ONNX file in `weights`, with one image input and one row of scores per image.
    Onnx,
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Preset(name) => f.write_str(name),
            Self::Onnx => f.write_str("onnx"),
        }
    }
}

/// The kind of values in a network's output rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputKind {
    /// Scores before the softmax.
    #[default]
    Logits,
    /// Scores that sum to one.
    Probabilities,
}

/// The filter of a resize. Each is antialiased, as in Pillow: it widens with the reduction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// The cubic with a = −1/2.
    #[default]
    Bicubic,
    /// The triangle.
    Bilinear,
    /// The sinc with three lobes.
    Lanczos,
}

impl fmt::Display for Interpolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bicubic => "bicubic",
            Self::Bilinear => "bilinear",
            Self::Lanczos => "lanczos",
        })
    }
}

/// The way from a photograph of any proportions to the crop, under timm's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CropMode {
    /// The photograph keeps its proportions and covers `resize`. The crop is its centre.
    #[default]
    Center,
    /// The photograph takes the proportions of `resize`. The crop is its centre.
    Squash,
    /// The photograph keeps its proportions and fits into `resize`. The crop is its centre, with a border of the mean
    /// colour where the photograph does not reach.
    Border,
}

impl fmt::Display for CropMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Center => "center",
            Self::Squash => "squash",
            Self::Border => "border",
        })
    }
}

/// The size to which a photograph is resized before the crop, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "expected whole pixels: a number such as 256, or [height, width]")]
pub enum Resize {
    /// A square. With [`CropMode::Center`] this is torchvision's `Resize(side)`: the shorter side gets this length,
    /// and the longer one is rounded down.
    Side(usize),
    /// Height and width. With [`CropMode::Center`] this is timm's rule for an input that is not a square: the
    /// photograph covers both sides, and its own are rounded to the nearest.
    Sides([usize; 2]),
}

impl Resize {
    /// Height and width.
    #[must_use]
    pub fn sides(self) -> [usize; 2] {
        match self {
            Self::Side(side) => [side; 2],
            Self::Sides(sides) => sides,
        }
    }
}

impl From<usize> for Resize {
    fn from(side: usize) -> Self {
        Self::Side(side)
    }
}

impl fmt::Display for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Side(side) => write!(f, "{side}"),
            Self::Sides(sides) => write!(f, "{sides:?}"),
        }
    }
}

/// The transform from a decoded photograph to the network's input. All sizes are in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub struct InputSpec {
    /// Height and width of the network's input: the centre crop.
    #[serde(rename = "size")]
    pub crop: [usize; 2],
    /// The way from a photograph of any proportions to the crop.
    pub crop_mode: CropMode,
    /// The filter of every resize.
    pub interpolation: Interpolation,
    /// If set, the photograph is first reduced to this shorter side and centre-cropped to a square of it, as for the
    /// training of a network on small images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<usize>,
    /// The size before the crop: of the shorter side, or height and width.
    pub resize: Resize,
    /// Mean of R, G and B that is subtracted, on a scale of 0 to 1.
    pub mean: [f32; 3],
    /// Standard deviation of R, G and B by which the result is divided.
    pub std: [f32; 3],
}

impl InputSpec {
    /// The input of most networks trained on ImageNet: 224×224 pixels from the centre of a photograph whose shorter
    /// side is 256, with ImageNet's mean and standard deviation.
    #[must_use]
    pub fn imagenet() -> Self {
        Self {
            crop: [224, 224],
            crop_mode: CropMode::default(),
            interpolation: Interpolation::default(),
            source: None,
            resize: Resize::Side(256),
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
        }
    }
}

/// A SHA-256 digest, written as `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct Digest(String);

impl Digest {
    /// Computes the digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self::from_sha256(&sha2::Sha256::digest(bytes).into())
    }

    /// The digest with the value `hash`, for callers that hash a stream themselves.
    #[must_use]
    pub fn from_sha256(hash: &[u8; 32]) -> Self {
        Self(format!("sha256:{}", to_hex(hash)))
    }

    fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:")?;
        let valid = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        valid.then(|| Self(text.to_owned()))
    }

    /// The digest as text, with its `sha256:` prefix.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A class of a classifier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Label {
    /// The name for people.
    #[serde(rename = "label")]
    pub name: String,
    /// WordNet's identifier, where the labels file gives one (`n02123045`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wnid: Option<String>,
}

/// The reason why a manifest is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    /// The text is not TOML, or a field is missing, unknown or of the wrong type.
    #[error("{0}")]
    Syntax(String),
    /// A field has the right type and an invalid value.
    #[error("`{field}`: expected {expected}, found {found}")]
    Value {
        /// The field's path in the file.
        field: &'static str,
        /// Description of a valid value.
        expected: &'static str,
        /// The invalid value.
        found: String,
    },
}

/// The fields of the file, unchecked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManifest {
    id: String,
    #[serde(default)]
    description: String,
    network: RawNetwork,
    input: RawInput,
    labels: RawLabels,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNetwork {
    architecture: String,
    weights: String,
    digest: Option<String>,
    #[serde(default)]
    output: OutputKind,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInput {
    size: [usize; 2],
    source: Option<usize>,
    resize: Resize,
    #[serde(default)]
    crop_mode: CropMode,
    #[serde(default)]
    interpolation: Interpolation,
    mean: [f32; 3],
    std: [f32; 3],
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLabels {
    file: String,
}

/// Largest input side, pixels. A square image of this side takes 200 MB as f32; a larger value is a typing error.
const MAX_SIDE: usize = 4096;

impl Manifest {
    /// Parses the text of a `manifest.toml`.
    ///
    /// # Errors
    /// The first invalid field, with the expected and the found value.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let raw: RawManifest =
            toml::from_str(text).map_err(|e| ManifestError::Syntax(e.to_string().trim_end().to_owned()))?;
        let wrong = |field, expected, found: String| Err(ManifestError::Value { field, expected, found });

        let id_chars = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if raw.id.is_empty() || raw.id.len() > 128 || !raw.id.chars().all(id_chars) {
            return wrong("id", "1 to 128 letters, digits, `-`, `_` or `.`", format!("`{}`", raw.id));
        }
        for (field, file) in [("network.weights", &raw.network.weights), ("labels.file", &raw.labels.file)] {
            let mut parts = Path::new(file).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return wrong(field, "the name of a file in the model folder", format!("`{file}`"));
            }
        }
        let architecture = &raw.network.architecture;
        if architecture.ends_with(".toml") && Path::new(architecture).components().count() != 1 {
            return wrong(
                "network.architecture",
                "the name of a file in the model folder",
                format!("`{architecture}`"),
            );
        }
        let digest = raw.network.digest.as_deref().map(Digest::parse);
        if digest == Some(None) {
            let found = format!("`{}`", raw.network.digest.unwrap_or_default());
            return wrong("network.digest", "`sha256:` and 64 lower-case hexadecimal digits", found);
        }
        let input = check_input(raw.input)?;
        Ok(Self {
            id: raw.id,
            description: raw.description,
            network: NetworkSpec {
                architecture: match raw.network.architecture.as_str() {
                    "onnx" => Architecture::Onnx,
                    _ => Architecture::Preset(raw.network.architecture),
                },
                weights: raw.network.weights,
                digest: digest.flatten(),
                output: raw.network.output,
            },
            input,
            labels_file: raw.labels.file,
        })
    }

    /// The text of a `manifest.toml` that [`Manifest::parse`] reads as this manifest. The lines of `comment` come
    /// first.
    #[must_use]
    pub fn to_toml(&self, comment: &[String]) -> String {
        // A control character in a comment must not end its line: the text may come from a hub.
        let lines = comment.iter().map(|line| format!("# {}\n", line.replace(char::is_control, " ")));
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let Self { network, input, .. } = self;
        let output = match network.output {
            OutputKind::Logits => "logits",
            OutputKind::Probabilities => "probabilities",
        };
        let digest = network.digest.as_ref().map(|digest| format!("digest = \"{digest}\"\n")).unwrap_or_default();
        let source = input.source.map(|side| format!("source = {side}\n")).unwrap_or_default();
        format!(
            "{}id = {}\ndescription = {}\n\n[network]\narchitecture = {}\nweights = {}\n{digest}output = \
             \"{output}\"\n\n[input]\nsize = {:?}\n{source}resize = {}\ncrop_mode = \"{}\"\ninterpolation = \
             \"{}\"\nmean = {:?}\nstd = {:?}\n\n[labels]\nfile = {}\n",
            lines.collect::<String>(),
            quoted(&self.id),
            quoted(&self.description),
            quoted(&network.architecture.to_string()),
            quoted(&network.weights),
            input.crop,
            input.resize,
            input.crop_mode,
            input.interpolation,
            input.mean,
            input.std,
            quoted(&self.labels_file),
        )
    }
}

/// Checks the values of `[input]`.
fn check_input(raw: RawInput) -> Result<InputSpec, ManifestError> {
    let wrong = |field, expected, found: String| Err(ManifestError::Value { field, expected, found });
    let RawInput { size, source, resize, crop_mode, interpolation, mean, std } = raw;
    let [height, width] = resize.sides();
    for (field, side) in [
        ("input.size", size[0]),
        ("input.size", size[1]),
        ("input.resize", height),
        ("input.resize", width),
        ("input.source", source.unwrap_or(1)),
    ] {
        if !(1..=MAX_SIDE).contains(&side) {
            return wrong(field, "1 to 4096 pixels", side.to_string());
        }
    }
    if crop_mode != CropMode::Border && (height < size[0] || width < size[1]) {
        return match resize {
            Resize::Side(side) => wrong("input.resize", "at least the longer side of `input.size`", side.to_string()),
            Resize::Sides(sides) => wrong("input.resize", "at least the sides of `input.size`", format!("{sides:?}")),
        };
    }
    if let Some(mean) = mean.iter().find(|m| !m.is_finite()) {
        return wrong("input.mean", "finite numbers", mean.to_string());
    }
    if let Some(std) = std.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
        return wrong("input.std", "positive numbers", std.to_string());
    }
    Ok(InputSpec { crop: size, crop_mode, interpolation, source, resize, mean, std })
}

/// Parses a labels file: one class per line, in class order, as `label` or `wnid<TAB>label`.
///
/// # Errors
/// The file is empty, or has an empty line between labels.
pub fn parse_labels(text: &str) -> Result<Vec<Label>, ManifestError> {
    let labels: Vec<Label> = text
        // Editors on Windows write a byte order mark.
        .trim_start_matches('\u{feff}')
        .trim_end()
        .lines()
        .map(|line| match line.split_once('\t') {
            Some((wnid, name)) => Label { name: name.trim().to_owned(), wnid: Some(wnid.trim().to_owned()) },
            None => Label { name: line.trim().to_owned(), wnid: None },
        })
        .collect();
    match labels.iter().position(|l| l.name.is_empty()) {
        Some(line) => {
            let found = format!("an empty line {}", line + 1);
            Err(ManifestError::Value { field: "labels.file", expected: "one label a line", found })
        }
        None if labels.is_empty() => {
            let found = "an empty file".to_owned();
            Err(ManifestError::Value { field: "labels.file", expected: "one label a line", found })
        }
        None => Ok(labels),
    }
}

/// `bytes` as lower-case hexadecimal digits.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes `bytes` to the file `path` in one step: a reader sees the old content or the new one, also after a crash.
///
/// The bytes go to a temporary file in the same folder, reach the disk, and the file is renamed to `path`. The
/// temporary name is unique for every call of every process, and the file is removed if the write fails. The folder
/// must exist.
///
/// # Errors
/// The file cannot be created, written or renamed. An existing file `path` is then unchanged.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let (mut file, temporary) = loop {
        let call = CALLS.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_file_name(format!(".{}-{call}.tmp", process::id()));
        match File::create_new(&temporary) {
            Ok(file) => break (file, temporary),
            // From a killed process, or one of another container with the same id: the next number is free.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    };
    let result = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        // The caller gets the first error.
        let _ = fs::remove_file(&temporary);
    }
    result
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
id = "m"
[network]
architecture = "ghostnetv2_100"
weights = "weights.safetensors"
digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
[input]
size = [64, 64]
source = 32
resize = 64
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
[labels]
file = "labels.txt"
"#;

    #[test]
    fn a_valid_manifest_is_parsed() {
        let manifest = Manifest::parse(GOOD).unwrap();
        assert_eq!(manifest.network.architecture, Architecture::Preset("ghostnetv2_100".into()));
        assert_eq!((manifest.input.crop, manifest.input.source), ([64, 64], Some(32)));
        let defaults = (manifest.input.crop_mode, manifest.input.interpolation);
        assert_eq!(defaults, (CropMode::Center, Interpolation::Bicubic));
    }

    #[test]
    fn only_a_border_may_be_resized_to_less_than_the_input() {
        let with = |lines: &str| Manifest::parse(&GOOD.replace("resize = 64", lines)).map(|m| m.input.resize);
        assert_eq!(with("resize = [70, 64]").unwrap(), Resize::Sides([70, 64]));
        assert!(with("resize = [70, 63]").unwrap_err().to_string().contains("at least the sides of `input.size`"));
        assert!(with("resize = 63\ncrop_mode = \"squash\"").is_err());
        assert_eq!(with("resize = 63\ncrop_mode = \"border\"").unwrap(), Resize::Side(63));
    }

    #[test]
    fn a_manifest_without_a_digest_is_valid() {
        let line = GOOD.lines().find(|line| line.starts_with("digest")).unwrap();
        assert_eq!(Manifest::parse(&GOOD.replace(line, "")).unwrap().network.digest, None);
    }

    #[test]
    fn a_written_manifest_is_parsed_to_the_same_values() {
        let mut manifest = Manifest::parse(GOOD).unwrap();
        manifest.description = "\"quoted\" \\ and\nbroken \u{1}".into();
        manifest.network.output = OutputKind::Probabilities;
        for source in [Some(32), None] {
            manifest.input.source = source;
            let text = manifest.to_toml(&["from\nid = \"evil\"".into()]);
            assert!(text.starts_with("# from id"), "{text}");
            assert_eq!(Manifest::parse(&text).unwrap(), manifest, "{text}");
        }
        manifest.network.digest = None;
        manifest.input.resize = Resize::Sides([70, 80]);
        for crop_mode in [CropMode::Center, CropMode::Squash, CropMode::Border] {
            for interpolation in [Interpolation::Bicubic, Interpolation::Bilinear, Interpolation::Lanczos] {
                (manifest.input.crop_mode, manifest.input.interpolation) = (crop_mode, interpolation);
                let text = manifest.to_toml(&[]);
                assert_eq!(Manifest::parse(&text).unwrap(), manifest, "{text}");
            }
        }
    }

    #[test]
    fn the_error_names_the_field_of_an_invalid_value() {
        for (from, to, field) in [
            ("id = \"m\"", "id = \"../m\"", "id"),
            ("\"weights.safetensors\"", "\"../../etc/passwd\"", "network.weights"),
            ("\"labels.txt\"", "\"/labels.txt\"", "labels.file"),
            ("sha256:0", "sha1:0", "network.digest"),
            ("size = [64, 64]", "size = [0, 64]", "input.size"),
            ("resize = 64", "resize = 32", "input.resize"),
            ("source = 32", "source = 100000", "input.source"),
            ("std = [0.229", "std = [0.0", "input.std"),
            ("mean = [0.485", "mean = [nan", "input.mean"),
            ("resize = 64", "resize = 64\nresise = 3", "resise"),
            ("resize = 64", "", "resize"),
            ("resize = 64", "resize = \"64\"", "or [height, width]"),
            ("resize = 64", "resize = 64\ninterpolation = \"cubic\"", "bicubic"),
            ("resize = 64", "resize = 64\ncrop_mode = \"centre\"", "center"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from} is in the text");
            let error = Manifest::parse(&text).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
    }

    #[test]
    fn an_atomic_write_replaces_a_file_and_leaves_no_other() {
        let folder = std::env::temp_dir().join(format!("ghostserve-manifest-{}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("file");
        // Names of leftovers that the next calls would choose.
        for number in 0..100 {
            fs::write(folder.join(format!(".{}-{number}.tmp", process::id())), "leftover").unwrap();
        }
        write_atomically(&path, b"old").unwrap();
        write_atomically(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");

        // A folder cannot be replaced by a file.
        let subfolder = folder.join("folder");
        fs::create_dir(&subfolder).unwrap();
        assert!(write_atomically(&subfolder, b"x").is_err());
        assert!(write_atomically(&folder.join("missing").join("file"), b"x").is_err());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 102, "the leftovers, the file and the folder");
        for number in 0..100 {
            let leftover = folder.join(format!(".{}-{number}.tmp", process::id()));
            assert_eq!(fs::read(leftover).unwrap(), b"leftover");
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn digests_are_written_in_hexadecimal() {
        assert_eq!(to_hex(&[0x00, 0x0f, 0xa5]), "000fa5");
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").as_str(), empty);
    }

    #[test]
    fn labels_may_carry_wordnet_ids() {
        let labels = parse_labels("n02086079\tPekinese\ncat\n").unwrap();
        assert_eq!(labels[0], Label { name: "Pekinese".into(), wnid: Some("n02086079".into()) });
        assert_eq!(labels[1], Label { name: "cat".into(), wnid: None });
        assert!(parse_labels("a\n\nb\n").is_err());
        assert!(parse_labels("").is_err());
        assert_eq!(parse_labels("\u{feff}a\n").unwrap()[0].name, "a");
    }
}
