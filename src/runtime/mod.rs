//! ONNX Runtime: the one place that uses `ort`.
//!
//! [`Runtime`] is the library, loaded once a process from a file that is named or found; [`Runtime::session`] turns a
//! graph into a [`Session`]; a worker's [`Sessions`] are a [`batch::Model`](crate::batch::Model), all that it knows of them.
//! A graph that was built here exists in two forms; [`Runtime::prepare`] takes the blocked one where this processor and
//! this library run it right. Another [`Backend`] than ONNX Runtime's own provider in f32 gets the plain form, once its
//! answers have been found to agree ([`Runtime::prepare_for`]). Sessions run on the thread that calls them and start none of
//! their own unless told to: cores are shared out by workers, one session each.

mod agreement;
mod library;
mod operators;
mod outputs;
mod prepared;
mod profile;
mod provider;
mod runs;
mod session;
mod variants;

pub use agreement::Agreement;
pub use outputs::RowOutputs;
pub use prepared::Prepared;
pub use profile::OperatorTime;
pub use provider::{Backend, NoSuchPrecision, Precision, Provider};
pub use runs::{RunCounts, Runs};
pub use session::Session;
pub use variants::{Claim, ForVariant, Sessions, Variants};

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use ort::session::builder::GraphOptimizationLevel;
use ort::value::TensorRef;

use crate::model::OnnxSource;
use ghostserve_ghostnet::graph::BATCH_DIM;

/// The environment variable that names the library, or the folder it is in.
pub const LIBRARY_ENV: &str = "GHOSTSERVE_ONNXRUNTIME";

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
    /// The library is built without OpenVINO.
    #[error(
        "this ONNX Runtime has no OpenVINO provider; `make runtime EP=openvino` fetches one that has it (for Linux on \
         x86-64), `--onnxruntime .runtime/onnxruntime-openvino` takes it"
    )]
    NoOpenVino,
    /// The provider does not compute in the precision.
    #[error(transparent)]
    Precision(#[from] NoSuchPrecision),
    /// A backend other than the default gives other answers.
    #[error(
        "--provider {} --precision {} gives this model other answers than f32 on cpu: of {} inputs {wrong} got another \
         class that was no near tie, and a probability differs by {:.4} (allowed are {tolerance}, less where no class is \
         likely); {}",
        .backend.provider, .backend.precision, .agreement.inputs, .agreement.max_probability_difference, .backend.way_out()
    )]
    Disagreement {
        /// Which.
        backend: Backend,
        /// By how much.
        agreement: Agreement,
        /// Inputs with another class, near ties aside.
        wrong: usize,
        /// How far a probability may be.
        tolerance: f32,
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
    /// What computes.
    pub backend: Backend,
}

impl Runtime {
    /// The library's version, such as `1.31.1`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether the library has what a backend needs.
    #[must_use]
    pub fn has(&self, backend: Backend) -> bool {
        backend.check_library().is_ok()
    }

    /// Makes a session of a graph and runs it with every batch size, so that its memory is in place before the first
    /// image.
    ///
    /// # Errors
    /// The runtime refuses the graph, its input or output is not what `spec` says, or the first run fails.
    pub fn session(&self, graph: &Prepared, spec: SessionSpec) -> Result<Session, RuntimeError> {
        Session::new(spec, None, |batch| self.open(graph, (spec.backend, spec.threads), batch, None))
    }

    /// The same for a graph of which other outputs than scores are wanted, by their names.
    ///
    /// # Errors
    /// As [`Runtime::session`].
    pub fn session_of(&self, graph: &Prepared, spec: SessionSpec, outputs: &[String]) -> Result<Session, RuntimeError> {
        Session::new(spec, Some(outputs), |batch| self.open(graph, (spec.backend, spec.threads), batch, None))
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
        let mut session = self.open(&Prepared::alone(graph, "as given"), (Backend::default(), 1), None, None)?;
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

    /// One of ONNX Runtime's own sessions; with `batch`, its symbolic batch dimension is that; with `profile`, it writes a
    /// trace to a file whose name starts so.
    // The builder hands itself back in its errors, which end here.
    #[allow(clippy::result_large_err)]
    fn open(
        &self,
        graph: &Prepared,
        (backend, threads): (Backend, usize),
        batch: Option<usize>,
        profile: Option<&Path>,
    ) -> Result<ort::session::Session, RuntimeError> {
        let load = |e: &dyn std::fmt::Display| RuntimeError::Load(e.to_string());
        backend.check_library()?;
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let operators = operators::domain().map_err(|e| load(&e))?;
        let mut builder = ort::session::Session::builder(&self.environment)
            .map_err(|e| load(&e))?
            .with_optimization_level(GraphOptimizationLevel::All)
            .and_then(|b| backend.configure(b, threads))
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
