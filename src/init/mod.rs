//! Makes a model folder of a file that the user trained or exported: an ONNX classifier, or weights of a network of the
//! GhostNet family.
//!
//! [`init`] reads what the file says (`network`), fills in what it cannot say (`preset`, labels), writes the folder
//! under a temporary name (`folder`), loads and runs it, and only then moves it to its place. So a folder that
//! exists is one that can be served.

mod folder;
mod network;
mod preset;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use preset::{InputOptions, InputPreset, PresetGuess, guess_preset};

use crate::eval::{Classifier, EvalError};
use crate::model::{ModelError, ModelFolder};
use crate::runtime::{Backend, Runtime, RuntimeError};
use folder::StagedFolder;
use ghostserve_ghostnet::{Config, preset};
use ghostserve_hub::{FolderOutcome, IMAGENET_LABELS};
use ghostserve_manifest::{
    Architecture, Digest, InputSpec, MANIFEST_FILE, Manifest, ManifestError, NetworkSpec, OutputKind, parse_labels,
};
use network::{NetworkFacts, OutputFacts};

/// Name of the labels file in the folders that are made.
const LABELS_FILE: &str = "labels.txt";

/// The side of the input if neither the file nor the user says it.
const DEFAULT_SIDE: usize = 224;

/// Largest difference from one of the sum of a row of probabilities.
const SUM_TOLERANCE: f32 = 1e-3;

/// What a model folder is made of.
#[derive(Clone, Copy, Debug)]
pub struct InitRequest<'a> {
    /// The ONNX file, safetensors file or PyTorch checkpoint.
    pub file: &'a Path,
    /// The labels file; `None` for ImageNet's, which only a model with 1000 classes has.
    pub labels: Option<&'a Path>,
    /// A preset or a configuration file (`….toml`); `None` to identify the weights.
    pub architecture: Option<&'a str>,
    /// The folder to make; `None` for one called as the model, in the working directory.
    pub folder: Option<&'a Path>,
    /// The model's name; `None` for the folder's or the file's.
    pub id: Option<&'a str>,
    /// One line that describes the model.
    pub description: Option<&'a str>,
    /// The pre-processing, as far as the user says it.
    pub input: InputOptions,
    /// The kind of output; `None` to take it from the graph.
    pub output: Option<OutputKind>,
    /// Whether files of the folder may be replaced.
    pub force: bool,
}

/// Decides between the presets, given the guess: a question to the user, or the guess itself.
pub type PresetChooser<'a> = &'a dyn Fn(&PresetGuess) -> io::Result<InputPreset>;

/// The result of [`init`].
#[derive(Clone, Debug)]
pub struct InitReport {
    /// The folder.
    pub folder: PathBuf,
    /// The manifest in it.
    pub manifest: Manifest,
    /// Digest of the weights.
    pub digest: Digest,
    /// Names of the classes.
    pub labels: Vec<String>,
    /// Size of the weights, bytes.
    pub size: u64,
    /// The change of the folder.
    pub outcome: FolderOutcome,
    /// Guesses and assumptions, for the user.
    pub notes: Vec<String>,
}

/// Why no model folder can be made. Messages say what to do.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// An operation on a file or folder failed.
    #[error("cannot {action} {path}")]
    Io {
        /// The operation.
        action: &'static str,
        /// The file or folder.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// The file cannot be served.
    #[error("{path}: {reason}")]
    Unusable {
        /// The file.
        path: String,
        /// Why, and what to do about it.
        reason: String,
    },
    /// The labels are missing, or do not fit the network.
    #[error("{0}")]
    Labels(String),
    /// A value from the command line that does not fit the file.
    #[error("{0}")]
    Option(String),
    /// The manifest would be invalid.
    #[error("the manifest would be invalid")]
    Manifest(#[source] ManifestError),
    /// The folder holds something else.
    #[error("{0} exists and has other contents: choose another folder with -o, or replace it with --force")]
    Exists(String),
    /// The finished folder cannot be loaded.
    #[error("the model cannot be served: {0}")]
    Model(String),
}

impl InitError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { action, path, source }
    }
}

