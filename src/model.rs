//! Loads a model by name or folder: reads and verifies manifest, labels and graph.
//!
//! One model is embedded in the binary, so that a fresh clone serves a real one. Any other model is a folder that
//! holds a `manifest.toml`, a labels file and a weights file. [`ModelFolder::load`] verifies the digest before it
//! reads the weights. It builds the graph of a preset architecture or checks a foreign ONNX file, and returns a
//! [`LoadedModel`], which holds everything that serving needs.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ghostserve_ghostnet::graph::{ExternalDataError, check_external_data};
use ghostserve_ghostnet::{
    BuildError, Config, ConfigError, Cost, Form, Network, Output, Size, Target, classes_of, identify,
};
use ghostserve_kernels::native_block;
use ghostserve_manifest::{Architecture, Digest, Label, MANIFEST_FILE, Manifest, ManifestError, parse_labels};
use ghostserve_weights::{TensorSource, WeightsError};

/// The name of the model that is part of the binary.
pub const EMBEDDED_MODEL: &str = "ghostnetv2-cifar10";

const EMBEDDED: [(&str, &[u8]); 3] = [
    (MANIFEST_FILE, include_bytes!("../models/ghostnetv2-cifar10/manifest.toml")),
    ("labels.txt", include_bytes!("../models/ghostnetv2-cifar10/labels.txt")),
    ("weights.safetensors", include_bytes!("../models/ghostnetv2-cifar10/weights.safetensors")),
];

/// The location of a model's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelFolder {
    /// The files are in the binary.
    Embedded,
    /// The files are in a directory.
    Directory(PathBuf),
}

/// A model that a runtime can load.
#[derive(Clone, Debug)]
pub struct LoadedModel {
    /// The contents of the manifest.
    pub manifest: Manifest,
    /// SHA-256 of the weights file that was read. It is that of the manifest, if the manifest has one.
    pub digest: Digest,
    /// The classes, in the order of the outputs.
    pub labels: Vec<Label>,
    /// The graph.
    pub graph: ModelGraph,
    /// The network and weights that the graph was built from, to build more graphs; `None` for a foreign ONNX file.
    pub backbone: Option<Arc<Backbone>>,
}

/// A network with its weights. It builds graphs for other input sizes and outputs.
pub struct Backbone {
    network: Network,
    /// The contents of the verified weights file.
    weights: Cow<'static, [u8]>,
    path: String,
    metadata: [(&'static str, String); 2],
}

/// The input size and outputs of a graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Height and width of the input.
    pub input: [usize; 2],
    /// The outputs that the graph computes.
    pub outputs: Vec<Output>,
}

impl Backbone {
    /// The architecture.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Builds a graph.
    ///
    /// # Errors
    /// The network does not have an output, or the input is too small for the network.
    pub fn lower(&self, variant: &Variant, form: Form) -> Result<OnnxSource, ModelError> {
        let error = |source| ModelError::Build { path: self.path.clone(), source };
        let file = ghostserve_weights::open(&self.weights).map_err(|e| error(e.into()))?;
        let [height, width] = variant.input;
        let target = Target { size: Size { height, width }, outputs: &variant.outputs, form };
        let lowered = self.network.lower(&*file, &target).map_err(error)?;
        Ok(OnnxSource::Memory(lowered.graph.into_onnx(&self.metadata).into()))
    }

    /// Adds to an error about tensors which network the weights belong to, if it is a known one.
    fn explain(&self, error: ModelError) -> ModelError {
        let ModelError::Build { path, source: BuildError::Weights(mismatch) } = error else { return error };
        let advice = match mismatch {
            WeightsError::Missing { .. } | WeightsError::Shape { .. } | WeightsError::Unused(_) => {
                ghostserve_weights::open(&self.weights).ok().and_then(|file| self.advice(&*file))
            }
            _ => None,
        };
        match advice {
            Some(advice) => ModelError::Mismatch { path, mismatch: mismatch.to_string(), advice },
            None => ModelError::Build { path, source: BuildError::Weights(mismatch) },
        }
    }

    /// What the weights are instead of this network; `None` if nothing is known about them.
    fn advice(&self, file: &dyn TensorSource) -> Option<String> {
        let config = self.network.config();
        // The number of classes first: it is wrong most often, and the architecture may be right.
        let classes = classes_of(file).filter(|classes| *classes != config.classes);
        let counted = classes
            .map(|classes| format!("the weights have {classes} classes, the labels file has {} lines", config.classes));
        let own_shape = Network::new(Config { classes: classes.unwrap_or(config.classes), ..config.clone() });
        if own_shape.is_ok_and(|network| network.difference(file).is_none()) {
            return counted;
        }
        let found = identify(file);
        let named = match (found.architectures.first(), found.nearest) {
            (Some(name), _) => format!("these are the weights of {name}: set `network.architecture = \"{name}\"`"),
            (None, Some(nearest)) if nearest.matching * 2 > nearest.needed => {
                format!("of the known networks they are nearest to {nearest}")
            }
            _ => return counted,
        };
        Some(counted.into_iter().fold(named, |named, counted| named + "; " + &counted))
    }
}

impl fmt::Debug for Backbone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backbone").field("path", &self.path).finish_non_exhaustive()
    }
}

