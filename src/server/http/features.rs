//! `POST /v1/features` and `POST /v1/attention`: what the network makes of images on the way to its scores.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, header};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::Instrument;

use super::accept::choose;
use super::body::client;
use super::classify::{ItemError, ModelRef, SERVER_TIMING, priority, server_timing, stages, timeout};
use super::images::images;
use super::layers::Uncompressed;
use super::tensors::{Dtype, Tensor, json, npz, safetensors};
use crate::picture;
use crate::preprocess::{Fit, Geometry, ImageInfo, Origin};
use crate::server::app::App;
use crate::server::asked::{ask, invalid, levels, size, tensor_name};
use crate::server::held::hold;
use crate::server::problem::Problem;
use crate::service::{Code, Error, Extracted, FeaturePlan, FeaturesRequest, Prediction};
use crate::telemetry::{Stage, spans};
use ghostserve_ghostnet::{Cut, Output};

/// Answers from this size on are written on one of the cores that compute, not where connections are served.
pub(in crate::server) const LARGE_ANSWER: usize = 256 << 10;

/// The containers that tensors come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    Safetensors,
    Npz,
    Png,
}

impl Form {
    fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Safetensors => "application/vnd.safetensors",
            Self::Npz => "application/x-npz",
            Self::Png => "image/png",
        }
    }

    fn accepted(headers: &HeaderMap, offered: [Self; 4]) -> Result<Self, Problem> {
        choose(headers, &offered.map(|form| (form.media_type(), form)))
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    /// Any of `c1` to `c5` and `embedding`, with commas; `c3,c4,c5` if absent (a picture: `c3`).
    #[schemars(example = "c3,c4,c5")]
    levels: Option<String>,
    /// Which maps of a level: those of its last block, or where timm's `features_only` cuts.
    cut: Option<CutName>,
    /// Of the network's input, `N` or `WIDTHxHEIGHT`, in multiples of 32; the model's own if absent.
    #[schemars(example = "416x320")]
    size: Option<String>,
    /// How a photograph is put into it.
    fit: Option<Fit>,
    /// The type of the elements.
    dtype: Option<Dtype>,
    /// Scales embeddings to length 1.
    normalize: Option<bool>,
    /// Predictions from the same run, too.
    #[schemars(range(min = 1))]
    top_k: Option<usize>,
    /// Predictions from the same run, too, but none below this probability.
    #[schemars(range(min = 0.0, max = 1.0))]
    min_confidence: Option<f32>,
    /// Which model; the server's default one if absent.
    model: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AttentionParameters {
    /// Which bottleneck, such as `6.4`; the deepest that has attention if absent.
    #[schemars(example = "6.4")]
    layer: Option<String>,
    /// Of the network's input, `N` or `WIDTHxHEIGHT`, in multiples of 32; the model's own if absent.
    #[schemars(example = "416x320")]
    size: Option<String>,
    /// How a photograph is put into it.
    fit: Option<Fit>,
    /// The type of the elements.
    dtype: Option<Dtype>,
    /// Which model; the server's default one if absent.
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

/// How an answer is to be written.
#[derive(Clone, Copy)]
struct Style {
    form: Form,
    dtype: Dtype,
    /// Of embeddings.
    unit: bool,
    /// Whether it is about attention.
    attention: bool,
}

pub(super) async fn features(
    State(app): State<App>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let start = Instant::now();
    let asked = query(parameters)?;
    let form = Form::accepted(request.headers(), [Form::Json, Form::Safetensors, Form::Npz, Form::Png])?;
    if form == Form::Png && (asked.dtype.is_some() || asked.top_k.is_some() || asked.min_confidence.is_some()) {
        return Err(invalid("a picture (`Accept: image/png`) has neither `dtype` nor predictions"));
    }
    // A picture shows one level.
    let default = if form == Form::Png { "c3" } else { "c3,c4,c5" };
    let cut = match asked.cut.unwrap_or_default() {
        CutName::Deepest => Cut::Deepest,
        CutName::Timm => Cut::Timm,
    };
    let outputs = levels(asked.levels.as_deref().unwrap_or(default).split(',').map(str::trim), cut)?;
    if asked.normalize.is_some() && !outputs.contains(&Output::Embedding) {
        return Err(invalid("`normalize` is about the embedding; add `embedding` to `levels`"));
    }
    if form == Form::Png && (outputs.len() > 1 || outputs == [Output::Embedding]) {
        return Err(invalid("a picture (`Accept: image/png`) shows the maps of one level, such as `levels=c4`"));
    }
    let classes = app.service.model(asked.model.as_deref())?.labels.len();
    let wants = asked.top_k.is_some() || asked.min_confidence.is_some();
    let ask = ask(asked.top_k, asked.min_confidence, classes)?;
    let dtype = asked.dtype.unwrap_or_default();
    let wanted = FeaturesRequest {
        model: asked.model,
        outputs,
        size: asked.size.as_deref().map(size).transpose()?,
        fit: asked.fit.unwrap_or_default(),
        ask: wants.then_some(ask),
        element_bytes: dtype.bytes(),
        origin: origin(&app, &request, start)?,
    };
    let style = Style { form, dtype, unit: asked.normalize == Some(true), attention: false };
    answer(app, wanted, style, request, start).await
}

pub(super) async fn attention(
    State(app): State<App>,
    parameters: Result<Query<AttentionParameters>, QueryRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let start = Instant::now();
    let asked = query(parameters)?;
    let form = Form::accepted(request.headers(), [Form::Json, Form::Png, Form::Safetensors, Form::Npz])?;
    if form == Form::Png && asked.dtype.is_some() {
        return Err(invalid("a picture (`Accept: image/png`) has no `dtype`"));
    }
    let model = app.service.model(asked.model.as_deref())?;
    let Some(features) = &model.features else {
        return Err(Error::NoFeatures { model: model.manifest.id.clone() }.into());
    };
    let known: Vec<Output> = features.network.outputs().into_iter().filter(is_attention).collect();
    let layer = match asked.layer.as_deref() {
        None => known.last().copied(),
        Some(name) => {
            let name = name.strip_prefix("blocks.").unwrap_or(name);
            known.iter().find(|output| layer_name(**output) == name).copied()
        }
    };
    let Some(layer) = layer else {
        let names = known.iter().map(|output| layer_name(*output)).collect::<Vec<_>>().join(", ");
        let detail = match asked.layer {
            Some(_) if !known.is_empty() => format!("this model has no attention at that `layer`; it has {names}"),
            _ => "this model has no attention".to_owned(),
        };
        return Err(invalid(detail));
    };
    let dtype = asked.dtype.unwrap_or_default();
    let wanted = FeaturesRequest {
        model: asked.model,
        outputs: vec![layer],
        size: asked.size.as_deref().map(size).transpose()?,
        fit: asked.fit.unwrap_or_default(),
        ask: None,
        element_bytes: dtype.bytes(),
        origin: origin(&app, &request, start)?,
    };
    answer(app, wanted, Style { form, dtype, unit: false, attention: true }, request, start).await
}

/// Whose request it is, how urgent, and until when.
fn origin(app: &App, request: &Request, start: Instant) -> Result<Origin, Problem> {
    let deadline = start + timeout(app, request.headers())?;
    Ok(Origin { priority: priority(request.headers()), client: client(request.extensions()), deadline })
}

/// The way that both take from here.
async fn answer(
    app: App,
    wanted: FeaturesRequest,
    style: Style,
    request: Request,
    start: Instant,
) -> Result<Response, Problem> {
    let origin = wanted.origin;
    // Asked before the body is read, as for classification.
    let plan = Arc::new(app.service.plan_features(wanted)?);
    let images = images(&app, request, start, origin).instrument(spans::stage(Stage::Read)).await?;
    app.metrics.stage(Stage::Read, images.read);
    let single = style.attention || style.form == Form::Png;
    if single && images.files.len() > 1 {
        let detail = format!("this answer is about one image, the request holds {}", images.files.len());
        return Err(Problem::new(Code::TooManyImages, detail));
    }
    let read = images.read;
    let extracted = app.service.features(&plan, images.files).await?;

    let encoding = app.metrics.begin(Stage::Encode);
    let times = extracted.times;
    let elements: usize = plan.shapes.iter().map(|shape| shape.elements()).sum();
    let large = style.form == Form::Png || elements * style.dtype.bytes() * extracted.results.len() > LARGE_ANSWER;
    let (body, memory) = if large {
        let cost = plan.encode_cost(extracted.results.len());
        let plan = Arc::clone(&plan);
        let encode = move || (encode(&plan, &extracted, style), extracted.memory);
        app.service.off_the_runtime(origin, cost, encode).await?
    } else {
        (encode(&plan, &extracted, style), extracted.memory)
    };
    let encode = encoding.end();
    plan.model.features_statistics.wrote(encode);
    app.metrics.stage(Stage::Total, start.elapsed());

    // It counts against the memory for feature maps until it is sent.
    let body = hold(Body::from(body), memory);
    let mut response = ([(header::CONTENT_TYPE, style.form.media_type())], body).into_response();
    if let Ok(timing) = HeaderValue::try_from(server_timing(&stages(read, times, encode))) {
        response.headers_mut().insert(SERVER_TIMING, timing);
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    // Maps are noise to a compressor: it would take longer than the network.
    response.extensions_mut().insert(Uncompressed);
    Ok(response)
}

/// What is told about an image beside its tensors.
#[derive(Serialize)]
#[serde(untagged)]
enum Item<'a> {
    Ok {
        image: &'a ImageInfo,
        geometry: &'a Geometry,
        #[serde(skip_serializing_if = "Option::is_none")]
        predictions: Option<&'a [Prediction]>,
        /// In stacked tensors.
        #[serde(skip_serializing_if = "Option::is_none")]
        row: Option<usize>,
    },
    Failed {
        error: ItemError,
    },
}

#[derive(Serialize)]
struct Head<'a> {
    model: ModelRef<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<Layer>,
}

/// A bottleneck that has attention.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AttentionLayer")]
pub(super) struct Layer {
    /// As the parameter `layer` takes it.
    layer: String,
    channels: usize,
    stride: usize,
}

fn encode(plan: &FeaturePlan, extracted: &Extracted, style: Style) -> Vec<u8> {
    let outputs = &plan.request().outputs;
    let good: Vec<_> = extracted.results.iter().filter_map(|result| result.as_ref().ok()).collect();
    if style.form == Form::Png {
        let Some(extraction) = good.first() else { return Vec::new() };
        let [channels, height, width] = extraction.outputs.shape(0) else { return Vec::new() };
        let (maps, shape) = (extraction.outputs.data(0), [*channels, *height, *width]);
        return picture::png(&match (style.attention, &extraction.view) {
            (true, Some(view)) => picture::overlay(view, maps, shape),
            _ => picture::tiles(maps, shape),
        });
    }
    let tensors: Vec<Tensor<'_>> = outputs
        .iter()
        .zip(&plan.shapes)
        .enumerate()
        .map(|(i, (output, shape))| Tensor {
            name: tensor_name(*output),
            shape: shape.shape.clone(),
            stride: shape.stride,
            rows: good.iter().map(|extraction| extraction.outputs.data(i)).collect(),
            unit: style.unit && *output == Output::Embedding,
        })
        .collect();
    let mut rows = 0..;
    let stacked = style.form != Form::Json;
    let items: Vec<(Item<'_>, Option<usize>)> = extracted
        .results
        .iter()
        .map(|result| match result {
            Ok(extraction) => {
                let row = rows.next();
                let predictions = extraction.predictions.as_deref();
                let (image, geometry) = (&extraction.image, &extraction.geometry);
                (Item::Ok { image, geometry, predictions, row: row.filter(|_| stacked) }, row)
            }
            Err(error) => (Item::Failed { error: ItemError::of(error) }, None),
        })
        .collect();
    let manifest = &plan.model.manifest;
    let model = ModelRef { id: &manifest.id, digest: manifest.network.digest.as_str() };
    let layers = if style.attention { layers(plan) } else { Vec::new() };
    match style.form {
        Form::Json | Form::Png => json(&Head { model, layers }, &items, &tensors, style.dtype),
        Form::Safetensors | Form::Npz => {
            let items: Vec<_> = items.into_iter().map(|(item, _)| item).collect();
            let strides: serde_json::Map<_, _> =
                tensors.iter().filter(|t| t.stride > 0).map(|t| (t.name.clone(), t.stride.into())).collect();
            let about = [
                ("model", manifest.id.clone()),
                ("digest", manifest.network.digest.to_string()),
                ("results", text(&items)),
                ("strides", text(&strides)),
            ];
            if style.form == Form::Safetensors {
                return safetensors(&about, &tensors, style.dtype);
            }
            #[derive(Serialize)]
            struct About<'a> {
                #[serde(flatten)]
                head: Head<'a>,
                results: Vec<Item<'a>>,
                strides: serde_json::Map<String, serde_json::Value>,
            }
            let about = text(&About { head: Head { model, layers }, results: items, strides });
            npz(&[("about.json", about.into_bytes())], &tensors, style.dtype)
        }
    }
}

// Strings and finite numbers always serialise.
fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn layers(plan: &FeaturePlan) -> Vec<Layer> {
    plan.model.features.as_ref().map(|features| attention_layers(&features.network, plan.size())).unwrap_or_default()
}

/// The bottlenecks with attention, and how their gates look at an input size.
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

fn query<P: DeserializeOwned>(parameters: Result<Query<P>, QueryRejection>) -> Result<P, Problem> {
    parameters.map(|Query(parameters)| parameters).map_err(|e| Problem::new(Code::InvalidParameter, e.body_text()))
}