/// Makes a model folder. `choose` decides on the pre-processing where neither the file nor the request does; `runtime`
/// runs the model once, if there is one.
///
/// # Errors
/// The file is no classifier that can be served, or the labels or options do not fit it. Then nothing is changed,
/// unless the disk fails while an existing folder is changed.
pub fn init(
    request: &InitRequest<'_>,
    choose: PresetChooser<'_>,
    runtime: Option<(&Runtime, Backend)>,
) -> Result<InitReport, InitError> {
    let path = request.file;
    let unusable = |reason| InitError::Unusable { path: path.display().to_string(), reason };
    let bytes = fs::read(path).map_err(InitError::io("read", path))?;
    let config_path = request.architecture.filter(|name| name.ends_with(".toml")).map(Path::new);
    let config = config_path.map(read_config).transpose()?;
    let mut facts = network::describe(&bytes, request.architecture, config).map_err(unusable)?;
    if let Some(config) = config_path {
        // In the folder, the configuration file has its own name; the path on this machine is nobody else's concern.
        facts.architecture = Architecture::Preset(name_of(config));
    }
    let mut notes = facts.notes.clone();

    let (labels_text, output) = labels(request, &facts, &mut notes)?;
    let labels = parse_labels(&labels_text).map_err(|error| InitError::Labels(error.to_string()))?;
    let input = input_spec(request, &facts, choose, &mut notes)?;

    let id = model_id(request);
    let folder = request.folder.map_or_else(|| PathBuf::from(&id), Path::to_owned);
    if folder.exists() && !folder.is_dir() {
        let found = folder.display();
        return Err(InitError::Option(format!("{found} is a file: choose the folder to make with -o")));
    }
    let manifest = Manifest {
        id,
        description: request.description.map_or_else(|| default_description(path, &facts), str::to_owned),
        network: NetworkSpec {
            architecture: facts.architecture.clone(),
            weights: weights_name(path, &folder, &facts),
            digest: Some(Digest::of(&bytes)),
            output: request.output.map_or_else(|| output.kind().map_err(unusable), Ok)?,
        },
        input,
        labels_file: LABELS_FILE.to_owned(),
    };
    let text = manifest.to_toml(&[
        "Written by `ghostserve init`. What each field means: docs/models.md.".to_owned(),
        format!("file: {}", name_of(path)),
    ]);
    let manifest = Manifest::parse(&text).map_err(InitError::Manifest)?;

    let mut staged = StagedFolder::create(&folder)?;
    staged.copy(path, Path::new(&manifest.network.weights))?;
    let beside = path.parent().unwrap_or(Path::new(""));
    for file in &facts.external_files {
        staged.copy(&beside.join(file), Path::new(file))?;
    }
    if let Some(config) = config_path {
        staged.copy(config, Path::new(&name_of(config)))?;
    }
    staged.write(LABELS_FILE, labels_text.as_bytes())?;
    staged.write(MANIFEST_FILE, text.as_bytes())?;
    if let Some(file) = staged.conflict()?.filter(|_| !request.force) {
        return Err(InitError::Exists(file.display().to_string()));
    }
    prove(staged.path(), runtime, &mut notes).map_err(|reason| {
        InitError::Model(reason.replace(&*staged.path().to_string_lossy(), &folder.to_string_lossy()))
    })?;
    let outcome = staged.place()?;
    Ok(InitReport {
        folder,
        digest: Digest::of(&bytes),
        labels: labels.into_iter().map(|label| label.name).collect(),
        manifest,
        size: bytes.len() as u64,
        outcome,
        notes,
    })
}

fn read_config(path: &Path) -> Result<Config, InitError> {
    let text = fs::read_to_string(path).map_err(InitError::io("read", path))?;
    let invalid = |error: ghostserve_ghostnet::ConfigError| InitError::Unusable {
        path: path.display().to_string(),
        reason: error.to_string(),
    };
    Config::parse(&text).map_err(invalid)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The text of the labels file, and the output that has a score for each of its lines.
fn labels<'f>(
    request: &InitRequest<'_>,
    facts: &'f NetworkFacts,
    notes: &mut Vec<String>,
) -> Result<(String, &'f OutputFacts), InitError> {
    let first = facts.outputs.first().ok_or_else(|| InitError::Labels("the graph has no scores".to_owned()))?;
    let Some(path) = request.labels else {
        if first.classes == Some(1000) && is_imagenet(request.file, facts) {
            notes.push("labels.txt has ImageNet's classes, because there are 1000; --labels gives others".to_owned());
            return Ok((IMAGENET_LABELS.to_owned(), first));
        }
        let lines = first.classes.map_or_else(|| "a".to_owned(), |classes| format!("{classes} lines, a"));
        return Err(InitError::Labels(format!(
            "--labels FILE is missing: a text file with {lines} class a line, in the order of the network's outputs; \
             for classes that were folders (ImageFolder): `LC_ALL=C ls FOLDER > labels.txt`"
        )));
    };
    let text = fs::read_to_string(path).map_err(InitError::io("read", path))?;
    let found = parse_labels(&text).map_err(|error| InitError::Labels(format!("{}: {error}", path.display())))?.len();
    match facts.outputs.iter().find(|output| output.classes.is_none_or(|classes| classes == found)) {
        Some(output) => Ok((text, output)),
        None => {
            let counts: Vec<_> = facts.outputs.iter().filter_map(|o| o.classes).map(|n| n.to_string()).collect();
            Err(InitError::Labels(format!(
                "{} has {found} lines, and {} has {} classes: one line a class is needed, in the order of training",
                path.display(),
                request.file.display(),
                counts.join(" or ")
            )))
        }
    }
}

