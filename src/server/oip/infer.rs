//! Inference in the protocol's words: one tensor of images in, tensors out. The protocol has no outcome for each image: if one is
//! bad, the request fails and says which.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::about::feature_outputs;
use super::{InputTensor, Named, PROBABILITIES, VERSION, find};
use crate::cores::Priority;
use crate::fair_share::Share;
use crate::preprocess::{Fit, Origin, Source};
use crate::server::app::App;
use crate::server::asked::{invalid, levels, size, tensor_name};
use crate::server::http::{Dtype, LARGE_ANSWER, write_row};
use crate::server::problem::Problem;
use crate::service::{Code, Error, Extracted, FeaturePlan, FeaturesRequest, Scored, ScoresRequest, probabilities, top};
use crate::telemetry::Stage;
use ghostserve_ghostnet::{Cut, Output};
use ghostserve_manifest::OutputKind;

/// A request, from either encoding.
#[derive(Debug)]
pub(in crate::server) struct InferRequest {
    pub(in crate::server) model: String,
    pub(in crate::server) version: String,
    pub(in crate::server) id: String,
    pub(in crate::server) parameters: BTreeMap<String, Parameter>,
    pub(in crate::server) inputs: Vec<InputTensor>,
    /// All outputs if there are none.
    pub(in crate::server) outputs: Vec<Wanted>,
    pub(in crate::server) origin: Origin,
    pub(in crate::server) start: Instant,
}

/// The value of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::server) enum Parameter {
    Bool(bool),
    Number(f64),
    Text(String),
}

/// An output that is asked for.
#[derive(Clone, Debug, Default)]
pub(in crate::server) struct Wanted {
    pub(in crate::server) name: String,
    /// Not the numbers, but so many classes.
    pub(in crate::server) classification: usize,
}

/// An answer, for either encoding.
pub(in crate::server) struct InferResponse {
    pub(in crate::server) model: Named,
    pub(in crate::server) id: String,
    pub(in crate::server) outputs: Vec<OutputTensor>,
    /// To be kept until the answer is sent.
    pub(in crate::server) memory: Option<Share>,
}

/// An output.
#[derive(Debug)]
pub(in crate::server) struct OutputTensor {
    pub(in crate::server) name: String,
    pub(in crate::server) datatype: &'static str,
    pub(in crate::server) shape: Vec<i64>,
    /// As in [`super::Elements::Raw`].
    pub(in crate::server) data: Vec<u8>,
}

/// What a request's parameters may say.
#[derive(Default)]
struct Options {
    size: Option<[usize; 2]>,
    fit: Fit,
    timm: bool,
    half: bool,
    unit: bool,
}

impl Options {
    /// Reads the parameters; those that ask for something else than what is written here are refused, as everywhere.
    fn read(request: &mut InferRequest, features: bool) -> Result<Self, Problem> {
        let mut options = Self::default();
        for (name, value) in &request.parameters {
            let wrong = |expected: &str| invalid(format!("the parameter `{name}` is {expected}, found {value:?}"));
            match (name.as_str(), value) {
                // Of sequences there are none, so it does not matter where one begins.
                ("sequence_id" | "sequence_start" | "sequence_end" | "binary_data_output", _) => {}
                // What Triton's clients tell Triton unasked, such as whether a stream's end is to be marked.
                (name, _) if name.starts_with("triton_") => {}
                ("priority", Parameter::Number(priority)) => {
                    // 1 is the highest; 0 says nothing.
                    if *priority > 1.0 {
                        request.origin.priority = Priority::Background;
                    }
                }
                ("timeout", Parameter::Number(microseconds)) if (0.0..1e15).contains(microseconds) => {
                    if *microseconds > 0.0 {
                        let asked = request.start + Duration::from_micros(*microseconds as u64);
                        request.origin.deadline = request.origin.deadline.min(asked);
                    }
                }
                ("size", Parameter::Text(text)) if features => options.size = Some(size(text)?),
                ("size", Parameter::Number(side)) if features && side.fract() == 0.0 => {
                    options.size = Some(size(&side.to_string())?);
                }
                ("fit", Parameter::Text(text)) if features => {
                    options.fit = match text.as_str() {
                        "crop" => Fit::Crop,
                        "letterbox" => Fit::Letterbox,
                        "stretch" => Fit::Stretch,
                        _ => return Err(wrong("crop, letterbox or stretch")),
                    }
                }
                ("cut", Parameter::Text(text)) if features => {
                    options.timm = match text.as_str() {
                        "deepest" => false,
                        "timm" => true,
                        _ => return Err(wrong("deepest or timm")),
                    }
                }
                ("dtype", Parameter::Text(text)) if features => {
                    options.half = match text.as_str() {
                        "f32" => false,
                        "f16" => true,
                        _ => return Err(wrong("f32 or f16")),
                    }
                }
                ("normalize", Parameter::Bool(unit)) if features => options.unit = *unit,
                ("priority" | "timeout", _) => return Err(wrong("a whole number")),
                ("size" | "fit" | "cut" | "dtype", _) if features => return Err(wrong("a text")),
                ("normalize", _) if features => return Err(wrong("true or false")),
                _ => {
                    let known = match features {
                        true => "priority, timeout, size, fit, cut, dtype and normalize",
                        false => "priority and timeout",
                    };
                    let name: String = name.chars().take(50).collect();
                    return Err(invalid(format!("the parameter `{name}` is not known; this model has {known}")));
                }
            }
        }
        Ok(options)
    }
}

