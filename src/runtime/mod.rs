//! ONNX Runtime: the one place that uses `ort`.
//!
//! [`Runtime`] is the library, loaded once a process from a file that is named or found; [`Runtime::session`] turns a
//! graph into a [`Session`], which is a [`batch::Model`](crate::batch::Model) and so all that a worker knows of it.
//! A graph that was built here exists in two forms; [`Runtime::prepare`] takes the blocked one where this processor and
//! this library run it right. Sessions run on the thread that calls them and start none of their own unless told to: cores are shared out by
//! workers, one session each.

mod operators;
mod profile;
mod session;

pub use profile::OperatorTime;
pub use session::Session;

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::ep::CPU;
use ort::logging::LogLevel;
use ort::session::builder::{GraphOptimizationLevel, PrepackedWeights};
use ort::value::{DynValue, TensorRef};

use crate::graph::{BATCH_DIM, initializers};
use crate::model::{ModelGraph, OnnxSource};
use crate::weights::synthetic_tensor;

/// The environment variable that names the library, or the folder it is in.
pub const LIBRARY_ENV: &str = "GHOSTSERVE_ONNXRUNTIME";

const LIBRARY_FILE: &str = if cfg!(target_os = "macos") { "libonnxruntime.dylib" } else { "libonnxruntime.so" };

/// A loaded ONNX Runtime. Cloning shares it; a process can have one.
#[derive(Clone, Debug)]
pub struct Runtime {
    environment: ort::environment::Environment,
    version: String,
    /// Held while a session is made: ONNX Runtime notes the operators' domain in a table of the whole process, and fails
    /// if two sessions do that at once.
    opening: Arc<Mutex<()>>,
}

/// Why ONNX Runtime or a model in it is not usable.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The library is not where it should be, or is not ONNX Runtime.
    #[error(
        "cannot load ONNX Runtime from {path}: {reason}; `make runtime` fetches it, `--onnxruntime` or {LIBRARY_ENV} \
         says where it is"
    )]
    Library {
        /// Where it was looked for.
        path: String,
        /// What the loader said.
        reason: String,
    },
    /// The runtime does not accept the model.
    #[error("ONNX Runtime does not accept the model: {0}")]
    Load(String),
    /// The model's inputs or outputs are not those of a classifier of the manifest's size.
    #[error("the model's {what}: expected {expected}, found {found}")]
    Interface {
        /// `input` or `output`.
        what: &'static str,
        /// What would fit the manifest.
        expected: String,
        /// What the model has.
        found: String,
    },
}

/// What a session is made for.
#[derive(Clone, Copy, Debug)]
pub struct SessionSpec {
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Elements of an output row.
    pub classes: usize,
    /// Rows that a run will be given at most.
    pub max_batch: usize,
    /// Threads that one run uses. Small networks waste a third of a second thread: run another session instead.
    pub threads: usize,
}

impl Runtime {
    /// Loads the library at `path` (a file, or a folder that holds it), or else finds it: beside the executable, in
    /// `lib` beside or above it, or wherever the system's loader looks.
    ///
    /// # Errors
    /// [`RuntimeError::Library`]. Also if a runtime has been loaded in this process before.
    pub fn load(path: Option<&Path>) -> Result<Self, RuntimeError> {
        let path = path.map_or_else(find_library, |p| if p.is_dir() { p.join(LIBRARY_FILE) } else { p.to_owned() });
        // A relative path is the user's, from where the user is; the loader would look elsewhere first.
        let path = if path.is_file() { std::path::absolute(&path).unwrap_or(path) } else { path };
        let error = |reason: String| RuntimeError::Library { path: path.display().to_string(), reason };
        let environment = ort::init_from(&path)
            .map_err(|e| error(e.to_string()))?
            .with_name("ghostserve")
            .with_telemetry(false)
            .with_logger(Arc::new(|level, category: &str, _id: &str, _location: &str, message: &str| match level {
                LogLevel::Fatal | LogLevel::Error => tracing::error!(category, "ONNX Runtime: {message}"),
                LogLevel::Warning => tracing::warn!(category, "ONNX Runtime: {message}"),
                LogLevel::Info | LogLevel::Verbose => tracing::debug!(category, "ONNX Runtime: {message}"),
            }))
            .build()
            .map_err(|e| error(e.to_string()))?;
        environment.set_log_level(LogLevel::Error);
        let version = library_version(&path).map_err(error)?;
        Ok(Self { environment, version, opening: Arc::default() })
    }

    /// The library's version, such as `1.31.1`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Makes a session of a graph and runs it with every batch size, so that its memory is in place before the first
    /// image.
    ///
    /// # Errors
    /// The runtime refuses the graph, its input or output is not what `spec` says, or the first run fails.
    pub fn session(&self, graph: &Prepared, spec: SessionSpec) -> Result<Session, RuntimeError> {
        Session::new(spec, |batch| self.open(graph, spec.threads, batch))
    }