/// Whether a network of 1000 classes is one of ImageNet's: one of timm's, or one whose name says so.
fn is_imagenet(path: &Path, facts: &NetworkFacts) -> bool {
    let name = name_of(path).to_lowercase();
    is_preset(&facts.architecture) || ["in1k", "imagenet"].iter().any(|part| name.contains(part))
}

/// Whether an architecture is one of timm's, rather than a configuration file or a foreign graph.
fn is_preset(architecture: &Architecture) -> bool {
    matches!(architecture, Architecture::Preset(name) if preset(name).is_some())
}

/// The pre-processing: what the user says, then what the file says, then the preset.
fn input_spec(
    request: &InitRequest<'_>,
    facts: &NetworkFacts,
    choose: PresetChooser<'_>,
    notes: &mut Vec<String>,
) -> Result<InputSpec, InitError> {
    let options = &request.input;
    let side = |index: usize| match (facts.size[index], options.size.map(|size| size[index])) {
        (Some(fixed), Some(given)) if fixed != given => Err(InitError::Option(format!(
            "--size: the graph takes {} images only",
            facts.size.map(|side| side.map_or_else(|| "any".to_owned(), |side| side.to_string())).join("x")
        ))),
        (fixed, given) => Ok(fixed.or(given)),
    };
    let (height, width) = (side(0)?, side(1)?);
    let size = [height.or(width), width.or(height)].map(|side| side.unwrap_or(DEFAULT_SIDE));
    if height.or(width).is_none() {
        notes
            .push(format!("the file does not say the size of its input: {DEFAULT_SIDE} is assumed, --size changes it"));
    }
    if options.is_complete() {
        return Ok(options.apply(options.preset.unwrap_or(InputPreset::Timm), size));
    }
    let own_family = match &facts.architecture {
        Architecture::Preset(name) if is_preset(&facts.architecture) => Some(&name[..]),
        _ => None,
    };
    let guess = guess_preset(&[name_of(request.file)], own_family);
    let preset = choose(&guess).map_err(|source| InitError::Io {
        action: "read the answer from",
        path: "the terminal".to_owned(),
        source,
    })?;
    if preset == guess.preset {
        notes.push(format!(
            "the pre-processing is that of {guess}; --preset, --interpolation, --resize, --mean and --std change it"
        ));
    }
    Ok(options.apply(preset, size))
}

/// The name of the weights in the folder. A file that is already there keeps its name.
fn weights_name(path: &Path, folder: &Path, facts: &NetworkFacts) -> String {
    let absolute = |path: &Path| path.canonicalize().ok();
    let parent = path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    if parent.and_then(absolute).is_some_and(|parent| absolute(folder) == Some(parent)) {
        return name_of(path);
    }
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    match (&facts.architecture, extension.as_deref()) {
        (Architecture::Onnx, _) => "model.onnx".to_owned(),
        (_, Some(extension @ ("safetensors" | "pth" | "pt" | "bin"))) => format!("weights.{extension}"),
        (_, Some("tar")) => "weights.pth.tar".to_owned(),
        _ => "weights".to_owned(),
    }
}

