//! The last limit on the time of a handler.

use axum::BoxError;
use tower::timeout::TimeoutLayer;

use crate::server::app::App;
use crate::server::problem::Problem;
use crate::server::request::HANDLER_GRACE;
use crate::service::Error;

/// Stops handlers that do not keep their deadline.
pub(super) fn limit_time(app: &App) -> TimeoutLayer {
    TimeoutLayer::new(app.config.time.request_timeout + HANDLER_GRACE)
}

/// The answer of a handler that was stopped.
pub(super) async fn timed_out(_: BoxError) -> Problem {
    Error::DeadlineExceeded.into()
}
