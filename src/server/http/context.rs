//! The head of a request with images: its client, priority and deadline; and its query.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use http::{HeaderMap, HeaderName};
use serde::de::DeserializeOwned;
use tokio::time::{Duration, Instant};

use crate::fair_share::Client;
use crate::preprocess::RequestContext;
use crate::server::app::App;
use crate::server::parameters::invalid;
use crate::server::problem::Problem;
use crate::server::request::priority;

/// The client's timeout in milliseconds.
const TIMEOUT_HEADER: HeaderName = HeaderName::from_static("x-request-timeout-ms");

/// Client, priority and deadline of a request whose handling began at `start`.
pub(super) fn request_context(
    app: &App,
    client: Client,
    headers: &HeaderMap,
    start: Instant,
) -> Result<RequestContext, Problem> {
    let deadline = start + timeout(app, headers)?;
    Ok(RequestContext { priority: priority(headers), client, deadline })
}

/// The client's timeout, at most the server's.
fn timeout(app: &App, headers: &HeaderMap) -> Result<Duration, Problem> {
    let longest = app.config.time.request_timeout;
    let Some(value) = headers.get(TIMEOUT_HEADER) else { return Ok(longest) };
    match value.to_str().ok().and_then(|v| v.parse::<u32>().ok()) {
        Some(ms) if ms > 0 => Ok(Duration::from_millis(ms.into()).min(longest)),
        _ => {
            Err(invalid(format!("`{TIMEOUT_HEADER}` must be a whole number of milliseconds above 0, found {value:?}")))
        }
    }
}

/// The parameters in the query.
pub(super) fn query<P: DeserializeOwned>(parameters: Result<Query<P>, QueryRejection>) -> Result<P, Problem> {
    parameters.map(|Query(parameters)| parameters).map_err(|rejection| {
        // The cause names the parameter and what is wrong with it; the words before it are about axum's extractor.
        let cause = std::error::Error::source(&rejection).map(ToString::to_string);
        invalid(format!("query parameters: {}", cause.unwrap_or_else(|| rejection.body_text())))
    })
}

/// Refuses a query on a path that takes none: the client expects an effect that it would not have.
pub(super) fn no_parameters(query: Option<&str>) -> Result<(), Problem> {
    match query.filter(|q| !q.is_empty()) {
        None => Ok(()),
        Some(_) => Err(invalid("this path takes no query parameters")),
    }
}
