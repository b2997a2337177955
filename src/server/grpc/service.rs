//! `ghostserve.v1.InferenceService`.

use std::pin::Pin;

use futures::Stream;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::Grpc;
use super::call::Call;
use super::messages::{classified, images, name, priority};
use crate::preprocess::Origin;
use crate::server::asked::ask;
use crate::server::problem::Problem;
use crate::service::{ClassifyRequest, Code, Error, ScoresRequest, ServedModel};
use crate::telemetry::Stage;
use ghostserve_ghostnet::{Cut, Output};
use ghostserve_proto::v1;
use ghostserve_proto::v1::inference_service_server::InferenceService;

/// A call's circumstances, and its message.
pub(super) fn open<M>(request: Request<M>) -> Result<(Call, M), Status> {
    let (_, mut extensions, message) = request.into_parts();
    // `call::around` puts it there.
    let call = extensions.remove::<Call>().ok_or_else(|| Status::internal("the call was not begun"))?;
    Ok((call, message))
}

impl Grpc {
    /// Answers one request to classify, which came at a certain time.
    pub(super) async fn classify_one(
        &self,
        call: &Call,
        came: Instant,
        request: v1::ClassifyRequest,
    ) -> Result<v1::ClassifyResponse, Problem> {
        let app = &self.app;
        let priority = priority(request.priority(), call.priority);
        let model = name(request.model);
        let classes = app.service.model(model.as_deref())?.labels.len();
        let ask = ask(request.top_k.map(|k| k as usize), Some(request.min_confidence), classes)?;
        self.check_count(request.images.len())?;
        let origin = Origin { priority, ..call.origin(came) };
        let scores = ScoresRequest { model, images: images(request.images), origin };
        let answer = app.service.classify(ClassifyRequest { scores, ask }).await?;
        let (encoding, model) = (app.metrics.begin(Stage::Encode), answer.model.clone());
        let answer = classified(answer);
        model.statistics.wrote(encoding.end());
        app.metrics.stage(Stage::Total, came.elapsed());
        Ok(answer)
    }

    pub(super) fn check_count(&self, images: usize) -> Result<(), Problem> {
        let most = self.app.config.request.max_images;
        if images > most {
            let detail =
                format!("the request holds {images} images, more than the {most} accepted; send several requests");
            return Err(Problem::new(Code::TooManyImages, detail));
        }
        if images == 0 { Err(Error::NoImages.into()) } else { Ok(()) }
    }
}

#[tonic::async_trait]
impl InferenceService for Grpc {
    async fn classify(&self, request: Request<v1::ClassifyRequest>) -> Result<Response<v1::ClassifyResponse>, Status> {
        let (mut call, request) = open(request)?;
        call.has_read(&self.app.metrics);
        let answer = self.classify_one(&call, call.start, request).await;
        answer.map(Response::new).map_err(|problem| call.refusal.status(&problem))
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
        call.has_read(&self.app.metrics);
        self.extract(&call, request).await.map_err(|problem| call.refusal.status(&problem))
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
    let levels = |features: &crate::service::Features| features.network.outputs().iter().filter_map(level).collect();
    let [height, width] = manifest.input.crop.map(|side| side as u32);
    v1::Model {
        id: manifest.id.clone(),
        description: manifest.description.clone(),
        architecture: manifest.network.architecture.to_string(),
        digest: manifest.network.digest.to_string(),
        labels: served.labels.iter().map(|label| label.name.clone()).collect(),
        default: manifest.id == default,
        input: Some(v1::Size { width, height }),
        levels: served.features.as_ref().map(levels).unwrap_or_default(),
    }
}
