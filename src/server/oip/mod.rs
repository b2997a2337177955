//! The Open Inference Protocol, version 2, for both of its encodings: the served models under the protocol's names
//! ([`metadata()`]), and inference on tensors ([`plan_infer()`], [`infer()`]). `http/oip_rest.rs` and
//! `grpc/oip_grpc.rs` read and write the encodings.
//!
//! A model with feature maps is two of the protocol's models: the classifier under its own name, with one input and
//! one output, and its maps under that name with the suffix [`FEATURES`]. Both take image files as BYTES; pixels as
//! UINT8, images × height × width × 3; or the network's own input as FP32, images × 3 × height × width.

mod infer;
mod metadata;
mod options;
mod plan;
mod tensors;

pub(super) use infer::{InferResponse, OutputTensor, infer};
pub(super) use metadata::{
    BatchStatistics, ConfigInput, ConfigOutput, ConfigParameter, IndexEntry, InstanceGroup, ModelConfig, ModelMetadata,
    ModelStatistics, ServerMetadata, StatisticsAnswer, TensorMetadata, Time, config, index, metadata, server,
    statistics,
};
pub(super) use plan::{InferRequest, Parameter, RequestedOutput, plan_infer};
pub(super) use tensors::{Elements, InputTensor, texts_of};

use std::sync::Arc;

use super::app::App;
use super::problem::Problem;
use crate::service::{Code, RequestStatistics, ServedModel};
use crate::text::shortened;

/// The suffix of a model's name that stands for its feature maps.
pub(super) const FEATURES: &str = "-features";
/// The only version of every model. Clients expect a number.
pub(super) const VERSION: &str = "1";
/// The name of every model's input.
pub(super) const INPUT: &str = "image";
/// The name of the classifier's output.
pub(super) const PROBABILITIES: &str = "probabilities";

/// Maximum number of tensors of a request, in and out: far more than a model here has. Tiny messages and objects
/// become large structs, so they are counted while they are read.
pub(super) const MAX_TENSORS: usize = 64;
/// Maximum number of parameters of a request or a tensor.
pub(super) const MAX_PARAMETERS: usize = 64;
/// Maximum number of dimensions of a tensor.
pub(super) const MAX_DIMENSIONS: usize = 16;

/// One of the protocol's models.
#[derive(Clone)]
pub(super) struct NamedModel {
    pub(super) served: Arc<ServedModel>,
    /// Whether it stands for the model's feature maps.
    pub(super) features: bool,
}

impl NamedModel {
    pub(super) fn name(&self) -> String {
        format!("{}{}", self.served.manifest.id, if self.features { FEATURES } else { "" })
    }

    pub(super) fn statistics(&self) -> &RequestStatistics {
        if self.features { &self.served.features_statistics } else { &self.served.statistics }
    }
}

/// All of the protocol's models.
pub(super) fn all(app: &App) -> Vec<NamedModel> {
    let named = |served: &Arc<ServedModel>, features| NamedModel { served: Arc::clone(served), features };
    let of = |served: &Arc<ServedModel>| {
        std::iter::once(named(served, false)).chain(served.features.is_some().then(|| named(served, true)))
    };
    app.service.models().flat_map(of).collect()
}

/// Looks up a model by name. An empty version is the only one.
pub(super) fn find(app: &App, name: &str, version: &str) -> Result<NamedModel, Problem> {
    let found = match app.service.model(Some(name)) {
        Ok(served) => Some(NamedModel { served: Arc::clone(served), features: false }),
        Err(_) => name.strip_suffix(FEATURES).and_then(|base| {
            let served = app.service.model(Some(base)).ok().filter(|served| served.features.is_some())?;
            Some(NamedModel { served: Arc::clone(served), features: true })
        }),
    };
    let Some(found) = found else {
        let known: Vec<_> = all(app).iter().map(|model| format!("`{}`", model.name())).collect();
        let detail = format!("no model `{}` is served; there is {}", shortened(name, 128), known.join(", "));
        return Err(Problem::new(Code::UnknownModel, detail));
    };
    if !version.is_empty() && version != VERSION {
        let version = shortened(version, 32);
        let detail = format!("model `{}` has no version `{version}`; its only one is {VERSION}", found.name());
        return Err(Problem::new(Code::UnknownModel, detail));
    }
    Ok(found)
}

/// The answer to requests to load or unload a model: the models are set when the server starts.
pub(super) fn not_loadable() -> Problem {
    Problem::new(
        Code::InvalidParameter,
        "models are not loaded and unloaded over the network; start the server with `--model`",
    )
}
