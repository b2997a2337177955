//! Parts of answers that several routes share.

use axum::response::Response;
use http::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::Duration;

use crate::service::{Code, Error, ServedModel, StageTimes};
use crate::telemetry::Stage;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The model that answered.
#[derive(Clone, Copy, Serialize, JsonSchema)]
#[schemars(rename = "ModelReference")]
pub(super) struct ModelRef<'a> {
    id: &'a str,
    /// `sha256:…` of the network.
    digest: &'a str,
}

impl<'a> ModelRef<'a> {
    pub(super) fn of(model: &'a ServedModel) -> Self {
        Self { id: &model.manifest.id, digest: model.digest.as_str() }
    }
}

/// The error of one image.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ImageError")]
pub(super) struct ItemError {
    code: Code,
    /// For people: the error, and what to do.
    detail: String,
}

impl ItemError {
    pub(super) fn of(error: &Error) -> Self {
        Self { code: error.code(), detail: error.to_string() }
    }
}

/// The outcome for an image that has an error.
#[derive(Serialize, JsonSchema)]
pub(super) struct ImageFailure {
    pub(super) error: ItemError,
}

/// Adds `Server-Timing` to an answer: `read;dur=0.1, decode;dur=1.5, …` in milliseconds.
pub(super) fn add_server_timing(response: &mut Response, read: Duration, times: StageTimes, encode: Duration) {
    let stages = [
        (Stage::Read, read),
        (Stage::Decode, times.decode),
        (Stage::Resize, times.resize),
        (Stage::Queue, times.queue),
        (Stage::Infer, times.infer),
        (Stage::Encode, encode),
    ];
    let entry = |(stage, took): &(Stage, Duration)| format!("{};dur={:.3}", stage.name(), took.as_secs_f64() * 1e3);
    let entries: Vec<_> = stages.iter().map(entry).collect();
    if let Ok(timing) = HeaderValue::try_from(entries.join(", ")) {
        response.headers_mut().insert(SERVER_TIMING, timing);
    }
}