    /// Picks the form of a model to run here: the blocked one if this processor has it and it proves itself by giving the
    /// plain one's answers to an input, else the plain one, with a warning if the proof failed. A foreign graph is taken
    /// as it is.
    ///
    /// # Errors
    /// The runtime refuses the plain form.
    pub fn prepare(&self, model: &ModelGraph) -> Result<Prepared, RuntimeError> {
        let ([channels, height, width], plain, blocked) = match model {
            ModelGraph::Foreign(source) => return Ok(Prepared::alone(source, "as given")),
            ModelGraph::Built { plain, blocked: None, .. } => return Ok(Prepared::alone(plain, "plain")),
            ModelGraph::Built { input, plain, blocked: Some(blocked) } => (*input, plain, blocked),
        };
        // Two different images, so that the proof covers their being kept apart.
        let shape = [2, channels, height, width];
        let input = synthetic_tensor("input", &shape);
        let expected = self.run_once(plain, (shape, &input))?;
        match self.run_once(blocked, (shape, &input)).map(|found| difference(&expected, &found)) {
            Ok(difference) if difference <= PROOF_TOLERANCE => Prepared::blocked(self, blocked),
            Ok(difference) => {
                tracing::warn!(
                    difference,
                    "the blocked form disagrees with the plain one: the slower plain one is used"
                );
                Ok(Prepared::alone(plain, "plain"))
            }
            Err(error) => {
                tracing::warn!(%error, "ONNX Runtime does not take the blocked form: the slower plain one is used");
                Ok(Prepared::alone(plain, "plain"))
            }
        }
    }

    /// Runs a graph of one input once and returns every output: its name, shape and elements.
    ///
    /// # Errors
    /// The runtime refuses the graph or the input, or an output is not of f32.
    pub fn run_once(
        &self,
        graph: &OnnxSource,
        (shape, input): ([usize; 4], &[f32]),
    ) -> Result<Vec<NamedTensor>, RuntimeError> {
        let load = |e: &dyn std::fmt::Display| RuntimeError::Load(e.to_string());
        let mut session = self.open(&Prepared::alone(graph, "as given"), 1, None)?;
        let name = session.inputs().first().map(|i| i.name().to_owned()).unwrap_or_default();
        let input = TensorRef::from_array_view((shape, input)).map_err(|e| load(&e))?;
        let outputs = session.run(ort::inputs![name.as_str() => input]).map_err(|e| load(&e))?;
        let mut tensors = Vec::with_capacity(outputs.len());
        for (name, value) in &outputs {
            let (shape, data) = value.try_extract_tensor::<f32>().map_err(|e| load(&e))?;
            let shape = shape.iter().map(|d| usize::try_from(*d).unwrap_or_default()).collect();
            tensors.push(NamedTensor { name: name.to_owned(), shape, data: data.to_vec() });
        }
        Ok(tensors)
    }

    fn open(
        &self,
        graph: &Prepared,
        threads: usize,
        batch: Option<usize>,
    ) -> Result<ort::session::Session, RuntimeError> {
        self.open_with(graph, threads, batch, None)
    }

    /// One of ONNX Runtime's own sessions; with `batch`, its symbolic batch dimension is that; with `profile`, it writes a
    /// trace to a file whose name starts so.
    // The builder hands itself back in its errors, which end here.
    #[allow(clippy::result_large_err)]
    fn open_with(
        &self,
        graph: &Prepared,
        threads: usize,
        batch: Option<usize>,
        profile: Option<&Path>,
    ) -> Result<ort::session::Session, RuntimeError> {
        let load = |e: &dyn std::fmt::Display| RuntimeError::Load(e.to_string());
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let operators = operators::domain().map_err(|e| load(&e))?;
        let mut builder = ort::session::Session::builder(&self.environment)
            .map_err(|e| load(&e))?
            .with_execution_providers([CPU::default().with_arena_allocator(true).build()])
            .and_then(|b| b.with_optimization_level(GraphOptimizationLevel::All))
            .and_then(|b| b.with_intra_threads(threads))
            .and_then(|b| b.with_inter_threads(1))
            // Spinning threads would take the cores that pre-processing needs.
            .and_then(|b| b.with_config_entry("session.intra_op.allow_spinning", "0"))
            .and_then(|b| b.with_operators(operators))
            .map_err(|e| load(&e))?;
        if let Some(batch) = batch {
            builder = builder.with_dimension_override(BATCH_DIM, batch as i64).map_err(|e| load(&e))?;
        }
        if let Some(profile) = profile {
            builder = builder.with_profiling(profile).map_err(|e| load(&e))?;
        }
        if let Some(prepacked) = &graph.prepacked {
            builder = builder.with_prepacked_weights(prepacked).map_err(|e| load(&e))?;
        }
        for (name, value) in &graph.shared {
            builder = builder.with_initializer(name, Arc::clone(value)).map_err(|e| load(&e))?;
        }
        match &graph.source {
            OnnxSource::Memory(bytes) => builder.commit_from_memory(bytes),
            OnnxSource::File(path) => builder.commit_from_file(path),
        }
        .map_err(|e| load(&e))
    }
}