/// Answers a request.
pub(in crate::server) async fn infer(app: &App, mut request: InferRequest) -> Result<InferResponse, Problem> {
    let model = find(app, &request.model, &request.version)?;
    let mut options = Options::read(&mut request, model.features)?;
    let count = request.inputs.len();
    let (Some(input), 1) = (request.inputs.pop(), count) else {
        let detail = format!("the model has one input, `{}`; the request has {count}", super::INPUT);
        return Err(Problem::new(Code::InvalidRequest, detail));
    };
    options.size = options.size.or(input.size().filter(|_| model.features));
    let images = input.images(app.config.request.max_images)?;
    let (outputs, memory) = match model.features {
        false => (classify(app, &model, &request, images).await?, None),
        true => {
            let (outputs, memory) = features(app, &model, &request, (images, options)).await?;
            (outputs, Some(memory))
        }
    };
    app.metrics.stage(Stage::Total, request.start.elapsed());
    Ok(InferResponse { model, id: request.id, outputs, memory })
}

fn no_output(model: &Named, found: &str, known: &str) -> Problem {
    let found: String = found.chars().take(100).collect();
    invalid(format!("model `{}` has no output `{found}`; it has {known}", model.name()))
}

/// The first error, with the image that it is about.
fn each<O>(results: Vec<Result<O, Error>>) -> Result<Vec<O>, Problem> {
    let count = results.len();
    let mut good = Vec::with_capacity(count);
    for (i, result) in results.into_iter().enumerate() {
        match result {
            Ok(result) => good.push(result),
            Err(error) if count == 1 => return Err(error.into()),
            Err(error) => {
                let mut problem = Problem::from(error);
                problem.detail = format!("image {} of {count}: {}", i + 1, problem.detail);
                return Err(problem);
            }
        }
    }
    Ok(good)
}

async fn classify(
    app: &App,
    model: &Named,
    request: &InferRequest,
    images: Vec<Result<Source, Error>>,
) -> Result<Vec<OutputTensor>, Problem> {
    let all = [Wanted { name: PROBABILITIES.to_owned(), classification: 0 }];
    let wanted = if request.outputs.is_empty() { &all[..] } else { &request.outputs[..] };
    if let Some(other) = wanted.iter().find(|wanted| wanted.name != PROBABILITIES) {
        return Err(no_output(model, &other.name, PROBABILITIES));
    }
    if wanted.len() > 1 {
        return Err(invalid(format!("`{PROBABILITIES}` is asked for {} times", wanted.len())));
    }
    let served = &model.served;
    let scores =
        app.service.scores(ScoresRequest { model: Some(served.manifest.id.clone()), images, origin: request.origin });
    let rows = each(scores.await?.rows)?;
    let encoding = app.metrics.begin(Stage::Encode);
    let output = encode_scores(model, &rows, wanted.first().map_or(0, |wanted| wanted.classification));
    served.statistics.wrote(encoding.end());
    Ok(vec![output])
}

