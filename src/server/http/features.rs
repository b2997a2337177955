//! `POST /v1/features` and `POST /v1/attention`: what the network computes of images before its scores.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::accept::choose;
use super::answers::{ItemError, ModelRef, add_server_timing};
use super::context::{query, request_context};
use super::images::read_images;
use super::middleware::Uncompressed;
use crate::fair_share::Client;
use crate::heatmap;
use crate::preprocess::{Fit, Geometry, ImageInfo};
use crate::server::app::App;
use crate::server::encode::{EncodeTimer, encode_features};
use crate::server::parameters::{invalid, levels, prediction_options, size, tensor_name};
use crate::server::problem::Problem;
use crate::server::retain::RetainBody;
use crate::server::tensors::{AnswerTensor, ElementType, json, npz, safetensors};
use crate::service::{Code, Error, Extracted, FeaturePlan, FeaturesRequest, Prediction, ServedModel};
use ghostserve_ghostnet::{Cut, Output};

/// The format of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AnswerFormat {
    Json,
    Safetensors,
    Npz,
    Png,
}

impl AnswerFormat {
    fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Safetensors => "application/vnd.safetensors",
            Self::Npz => "application/x-npz",
            Self::Png => "image/png",
        }
    }

    fn accepted(headers: &HeaderMap, offered: [Self; 4]) -> Result<Self, Problem> {
        choose(headers, &offered.map(|format| (format.media_type(), format)))
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FeatureParameters {
    /// Any of `c1` to `c5` and `embedding`, separated by commas; `c3,c4,c5` if absent (`c3` for an answer as PNG).
    #[schemars(example = "c3,c4,c5")]
    levels: Option<String>,
    /// Which maps of a level: those of its last block, or those at which timm's `features_only` cuts.
    cut: Option<CutName>,
    /// Size of the network's input, `N` or `WIDTHxHEIGHT`, in multiples of 32; the model's own size if absent.
    #[schemars(example = "416x320")]
    size: Option<String>,
    /// How an image is fitted into the input.
    fit: Option<Fit>,
    /// The type of the elements.
    dtype: Option<ElementType>,
    /// Scales embeddings to length 1.
    normalize: Option<bool>,
    /// Adds predictions from the same run, this many per image.
    #[schemars(range(min = 1))]
    top_k: Option<usize>,
    /// Adds predictions from the same run, with this minimum probability.
    #[schemars(range(min = 0.0, max = 1.0))]
    min_confidence: Option<f32>,
    /// The model; the server's default model if absent.
    model: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AttentionParameters {
    /// The bottleneck, such as `6.4`; the deepest that has attention if absent.
    #[schemars(example = "6.4")]
    layer: Option<String>,
    /// Size of the network's input, `N` or `WIDTHxHEIGHT`, in multiples of 32; the model's own size if absent.
    #[schemars(example = "416x320")]
    size: Option<String>,
    /// How an image is fitted into the input.
    fit: Option<Fit>,
    /// The type of the elements.
    dtype: Option<ElementType>,
    /// The model; the server's default model if absent.
    model: Option<String>,
}

#[derive(Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "Cut")]
enum CutName {
    #[default]
    Deepest,
    Timm,
}

/// How an answer is written.
#[derive(Clone, Copy)]
struct AnswerStyle {
    format: AnswerFormat,
    dtype: ElementType,
    /// Whether embeddings are scaled to length 1.
    unit: bool,
    /// Whether the answer is about attention.
    attention: bool,
}

pub(super) async fn features(
    State(app): State<App>,
    client: Client,
    parameters: Result<Query<FeatureParameters>, QueryRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let start = Instant::now();
    // Plan.
    let parameters = query(parameters)?;
    let style = features_style(&parameters, request.headers())?;
    let outputs = features_outputs(&parameters, style.format)?;
    let model = Arc::clone(app.service.model(parameters.model.as_deref())?);
    let predictions = prediction_options(parameters.top_k, parameters.min_confidence, &model)?;
    let with_predictions = parameters.top_k.is_some() || parameters.min_confidence.is_some();
    let plan = app.service.plan_features(FeaturesRequest {
        model,
        outputs,
        size: parameters.size.as_deref().map(size).transpose()?,
        fit: parameters.fit.unwrap_or_default(),
        predictions: with_predictions.then_some(predictions),
        element_bytes: style.dtype.bytes(),
        context: request_context(&app, client, request.headers(), start)?,
    })?;
    // Read, run and encode.
    answer(app, plan, style, request, start).await
}

/// How an answer of feature maps is written.
fn features_style(parameters: &FeatureParameters, headers: &HeaderMap) -> Result<AnswerStyle, Problem> {
    use AnswerFormat::{Json, Npz, Png, Safetensors};
    let FeatureParameters { dtype, top_k, min_confidence, normalize, .. } = parameters;
    let format = AnswerFormat::accepted(headers, [Json, Safetensors, Npz, Png])?;
    if format == Png && (dtype.is_some() || top_k.is_some() || min_confidence.is_some()) {
        return Err(invalid("a picture (`Accept: image/png`) has neither `dtype` nor predictions"));
    }
    Ok(AnswerStyle { format, dtype: dtype.unwrap_or_default(), unit: *normalize == Some(true), attention: false })
}

/// The outputs of the requested levels.
fn features_outputs(parameters: &FeatureParameters, format: AnswerFormat) -> Result<Vec<Output>, Problem> {
    let png = format == AnswerFormat::Png;
    // A picture shows one level.
    let default = if png { "c3" } else { "c3,c4,c5" };
    let cut = match parameters.cut.unwrap_or_default() {
        CutName::Deepest => Cut::Deepest,
        CutName::Timm => Cut::Timm,
    };
    let outputs = levels(parameters.levels.as_deref().unwrap_or(default).split(',').map(str::trim), cut)?;
    if parameters.normalize.is_some() && !outputs.contains(&Output::Embedding) {
        return Err(invalid("`normalize` is about the embedding; add `embedding` to `levels`"));
    }
    if png && (outputs.len() > 1 || outputs == [Output::Embedding]) {
        return Err(invalid("a picture (`Accept: image/png`) shows the maps of one level, such as `levels=c4`"));
    }
    Ok(outputs)
}

pub(super) async fn attention(
    State(app): State<App>,
    client: Client,
    parameters: Result<Query<AttentionParameters>, QueryRejection>,
    request: Request,
) -> Result<Response, Problem> {
    use AnswerFormat::{Json, Npz, Png, Safetensors};
    let start = Instant::now();
    // Plan.
    let parameters = query(parameters)?;
    let format = AnswerFormat::accepted(request.headers(), [Json, Png, Safetensors, Npz])?;
    if format == Png && parameters.dtype.is_some() {
        return Err(invalid("a picture (`Accept: image/png`) has no `dtype`"));
    }
    let model = Arc::clone(app.service.model(parameters.model.as_deref())?);
    let layer = attention_layer(&model, parameters.layer.as_deref())?;
    let dtype = parameters.dtype.unwrap_or_default();
    let plan = app.service.plan_features(FeaturesRequest {
        model,
        outputs: vec![layer],
        size: parameters.size.as_deref().map(size).transpose()?,
        fit: parameters.fit.unwrap_or_default(),
        predictions: None,
        element_bytes: dtype.bytes(),
        context: request_context(&app, client, request.headers(), start)?,
    })?;
    // Read, run and encode.
    answer(app, plan, AnswerStyle { format, dtype, unit: false, attention: true }, request, start).await
}

/// The output of the attention at a bottleneck, or at the deepest one that has attention.
fn attention_layer(model: &ServedModel, layer: Option<&str>) -> Result<Output, Problem> {
    let Some(features) = &model.features else {
        return Err(Error::NoFeatures { model: model.manifest.id.clone() }.into());
    };
    let known: Vec<Output> = features.network.outputs().into_iter().filter(is_attention).collect();
    let found = match layer {
        None => known.last().copied(),
        Some(name) => {
            let name = name.strip_prefix("blocks.").unwrap_or(name);
            known.iter().find(|output| layer_name(**output) == name).copied()
        }
    };
    found.ok_or_else(|| {
        let names = known.iter().map(|output| layer_name(*output)).collect::<Vec<_>>().join(", ");
        invalid(match layer {
            Some(_) if !known.is_empty() => format!("this model has no attention at that `layer`; it has {names}"),
            _ => "this model has no attention".to_owned(),
        })
    })
}

/// The steps of both routes after the plan.
async fn answer(
    app: App,
    plan: FeaturePlan,
    style: AnswerStyle,
    request: Request,
    start: Instant,
) -> Result<Response, Problem> {
    let plan = Arc::new(plan);
    // Read.
    let images = read_images(&app, request, start, plan.request().context).await?;
    let png = style.format == AnswerFormat::Png;
    if (style.attention || png) && images.files.len() > 1 {
        let detail = format!("this answer is about one image, the request holds {}", images.files.len());
        return Err(Problem::new(Code::TooManyImages, detail));
    }
    // Run.
    let extracted = app.service.features(&plan, images.files).await?;
    // Encode.
    let timer = EncodeTimer::start(&app, &plan.model().features_statistics, start);
    let times = extracted.times;
    let encode = move |plan: &FeaturePlan, extracted: &Extracted| encode_answer(plan, extracted, style);
    let (body, memory) = encode_features(&app, &plan, extracted, png, encode).await?;
    let encode_time = timer.finish();
    // The answer counts against the memory for feature maps until it is sent.
    let body = RetainBody::wrap(Body::from(body), memory);
    let mut response = ([(header::CONTENT_TYPE, style.format.media_type())], body).into_response();
    add_server_timing(&mut response, images.read_time, times, encode_time);
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    // Maps hardly compress, and compressing them would take longer than the network.
    response.extensions_mut().insert(Uncompressed);
    Ok(response)
}

/// The description of an image beside its tensors.
#[derive(Serialize)]
#[serde(untagged)]
enum FeatureItem<'a> {
    Ok {
        image: &'a ImageInfo,
        geometry: &'a Geometry,
        #[serde(skip_serializing_if = "Option::is_none")]
        predictions: Option<&'a [Prediction]>,
        /// Index in stacked tensors.
        #[serde(skip_serializing_if = "Option::is_none")]
        row: Option<usize>,
    },
    Failed {
        error: ItemError,
    },
}

#[derive(Serialize)]
struct FeatureHead<'a> {
    model: ModelRef<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<Layer>,
}

