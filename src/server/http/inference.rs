//! The Open Inference Protocol over REST: `/v2`. Tensors are JSON, or follow the JSON as bytes; then a header says how long the
//! JSON is. Errors are `{"error": "…"}` on every route, which [`super::layers`] sees to.

mod body;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderName, HeaderValue, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::Instrument;

use super::body::{BodyBounds, client, json_object, off_the_runtime, read};
use super::classify::{priority, timeout};
use super::images::check_encoding;
use super::layers::Uncompressed;
use super::models::no_parameters;
use crate::preprocess::Origin;
use crate::server::app::App;
use crate::server::held::hold;
use crate::server::oip::{self, InferRequest, Named};
use crate::server::problem::Problem;
use crate::server::shutdown::Phase;
use crate::service::{Code, Error};
use crate::telemetry::{Stage, spans};
use body::{Answer, Parsed};
pub(super) use body::{JsonAnswer, JsonRequest};

/// How long the JSON of a body is that tensors follow.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// What is told of the server and its models; never shed.
pub(super) fn about() -> Router<App> {
    Router::new()
        .route("/v2", get(server))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/stats", get(all_statistics))
        .route("/v2/models/{model}", get(metadata))
        .route("/v2/models/{model}/versions/{version}", get(metadata))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/versions/{version}/ready", get(model_ready))
        .route("/v2/models/{model}/config", get(config))
        .route("/v2/models/{model}/versions/{version}/config", get(config))
        .route("/v2/models/{model}/stats", get(statistics))
        .route("/v2/models/{model}/versions/{version}/stats", get(statistics))
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{model}/load", post(load))
        .route("/v2/repository/models/{model}/unload", post(load))
}

/// What runs models.
pub(super) fn work() -> Router<App> {
    Router::new()
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer))
}

/// A model in a path.
#[derive(Deserialize)]
pub(super) struct Asked {
    model: String,
    #[serde(default)]
    version: String,
}

impl Asked {
    fn find(&self, app: &App) -> Result<Named, Problem> {
        oip::find(app, &self.model, &self.version)
    }
}

async fn server(RawQuery(query): RawQuery) -> Result<Json<oip::ServerMetadata>, Problem> {
    no_parameters(query)?;
    Ok(Json(oip::server()))
}

/// Whether the server lives.
#[derive(Serialize, JsonSchema)]
pub(super) struct Live {
    live: bool,
}

async fn live() -> Json<Live> {
    Json(Live { live: true })
}

/// Whether the server should be sent requests.
#[derive(Serialize, JsonSchema)]
pub(super) struct Ready {
    ready: bool,
}

async fn ready(State(app): State<App>) -> Result<Json<Ready>, Problem> {
    if app.lifecycle.phase() > Phase::Running {
        return Err(Error::Draining.into());
    }
    if app.service.is_ready() { Ok(Json(Ready { ready: true })) } else { Err(Error::NotReady.into()) }
}

async fn metadata(
    State(app): State<App>,
    Path(asked): Path<Asked>,
    RawQuery(query): RawQuery,
) -> Result<Json<oip::ModelMetadata>, Problem> {
    no_parameters(query)?;
    Ok(Json(oip::metadata(&asked.find(&app)?)))
}

/// Whether a model can be run.
#[derive(Serialize, JsonSchema)]
pub(super) struct ModelReady {
    name: String,
    ready: bool,
}

async fn model_ready(State(app): State<App>, Path(asked): Path<Asked>) -> Result<Json<ModelReady>, Problem> {
    let model = asked.find(&app)?;
    if !model.served.is_ready() {
        return Err(Error::NotReady.into());
    }
    Ok(Json(ModelReady { name: model.name(), ready: true }))
}

async fn config(
    State(app): State<App>,
    Path(asked): Path<Asked>,
    RawQuery(query): RawQuery,
) -> Result<Json<oip::Config>, Problem> {
    no_parameters(query)?;
    Ok(Json(oip::config(&app, &asked.find(&app)?)))
}

async fn statistics(
    State(app): State<App>,
    Path(asked): Path<Asked>,
    RawQuery(query): RawQuery,
) -> Result<Json<oip::StatisticsAnswer>, Problem> {
    no_parameters(query)?;
    Ok(Json(oip::StatisticsAnswer { model_stats: vec![oip::statistics(&asked.find(&app)?)] }))
}

