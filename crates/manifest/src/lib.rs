//! A model folder's contract: `manifest.toml` says what the network is, which pixels it wants and what its outputs mean.
//!
//! Written by whoever builds a model, read by whoever serves one; the two share nothing else. The text of the file
//! becomes a [`Manifest`] only after every number in it has been checked.

use std::fmt;
use std::path::{Component, Path};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The file's name in a model folder.
pub const MANIFEST_FILE: &str = "manifest.toml";

/// A checked manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The name the model is served under.
    pub id: String,
    /// One line for people.
    pub description: String,
    /// How the outputs are computed.
    pub network: NetworkSpec,
    /// Which pixels go in.
    pub input: InputSpec,
    /// File with one label a line, in class order; a line may be `wnid<TAB>label`.
    pub labels_file: String,
}

/// The network and the file that holds its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSpec {
    /// What to build, or [`Architecture::Onnx`].
    pub architecture: Architecture,
    /// A file in the model folder.
    pub weights: String,
    /// SHA-256 of that file.
    pub digest: Digest,
    /// What the network's output rows are.
    pub output: OutputKind,
}

/// Where the graph comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// A preset of the crate `ghostserve-ghostnet`, or a configuration file in the model folder (`….toml`); `weights` is a safetensors
    /// file or a PyTorch checkpoint.
    Preset(String),
    /// `weights` is an ONNX file with one image input and one row of scores an image.
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

/// What a network's output rows hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputKind {
    /// Scores before the softmax.
    #[default]
    Logits,
    /// Scores that already sum to one.
    Probabilities,
}

/// From a decoded photograph to the network's input. All sizes in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub struct InputSpec {
    /// Height and width of the network's input: the centre crop.
    #[serde(rename = "size")]
    pub crop: [usize; 2],
    /// If set, the photograph is first reduced to this shorter side and centre-cropped to a square of it: what a network
    /// trained on small images has seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<usize>,
    /// The shorter side is resized to this (bicubic, antialiased) before the crop.
    pub resize: usize,
    /// Subtracted from each of R, G, B, on a scale of 0 to 1.
    pub mean: [f32; 3],
    /// Divides the result.
    pub std: [f32; 3],
}

/// A SHA-256 digest, written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct Digest(String);

impl Digest {
    /// The digest of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self::from_sha256(&sha2::Sha256::digest(bytes).into())
    }

    /// The digest that a hasher has found.
    #[must_use]
    pub fn from_sha256(hash: &[u8; 32]) -> Self {
        let hex: String = hash.iter().map(|b| format!("{b:02x}")).collect();
        Self(format!("sha256:{hex}"))
    }

    fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:")?;
        let valid = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        valid.then(|| Self(text.to_owned()))
    }

    /// With its `sha256:` prefix.
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
    /// What people call it.
    #[serde(rename = "label")]
    pub name: String,
    /// WordNet's identifier, where the labels file gives one (`n02123045`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wnid: Option<String>,
}

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    /// Not TOML, a field missing, unknown or of the wrong type.
    #[error("{0}")]
    Syntax(String),
    /// A field that parses but cannot be meant.
    #[error("`{field}`: expected {expected}, found {found}")]
    Value {
        /// Its path in the file.
        field: &'static str,
        /// What would be right.
        expected: &'static str,
        /// What is there.
        found: String,
    },
}

