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
use crate::heatmap::{self, ValueRange};
use crate::preprocess::{Fit, Geometry, ImageInfo};
use crate::server::app::App;
use crate::server::encode::{EncodeTimer, encode_features};
use crate::server::parameters::{invalid, levels, prediction_options, size, tensor_name};
use crate::server::problem::Problem;
use crate::server::retain::RetainBody;
use crate::server::tensors::{AnswerTensor, ElementType, json, npz, safetensors};
use crate::service::{AttentionGate, Code, Error, Extracted, FeaturePlan, FeaturesRequest, Prediction};
use ghostserve_ghostnet::{Cut, Network, Output, Size};

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
    /// The bottleneck, such as `6.4`. If absent, the deepest whose gate has at least 7x7 cells at the size of this
    /// request; at a size where none has, the one with the most cells.
    #[schemars(example = "6.4")]
    layer: Option<String>,
    /// Size of the network's input, `N` or `WIDTHxHEIGHT`, in multiples of 32. If absent, the model's own size, or a
    /// larger one with a shorter side of 224 if that is smaller (and within the server's limit of pixels): on a small
    /// input, the deep gates have too few cells to show anything.
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
    let Some(features) = &model.features else {
        return Err(Error::NoFeatures { model: model.manifest.id.clone() }.into());
    };
    let default_size = || features.attention_size(model.manifest.input.crop);
    let size = parameters.size.as_deref().map(size).transpose()?.unwrap_or_else(default_size);
    let gates = AttentionGate::all(&features.network, size);
    let gate = attention_gate(&gates, parameters.layer.as_deref())?;
    let larger = features.attention_size(size);
    let dtype = parameters.dtype.unwrap_or_default();
    let plan = app.service.plan_features(FeaturesRequest {
        outputs: vec![gate.output],
        model,
        size: Some(size),
        fit: parameters.fit.unwrap_or_default(),
        predictions: None,
        element_bytes: dtype.bytes(),
        context: request_context(&app, client, request.headers(), start)?,
    })?;
    if format == Png {
        check_gate_has_cells(&gate, &gates, size, larger)?;
    }
    // Read, run and encode.
    answer(app, plan, AnswerStyle { format, dtype, unit: false, attention: true }, request, start).await
}

/// The gate of a bottleneck, or the default one.
fn attention_gate(gates: &[AttentionGate], layer: Option<&str>) -> Result<AttentionGate, Problem> {
    let found = match layer {
        None => AttentionGate::default_of(gates),
        Some(name) => {
            let name = name.strip_prefix("blocks.").unwrap_or(name);
            gates.iter().find(|gate| gate.layer() == name)
        }
    };
    found.cloned().ok_or_else(|| {
        let names = gates.iter().map(AttentionGate::layer).collect::<Vec<_>>().join(", ");
        invalid(match layer {
            Some(_) if !gates.is_empty() => format!("this model has no attention at that `layer`; it has {names}"),
            _ => "this model has no attention".to_owned(),
        })
    })
}

/// Refuses a picture of a single cell, before the image is read. `gates` are all at this size of the input, and
/// `larger` is the size that shows more, if there is one.
fn check_gate_has_cells(
    gate: &AttentionGate,
    gates: &[AttentionGate],
    size: [usize; 2],
    larger: [usize; 2],
) -> Result<(), Problem> {
    let is_shown = |gate: &&AttentionGate| gate.cells().iter().product::<usize>() > 1;
    if is_shown(&gate) {
        return Ok(());
    }
    let other = AttentionGate::default_of(gates).filter(is_shown).map(|other| {
        let [rows, columns] = other.cells();
        format!("`layer={}`, which has {columns}x{rows}", other.layer())
    });
    let [larger_height, larger_width] = larger;
    let larger = (larger != size).then(|| format!("a larger `size`, such as {larger_width}x{larger_height}"));
    let advice: Vec<_> = other.into_iter().chain(larger).collect();
    let [height, width] = size;
    let mut detail = format!(
        "the gate of `layer={}` has one cell at size {width}x{height}, so its picture would be of one colour",
        gate.layer()
    );
    if !advice.is_empty() {
        detail += &format!("; ask for {}", advice.join(", or for "));
    }
    Err(invalid(detail))
}

