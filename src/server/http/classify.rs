//! `POST /v1/classify`.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use http::header;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::answers::{ImageFailure, ItemError, ModelRef, add_server_timing};
use super::context::{query, request_context};
use super::images::read_images;
use crate::fair_share::Client;
use crate::server::app::App;
use crate::server::encode::EncodeTimer;
use crate::server::parameters::prediction_options;
use crate::server::problem::Problem;
use crate::service::{Classified, Error, ImageResult, ServedModel};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ClassifyParameters {
    /// Number of predictions per image: 1 to the number of classes. If absent: 5, or all classes if there are fewer.
    #[schemars(range(min = 1))]
    top_k: Option<usize>,
    /// Minimum probability of a prediction.
    #[schemars(range(min = 0.0, max = 1.0))]
    min_confidence: Option<f32>,
    /// The model; the server's default model if absent.
    model: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Classified")]
pub(super) struct ClassifyAnswer<'a> {
    /// The model that answered.
    model: ModelRef<'a>,
    /// One outcome per image, in order.
    results: Vec<ImageOutcome<'a>>,
}

#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum ImageOutcome<'a> {
    Ok(&'a ImageResult),
    Failed(ImageFailure),
}

pub(super) async fn classify(
    State(app): State<App>,
    client: Client,
    parameters: Result<Query<ClassifyParameters>, QueryRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let start = Instant::now();
    // Plan: before the body is read, so that a request which cannot be served does not send it in vain.
    let parameters = query(parameters)?;
    let context = request_context(&app, client, request.headers(), start)?;
    let mut plan = app.service.plan_classify(parameters.model.as_deref(), context)?;
    plan.predictions = prediction_options(parameters.top_k, parameters.min_confidence, &plan.model)?;
    app.service.would_admit(&plan.model, context)?;
    // Read.
    let images = read_images(&app, request, start, context).await?;
    // Run.
    let classified = app.service.classify(&plan, images.files).await?;
    // Encode.
    let timer = EncodeTimer::start(&app, &plan.model.statistics, start);
    let body = encode(&plan.model, &classified);
    let encode_time = timer.finish();
    let mut response = ([(header::CONTENT_TYPE, "application/json")], body).into_response();
    add_server_timing(&mut response, images.read_time, classified.times, encode_time);
    Ok(response)
}

fn encode(model: &ServedModel, classified: &Classified) -> Vec<u8> {
    let failed = |error: &Error| ImageOutcome::Failed(ImageFailure { error: ItemError::of(error) });
    let answer = ClassifyAnswer {
        model: ModelRef::of(model),
        results: classified.results.iter().map(|r| r.as_ref().map_or_else(failed, ImageOutcome::Ok)).collect(),
    };
    // Strings and finite numbers always serialise.
    serde_json::to_vec(&answer).unwrap_or_default()
}
