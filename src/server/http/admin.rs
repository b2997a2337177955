//! `/metrics`, `/livez`, `/readyz`: endpoints for Prometheus, load balancers and container engines.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;

use crate::server::app::App;
use crate::server::problem::Problem;
use crate::server::shutdown::Phase;
use crate::service::Error;

/// Returns the metrics in Prometheus' text format.
pub(super) async fn metrics(State(app): State<App>) -> Result<Response, Problem> {
    app.service.refresh_metrics();
    match app.metrics.render() {
        Ok(text) => Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response()),
        Err(error) => {
            tracing::error!(%error, "cannot encode the metrics");
            Err(Error::Internal.into())
        }
    }
}

/// Answers while the process is alive.
pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// Answers whether this server should receive requests.
pub(super) async fn readyz(State(app): State<App>) -> Result<&'static str, Problem> {
    if app.lifecycle.phase() > Phase::Running {
        return Err(Error::Draining.into());
    }
    if app.service.is_ready() { Ok("ok\n") } else { Err(Error::NotReady.into()) }
}
