//! The plan of an inference request: it is made when the request is read, because parameters and outputs are in its
//! body.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::metadata::feature_outputs;
use super::options::InferOptions;
use super::{InputTensor, NamedModel, PROBABILITIES};
use crate::preprocess::{RequestContext, Source};
use crate::server::app::App;
use crate::server::parameters::{invalid, levels, tensor_name};
use crate::server::problem::Problem;
use crate::server::tensors::ElementFormat;
use crate::service::{ClassifyPlan, Code, Error, FeaturePlan, FeaturesRequest};
use crate::text::shortened;

/// A request, from either encoding.
#[derive(Debug)]
pub(in crate::server) struct InferRequest {
    pub(in crate::server) id: String,
    pub(in crate::server) parameters: BTreeMap<String, Parameter>,
    pub(in crate::server) inputs: Vec<InputTensor>,
    /// All outputs if it is empty.
    pub(in crate::server) outputs: Vec<RequestedOutput>,
    pub(in crate::server) context: RequestContext,
    pub(in crate::server) start: Instant,
}

/// The value of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::server) enum Parameter {
    Bool(bool),
    Number(f64),
    Text(String),
}

/// A requested output.
#[derive(Clone, Debug, Default)]
pub(in crate::server) struct RequestedOutput {
    pub(in crate::server) name: String,
    /// If not 0: this number of classes per image instead of the numbers.
    pub(in crate::server) classification: usize,
}

/// A request whose model is known and whose parameters are valid.
pub(in crate::server) struct InferPlan {
    pub(super) model: NamedModel,
    pub(super) id: String,
    pub(super) start: Instant,
    pub(super) kind: InferKind,
}

/// Which of the protocol's models a plan is for.
pub(super) enum InferKind {
    Scores(ScoresPlan),
    Features(MapsPlan),
}

/// A plan for the classifier.
pub(super) struct ScoresPlan {
    pub(super) plan: ClassifyPlan,
    /// See [`RequestedOutput`].
    pub(super) classification: usize,
}

/// A plan for feature maps.
pub(super) struct MapsPlan {
    pub(super) plan: Arc<FeaturePlan>,
    /// The index of each requested output in the plan.
    pub(super) order: Vec<usize>,
    pub(super) format: ElementFormat,
}

/// Plans a request to a model, and takes the images out of it.
pub(in crate::server) fn plan_infer(
    app: &App,
    model: NamedModel,
    mut request: InferRequest,
) -> Result<(InferPlan, Vec<Result<Source, Error>>), Problem> {
    let mut options = InferOptions::read(&mut request, model.features)?;
    let count = request.inputs.len();
    let (Some(input), 1) = (request.inputs.pop(), count) else {
        let detail = format!("the model has one input, `{}`; the request has {count}", super::INPUT);
        return Err(Problem::new(Code::InvalidRequest, detail));
    };
    options.size = options.size.or(input.size().filter(|_| model.features));
    let images = input.images(app.config.request.max_images_per_request)?;
    let kind = match model.features {
        false => InferKind::Scores(plan_scores(&model, &request)?),
        true => InferKind::Features(plan_maps(app, &model, &request, &options)?),
    };
    Ok((InferPlan { model, id: request.id, start: request.start, kind }, images))
}

fn plan_scores(model: &NamedModel, request: &InferRequest) -> Result<ScoresPlan, Problem> {
    let outputs = &request.outputs;
    if let Some(other) = outputs.iter().find(|output| output.name != PROBABILITIES) {
        return Err(no_output(model, &other.name, PROBABILITIES));
    }
    if outputs.len() > 1 {
        return Err(invalid(format!("`{PROBABILITIES}` is asked for {} times", outputs.len())));
    }
    Ok(ScoresPlan {
        plan: ClassifyPlan::new(Arc::clone(&model.served), request.context),
        classification: outputs.first().map_or(0, |output| output.classification),
    })
}

fn plan_maps(
    app: &App,
    model: &NamedModel,
    request: &InferRequest,
    options: &InferOptions,
) -> Result<MapsPlan, Problem> {
    let known: Vec<String> = feature_outputs(model).into_iter().map(tensor_name).collect();
    for output in &request.outputs {
        if !known.contains(&output.name) {
            return Err(no_output(model, &output.name, &known.join(", ")));
        }
        if output.classification > 0 {
            return Err(invalid(format!("`{}` has no classes: leave out `classification`", output.name)));
        }
    }
    let names: Vec<&str> = match request.outputs.is_empty() {
        true => known.iter().map(String::as_str).collect(),
        false => request.outputs.iter().map(|output| output.name.as_str()).collect(),
    };
    let plan = app.service.plan_features(FeaturesRequest {
        model: Arc::clone(&model.served),
        outputs: levels(names.iter().copied(), options.cut)?,
        size: options.size,
        fit: options.fit,
        predictions: None,
        element_bytes: options.dtype.bytes(),
        context: request.context,
    })?;
    let order = {
        let outputs = &plan.request().outputs;
        names.iter().filter_map(|name| outputs.iter().position(|output| tensor_name(*output) == **name)).collect()
    };
    let format = ElementFormat { dtype: options.dtype, unit: options.unit };
    Ok(MapsPlan { plan: Arc::new(plan), order, format })
}

fn no_output(model: &NamedModel, found: &str, known: &str) -> Problem {
    invalid(format!("model `{}` has no output `{}`; it has {known}", model.name(), shortened(found, 100)))
}
