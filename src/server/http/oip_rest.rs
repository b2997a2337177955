//! The Open Inference Protocol over REST: `/v2`. Tensors are JSON, or follow the JSON as bytes; then a header gives
//! the length of the JSON. Errors are `{"error": "…"}` on every route, written by [`super::middleware`].

mod body;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::Instrument;

use super::body::{BodyBounds, json_object, parse_body, read_body};
use super::context::{no_parameters, request_context};
use super::images::check_encoding;
use super::middleware::Uncompressed;
use crate::fair_share::Client;
use crate::server::app::App;
use crate::server::oip::{self, NamedModel};
use crate::server::problem::Problem;
use crate::server::retain::RetainBody;
use crate::server::shutdown::Phase;
use crate::service::{Code, Error};
use crate::telemetry::{Stage, spans};
use body::EncodedAnswer;
pub(super) use body::{JsonAnswer, JsonRequest};

/// The length of the JSON in a body that also has tensors as bytes.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// The routes about the server and its models. They are never shed.
pub(super) fn metadata_routes() -> Router<App> {
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

/// The routes that run models.
pub(super) fn infer_routes() -> Router<App> {
    Router::new()
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer))
}

/// The model in a path.
#[derive(Deserialize)]
pub(super) struct ModelPath {
    model: String,
    #[serde(default)]
    version: String,
}

impl ModelPath {
    fn find(&self, app: &App) -> Result<NamedModel, Problem> {
        oip::find(app, &self.model, &self.version)
    }
}

async fn server(RawQuery(query): RawQuery) -> Result<Json<oip::ServerMetadata>, Problem> {
    no_parameters(query.as_deref())?;
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

/// Whether the server should receive requests.
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
    Path(path): Path<ModelPath>,
    RawQuery(query): RawQuery,
) -> Result<Json<oip::ModelMetadata>, Problem> {
    no_parameters(query.as_deref())?;
    Ok(Json(oip::metadata(&path.find(&app)?)))
}

/// Whether a model can be run.
#[derive(Serialize, JsonSchema)]
pub(super) struct ModelReady {
    name: String,
    ready: bool,
}

async fn model_ready(State(app): State<App>, Path(path): Path<ModelPath>) -> Result<Json<ModelReady>, Problem> {
    let model = path.find(&app)?;
    if !model.served.is_ready() {
        return Err(Error::NotReady.into());
    }
    Ok(Json(ModelReady { name: model.name(), ready: true }))
}

async fn config(
    State(app): State<App>,
    Path(path): Path<ModelPath>,
    RawQuery(query): RawQuery,
) -> Result<Json<oip::ModelConfig>, Problem> {
    no_parameters(query.as_deref())?;
    Ok(Json(oip::config(&app, &path.find(&app)?)))
}

async fn statistics(
    State(app): State<App>,
    Path(path): Path<ModelPath>,
    RawQuery(query): RawQuery,
) -> Result<Json<oip::StatisticsAnswer>, Problem> {
    no_parameters(query.as_deref())?;
    Ok(Json(oip::StatisticsAnswer { model_stats: vec![oip::statistics(&path.find(&app)?)] }))
}

async fn all_statistics(
    State(app): State<App>,
    RawQuery(query): RawQuery,
) -> Result<Json<oip::StatisticsAnswer>, Problem> {
    no_parameters(query.as_deref())?;
    Ok(Json(oip::StatisticsAnswer { model_stats: oip::all(&app).iter().map(oip::statistics).collect() }))
}

/// The options of the index.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct IndexRequest {
    /// Only models that are ready.
    #[serde(default)]
    ready: bool,
}

/// Maximum number of bytes of a request for the index.
const MAX_INDEX_BODY: usize = 4 << 10;

async fn index(
    State(app): State<App>,
    client: Client,
    request: Request,
) -> Result<Json<Vec<oip::IndexEntry>>, Problem> {
    let (parts, body) = request.into_parts();
    let bounds = BodyBounds { limit: MAX_INDEX_BODY, until: Instant::now() + app.config.time.body_timeout };
    let body = read_body(&app, client, &parts.headers, body, bounds).await?;
    let options = match body.bytes.trim_ascii().is_empty() {
        true => IndexRequest::default(),
        false => json_object(&body.bytes)
            .map_err(|e| Problem::new(Code::InvalidJson, format!("expected {{\"ready\": true}} or nothing: {e}")))?,
    };
    Ok(Json(oip::index(&app, options.ready)))
}

async fn load(State(app): State<App>, Path(path): Path<ModelPath>) -> Problem {
    path.find(&app).map_or_else(|problem| problem, |_| oip::not_loadable())
}

async fn infer(
    State(app): State<App>,
    Path(path): Path<ModelPath>,
    client: Client,
    request: Request,
) -> Result<Response, Problem> {
    let start = Instant::now();
    // Plan, as far as the head of the request allows: before the body is read, as for classification.
    let model = path.find(&app)?;
    let features = model.features;
    let (parts, body) = request.into_parts();
    no_parameters(parts.uri.query())?;
    check_encoding(&parts.headers)?;
    let context = request_context(&app, client, &parts.headers, start)?;
    app.service.would_admit(&model.served, context)?;
    let json_length = parse_json_length(&parts.headers)?;
    // Read. The images are slices of the body: its bytes count as long as they are in use.
    let limit = app.config.request.max_multi_body_bytes;
    let until = context.deadline.min(start + app.config.time.body_timeout);
    let body = read_body(&app, client, &parts.headers, body, BodyBounds { limit, until });
    let mut body = body.instrument(spans::stage(Stage::Read)).await?;
    app.metrics.record_stage(Stage::Read, start.elapsed());
    let (bytes, json) = (body.bytes.clone(), json_length.unwrap_or(body.bytes.len()).min(body.bytes.len()));
    // Numbers take four bytes, and at least two characters; files that were base64 take three quarters of it.
    body.memory.grow(2 * json)?;
    let parse = move || body::parse(&bytes, json_length, context, start);
    let (request, binary_outputs) = parse_body(&app, json, context, parse).await?;
    // Plan what the body says: outputs and parameters.
    let (plan, images) = oip::plan_infer(&app, model, request)?;
    // Run, and encode the tensors.
    let mut answer = oip::infer(&app, plan, images).await?;
    drop(body);
    // Encode the body.
    let memory = answer.memory.take();
    let EncodedAnswer { json_length, bytes } = body::write(&answer, &binary_outputs)?;
    let mut body = Body::from(bytes);
    if let Some(memory) = memory {
        body = RetainBody::wrap(body, memory);
    }
    let content_type = if json_length.is_some() { "application/octet-stream" } else { "application/json" };
    let mut response = ([(header::CONTENT_TYPE, content_type)], body).into_response();
    if let Some(length) = json_length {
        response.headers_mut().insert(JSON_LENGTH, HeaderValue::from(length));
    }
    if features {
        // Maps hardly compress.
        response.extensions_mut().insert(Uncompressed);
    }
    Ok(response)
}

/// The length of the JSON in a body, if tensors follow it.
fn parse_json_length(headers: &HeaderMap) -> Result<Option<usize>, Problem> {
    let Some(value) = headers.get(JSON_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse::<usize>().ok());
    let wrong = || Problem::new(Code::InvalidRequest, format!("`{JSON_LENGTH}` must be a number of bytes"));
    length.map(Some).ok_or_else(wrong)
}
