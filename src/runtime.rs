//! ONNX Runtime: the one place that uses `ort`.
//!
//! [`Runtime`] is the library, loaded once a process from a file that is named or found; [`Runtime::session`] turns a
//! graph into a [`Session`], which is a [`batch::Model`](crate::batch::Model) and so all that a worker knows of it.
//! Sessions run on the thread that calls them and start none of their own unless told to: cores are shared out by
//! workers, one session each.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ort::ep::CPU;
use ort::logging::LogLevel;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{TensorElementType, TensorRef, ValueType};

use crate::batch::{Model, ModelFailure};
use crate::model::OnnxSource;

/// The environment variable that names the library, or the folder it is in.
pub const LIBRARY_ENV: &str = "GHOSTSERVE_ONNXRUNTIME";

const LIBRARY_FILE: &str = if cfg!(target_os = "macos") { "libonnxruntime.dylib" } else { "libonnxruntime.so" };

/// A loaded ONNX Runtime. Cloning shares it; a process can have one.
#[derive(Clone, Debug)]
pub struct Runtime {
    environment: ort::environment::Environment,
    version: String,
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
        Ok(Self { environment, version })
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
    // The builder hands itself back in its errors, which end here.
    #[allow(clippy::result_large_err)]
    pub fn session(&self, graph: &OnnxSource, spec: SessionSpec) -> Result<Session, RuntimeError> {
        let load = |e: &dyn std::fmt::Display| RuntimeError::Load(e.to_string());
        let mut builder = ort::session::Session::builder(&self.environment)
            .map_err(|e| load(&e))?
            .with_execution_providers([CPU::default().build()])
            .and_then(|b| b.with_optimization_level(GraphOptimizationLevel::All))
            .and_then(|b| b.with_intra_threads(spec.threads))
            .and_then(|b| b.with_inter_threads(1))
            // Spinning threads would take the cores that pre-processing needs.
            .and_then(|b| b.with_config_entry("session.intra_op.allow_spinning", "0"))
            .map_err(|e| load(&e))?;
        let session = match graph {
            OnnxSource::Memory(bytes) => builder.commit_from_memory(bytes),
            OnnxSource::File(path) => builder.commit_from_file(path),
        }
        .map_err(|e| load(&e))?;
        let mut session = Session::new(session, spec)?;
        let zeros = vec![0.0; session.row_len];
        for batch in 1..=spec.max_batch {
            session.run_rows(&vec![&zeros[..]; batch]).map_err(|e| load(&e))?;
        }
        Ok(session)
    }
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

/// A model in the runtime, with the buffer its batches are put together in.
#[derive(Debug)]
pub struct Session {
    session: ort::session::Session,
    input: String,
    output: String,
    /// Channels, height, width.
    input_shape: [usize; 3],
    row_len: usize,
    classes: usize,
    /// The batch size that the model insists on, if it does.
    fixed_batch: Option<usize>,
    buffer: Vec<f32>,
}

impl Session {
    fn new(session: ort::session::Session, spec: SessionSpec) -> Result<Self, RuntimeError> {
        let [height, width] = spec.input;
        let shape = [3, height, width];

        let wanted = format!("one f32 tensor Nx3x{height}x{width}");
        let wrong = |what, expected: &str, outlets: &[ort::value::Outlet]| {
            let found: Vec<_> = outlets.iter().map(|o| format!("{}: {}", o.name(), o.dtype())).collect();
            RuntimeError::Interface { what, expected: expected.to_owned(), found: found.join(", ") }
        };
        let [input] = session.inputs() else { return Err(wrong("input", &wanted, session.inputs())) };
        // A symbolic dimension is −1 and fits anything.
        let fits = |dim: i64, size: usize| dim < 0 || dim == size as i64;
        let batch = match input.dtype() {
            ValueType::Tensor { ty: TensorElementType::Float32, shape: dims, .. }
                if dims.len() == 4 && dims[1..].iter().zip(shape).all(|(d, s)| fits(*d, s)) =>
            {
                dims[0]
            }
            _ => return Err(wrong("input", &wanted, session.inputs())),
        };

        let wanted = format!("an f32 tensor with {} scores an image, one a label", spec.classes);
        let is_scores = |outlet: &&ort::value::Outlet| match outlet.dtype() {
            ValueType::Tensor { ty: TensorElementType::Float32, shape: dims, .. } if dims.len() >= 2 => {
                fits(dims[1], spec.classes) && dims[2..].iter().all(|d| fits(*d, 1))
            }
            _ => false,
        };
        let Some(output) = session.outputs().iter().find(is_scores) else {
            return Err(wrong("output", &wanted, session.outputs()));
        };
        Ok(Self {
            input: input.name().to_owned(),
            output: output.name().to_owned(),
            session,
            input_shape: shape,
            row_len: shape.iter().product(),
            classes: spec.classes,
            fixed_batch: usize::try_from(batch).ok().filter(|n| *n > 0),
            buffer: Vec::new(),
        })
    }

    /// Runs rows of 3 × height × width elements; returns one row of scores each.
    ///
    /// # Errors
    /// A row has another length, or the runtime fails.
    pub fn run_rows(&mut self, rows: &[&[f32]]) -> Result<Vec<Vec<f32>>, ModelFailure> {
        let at_once = self.fixed_batch.unwrap_or(rows.len()).max(1);
        let mut outputs = Vec::with_capacity(rows.len());
        for rows in rows.chunks(at_once) {
            self.run_chunk(rows, self.fixed_batch.unwrap_or(rows.len()), &mut outputs)?;
        }
        Ok(outputs)
    }

    fn run_chunk(&mut self, rows: &[&[f32]], batch: usize, outputs: &mut Vec<Vec<f32>>) -> Result<(), ModelFailure> {
        let failure = |e: &dyn std::fmt::Display| ModelFailure(e.to_string());
        if let Some(row) = rows.iter().find(|row| row.len() != self.row_len) {
            return Err(ModelFailure(format!("expected rows of {} elements, found {}", self.row_len, row.len())));
        }
        self.buffer.clear();
        rows.iter().for_each(|row| self.buffer.extend_from_slice(row));
        // A model of a fixed batch size gets zeros for the images that are not there.
        self.buffer.resize(batch * self.row_len, 0.0);
        let [c, h, w] = self.input_shape;
        let input = TensorRef::from_array_view(([batch, c, h, w], &self.buffer[..])).map_err(|e| failure(&e))?;
        let result = self.session.run(ort::inputs![self.input.as_str() => input]).map_err(|e| failure(&e))?;
        let Some(scores) = result.get(self.output.as_str()) else {
            return Err(ModelFailure(format!("the output `{}` is missing", self.output)));
        };
        let (shape, scores) = scores.try_extract_tensor::<f32>().map_err(|e| failure(&e))?;
        if scores.len() != batch * self.classes {
            return Err(ModelFailure(format!("expected {batch} rows of {} scores, found {shape:?}", self.classes)));
        }
        outputs.extend(scores.chunks_exact(self.classes).take(rows.len()).map(<[f32]>::to_vec));
        Ok(())
    }
}

impl Model for Session {
    async fn run(&mut self, rows: &[&[f32]]) -> Result<Vec<Vec<f32>>, ModelFailure> {
        self.run_rows(rows)
    }
}