impl LoadedModel {
    /// The size of the network's input.
    #[must_use]
    pub fn input_size(&self) -> Size {
        let [height, width] = self.manifest.input.crop;
        Size { height, width }
    }

    /// Parameters and multiply-adds per image; `None` if the architecture is not known.
    #[must_use]
    pub fn cost(&self) -> Option<Cost> {
        self.backbone.as_ref().map(|backbone| backbone.network.cost(self.input_size()))
    }
}

/// A model's graph, in all forms that exist of it.
#[derive(Clone, Debug)]
pub enum ModelGraph {
    /// A graph from a foreign ONNX file.
    Foreign(OnnxSource),
    /// A graph built from a known architecture.
    Built {
        /// Channels, height and width of the input.
        input: [usize; 3],
        /// The graph in standard ONNX.
        plain: OnnxSource,
        /// The graph for ONNX Runtime's blocked layout, if this processor has one.
        blocked: Option<OnnxSource>,
    },
}

/// An ONNX model.
#[derive(Clone, Debug)]
pub enum OnnxSource {
    /// The model's bytes.
    Memory(Arc<[u8]>),
    /// A file; its tensors may be in further files beside it.
    File(PathBuf),
}

/// Why a model cannot be loaded. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// No model has this name.
    #[error(
        "no model `{0}`: give the embedded `{EMBEDDED_MODEL}` or the path of a folder that holds a {MANIFEST_FILE}"
    )]
    Unknown(String),
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// The manifest or the labels file is invalid.
    #[error("{path}: {source}")]
    Manifest {
        /// The invalid file.
        path: String,
        /// What is invalid in it.
        source: ManifestError,
    },
    /// The weights file does not have the manifest's digest.
    #[error(
        "{path} is not the file that the manifest describes: expected {expected}, found {found}; fetch it again, or \
         correct `network.digest` if the change was meant"
    )]
    Digest {
        /// The weights file.
        path: String,
        /// The digest in the manifest.
        expected: Digest,
        /// The digest of the file.
        found: Digest,
    },
    /// The manifest names an unknown architecture.
    #[error("{path}: `network.architecture`: expected one of {expected}, found `{found}`")]
    Architecture {
        /// The manifest.
        path: String,
        /// The known architectures.
        expected: String,
        /// The architecture in the manifest.
        found: String,
    },
    /// The numbers of the configuration do not make a network.
    #[error("{path}: {source}")]
    Config {
        /// The manifest or the configuration file.
        path: String,
        /// What is invalid in it.
        source: ConfigError,
    },
    /// The weights do not fit the architecture.
    #[error("{path}: {source}")]
    Build {
        /// The weights file.
        path: String,
        /// What does not fit.
        source: BuildError,
    },
    /// The weights do not fit the architecture, and a comparison with the known ones says why.
    #[error("{path}: {mismatch}; {advice}")]
    Mismatch {
        /// The weights file.
        path: String,
        /// The first tensor that does not fit.
        mismatch: String,
        /// What the file holds, and what to change.
        advice: String,
    },
    /// A foreign ONNX file that is not safe to load.
    #[error("{path}: {source}")]
    External {
        /// The ONNX file.
        path: String,
        /// Why it is not safe.
        source: ExternalDataError,
    },
}

impl ModelFolder {
    /// Finds a model by the embedded model's name or the path of a folder.
    ///
    /// # Errors
    /// [`ModelError::Unknown`].
    pub fn resolve(model: &str) -> Result<Self, ModelError> {
        if model == EMBEDDED_MODEL {
            return Ok(Self::Embedded);
        }
        let path = Path::new(model);
        if path.join(MANIFEST_FILE).is_file() {
            Ok(Self::Directory(path.to_owned()))
        } else {
            Err(ModelError::Unknown(model.to_owned()))
        }
    }

    /// Reads and checks only the manifest.
    ///
    /// # Errors
    /// The file cannot be read or is invalid.
    pub fn manifest(&self) -> Result<Manifest, ModelError> {
        Manifest::parse(&self.text(MANIFEST_FILE)?)
            .map_err(|source| ModelError::Manifest { path: self.path(MANIFEST_FILE), source })
    }