/// Refuses a picture of a gate that is equally open everywhere. `gate` has the shape channels × height × width.
fn check_gate_varies(gate: &[f32], shape: [usize; 3]) -> Result<(), Problem> {
    let range = ValueRange::of(&heatmap::channel_mean(gate, shape));
    if !range.is_one_value() {
        return Ok(());
    }
    let value = if range.low.is_finite() { format!(" ({:.3})", range.low) } else { String::new() };
    Err(invalid(format!(
        "the gate has the same value{value} in all of its cells on this image, so its picture would be of one \
         colour; ask for another `layer`, or for the numbers with `Accept: application/json`"
    )))
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
    if let (true, Some(Ok(extraction))) = (png && style.attention, extracted.results.first())
        && let [channels, height, width] = *extraction.outputs.shape(0)
    {
        check_gate_varies(extraction.outputs.data(0), [channels, height, width])?;
    }
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
    if let (true, Some(name)) = (png, plan.request().outputs.first()) {
        // The header says which layer a picture shows if the request did not, and names the file in browsers.
        let name = format!("inline; filename=\"{name}.png\"");
        response.headers_mut().extend(HeaderValue::from_str(&name).ok().map(|v| (header::CONTENT_DISPOSITION, v)));
    }
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
    /// The bottleneck of this answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<String>,
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
    /// Cells of the gate from top to bottom, at the size of the network's input.
    height: usize,
    /// Cells of the gate from left to right, at the size of the network's input.
    width: usize,
    /// Pixels of the network's input per cell, in one direction. Cell (row, column) is computed around the square of
    /// this side whose upper left corner is at (row * stride, column * stride). Where the stride does not divide the
    /// input, no cell is computed of the rest at the right and lower edge. The gate is then enlarged to the size of
    /// the features that it multiplies, so that its cells act on equal parts of the whole input.
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
            (true, Some(view)) => heatmap::attention_figure(view, maps, shape),
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
    let attention = plan.model().features.as_ref().filter(|_| style.attention);
    let layers = attention.map(|features| attention_layers(&features.network, plan.size())).unwrap_or_default();
    let layer = attention.and(outputs.first()).map(|output| AttentionGate::layer_of(*output));
    let head = FeatureHead { model, layer, layers };
    match style.format {
        AnswerFormat::Json | AnswerFormat::Png => json(&head, &items, &tensors, style.dtype),
        AnswerFormat::Safetensors | AnswerFormat::Npz => {
            let items: Vec<_> = items.into_iter().map(|(item, _)| item).collect();
            let strides: serde_json::Map<_, _> =
                tensors.iter().filter(|t| t.stride > 0).map(|t| (t.name.clone(), t.stride.into())).collect();
            let mut metadata = vec![
                ("model", manifest.id.clone()),
                ("digest", plan.model().digest.to_string()),
                ("results", text(&items)),
                ("strides", text(&strides)),
            ];
            metadata.extend(head.layer.clone().map(|layer| ("layer", layer)));
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
            let about = text(&About { head, results: items, strides });
            npz(&[("about.json", about.into_bytes())], &tensors, style.dtype)
        }
    }
}

/// A value as JSON.
fn text(value: &impl Serialize) -> String {
    // Strings and finite numbers always serialise.
    serde_json::to_string(value).unwrap_or_default()
}

/// The bottlenecks with attention, and the shapes of their gates at an input size.
pub(super) fn attention_layers(network: &Network, Size { height, width }: Size) -> Vec<Layer> {
    let layer = |gate: &AttentionGate| {
        let [height, width] = gate.cells();
        let channels = *gate.shape.shape.first()?;
        Some(Layer { layer: gate.layer(), channels, height, width, stride: gate.shape.stride })
    };
    AttentionGate::all(network, [height, width]).iter().filter_map(layer).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_of_one_value_has_no_picture() {
        // Two channels whose mean is the same in all cells.
        let one_value = [0.2, 0.4, 0.6, 0.8, 0.8, 0.6, 0.4, 0.2];
        assert!(check_gate_varies(&one_value, [2, 2, 2]).is_err());
        assert!(check_gate_varies(&[f32::NAN; 4], [1, 2, 2]).is_err());
        assert!(check_gate_varies(&[0.2, 0.4, 0.6, 0.8], [1, 2, 2]).is_ok());
    }
}