/// The model's name: given, the folder's, or the file's without its ending. Characters that a name may not have become
/// dashes.
fn model_id(request: &InitRequest<'_>) -> String {
    if let Some(id) = request.id {
        return id.to_owned();
    }
    let folder = request.folder.and_then(|folder| folder.canonicalize().ok().or_else(|| Some(folder.to_owned())));
    let name = match folder.as_ref().and_then(|folder| folder.file_name()) {
        Some(name) => name.to_string_lossy().into_owned(),
        None => {
            let name = name_of(request.file);
            let ends = [".onnx", ".safetensors", ".pth.tar", ".pth", ".pt", ".bin"];
            ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name).to_owned()
        }
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name: String = name.chars().map(|c| if allowed(c) { c } else { '-' }).take(128).collect();
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { "model".to_owned() } else { name.to_owned() }
}

fn default_description(path: &Path, facts: &NetworkFacts) -> String {
    match &facts.architecture {
        Architecture::Onnx => format!("from {}", name_of(path)),
        Architecture::Preset(_) => format!("{} from {}", facts.architecture, name_of(path)),
    }
}

/// Loads the model as the server does, and classifies one image if there is a runtime.
fn prove(folder: &Path, runtime: Option<(&Runtime, Backend)>, notes: &mut Vec<String>) -> Result<(), String> {
    let loaded = ModelFolder::Directory(folder.to_owned()).load().map_err(|error: ModelError| error.to_string())?;
    let Some((runtime, backend)) = runtime else {
        notes.push(
            "ONNX Runtime is not here, so the model was checked, but not run (`make runtime` fetches it)".to_owned(),
        );
        return Ok(());
    };
    let classifier = Classifier::new(&loaded, runtime, backend);
    let mut classifier = classifier.map_err(|error: RuntimeError| error.to_string())?;
    let scores = classifier.scores(&sample_image()).map_err(|error: EvalError| error.to_string())?;
    if let Some(score) = scores.iter().find(|score| !score.is_finite()) {
        return Err(format!("it gives the score {score} for a plain image: the weights or the export are damaged"));
    }
    let sum: f32 = scores.iter().sum();
    let distribution = (sum - 1.0).abs() < SUM_TOLERANCE && scores.iter().all(|score| (0.0..=1.0).contains(score));
    match loaded.manifest.network.output {
        OutputKind::Probabilities if !distribution => Err(format!(
            "its scores are no probabilities (they sum to {sum}): give --output logits, or export it with a softmax"
        )),
        OutputKind::Logits if distribution && scores.len() > 1 => {
            notes.push(
                "the scores look like probabilities; if the network ends in a softmax, give --output probabilities"
                    .into(),
            );
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A BMP file of 64×48 pixels with a gradient.
fn sample_image() -> Vec<u8> {
    const WIDTH: u32 = 64;
    const HEIGHT: u32 = 48;
    const HEADER: u32 = 54;
    let mut file = b"BM".to_vec();
    // Size of the file, reserved, offset of the pixels; size of the second header, width, height.
    let size = HEADER + WIDTH * HEIGHT * 3;
    file.extend([size, 0, HEADER, 40, WIDTH, HEIGHT].into_iter().flat_map(u32::to_le_bytes));
    // One plane, 24 bits a pixel; no compression and five fields with defaults.
    file.extend([1_u16, 24].into_iter().flat_map(u16::to_le_bytes));
    file.extend([0_u8; 24]);
    let pixels = (0..HEIGHT).flat_map(|y| (0..WIDTH).map(move |x| [x * 4, y * 5, (x + y) * 2]));
    file.extend(pixels.flatten().map(|value| value as u8));
    file
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn id_of(file: &str, folder: Option<&str>) -> String {
        let request = InitRequest {
            file: Path::new(file),
            labels: None,
            architecture: None,
            folder: folder.map(Path::new),
            id: None,
            description: None,
            input: InputOptions::default(),
            output: None,
            force: false,
        };
        model_id(&request)
    }

    #[test]
    fn the_name_is_the_folders_or_the_files() {
        assert_eq!(id_of("a/flowers v2.onnx", None), "flowers-v2");
        assert_eq!(id_of("a/net.pth.tar", None), "net");
        assert_eq!(id_of("ghostnet_100.in1k.safetensors", None), "ghostnet_100.in1k");
        assert_eq!(id_of("model.onnx", Some("no/such/birds")), "birds");
        assert_eq!(id_of("é.onnx", None), "model");
    }

    #[test]
    fn the_sample_image_is_a_bitmap() {
        let file = sample_image();
        let image = image::load_from_memory(&file).unwrap();
        assert_eq!((image.width(), image.height()), (64, 48));
    }
}