async fn all_statistics(
    State(app): State<App>,
    RawQuery(query): RawQuery,
) -> Result<Json<oip::StatisticsAnswer>, Problem> {
    no_parameters(query)?;
    Ok(Json(oip::StatisticsAnswer { model_stats: oip::all(&app).iter().map(oip::statistics).collect() }))
}

/// What the index is to show.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct IndexRequest {
    /// Only models that are ready.
    #[serde(default)]
    ready: bool,
}

/// Bytes of a request for the index.
const MAX_INDEX_BODY: usize = 4 << 10;

async fn index(State(app): State<App>, request: Request) -> Result<Json<Vec<oip::IndexEntry>>, Problem> {
    let (parts, body) = request.into_parts();
    let bounds = BodyBounds { limit: MAX_INDEX_BODY, until: Instant::now() + app.config.time.body };
    let body = read(&app, (client(&parts.extensions), &parts.headers), body, bounds).await?;
    let asked = match body.bytes.trim_ascii().is_empty() {
        true => IndexRequest::default(),
        false => json_object(&body.bytes)
            .map_err(|e| Problem::new(Code::InvalidJson, format!("expected {{\"ready\": true}} or nothing: {e}")))?,
    };
    Ok(Json(oip::index(&app, asked.ready)))
}

async fn load(State(app): State<App>, Path(asked): Path<Asked>) -> Problem {
    asked.find(&app).map_or_else(|problem| problem, |_| oip::not_loadable())
}

async fn infer(State(app): State<App>, Path(asked): Path<Asked>, request: Request) -> Result<Response, Problem> {
    let start = Instant::now();
    let model = asked.find(&app)?;
    let (parts, body) = request.into_parts();
    no_parameters(parts.uri.query().map(str::to_owned))?;
    check_encoding(&parts.headers)?;
    let deadline = start + timeout(&app, &parts.headers)?;
    let priority = priority(&parts.headers);
    // Asked before the body is read, as for classification.
    let origin = Origin { priority, client: client(&parts.extensions), deadline };
    app.service.would_admit(Some(&model.served.manifest.id), origin)?;
    let json_length = match parts.headers.get(JSON_LENGTH) {
        None => None,
        Some(value) => {
            let length = value.to_str().ok().and_then(|text| text.parse::<usize>().ok());
            let wrong = || Problem::new(Code::InvalidRequest, format!("`{JSON_LENGTH}` must be a number of bytes"));
            Some(length.ok_or_else(wrong)?)
        }
    };
    let limit = app.config.request.max_multi_body;
    let until = deadline.min(start + app.config.time.body);
    // The images are slices of the body: its bytes count for as long as they are in use.
    let read = read(&app, (client(&parts.extensions), &parts.headers), body, BodyBounds { limit, until });
    let mut body = read.instrument(spans::stage(Stage::Read)).await?;
    app.metrics.stage(Stage::Read, start.elapsed());

    let (bytes, json) = (body.bytes.clone(), json_length.unwrap_or(body.bytes.len()).min(body.bytes.len()));
    // Numbers take four bytes, and two characters at least; files that were base64 take three quarters of it.
    body.memory.grow(2 * json)?;
    let parse = move || body::parse(&bytes, json_length);
    let Parsed { id, parameters, inputs, outputs, style } = off_the_runtime(&app, json, origin, parse).await?;
    let response = oip::infer(
        &app,
        InferRequest { model: asked.model, version: asked.version, id, parameters, inputs, outputs, origin, start },
    );
    let mut response = response.await?;
    drop(body);
    let memory = response.memory.take();
    let Answer { json_length, bytes } = body::write(&response, &style)?;
    let mut answer = Body::from(bytes);
    if let Some(memory) = memory {
        answer = hold(answer, memory);
    }
    let kind = if json_length.is_some() { "application/octet-stream" } else { "application/json" };
    let mut answer = ([(header::CONTENT_TYPE, kind)], answer).into_response();
    if let Some(length) = json_length {
        answer.headers_mut().insert(JSON_LENGTH, HeaderValue::from(length));
    }
    if model.features {
        // Maps are noise to a compressor.
        answer.extensions_mut().insert(Uncompressed);
    }
    Ok(answer)
}
