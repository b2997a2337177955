//! `POST /v1/classify`.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::{Duration, Instant};
use tracing::Instrument;

use super::body::client;
use super::images::images;
use crate::cores::Priority;
use crate::preprocess::Origin;
use crate::server::app::App;
use crate::server::asked::ask;
use crate::server::problem::Problem;
use crate::service::{Classified, ClassifyRequest, Code, Error, ImageResult, ScoresRequest, Times};
use crate::telemetry::{Stage, spans};

/// A deadline in milliseconds, from the client.
const TIMEOUT_HEADER: HeaderName = HeaderName::from_static("x-request-timeout-ms");
const PRIORITY: HeaderName = HeaderName::from_static("priority");
pub(super) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    /// Predictions for each image: 1 to the number of classes; 5, or all classes if those are fewer, if absent.
    #[schemars(range(min = 1))]
    top_k: Option<usize>,
    /// None below this probability.
    #[schemars(range(min = 0.0, max = 1.0))]
    min_confidence: Option<f32>,
    /// Which model; the server's default one if absent.
    model: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Classified")]
pub(super) struct Answer<'a> {
    /// Which model answered.
    model: ModelRef<'a>,
    /// One for each image, in order.
    results: Vec<Outcome<'a>>,
}

#[derive(Clone, Copy, Serialize, JsonSchema)]
#[schemars(rename = "ModelReference")]
pub(super) struct ModelRef<'a> {
    pub(super) id: &'a str,
    /// `sha256:…` of the network.
    pub(super) digest: &'a str,
}

#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "ImageOutcome")]
pub(super) enum Outcome<'a> {
    Ok(&'a ImageResult),
    Failed { error: ItemError },
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ImageError")]
pub(super) struct ItemError {
    code: Code,
    /// For people: what is wrong and what to do.
    detail: String,
}

impl ItemError {
    pub(super) fn of(error: &Error) -> Self {
        Self { code: error.code(), detail: error.to_string() }
    }
}

pub(super) async fn classify(
    State(app): State<App>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let start = Instant::now();
    let Query(parameters) = parameters.map_err(|e| Problem::new(Code::InvalidParameter, e.body_text()))?;
    let deadline = start + timeout(&app, request.headers())?;
    // Asked before the body is read: a request for what is not there should not be waited for.
    let classes = app.service.model(parameters.model.as_deref())?.labels.len();
    let ask = ask(parameters.top_k, parameters.min_confidence, classes)?;

    let origin = Origin { priority: priority(request.headers()), client: client(request.extensions()), deadline };
    // Reading a body in order to refuse it would cost the others more than the refusal.
    app.service.would_admit(parameters.model.as_deref(), origin)?;

    let images = images(&app, request, start, origin).instrument(spans::stage(Stage::Read)).await?;
    app.metrics.stage(Stage::Read, images.read);

    let scores = ScoresRequest { model: parameters.model, images: images.files, origin };
    let classified = app.service.classify(ClassifyRequest { scores, ask }).await?;

    let encoding = app.metrics.begin(Stage::Encode);
    let body = encode(&classified);
    let encode = encoding.end();
    classified.model.statistics.wrote(encode);
    app.metrics.stage(Stage::Total, start.elapsed());

    let mut response = ([(header::CONTENT_TYPE, "application/json")], body).into_response();
    if let Ok(timing) = HeaderValue::try_from(server_timing(&stages(images.read, classified.times, encode))) {
        response.headers_mut().insert(SERVER_TIMING, timing);
    }
    Ok(response)
}

/// The stages that `Server-Timing` tells of.
pub(super) fn stages(read: Duration, times: Times, encode: Duration) -> [(Stage, Duration); 6] {
    [
        (Stage::Read, read),
        (Stage::Decode, times.decode),
        (Stage::Resize, times.resize),
        (Stage::Queue, times.queue),
        (Stage::Infer, times.infer),
        (Stage::Encode, encode),
    ]
}

pub(super) fn timeout(app: &App, headers: &HeaderMap) -> Result<Duration, Problem> {
    let longest = app.config.time.request;
    let Some(value) = headers.get(TIMEOUT_HEADER) else { return Ok(longest) };
    match value.to_str().ok().and_then(|v| v.parse::<u32>().ok()) {
        Some(ms) if ms > 0 => Ok(Duration::from_millis(ms.into()).min(longest)),
        _ => {
            let detail = format!("`{TIMEOUT_HEADER}` must be a whole number of milliseconds above 0, found {value:?}");
            Err(Problem::new(Code::InvalidParameter, detail))
        }
    }
}

/// The urgency of the `Priority` header (RFC 9218): 0 to 3, which is the default, is interactive; 4 to 7 is background. As
/// that standard has it, a header that cannot be read says nothing.
pub(in crate::server) fn priority(headers: &HeaderMap) -> Priority {
    let value = headers.get(PRIORITY).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let urgency = value.split(',').filter_map(|item| item.trim().strip_prefix("u=")?.parse::<u8>().ok()).next_back();
    match urgency {
        Some(4..=7) => Priority::Background,
        _ => Priority::Interactive,
    }
}

fn encode(classified: &Classified) -> Vec<u8> {
    let manifest = &classified.model.manifest;
    let failed = |error: &Error| Outcome::Failed { error: ItemError::of(error) };
    let answer = Answer {
        model: ModelRef { id: &manifest.id, digest: manifest.network.digest.as_str() },
        results: classified.results.iter().map(|r| r.as_ref().map_or_else(failed, Outcome::Ok)).collect(),
    };
    // Strings and finite numbers always serialise.
    serde_json::to_vec(&answer).unwrap_or_default()
}

/// `read;dur=0.1, decode;dur=1.5, …` in milliseconds.
pub(super) fn server_timing(stages: &[(Stage, Duration)]) -> String {
    let entries: Vec<_> =
        stages.iter().map(|(stage, took)| format!("{};dur={:.3}", stage.name(), took.as_secs_f64() * 1e3)).collect();
    entries.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgencies_above_the_default_are_background_and_nonsense_is_ignored() {
        let of = |value: &'static str| priority(&HeaderMap::from_iter([(PRIORITY, HeaderValue::from_static(value))]));
        for interactive in ["u=0", "u=3", "i", "", "u=9", "u=x", "u=-5", "background"] {
            assert_eq!(of(interactive), Priority::Interactive, "{interactive}");
        }
        for background in ["u=4", "u=7", "i, u=5", "u=1,u=6"] {
            assert_eq!(of(background), Priority::Background, "{background}");
        }
        assert_eq!(priority(&HeaderMap::new()), Priority::Interactive);
    }
}
