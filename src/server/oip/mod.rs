//! The Open Inference Protocol, version 2, whatever it comes in: what is served under which names ([`about`](self)), and
//! inference on tensors ([`infer()`]). `http/inference.rs` and `grpc/inference.rs` read and write the two encodings.
//!
//! A model with feature maps is two of the protocol's models: the classifier under its own name, with one input and one output,
//! and its maps under [`FEATURES`] behind the name. Both take image files as BYTES; pixels as UINT8, images × height × width ×
//! 3; or the network's own input as FP32, images × 3 × height × width.

mod about;
mod infer;
mod tensors;

pub(super) use about::{
    BatchStatistics, Config, ConfigInput, ConfigOutput, ConfigParameter, IndexEntry, InstanceGroup, ModelMetadata,
    ServerMetadata, Statistics, StatisticsAnswer, TensorMetadata, Time, config, index, metadata, server, statistics,
};
pub(super) use infer::{InferRequest, InferResponse, OutputTensor, Parameter, Wanted, infer};
pub(super) use tensors::{Elements, InputTensor, texts_of};

use std::sync::Arc;

use super::app::App;
use super::problem::Problem;
use crate::service::{Code, ServedModel};

/// Behind a model's name: its feature maps.
pub(super) const FEATURES: &str = "-features";
/// Every model has one version, and clients want a number.
pub(super) const VERSION: &str = "1";
/// The input of every model.
pub(super) const INPUT: &str = "image";
/// The classifier's output.
pub(super) const PROBABILITIES: &str = "probabilities";

/// Tensors of a request, in and out: far more than a model here has. Tiny messages and objects become large structs, so they are
/// counted while they are read.
pub(super) const MAX_TENSORS: usize = 64;
/// Parameters of a request or a tensor.
pub(super) const MAX_PARAMETERS: usize = 64;
/// Dimensions of a tensor.
pub(super) const MAX_DIMENSIONS: usize = 16;

/// One of the protocol's models.
#[derive(Clone)]
pub(super) struct Named {
    pub(super) served: Arc<ServedModel>,
    /// Whether it is the model's feature maps.
    pub(super) features: bool,
}

impl Named {
    pub(super) fn name(&self) -> String {
        format!("{}{}", self.served.manifest.id, if self.features { FEATURES } else { "" })
    }

    pub(super) fn statistics(&self) -> &crate::service::Statistics {
        if self.features { &self.served.features_statistics } else { &self.served.statistics }
    }
}

/// All models, by the protocol's names.
pub(super) fn all(app: &App) -> Vec<Named> {
    let ids: Vec<String> = app.service.models().map(|model| model.manifest.id.clone()).collect();
    let served = ids.iter().filter_map(|id| app.service.model(Some(id)).ok());
    served
        .flat_map(|served| {
            let named = |features| Named { served: Arc::clone(served), features };
            std::iter::once(named(false)).chain(served.features.is_some().then(|| named(true)))
        })
        .collect()
}

/// A model by name; no version is the only one.
pub(super) fn find(app: &App, name: &str, version: &str) -> Result<Named, Problem> {
    let found = match app.service.model(Some(name)) {
        Ok(served) => Some(Named { served: Arc::clone(served), features: false }),
        Err(_) => name.strip_suffix(FEATURES).and_then(|base| {
            let served = app.service.model(Some(base)).ok().filter(|served| served.features.is_some())?;
            Some(Named { served: Arc::clone(served), features: true })
        }),
    };
    let Some(found) = found else {
        let known: Vec<_> = all(app).iter().map(|model| format!("`{}`", model.name())).collect();
        let name: String = name.chars().take(128).collect();
        let detail = format!("no model `{name}` is served; there is {}", known.join(", "));
        return Err(Problem::new(Code::UnknownModel, detail));
    };
    if !version.is_empty() && version != VERSION {
        let version: String = version.chars().take(32).collect();
        let detail = format!("model `{}` has no version `{version}`; its only one is {VERSION}", found.name());
        return Err(Problem::new(Code::UnknownModel, detail));
    }
    Ok(found)
}

/// Models are chosen when the server starts.
pub(super) fn not_loadable() -> Problem {
    Problem::new(
        Code::InvalidParameter,
        "models are not loaded and unloaded over the network; start the server with `--model`",
    )
}