/// Probabilities as FP32; or so many classes, each as a text of probability, index and label, as Triton writes them.
fn encode_scores(model: &Named, rows: &[Arc<Scored>], classification: usize) -> OutputTensor {
    let (labels, kind): (_, OutputKind) = (&model.served.labels, model.served.manifest.network.output);
    let mut data = Vec::with_capacity(rows.len() * labels.len() * 4);
    let classes = classification.min(labels.len());
    for row in rows {
        let probabilities = probabilities(row.scores.clone(), kind);
        if classes == 0 {
            probabilities.iter().for_each(|p| data.extend_from_slice(&p.to_le_bytes()));
            continue;
        }
        for class in top(&probabilities, classes, 0.0) {
            let mut text = String::new();
            // A `String` takes everything.
            let _ = write!(text, "{:.6}:{class}:{}", probabilities[class], labels[class].name);
            data.extend_from_slice(&(text.len() as u32).to_le_bytes());
            data.extend_from_slice(text.as_bytes());
        }
    }
    let (datatype, columns) = if classes == 0 { ("FP32", labels.len()) } else { ("BYTES", classes) };
    let shape = vec![rows.len() as i64, columns as i64];
    OutputTensor { name: PROBABILITIES.to_owned(), datatype, shape, data }
}

async fn features(
    app: &App,
    model: &Named,
    request: &InferRequest,
    (images, options): (Vec<Result<Source, Error>>, Options),
) -> Result<(Vec<OutputTensor>, Share), Problem> {
    let known: Vec<String> = feature_outputs(model).into_iter().map(tensor_name).collect();
    for wanted in &request.outputs {
        if !known.contains(&wanted.name) {
            return Err(no_output(model, &wanted.name, &known.join(", ")));
        }
        if wanted.classification > 0 {
            return Err(invalid(format!("`{}` has no classes: leave out `classification`", wanted.name)));
        }
    }
    let names: Vec<&str> = match request.outputs.is_empty() {
        true => known.iter().map(String::as_str).collect(),
        false => request.outputs.iter().map(|wanted| wanted.name.as_str()).collect(),
    };
    let dtype = if options.half { Dtype::F16 } else { Dtype::F32 };
    let plan = Arc::new(app.service.plan_features(FeaturesRequest {
        model: Some(model.served.manifest.id.clone()),
        outputs: levels(names.iter().copied(), if options.timm { Cut::Timm } else { Cut::Deepest })?,
        size: options.size,
        fit: options.fit,
        ask: None,
        element_bytes: dtype.bytes(),
        origin: request.origin,
    })?);
    let mut extracted = app.service.features(&plan, images).await?;
    let rows = each(std::mem::take(&mut extracted.results))?;
    extracted.results = rows.into_iter().map(Ok).collect();

    let encoding = app.metrics.begin(Stage::Encode);
    // In the order in which they were asked for.
    let order: Vec<usize> = {
        let outputs = &plan.request().outputs;
        names.iter().filter_map(|name| outputs.iter().position(|output| tensor_name(*output) == **name)).collect()
    };
    let elements: usize = plan.shapes.iter().map(|shape| shape.elements()).sum();
    let large = elements * dtype.bytes() * extracted.results.len() > LARGE_ANSWER;
    let (encode_plan, style) = (Arc::clone(&plan), (dtype, options.unit));
    let cost = plan.encode_cost(extracted.results.len());
    let encode = move || {
        let tensor = |i: &usize| encode_maps(&encode_plan, &extracted, *i, style);
        (order.iter().map(tensor).collect(), extracted.memory)
    };
    let encoded = match large {
        true => app.service.off_the_runtime(request.origin, cost, encode).await?,
        false => encode(),
    };
    plan.model.features_statistics.wrote(encoding.end());
    Ok(encoded)
}

fn encode_maps(plan: &FeaturePlan, extracted: &Extracted, i: usize, (dtype, unit): (Dtype, bool)) -> OutputTensor {
    let (output, shape) = (plan.request().outputs[i], &plan.shapes[i].shape);
    let images = extracted.results.iter().filter_map(|result| result.as_ref().ok());
    let unit = unit && output == Output::Embedding;
    let mut data = Vec::with_capacity(extracted.results.len() * plan.shapes[i].elements() * dtype.bytes());
    for extraction in images {
        write_row(extraction.outputs.data(i), (dtype, unit), |bytes| data.extend_from_slice(bytes));
    }
    let shape = std::iter::once(extracted.results.len()).chain(shape.iter().copied()).map(|n| n as i64).collect();
    let datatype = if dtype == Dtype::F16 { "FP16" } else { "FP32" };
    OutputTensor { name: tensor_name(output), datatype, shape, data }
}

impl InferResponse {
    pub(in crate::server) fn version() -> &'static str {
        VERSION
    }
}
