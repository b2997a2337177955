//! ONNX Runtime. This is the only module that uses `ort`.
//!
//! [`Runtime`] is the library, loaded once per process from a file that the user names or that is found.
//! [`Runtime::session`] turns a graph into a [`Session`]. A worker's [`Sessions`] are a
//! [`batch::Model`](crate::batch::Model); the worker knows only this trait. A graph built here exists in two forms:
//! [`Runtime::prepare`] takes the blocked form if this processor and this library compute it correctly. Any other
//! [`Backend`] than ONNX Runtime's own provider in f32 runs the plain form, after its outputs have been found to
//! agree ([`Runtime::prepare_for`]). A session runs on the calling thread and starts no threads unless the
//! specification says so: each worker has its own session and acquires cores for it.

mod agreement;
mod library;
mod operators;
mod outputs;
mod prepared_graph;
mod profile;
mod provider;
mod runs;
mod session;
mod variants;

pub use agreement::Agreement;
pub use outputs::RowOutputs;
pub use prepared_graph::{GraphForm, PreparedGraph};
pub use profile::OperatorTime;
pub use provider::{Backend, NoSuchPrecision, Precision, Provider};
pub use runs::{RunCounts, Runs};
pub use session::Session;
pub use variants::{Claim, ForVariant, Sessions, VariantLimits, Variants};

use std::path::Path;
use std::sync::Arc;

use ort::session::builder::GraphOptimizationLevel;
use ort::value::TensorRef;
use parking_lot::Mutex;

use crate::model::OnnxSource;
use ghostserve_ghostnet::graph::BATCH_DIM;

/// The environment variable that names the library or its folder.
pub const LIBRARY_ENV: &str = "GHOSTSERVE_ONNXRUNTIME";

/// A loaded ONNX Runtime library. Clones share it; a process can load only one.
#[derive(Clone, Debug)]
pub struct Runtime {
    environment: ort::environment::Environment,
    version: String,
    /// Locked while a session is created. ONNX Runtime registers the operators' domain in a table of the whole
    /// process, and fails if two sessions do that at the same time.
    opening: Arc<Mutex<()>>,
}

/// Why ONNX Runtime or a model in it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The library was not found, or is not ONNX Runtime.
    #[error(
        "cannot load ONNX Runtime from {path}: {reason}; `make runtime` fetches it, `--onnxruntime` or {LIBRARY_ENV} \
         says where it is"
    )]
    Library {
        /// The path that was tried.
        path: String,
        /// The loader's message.
        reason: String,
    },
    /// The runtime does not accept the model.
    #[error("ONNX Runtime does not accept the model: {0}")]
    Load(String),
    /// The model's inputs or outputs do not match a classifier of the manifest's size.
    #[error("the model's {what}: expected {expected}, found {found}")]
    Interface {
        /// `input` or `output`.
        what: &'static str,
        /// The interface that the manifest requires.
        expected: String,
        /// The interface that the model has.
        found: String,
    },
    /// The library was built without OpenVINO.
    #[error(
        "this ONNX Runtime has no OpenVINO provider; `make runtime EP=openvino` fetches one that has it (for Linux on \
         x86-64), `--onnxruntime .runtime/onnxruntime-openvino` takes it"
    )]
    NoOpenVino,
    /// The provider does not support the precision.
    #[error(transparent)]
    Precision(#[from] NoSuchPrecision),
    /// A backend other than the default gives different outputs.
    #[error(
        "--provider {} --precision {} gives this model other answers than f32 on cpu: of {} inputs {wrong} got another \
         class that was no near tie, and a probability differs by {:.4} (allowed are {tolerance}, less where no class \
         is likely); {}",
        .backend.provider,
        .backend.precision,
        .agreement.inputs,
        .agreement.max_probability_difference,
        .backend.remedy()
    )]
    Disagreement {
        /// The backend.
        backend: Backend,
        /// How its outputs differ.
        agreement: Agreement,
        /// Number of inputs with a different class, except near ties.
        wrong: usize,
        /// The allowed difference of a probability.
        tolerance: f32,
    },
}

/// The specification of a session.
#[derive(Clone, Copy, Debug)]
pub struct SessionSpec {
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Number of elements in an output row.
    pub classes: usize,
    /// Number of rows that one run takes at most.
    pub max_batch: usize,
    /// Threads of one run. A small network wastes a third of a second thread: run another session instead.
    pub threads: usize,
    /// The provider and precision.
    pub backend: Backend,
}

impl Runtime {
    /// The library's version, such as `1.31.1`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether the library has the provider of a backend.
    #[must_use]
    pub fn has(&self, backend: Backend) -> bool {
        backend.check_library().is_ok()
    }

    /// Opens a session for a graph and runs it with every batch size, so that its memory is allocated before the first
    /// image.
    ///
    /// # Errors
    /// The runtime does not accept the graph, its input or output does not match `spec`, or the first run fails.
    pub fn session(&self, graph: &PreparedGraph, spec: SessionSpec) -> Result<Session, RuntimeError> {
        Session::new(spec, None, |batch| self.open(graph, spec.backend, spec.threads, batch, None))
    }

    /// Opens a session that returns the named outputs instead of the scores.
    ///
    /// # Errors
    /// As [`Runtime::session`].
    pub fn session_of(
        &self,
        graph: &PreparedGraph,
        spec: SessionSpec,
        outputs: &[String],
    ) -> Result<Session, RuntimeError> {
        Session::new(spec, Some(outputs), |batch| self.open(graph, spec.backend, spec.threads, batch, None))
    }

    /// Runs a graph of one input once, on an input of the given shape, and returns all outputs.
    ///
    /// # Errors
    /// The runtime does not accept the graph or the input, or an output is not f32.
    pub fn run_once(
        &self,
        graph: &OnnxSource,
        shape: [usize; 4],
        input: &[f32],
    ) -> Result<Vec<NamedTensor>, RuntimeError> {
        let load = |e: &dyn std::fmt::Display| RuntimeError::Load(e.to_string());
        let graph = PreparedGraph::new(graph, GraphForm::AsGiven);
        let mut session = self.open(&graph, Backend::default(), 1, None, None)?;
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

    /// Opens one of ONNX Runtime's own sessions. `batch` fixes its symbolic batch dimension. With `profile`, the
    /// session writes a trace to a file whose name starts with this path.
    // The builder is part of its errors, which makes them large. They are converted here.
    #[allow(clippy::result_large_err)]
    fn open(
        &self,
        graph: &PreparedGraph,
        backend: Backend,
        threads: usize,
        batch: Option<usize>,
        profile: Option<&Path>,
    ) -> Result<ort::session::Session, RuntimeError> {
        let load = |e: &dyn std::fmt::Display| RuntimeError::Load(e.to_string());
        backend.check_library()?;
        let _opening = self.opening.lock();
        let operators = operators::domain().map_err(|e| load(&e))?;
        let mut builder = ort::session::Session::builder(&self.environment)
            .map_err(|e| load(&e))?
            .with_optimization_level(GraphOptimizationLevel::All)
            .and_then(|b| backend.configure(b, threads))
            .and_then(|b| b.with_inter_threads(1))
            // Spinning threads would use cores that pre-processing needs.
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

/// An output tensor of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// The output's name.
    pub name: String,
    /// The sizes of the dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The elements, row-major.
    pub data: Vec<f32>,
}
