//! A model made ready for sessions: the form of its graph that runs best here and gives the right answers.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use ort::session::builder::PrepackedWeights;
use ort::value::DynValue;

use super::{Agreement, Backend, NamedTensor, Runtime, RuntimeError, SessionSpec};
use crate::model::{LoadedModel, ModelGraph, OnnxSource};
use ghostserve_ghostnet::graph::initializers;
use ghostserve_weights::synthetic_tensor;

impl Runtime {
    /// Picks the form of a model for `spec`'s backend: as [`Runtime::prepare`] does for the default one. Another takes the
    /// plain form or the foreign graph, whose answers must agree with the default's on pictures made for that.
    ///
    /// # Errors
    /// The library has no such backend, the model does not run on it, or its answers are others.
    pub fn prepare_for(&self, model: &LoadedModel, spec: SessionSpec) -> Result<Prepared, RuntimeError> {
        let backend = spec.backend;
        backend.check()?;
        backend.check_library()?;
        if backend == Backend::default() {
            return self.prepare(&model.graph);
        }
        if !backend.is_native() {
            tracing::warn!(?backend, "this processor has no instructions for bf16: f32 is likely to be faster");
        }
        // The blocked form is made of operators that ONNX Runtime's own provider alone has.
        let mut prepared = match &model.graph {
            ModelGraph::Foreign(source) => Prepared::alone(source, "as given"),
            ModelGraph::Built { plain, .. } => Prepared::alone(plain, "plain"),
        };
        prepared.agreement = Some(self.agree(&prepared, model, spec)?);
        Ok(prepared)
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
}

/// A graph to make sessions of, and the constants that they share.
#[derive(Clone)]
pub struct Prepared {
    pub(super) source: OnnxSource,
    form: &'static str,
    /// Each constant once for all sessions: by itself ONNX Runtime copies them into each.
    pub(super) shared: Vec<(String, Arc<DynValue>)>,
    /// What ONNX Runtime rearranges of them, once as well.
    pub(super) prepacked: Option<PrepackedWeights>,
    agreement: Option<Agreement>,
}

impl Prepared {
    pub(super) fn alone(source: &OnnxSource, form: &'static str) -> Self {
        Self { source: source.clone(), form, shared: Vec::new(), prepacked: None, agreement: None }
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

    /// Another graph of the same network in the blocked form: constants that are the same are there once for both.
    pub(super) fn relative(&self, source: &OnnxSource) -> Result<Self, RuntimeError> {
        let mut prepared = Self { prepacked: self.prepacked.clone(), ..Self::alone(source, self.form) };
        if let OnnxSource::Memory(bytes) = source {
            let load = |e: ort::Error| RuntimeError::Load(e.to_string());
            let known: HashMap<&str, &Arc<DynValue>> = self.shared.iter().map(|(n, v)| (n.as_str(), v)).collect();
            for (name, tensor) in initializers(bytes) {
                let same = |value: &&&Arc<DynValue>| {
                    value.try_extract_tensor::<f32>().is_ok_and(|(_, data)| data == &tensor.data[..])
                };
                let value = match known.get(name.as_str()).filter(same) {
                    Some(value) => Arc::clone(value),
                    None => {
                        Arc::new(ort::value::Tensor::from_array((tensor.shape, tensor.data)).map_err(load)?.into_dyn())
                    }
                };
                prepared.shared.push((name, value));
            }
        }
        Ok(prepared)
    }

    /// `blocked`, `plain`, or `as given`.
    #[must_use]
    pub fn form(&self) -> &'static str {
        self.form
    }

    /// How the backend's answers were found to differ from the default's; none of the default itself.
    #[must_use]
    pub fn agreement(&self) -> Option<Agreement> {
        self.agreement
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("form", &self.form).finish_non_exhaustive()
    }
}

impl From<OnnxSource> for Prepared {
    fn from(source: OnnxSource) -> Self {
        Self::alone(&source, "as given")
    }
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