/// A bottleneck that has attention.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AttentionLayer")]
pub(super) struct Layer {
    /// The value of the parameter `layer`.
    layer: String,
    channels: usize,
    stride: usize,
}

fn encode_answer(plan: &FeaturePlan, extracted: &Extracted, style: AnswerStyle) -> Vec<u8> {
    let outputs = &plan.request().outputs;
    let extractions: Vec<_> = extracted.results.iter().filter_map(|result| result.as_ref().ok()).collect();
    if style.format == AnswerFormat::Png {
        let Some(extraction) = extractions.first() else { return Vec::new() };
        let [channels, height, width] = extraction.outputs.shape(0) else { return Vec::new() };
        let (maps, shape) = (extraction.outputs.data(0), [*channels, *height, *width]);
        return heatmap::png(&match (style.attention, &extraction.view) {
            (true, Some(view)) => heatmap::overlay(view, maps, shape),
            _ => heatmap::tiles(maps, shape),
        });
    }
    let tensors: Vec<AnswerTensor<'_>> = outputs
        .iter()
        .zip(&plan.shapes)
        .enumerate()
        .map(|(i, (output, shape))| AnswerTensor {
            name: tensor_name(*output),
            shape: shape.shape.clone(),
            stride: shape.stride,
            rows: extractions.iter().map(|extraction| extraction.outputs.data(i)).collect(),
            unit: style.unit && *output == Output::Embedding,
        })
        .collect();
    let mut rows = 0..;
    let stacked = style.format != AnswerFormat::Json;
    let items: Vec<(FeatureItem<'_>, Option<usize>)> = extracted
        .results
        .iter()
        .map(|result| match result {
            Ok(extraction) => {
                let row = rows.next();
                let predictions = extraction.predictions.as_deref();
                let (image, geometry) = (&extraction.image, &extraction.geometry);
                (FeatureItem::Ok { image, geometry, predictions, row: row.filter(|_| stacked) }, row)
            }
            Err(error) => (FeatureItem::Failed { error: ItemError::of(error) }, None),
        })
        .collect();
    let manifest = &plan.model().manifest;
    let model = ModelRef::of(plan.model());
    let layers = if style.attention { plan_layers(plan) } else { Vec::new() };
    match style.format {
        AnswerFormat::Json | AnswerFormat::Png => json(&FeatureHead { model, layers }, &items, &tensors, style.dtype),
        AnswerFormat::Safetensors | AnswerFormat::Npz => {
            let items: Vec<_> = items.into_iter().map(|(item, _)| item).collect();
            let strides: serde_json::Map<_, _> =
                tensors.iter().filter(|t| t.stride > 0).map(|t| (t.name.clone(), t.stride.into())).collect();
            let metadata = [
                ("model", manifest.id.clone()),
                ("digest", plan.model().digest.to_string()),
                ("results", text(&items)),
                ("strides", text(&strides)),
            ];
            if style.format == AnswerFormat::Safetensors {
                return safetensors(&metadata, &tensors, style.dtype);
            }
            #[derive(Serialize)]
            struct About<'a> {
                #[serde(flatten)]
                head: FeatureHead<'a>,
                results: Vec<FeatureItem<'a>>,
                strides: serde_json::Map<String, serde_json::Value>,
            }
            let about = text(&About { head: FeatureHead { model, layers }, results: items, strides });
            npz(&[("about.json", about.into_bytes())], &tensors, style.dtype)
        }
    }
}

/// A value as JSON.
fn text(value: &impl Serialize) -> String {
    // Strings and finite numbers always serialise.
    serde_json::to_string(value).unwrap_or_default()
}

fn plan_layers(plan: &FeaturePlan) -> Vec<Layer> {
    plan.model().features.as_ref().map(|features| attention_layers(&features.network, plan.size())).unwrap_or_default()
}

/// The bottlenecks with attention, and the shapes of their gates at an input size.
pub(super) fn attention_layers(network: &ghostserve_ghostnet::Network, size: ghostserve_ghostnet::Size) -> Vec<Layer> {
    let shapes = network.shapes(size);
    let of = |output: Output| {
        let shape = shapes.of(output)?;
        Some(Layer { layer: layer_name(output), channels: *shape.shape.first()?, stride: shape.stride })
    };
    network.outputs().into_iter().filter(is_attention).filter_map(of).collect()
}

fn is_attention(output: &Output) -> bool {
    matches!(output, Output::Attention { .. } | Output::OutputAttention { .. })
}

/// `6.4`, or `6.4.output`.
fn layer_name(output: Output) -> String {
    output.to_string().trim_start_matches("attention.").to_owned()
}
