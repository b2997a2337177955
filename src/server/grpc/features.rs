//! `ExtractFeatures`.

use std::sync::Arc;

use tonic::Response;

use super::Grpc;
use super::call::Call;
use super::messages::{
    geometry_message, image_error, image_info, model_name, model_reference, prediction_message, priority, read_images,
    timing,
};
use crate::preprocess::{Fit, RequestContext};
use crate::server::encode::{EncodeTimer, encode_features};
use crate::server::parameters::{levels, prediction_options, tensor_name};
use crate::server::problem::Problem;
use crate::server::retain::RetainedMemory;
use crate::server::tensors::{ElementFormat, ElementType, write_row};
use crate::service::{Error, Extracted, Extraction, FeaturePlan, FeaturesRequest};
use ghostserve_ghostnet::{Cut, Output, OutputShape};
use ghostserve_proto::v1;

impl Grpc {
    /// Answers one request for features.
    pub(super) async fn extract(
        &self,
        call: &Call,
        mut request: v1::ExtractFeaturesRequest,
    ) -> Result<Response<v1::ExtractFeaturesResponse>, Problem> {
        // Read: the number of images is checked before the parameters.
        let files = std::mem::take(&mut request.images);
        let images = read_images(files, self.app.config.request.max_images_per_request)?;
        // Plan.
        let dtype = match request.dtype() {
            v1::Dtype::Unspecified | v1::Dtype::F32 => ElementType::F32,
            v1::Dtype::F16 => ElementType::F16,
        };
        let format = ElementFormat { dtype, unit: request.normalize };
        let plan = Arc::new(self.plan_features(call, &request, dtype)?);
        // Run.
        let extracted = self.app.service.features(&plan, images).await?;
        // Encode.
        let timer = EncodeTimer::start(&self.app, &plan.model().features_statistics, call.start);
        let encode = move |plan: &FeaturePlan, extracted: &Extracted| encode_message(plan, extracted, format);
        let (message, memory) = encode_features(&self.app, &plan, extracted, false, encode).await?;
        timer.finish();
        let mut response = Response::new(message);
        response.extensions_mut().insert(RetainedMemory::new(memory));
        Ok(response)
    }

    fn plan_features(
        &self,
        call: &Call,
        request: &v1::ExtractFeaturesRequest,
        dtype: ElementType,
    ) -> Result<FeaturePlan, Problem> {
        let service = &self.app.service;
        let cut = match request.cut() {
            v1::Cut::Unspecified | v1::Cut::Deepest => Cut::Deepest,
            v1::Cut::Timm => Cut::Timm,
        };
        let fit = match request.fit() {
            v1::Fit::Unspecified | v1::Fit::Crop => Fit::Crop,
            v1::Fit::Letterbox => Fit::Letterbox,
            v1::Fit::Stretch => Fit::Stretch,
        };
        let names: Vec<&str> = match request.levels.is_empty() {
            true => vec!["c3", "c4", "c5"],
            false => request.levels.iter().map(String::as_str).collect(),
        };
        let outputs = levels(names, cut)?;
        let model = Arc::clone(service.model(model_name(&request.model))?);
        let predictions = prediction_options(request.top_k.map(|k| k as usize), request.min_confidence, &model)?;
        let with_predictions = request.top_k.is_some() || request.min_confidence.is_some();
        let priority_of_message = priority(request.priority(), call.priority);
        let context = RequestContext { priority: priority_of_message, ..call.context(call.start) };
        Ok(service.plan_features(FeaturesRequest {
            model,
            outputs,
            size: request.size.map(|size| [size.height as usize, size.width as usize]),
            fit,
            predictions: with_predictions.then_some(predictions),
            element_bytes: dtype.bytes(),
            context,
        })?)
    }
}

fn encode_message(plan: &FeaturePlan, extracted: &Extracted, format: ElementFormat) -> v1::ExtractFeaturesResponse {
    use v1::features_result::Outcome;
    let outputs = &plan.request().outputs;
    let extractions: Vec<_> = extracted.results.iter().filter_map(|result| result.as_ref().ok()).collect();
    let tensor = |(i, (output, shape)): (usize, (&Output, &OutputShape))| {
        let format = ElementFormat { unit: format.unit && *output == Output::Embedding, ..format };
        let mut data = Vec::with_capacity(extractions.len() * shape.elements() * format.dtype.bytes());
        for extraction in &extractions {
            write_row(extraction.outputs.data(i), format, |bytes| data.extend_from_slice(bytes));
        }
        v1::Tensor {
            name: tensor_name(*output),
            dtype: v1::Dtype::from(format.dtype).into(),
            shape: std::iter::once(extractions.len()).chain(shape.shape.iter().copied()).map(|n| n as u32).collect(),
            stride: shape.stride as u32,
            data: data.into(),
        }
    };
    let mut rows = 0..;
    let result = |result: &Result<Extraction, Error>| {
        let outcome = match result {
            Ok(extraction) => Outcome::Features(v1::ImageFeatures {
                row: rows.next().unwrap_or_default(),
                image: Some(image_info(extraction.image)),
                geometry: Some(geometry_message(extraction.geometry)),
                predictions: extraction.predictions.iter().flatten().cloned().map(prediction_message).collect(),
            }),
            Err(error) => Outcome::Error(image_error(error)),
        };
        v1::FeaturesResult { outcome: Some(outcome) }
    };
    v1::ExtractFeaturesResponse {
        model: Some(model_reference(plan.model())),
        results: extracted.results.iter().map(result).collect(),
        tensors: outputs.iter().zip(&plan.shapes).enumerate().map(tensor).collect(),
        timing: Some(timing(extracted.times)),
    }
}