    /// Reads and verifies all files, and builds the graph.
    ///
    /// # Errors
    /// The first problem found, with the file it is in.
    pub fn load(&self) -> Result<LoadedModel, ModelError> {
        let manifest = self.manifest()?;
        let labels = parse_labels(&self.text(&manifest.labels_file)?)
            .map_err(|source| ModelError::Manifest { path: self.path(&manifest.labels_file), source })?;

        let weights = self.read(&manifest.network.weights)?;
        let path = self.path(&manifest.network.weights);
        let digest = Digest::of(&weights);
        match &manifest.network.digest {
            Some(expected) if *expected != digest => {
                return Err(ModelError::Digest { path, expected: expected.clone(), found: digest });
            }
            Some(_) => {}
            None => warn_of_missing_digest(&self.path(MANIFEST_FILE), &digest),
        }
        let (graph, backbone) = match &manifest.network.architecture {
            Architecture::Onnx => {
                check_external_data(&weights).map_err(|source| ModelError::External { path, source })?;
                let source = match self {
                    Self::Embedded => OnnxSource::Memory(weights.into()),
                    // By path, so that the runtime finds external data beside it.
                    Self::Directory(folder) => OnnxSource::File(folder.join(&manifest.network.weights)),
                };
                (ModelGraph::Foreign(source), None)
            }
            Architecture::Preset(name) => {
                let network = self.network(name, labels.len())?;
                let [height, width] = manifest.input.crop;
                let channels = network.config().input_channels;
                if channels != 3 {
                    return Err(ModelError::Build { path, source: BuildError::Channels(channels) });
                }
                let metadata = [("architecture", name.clone()), ("digest", digest.to_string())];
                let backbone = Backbone { network, weights, path, metadata };
                let classifier = Variant { input: [height, width], outputs: vec![Output::Logits] };
                let plain = backbone.lower(&classifier, Form::Plain).map_err(|error| backbone.explain(error))?;
                let blocked = native_block().map(|block| backbone.lower(&classifier, Form::Blocked(block)));
                let graph =
                    ModelGraph::Built { input: [channels, height, width], plain, blocked: blocked.transpose()? };
                (graph, Some(Arc::new(backbone)))
            }
        };
        Ok(LoadedModel { manifest, digest, labels, graph, backbone })
    }

    /// The network that a manifest names: a preset, or a configuration file in the model folder.
    fn network(&self, name: &str, classes: usize) -> Result<Network, ModelError> {
        let mut config = if name.ends_with(".toml") {
            let text = self.text(name)?;
            Config::parse(&text).map_err(|source| ModelError::Config { path: self.path(name), source })?
        } else if let Some(config) = ghostserve_ghostnet::preset(name) {
            config
        } else {
            let expected = ghostserve_ghostnet::PRESETS.join(", ") + ", a .toml file in the folder, onnx";
            let path = self.path(MANIFEST_FILE);
            return Err(ModelError::Architecture { path, expected, found: name.to_owned() });
        };
        config.classes = classes;
        Network::new(config).map_err(|source| ModelError::Config { path: self.path(MANIFEST_FILE), source })
    }

    fn path(&self, file: &str) -> String {
        match self {
            Self::Embedded => format!("{EMBEDDED_MODEL}/{file} (embedded)"),
            Self::Directory(folder) => folder.join(file).display().to_string(),
        }
    }

    fn read(&self, file: &str) -> Result<Cow<'static, [u8]>, ModelError> {
        let error = |source| ModelError::Io { path: self.path(file), source };
        match self {
            Self::Embedded => EMBEDDED
                .iter()
                .find(|(name, _)| *name == file)
                .map(|(_, bytes)| Cow::Borrowed(*bytes))
                .ok_or_else(|| error(io::ErrorKind::NotFound.into())),
            Self::Directory(folder) => std::fs::read(folder.join(file)).map(Cow::Owned).map_err(error),
        }
    }

    fn text(&self, file: &str) -> Result<String, ModelError> {
        let bytes = self.read(file)?.into_owned();
        String::from_utf8(bytes).map_err(|_| ModelError::Io {
            path: self.path(file),
            source: io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"),
        })
    }
}

/// Says that a manifest does not tell which weights it means: in the log, or on standard error before there is one.
fn warn_of_missing_digest(path: &str, digest: &Digest) {
    let line = format!("digest = \"{digest}\"");
    if tracing::dispatcher::has_been_set() {
        tracing::warn!(manifest = path, add = line, "the manifest has no `network.digest`: any weights are loaded");
    } else {
        eprintln!(
            "warning: {path} has no `network.digest`, so any weights are loaded; to accept only these, add below \
             [network]:\n{line}"
        );
    }
}
