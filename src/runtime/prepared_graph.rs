//! Prepares a model for sessions: chooses the form of its graph that runs fastest here with correct outputs.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use ort::session::builder::PrepackedWeights;
use ort::value::DynValue;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use super::{Agreement, Backend, NamedTensor, Runtime, RuntimeError, SessionSpec};
use crate::model::{LoadedModel, ModelGraph, OnnxSource};
use ghostserve_ghostnet::graph::initializers;
use ghostserve_weights::synthetic_tensor;

/// The form of a graph that sessions run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GraphForm {
    /// ONNX Runtime's blocked layout, with our operators between the convolutions.
    Blocked,
    /// Standard ONNX, built from a known architecture.
    Plain,
    /// The graph of a foreign file, unchanged.
    AsGiven,
}

impl GraphForm {
    /// The name in responses and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Plain => "plain",
            Self::AsGiven => "as given",
        }
    }
}

impl fmt::Display for GraphForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for GraphForm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// The schema in the OpenAPI document is that of any string.
impl JsonSchema for GraphForm {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "GraphForm".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

impl Runtime {
    /// Chooses the form of a model for the backend of `spec`. For the default backend, this is [`Runtime::prepare`].
    /// Any other backend runs the plain form or the foreign graph, and its outputs on generated images must agree
    /// with those of the default backend.
    ///
    /// # Errors
    /// The library does not have the backend, the model does not run on it, or its outputs do not agree.
    pub fn prepare_for(&self, model: &LoadedModel, spec: SessionSpec) -> Result<PreparedGraph, RuntimeError> {
        let backend = spec.backend;
        backend.check()?;
        backend.check_library()?;
        if backend == Backend::default() {
            return self.prepare(&model.graph);
        }
        if !backend.is_native() {
            tracing::warn!(?backend, "this processor has no instructions for bf16: f32 is likely to be faster");
        }
        // Only ONNX Runtime's own provider has the operators of the blocked form.
        let mut prepared = match &model.graph {
            ModelGraph::Foreign(source) => PreparedGraph::new(source, GraphForm::AsGiven),
            ModelGraph::Built { plain, .. } => PreparedGraph::new(plain, GraphForm::Plain),
        };
        prepared.agreement = Some(self.check_agreement(&prepared, model, spec)?);
        Ok(prepared)
    }

    /// Chooses the form of a model for ONNX Runtime's own provider. This is the blocked form if this processor has it
    /// and its outputs on a test input equal those of the plain form. Otherwise it is the plain form, with a warning
    /// if the outputs differ. A foreign graph is not changed.
    ///
    /// # Errors
    /// The runtime does not accept the plain form.
    pub fn prepare(&self, model: &ModelGraph) -> Result<PreparedGraph, RuntimeError> {
        let ([channels, height, width], plain, blocked) = match model {
            ModelGraph::Foreign(source) => return Ok(PreparedGraph::new(source, GraphForm::AsGiven)),
            ModelGraph::Built { plain, blocked: None, .. } => return Ok(PreparedGraph::new(plain, GraphForm::Plain)),
            ModelGraph::Built { input, plain, blocked: Some(blocked) } => (*input, plain, blocked),
        };
        // Two different images, so that the check also covers a mix-up of the two.
        let shape = [2, channels, height, width];
        let input = synthetic_tensor("input", &shape);
        let expected = self.run_once(plain, shape, &input)?;
        match self.run_once(blocked, shape, &input).map(|found| largest_difference(&expected, &found)) {
            Ok(difference) if difference <= BLOCKED_TOLERANCE => PreparedGraph::blocked(self, blocked),
            Ok(difference) => {
                tracing::warn!(
                    difference,
                    "the outputs of the blocked form differ from those of the plain form: using the slower plain form"
                );
                Ok(PreparedGraph::new(plain, GraphForm::Plain))
            }
            Err(error) => {
                tracing::warn!(%error, "ONNX Runtime does not accept the blocked form: using the slower plain form");
                Ok(PreparedGraph::new(plain, GraphForm::Plain))
            }
        }
    }
}

/// A graph to open sessions for, and the constants that these sessions share.
#[derive(Clone)]
pub struct PreparedGraph {
    pub(super) source: OnnxSource,
    form: GraphForm,
    /// The constants, stored once for all sessions. By default ONNX Runtime copies them into each session.
    pub(super) shared: Vec<(String, Arc<DynValue>)>,
    /// The constants in ONNX Runtime's internal layout, also stored once.
    pub(super) prepacked: Option<PrepackedWeights>,
    agreement: Option<Agreement>,
}

impl PreparedGraph {
    /// A graph whose sessions share no constants.
    pub(super) fn new(source: &OnnxSource, form: GraphForm) -> Self {
        Self { source: source.clone(), form, shared: Vec::new(), prepacked: None, agreement: None }
    }

    /// A graph in the blocked form, with its constants extracted once for all sessions. For a plain graph this would
    /// save nothing, because each session rearranges the constants for itself. The runtime must be loaded to hold
    /// them.
    ///
    /// # Errors
    /// The runtime cannot create a tensor for a constant.
    pub fn blocked(_: &Runtime, source: &OnnxSource) -> Result<Self, RuntimeError> {
        let mut prepared = Self { prepacked: Some(PrepackedWeights::new()), ..Self::new(source, GraphForm::Blocked) };
        if let OnnxSource::Memory(bytes) = source {
            let load = |e: ort::Error| RuntimeError::Load(e.to_string());
            for (name, tensor) in initializers(bytes) {
                let value = ort::value::Tensor::from_array((tensor.shape, tensor.data)).map_err(load)?;
                prepared.shared.push((name, Arc::new(value.into_dyn())));
            }
        }
        Ok(prepared)
    }

    /// Another graph of the same network in the blocked form. Equal constants are stored once for both graphs.
    pub(super) fn with_shared_constants(&self, source: &OnnxSource) -> Result<Self, RuntimeError> {
        let mut prepared = Self { prepacked: self.prepacked.clone(), ..Self::new(source, self.form) };
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

    /// The form of the graph.
    #[must_use]
    pub fn form(&self) -> GraphForm {
        self.form
    }

    /// How the backend's outputs differ from those of the default backend; `None` for the default backend itself.
    #[must_use]
    pub fn agreement(&self) -> Option<Agreement> {
        self.agreement
    }
}

impl fmt::Debug for PreparedGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedGraph").field("form", &self.form).finish_non_exhaustive()
    }
}

impl From<OnnxSource> for PreparedGraph {
    fn from(source: OnnxSource) -> Self {
        Self::new(&source, GraphForm::AsGiven)
    }
}

/// The allowed difference between the outputs of the blocked and the plain form, as a share of the largest element.
/// Rounding in a different order changes the outputs by a few millionths.
const BLOCKED_TOLERANCE: f32 = 1e-4;

/// The largest difference between two sets of outputs, as a share of the largest element; infinite if names or shapes
/// differ.
fn largest_difference(expected: &[NamedTensor], found: &[NamedTensor]) -> f32 {
    let mut worst = 0.0f32;
    for expected in expected {
        let Some(found) = found.iter().find(|f| f.name == expected.name && f.shape == expected.shape) else {
            return f32::INFINITY;
        };
        let largest = expected.data.iter().fold(f32::MIN_POSITIVE, |max, v| max.max(v.abs()));
        for (e, f) in expected.data.iter().zip(&found.data) {
            let difference = (e - f).abs() / largest;
            // NaN counts as infinitely different.
            worst = worst.max(if difference.is_nan() { f32::INFINITY } else { difference });
        }
    }
    worst
}
