//! `ghostserve.v1.InferenceService`.

use std::pin::Pin;

use futures::Stream;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::Grpc;
use super::call::Call;
use super::messages::{classify_response, model_name, priority, read_images};
use crate::preprocess::RequestContext;
use crate::server::encode::EncodeTimer;
use crate::server::parameters::prediction_options;
use crate::server::problem::Problem;
use crate::service::{ClassifyPlan, Error, Features, ServedModel};
use ghostserve_ghostnet::{Cut, Output};
use ghostserve_proto::v1;
use ghostserve_proto::v1::inference_service_server::InferenceService;

/// Separates a call from its message.
pub(super) fn open<M>(request: Request<M>) -> Result<(Call, M), Status> {
    let (_, mut extensions, message) = request.into_parts();
    // The middleware inserts it.
    let call = extensions.remove::<Call>().ok_or_else(|| Status::internal("the call was not begun"))?;
    Ok((call, message))
}

impl Grpc {
    /// Plans a classification that came at a certain time, as far as the model and the deadline.
    pub(super) fn plan_classify(
        &self,
        call: &Call,
        came: Instant,
        request: &v1::ClassifyRequest,
    ) -> Result<ClassifyPlan, Error> {
        let context = RequestContext { priority: priority(request.priority(), call.priority), ..call.context(came) };
        self.app.service.plan_classify(model_name(&request.model), context)
    }

    /// Answers a planned classification that came at a certain time.
    pub(super) async fn classify_planned(
        &self,
        mut plan: ClassifyPlan,
        came: Instant,
        request: v1::ClassifyRequest,
    ) -> Result<v1::ClassifyResponse, Problem> {
        // Plan.
        let top_k = request.top_k.map(|k| k as usize);
        plan.predictions = prediction_options(top_k, Some(request.min_confidence), &plan.model)?;
        // Read.
        let images = read_images(request.images, self.app.config.request.max_images_per_request)?;
        // Run.
        let classified = self.app.service.classify(&plan, images).await?;
        // Encode.
        let timer = EncodeTimer::start(&self.app, &plan.model.statistics, came);
        let response = classify_response(&plan.model, classified);
        timer.finish();
        Ok(response)
    }

    async fn classify_one(&self, call: &Call, request: v1::ClassifyRequest) -> Result<v1::ClassifyResponse, Problem> {
        let plan = self.plan_classify(call, call.start, &request)?;
        self.classify_planned(plan, call.start, request).await
    }
}

#[tonic::async_trait]
impl InferenceService for Grpc {
    async fn classify(&self, request: Request<v1::ClassifyRequest>) -> Result<Response<v1::ClassifyResponse>, Status> {
        let (mut call, request) = open(request)?;
        call.record_read(&self.app.metrics);
        let response = self.classify_one(&call, request).await;
        response.map(Response::new).map_err(|problem| call.errors.status(&problem))
    }

    type ClassifyStreamStream = Pin<Box<dyn Stream<Item = Result<v1::ClassifyStreamResponse, Status>> + Send>>;

    async fn classify_stream(
        &self,
        request: Request<Streaming<v1::ClassifyStreamRequest>>,
    ) -> Result<Response<Self::ClassifyStreamStream>, Status> {
        let (call, messages) = open(request)?;
        Ok(Response::new(self.clone().classify_all(call, messages)))
    }

    async fn extract_features(
        &self,
        request: Request<v1::ExtractFeaturesRequest>,
    ) -> Result<Response<v1::ExtractFeaturesResponse>, Status> {
        let (mut call, request) = open(request)?;
        call.record_read(&self.app.metrics);
        self.extract(&call, request).await.map_err(|problem| call.errors.status(&problem))
    }

    async fn list_models(
        &self,
        request: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        open(request)?;
        let default = self.app.service.default_model();
        let models = self.app.service.models().map(|served| model(served, default)).collect();
        Ok(Response::new(v1::ListModelsResponse { models }))
    }
}

fn model(served: &ServedModel, default: &str) -> v1::Model {
    let manifest = &served.manifest;
    let level = |output: &Output| match output {
        Output::Features { cut: Cut::Deepest, level } => Some(format!("c{level}")),
        Output::Embedding => Some("embedding".to_owned()),
        _ => None,
    };
    let levels = |features: &Features| features.network.outputs().iter().filter_map(level).collect();
    let [height, width] = manifest.input.crop.map(|side| side as u32);
    v1::Model {
        id: manifest.id.clone(),
        description: manifest.description.clone(),
        architecture: manifest.network.architecture.to_string(),
        digest: served.digest.to_string(),
        labels: served.labels.iter().map(|label| label.name.clone()).collect(),
        default: manifest.id == default,
        input: Some(v1::Size { width, height }),
        levels: served.features.as_ref().map(levels).unwrap_or_default(),
    }
}