/// The file as written.
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
    digest: String,
    #[serde(default)]
    output: OutputKind,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInput {
    size: [usize; 2],
    source: Option<usize>,
    resize: usize,
    mean: [f32; 3],
    std: [f32; 3],
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLabels {
    file: String,
}

/// The largest input side accepted: an image of it takes 200 MB as f32, more is a typing error.
const MAX_SIDE: usize = 4096;

impl Manifest {
    /// Reads the text of a `manifest.toml`.
    ///
    /// # Errors
    /// The first thing in it that is wrong, with the field, what was expected and what was found.
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
        let Some(digest) = Digest::parse(&raw.network.digest) else {
            let found = format!("`{}`", raw.network.digest);
            return wrong("network.digest", "`sha256:` and 64 lower-case hexadecimal digits", found);
        };
        let input = &raw.input;
        for (field, side) in [
            ("input.size", input.size[0]),
            ("input.size", input.size[1]),
            ("input.resize", input.resize),
            ("input.source", input.source.unwrap_or(1)),
        ] {
            if !(1..=MAX_SIDE).contains(&side) {
                return wrong(field, "1 to 4096 pixels", side.to_string());
            }
        }
        if input.resize < input.size[0].max(input.size[1]) {
            return wrong("input.resize", "at least the longer side of `input.size`", input.resize.to_string());
        }
        if let Some(mean) = input.mean.iter().find(|m| !m.is_finite()) {
            return wrong("input.mean", "finite numbers", mean.to_string());
        }
        if let Some(std) = input.std.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
            return wrong("input.std", "positive numbers", std.to_string());
        }

        let RawInput { size, source, resize, mean, std } = raw.input;
        Ok(Self {
            id: raw.id,
            description: raw.description,
            network: NetworkSpec {
                architecture: match raw.network.architecture.as_str() {
                    "onnx" => Architecture::Onnx,
                    _ => Architecture::Preset(raw.network.architecture),
                },
                weights: raw.network.weights,
                digest,
                output: raw.network.output,
            },
            input: InputSpec { crop: size, source, resize, mean, std },
            labels_file: raw.labels.file,
        })
    }

    /// The text of a `manifest.toml` that [`Manifest::parse`] reads as this, with `comment` at its head, a line each.
    #[must_use]
    pub fn to_toml(&self, comment: &[String]) -> String {
        // A comment ends with its line, wherever its text is from.
        let lines = comment.iter().map(|line| format!("# {}\n", line.replace(char::is_control, " ")));
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let Self { network, input, .. } = self;
        let output = match network.output {
            OutputKind::Logits => "logits",
            OutputKind::Probabilities => "probabilities",
        };
        let source = input.source.map(|side| format!("source = {side}\n")).unwrap_or_default();
        format!(
            "{}id = {}\ndescription = {}\n\n[network]\narchitecture = {}\nweights = {}\ndigest = \"{}\"\noutput = \
             \"{output}\"\n\n[input]\nsize = {:?}\n{source}resize = {}\nmean = {:?}\nstd = {:?}\n\n[labels]\nfile = {}\n",
            lines.collect::<String>(),
            quoted(&self.id),
            quoted(&self.description),
            quoted(&network.architecture.to_string()),
            quoted(&network.weights),
            network.digest,
            input.crop,
            input.resize,
            input.mean,
            input.std,
            quoted(&self.labels_file),
        )
    }
}

/// Reads a labels file: one class a line, in order; `wnid<TAB>label` gives both.
///
/// # Errors
/// The file is empty or has an empty line between labels.
pub fn parse_labels(text: &str) -> Result<Vec<Label>, ManifestError> {
    let labels: Vec<Label> = text
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
    fn a_good_manifest_parses() {
        let manifest = Manifest::parse(GOOD).unwrap();
        assert_eq!(manifest.network.architecture, Architecture::Preset("ghostnetv2_100".into()));
        assert_eq!((manifest.input.crop, manifest.input.source), ([64, 64], Some(32)));
    }

    #[test]
    fn what_is_written_reads_the_same() {
        let mut manifest = Manifest::parse(GOOD).unwrap();
        manifest.description = "\"quoted\" \\ and\nbroken \u{1}".into();
        manifest.network.output = OutputKind::Probabilities;
        for source in [Some(32), None] {
            manifest.input.source = source;
            let text = manifest.to_toml(&["from\nid = \"evil\"".into()]);
            assert!(text.starts_with("# from id"), "{text}");
            assert_eq!(Manifest::parse(&text).unwrap(), manifest, "{text}");
        }
    }

    #[test]
    fn every_wrong_value_is_named() {
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
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from} is in the text");
            let error = Manifest::parse(&text).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
    }

    #[test]
    fn labels_may_carry_wordnet_ids() {
        let labels = parse_labels("n02086079\tPekinese\ncat\n").unwrap();
        assert_eq!(labels[0], Label { name: "Pekinese".into(), wnid: Some("n02086079".into()) });
        assert_eq!(labels[1], Label { name: "cat".into(), wnid: None });
        assert!(parse_labels("a\n\nb\n").is_err());
        assert!(parse_labels("").is_err());
    }
}