/// A graph to make sessions of, and the constants that they share.
#[derive(Clone)]
pub struct Prepared {
    source: OnnxSource,
    form: &'static str,
    /// Each constant once for all sessions: by itself ONNX Runtime copies them into each.
    shared: Vec<(String, Arc<DynValue>)>,
    /// What ONNX Runtime rearranges of them, once as well.
    prepacked: Option<PrepackedWeights>,
}

impl Prepared {
    fn alone(source: &OnnxSource, form: &'static str) -> Self {
        Self { source: source.clone(), form, shared: Vec::new(), prepacked: None }
    }

    /// A graph in the blocked form, with its constants taken out once for all sessions. Of a plain graph that would save
    /// nothing: each session rearranges the constants for itself. The runtime must be there to hold them.
    ///
    /// # Errors
    /// The runtime makes no tensor of a constant.
    pub fn blocked(_: &Runtime, source: &OnnxSource) -> Result<Self, RuntimeError> {
        let mut prepared = Self { prepacked: Some(PrepackedWeights::new()), ..Self::alone(source, "blocked") };
        if let OnnxSource::Memory(bytes) = source {
            let load = |e: ort::Error| RuntimeError::Load(e.to_string());
            for (name, tensor) in initializers(bytes) {
                let value = ort::value::Tensor::from_array((tensor.shape, tensor.data)).map_err(load)?;
                prepared.shared.push((name, Arc::new(value.into_dyn())));
            }
        }
        Ok(prepared)
    }

    /// `blocked`, `plain`, or `as given`.
    #[must_use]
    pub fn form(&self) -> &'static str {
        self.form
    }
}

impl From<OnnxSource> for Prepared {
    fn from(source: OnnxSource) -> Self {
        Self::alone(&source, "as given")
    }
}

/// A tensor that a graph put out.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// The output's name.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub data: Vec<f32>,
}

/// How far the blocked form's answers may be from the plain one's, as a share of the largest of them. Rounding in another
/// order moves them by a few millionths.
const PROOF_TOLERANCE: f32 = 1e-4;

/// The largest difference between two sets of outputs, as a share of the largest element; infinite if the sets differ.
fn difference(expected: &[NamedTensor], found: &[NamedTensor]) -> f32 {
    let mut worst = 0.0f32;
    for expected in expected {
        let Some(found) = found.iter().find(|f| f.name == expected.name && f.shape == expected.shape) else {
            return f32::INFINITY;
        };
        let largest = expected.data.iter().fold(f32::MIN_POSITIVE, |max, v| max.max(v.abs()));
        for (e, f) in expected.data.iter().zip(&found.data) {
            let difference = (e - f).abs() / largest;
            // Not a number is further than anything.
            worst = worst.max(if difference.is_nan() { f32::INFINITY } else { difference });
        }
    }
    worst
}

/// The version that the library at `path` gives itself. `ort` reads it too, and keeps it to itself.
#[allow(unsafe_code)]
fn library_version(path: &Path) -> Result<String, String> {
    // SAFETY: the library has been loaded by `ort` before; loading it again runs nothing, it only counts.
    let library = unsafe { libloading::Library::new(path) }.map_err(|e| e.to_string())?;
    // SAFETY: every ONNX Runtime exports a function of this name and type.
    let base = unsafe { library.get::<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase>(b"OrtGetApiBase") }
        .map_err(|e| e.to_string())?;
    // SAFETY: it returns a pointer to a static table, whose `GetVersionString` returns a static string.
    let version = unsafe { base().as_ref().map(|base| CStr::from_ptr((base.GetVersionString)())) };
    version.map(|v| v.to_string_lossy().into_owned()).ok_or_else(|| "it has no API".to_owned())
}

fn find_library() -> PathBuf {
    let program = std::env::current_exe().and_then(|exe| exe.canonicalize()).unwrap_or_default();
    // Beside the program and one above, as packages lay it out; three above is a checkout with `target/release`.
    let folders = program.ancestors().skip(1).take(3);
    let candidates =
        folders.flat_map(|folder| ["", "lib", ".runtime/onnxruntime"].map(|sub| folder.join(sub).join(LIBRARY_FILE)));
    candidates.into_iter().find(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(LIBRARY_FILE))
}
