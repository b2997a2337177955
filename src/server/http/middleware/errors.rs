//! The bodies of error answers. Handlers and middleware return a [`Problem`]; its body is written here, outside of
//! them, because it holds the request's id.

use std::any::Any;

use axum::response::{IntoResponse, Response};
use http::header;

use crate::server::app::App;
use crate::server::problem::Problem;
use crate::service::{Code, Error};

/// Writes the body of an error answer, and counts it. Returns its code, or `None` if the answer is a success.
pub(super) fn write_error(app: &App, path: &str, request_id: &str, response: &mut Response) -> Option<Code> {
    let problem = response.extensions_mut().remove::<Problem>().or_else(|| {
        let status = response.status();
        (status.is_client_error() || status.is_server_error()).then(|| Problem::of_status(status))
    })?;
    app.metrics.problems_total.with_label_values(&[problem.code.as_str()]).inc();
    let shed = app.config.load.shed_status;
    let rendered = if is_oip(path) { problem.render_oip(shed) } else { problem.render(shed, request_id) };
    // `Allow` of the original answer still applies.
    let allow = response.headers_mut().remove(header::ALLOW);
    *response = rendered;
    response.headers_mut().extend(allow.map(|allow| (header::ALLOW, allow)));
    Some(problem.code)
}

/// Whether a path belongs to the Open Inference Protocol, whose errors have another form.
fn is_oip(path: &str) -> bool {
    path.strip_prefix("/v2").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The answer of a handler that panicked. The panic itself is logged by the process's hook, inside the request's span.
pub(super) fn panicked(_: Box<dyn Any + Send>) -> Response {
    Problem::from(Error::Internal).into_response()
}
