//! `ExtractFeatures`.

use std::sync::Arc;

use tonic::Response;

use super::Grpc;
use super::call::{Call, Kept};
use super::messages::{geometry, image, image_error, images, model, name, prediction, priority, timing};
use crate::preprocess::{Fit, Origin};
use crate::server::asked::{ask, levels, tensor_name};
use crate::server::http::{Dtype, LARGE_ANSWER, write_row};
use crate::server::problem::Problem;
use crate::service::{Error, Extracted, FeaturePlan, FeaturesRequest};
use crate::telemetry::Stage;
use ghostserve_ghostnet::{Cut, Output};
use ghostserve_proto::v1;

impl Grpc {
    pub(super) async fn extract(
        &self,
        call: &Call,
        request: v1::ExtractFeaturesRequest,
    ) -> Result<Response<v1::ExtractFeaturesResponse>, Problem> {
        let app = &self.app;
        self.check_count(request.images.len())?;
        let cut = match request.cut() {
            v1::Cut::Unspecified | v1::Cut::Deepest => Cut::Deepest,
            v1::Cut::Timm => Cut::Timm,
        };
        let fit = match request.fit() {
            v1::Fit::Unspecified | v1::Fit::Crop => Fit::Crop,
            v1::Fit::Letterbox => Fit::Letterbox,
            v1::Fit::Stretch => Fit::Stretch,
        };
        let dtype = match request.dtype() {
            v1::Dtype::Unspecified | v1::Dtype::F32 => Dtype::F32,
            v1::Dtype::F16 => Dtype::F16,
        };
        let named: Vec<&str> = match request.levels.is_empty() {
            true => vec!["c3", "c4", "c5"],
            false => request.levels.iter().map(String::as_str).collect(),
        };
        let wants = request.top_k.is_some() || request.min_confidence.is_some();
        let priority = priority(request.priority(), call.priority);
        let outputs = levels(named, cut)?;
        let served = name(request.model);
        let classes = app.service.model(served.as_deref())?.labels.len();
        let ask = ask(request.top_k.map(|k| k as usize), request.min_confidence, classes)?;
        let origin = Origin { priority, ..call.origin(call.start) };
        let plan = Arc::new(app.service.plan_features(FeaturesRequest {
            model: served,
            outputs,
            size: request.size.map(|size| [size.height as usize, size.width as usize]),
            fit,
            ask: wants.then_some(ask),
            element_bytes: dtype.bytes(),
            origin,
        })?);
        let extracted = app.service.features(&plan, images(request.images)).await?;

        let encoding = app.metrics.begin(Stage::Encode);
        let style = (dtype, request.normalize);
        let elements: usize = plan.shapes.iter().map(|shape| shape.elements()).sum();
        let (message, memory) = if elements * dtype.bytes() * extracted.results.len() > LARGE_ANSWER {
            let cost = plan.encode_cost(extracted.results.len());
            let plan = Arc::clone(&plan);
            let encode = move || (encode(&plan, &extracted, style), extracted.memory);
            app.service.off_the_runtime(origin, cost, encode).await?
        } else {
            (encode(&plan, &extracted, style), extracted.memory)
        };
        plan.model.features_statistics.wrote(encoding.end());
        app.metrics.stage(Stage::Total, call.start.elapsed());
        let mut response = Response::new(message);
        response.extensions_mut().insert(Kept(Arc::new(memory)));
        Ok(response)
    }
}

fn encode(plan: &FeaturePlan, extracted: &Extracted, (dtype, unit): (Dtype, bool)) -> v1::ExtractFeaturesResponse {
    use v1::features_result::Outcome;
    let outputs = &plan.request().outputs;
    let good: Vec<_> = extracted.results.iter().filter_map(|result| result.as_ref().ok()).collect();
    let tensor = |(i, (output, shape)): (usize, (&Output, &ghostserve_ghostnet::OutputShape))| {
        let mut data = Vec::with_capacity(good.len() * shape.elements() * dtype.bytes());
        for extraction in &good {
            let unit = unit && *output == Output::Embedding;
            write_row(extraction.outputs.data(i), (dtype, unit), |bytes| data.extend_from_slice(bytes));
        }
        v1::Tensor {
            name: tensor_name(*output),
            dtype: v1::Dtype::from(dtype).into(),
            shape: std::iter::once(good.len()).chain(shape.shape.iter().copied()).map(|n| n as u32).collect(),
            stride: shape.stride as u32,
            data: data.into(),
        }
    };
    let mut rows = 0..;
    let result = |result: &Result<crate::service::Extraction, Error>| {
        let outcome = match result {
            Ok(extraction) => Outcome::Features(v1::ImageFeatures {
                row: rows.next().unwrap_or_default(),
                image: Some(image(extraction.image)),
                geometry: Some(geometry(extraction.geometry)),
                predictions: extraction.predictions.iter().flatten().cloned().map(prediction).collect(),
            }),
            Err(error) => Outcome::Error(image_error(error)),
        };
        v1::FeaturesResult { outcome: Some(outcome) }
    };
    v1::ExtractFeaturesResponse {
        model: Some(model(&plan.model)),
        results: extracted.results.iter().map(result).collect(),
        tensors: outputs.iter().zip(&plan.shapes).enumerate().map(tensor).collect(),
        timing: Some(timing(extracted.times)),
    }
}

impl From<Dtype> for v1::Dtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
        }
    }
}
