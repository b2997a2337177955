//! Runs an inference request and encodes its tensors. The protocol has no outcome per image: if one is bad, the
//! request fails, and its error names the image.

use std::fmt::Write;
use std::sync::Arc;

use super::plan::{InferKind, InferPlan, MapsPlan, ScoresPlan};
use super::{NamedModel, PROBABILITIES};
use crate::fair_share::Share;
use crate::preprocess::Source;
use crate::server::app::App;
use crate::server::encode::{EncodeTimer, encode_features};
use crate::server::parameters::tensor_name;
use crate::server::problem::Problem;
use crate::server::tensors::{ElementFormat, ElementType, write_row};
use crate::service::{Error, Extracted, FeaturePlan, Scored, ServedModel, probabilities, top};
use ghostserve_ghostnet::Output;

/// An answer, for either encoding.
pub(in crate::server) struct InferResponse {
    pub(in crate::server) model: NamedModel,
    pub(in crate::server) id: String,
    pub(in crate::server) outputs: Vec<OutputTensor>,
    /// The memory of feature maps, which the answer takes until it is sent.
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

/// Runs and encodes a planned request.
pub(in crate::server) async fn infer(
    app: &App,
    plan: InferPlan,
    images: Vec<Result<Source, Error>>,
) -> Result<InferResponse, Problem> {
    let InferPlan { model, id, start, kind } = plan;
    let (outputs, memory) = match kind {
        InferKind::Scores(ScoresPlan { plan, classification }) => {
            // Run.
            let rows = all_or_first_error(app.service.scores(&plan, images).await?.rows)?;
            // Encode.
            let timer = EncodeTimer::start(app, &plan.model.statistics, start);
            let output = encode_scores(&plan.model, &rows, classification);
            timer.finish();
            (vec![output], None)
        }
        InferKind::Features(MapsPlan { plan, order, format }) => {
            // Run.
            let mut extracted = app.service.features(&plan, images).await?;
            let extractions = all_or_first_error(std::mem::take(&mut extracted.results))?;
            extracted.results = extractions.into_iter().map(Ok).collect();
            // Encode.
            let timer = EncodeTimer::start(app, &plan.model().features_statistics, start);
            let encode = move |plan: &FeaturePlan, extracted: &Extracted| {
                order.iter().map(|index| encode_maps(plan, extracted, *index, format)).collect()
            };
            let (outputs, memory) = encode_features(app, &plan, extracted, false, encode).await?;
            timer.finish();
            (outputs, Some(memory))
        }
    };
    Ok(InferResponse { model, id, outputs, memory })
}

/// The results of all images, or the first error with the position of its image.
fn all_or_first_error<O>(results: Vec<Result<O, Error>>) -> Result<Vec<O>, Problem> {
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

/// Probabilities as FP32. Or, with `classification`, that many classes per image, each as a text of probability,
/// index and label, as Triton writes them.
fn encode_scores(model: &ServedModel, rows: &[Arc<Scored>], classification: usize) -> OutputTensor {
    let (labels, kind) = (&model.labels, model.manifest.network.output);
    let mut data = Vec::with_capacity(rows.len() * labels.len() * 4);
    let classes = classification.min(labels.len());
    for row in rows {
        let row = probabilities(row.scores.clone(), kind);
        if classes == 0 {
            row.iter().for_each(|p| data.extend_from_slice(&p.to_le_bytes()));
            continue;
        }
        for class in top(&row, classes, 0.0) {
            let mut text = String::new();
            // Writing to a `String` does not fail.
            let _ = write!(text, "{:.6}:{class}:{}", row[class], labels[class].name);
            data.extend_from_slice(&(text.len() as u32).to_le_bytes());
            data.extend_from_slice(text.as_bytes());
        }
    }
    let (datatype, columns) = if classes == 0 { ("FP32", labels.len()) } else { ("BYTES", classes) };
    let shape = vec![rows.len() as i64, columns as i64];
    OutputTensor { name: PROBABILITIES.to_owned(), datatype, shape, data }
}

/// One output of the plan, for all images.
fn encode_maps(plan: &FeaturePlan, extracted: &Extracted, index: usize, format: ElementFormat) -> OutputTensor {
    let (output, shape) = (plan.request().outputs[index], &plan.shapes[index].shape);
    let extractions = extracted.results.iter().filter_map(|result| result.as_ref().ok());
    let format = ElementFormat { unit: format.unit && output == Output::Embedding, ..format };
    let bytes = plan.shapes[index].elements() * format.dtype.bytes();
    let mut data = Vec::with_capacity(extracted.results.len() * bytes);
    for extraction in extractions {
        write_row(extraction.outputs.data(index), format, |bytes| data.extend_from_slice(bytes));
    }
    let shape = std::iter::once(extracted.results.len()).chain(shape.iter().copied()).map(|n| n as i64).collect();
    let datatype = if format.dtype == ElementType::F16 { "FP16" } else { "FP32" };
    OutputTensor { name: tensor_name(output), datatype, shape, data }
}
