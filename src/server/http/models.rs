//! `GET /v1/models` and `GET /v1/models/{id}` describe the served models.

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use schemars::JsonSchema;
use serde::Serialize;

use super::context::no_parameters;
use super::features::{Layer, attention_layers};
use crate::server::app::App;
use crate::server::problem::Problem;
use crate::service::{Features, ModelPlan, ServedModel};
use ghostserve_ghostnet::{Cut, Output, Size};
use ghostserve_manifest::{InputSpec, Label};

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Models")]
pub(super) struct Listing {
    models: Vec<Summary>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ModelSummary")]
struct Summary {
    id: String,
    description: String,
    architecture: String,
    digest: String,
    classes: usize,
    /// Whether the model is used for requests that name no model.
    default: bool,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ModelDetails")]
pub(super) struct Details {
    #[serde(flatten)]
    summary: Summary,
    /// Number of parameters; absent for models given as ONNX files.
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<u64>,
    /// Multiply-accumulate operations for one image; absent for models given as ONNX files.
    #[serde(skip_serializing_if = "Option::is_none")]
    macs: Option<u64>,
    input: InputSpec,
    /// The filter of the resize, for people.
    interpolation: String,
    labels: Vec<Label>,
    /// Outputs of `/v1/features` and `/v1/attention`; absent for models given as ONNX files.
    #[serde(skip_serializing_if = "Option::is_none")]
    features: Option<FeatureDetails>,
    plan: ModelPlan,
}

#[derive(Serialize, JsonSchema)]
struct FeatureDetails {
    levels: Vec<Level>,
    /// Number of elements of the embedding.
    embedding: usize,
    /// Layers with attention, for the model's default input size.
    attention: Vec<Layer>,
    /// Maximum width times height of the input.
    max_pixels: usize,
}

#[derive(Serialize, JsonSchema)]
struct Level {
    level: String,
    cut: &'static str,
    channels: usize,
    stride: usize,
}

fn feature_details(features: &Features, [height, width]: [usize; 2]) -> FeatureDetails {
    let (network, size) = (&features.network, Size { height, width });
    let shapes = network.shapes(size);
    let to_level = |output: Output| {
        let Output::Features { cut, level } = output else { return None };
        let shape = shapes.of(output)?;
        Some(Level {
            level: format!("c{level}"),
            cut: if cut == Cut::Timm { "timm" } else { "deepest" },
            channels: *shape.shape.first()?,
            stride: shape.stride,
        })
    };
    FeatureDetails {
        levels: network.outputs().into_iter().filter_map(to_level).collect(),
        embedding: network.features(),
        attention: attention_layers(network, size),
        max_pixels: features.limits.max_feature_pixels,
    }
}

fn summary(app: &App, model: &ServedModel) -> Summary {
    let manifest = &model.manifest;
    Summary {
        id: manifest.id.clone(),
        description: manifest.description.clone(),
        architecture: manifest.network.architecture.to_string(),
        digest: model.digest.to_string(),
        classes: model.labels.len(),
        default: manifest.id == app.service.default_model(),
    }
}

/// Returns the summaries of all models.
pub(super) async fn list(State(app): State<App>, RawQuery(query): RawQuery) -> Result<Json<Listing>, Problem> {
    no_parameters(query.as_deref())?;
    Ok(Json(Listing { models: app.service.models().map(|model| summary(&app, model)).collect() }))
}

/// Returns the details of one model.
pub(super) async fn show(
    State(app): State<App>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Details>, Problem> {
    no_parameters(query.as_deref())?;
    let model = app.service.model(Some(&id))?;
    Ok(Json(Details {
        summary: summary(&app, model),
        parameters: model.cost.map(|cost| cost.parameters),
        macs: model.cost.map(|cost| cost.macs),
        input: model.manifest.input,
        interpolation: format!("{}, antialiased", model.manifest.input.interpolation),
        labels: model.labels.clone(),
        features: model.features.as_ref().map(|features| feature_details(features, model.manifest.input.crop)),
        plan: model.plan.clone(),
    }))
}
