//! What surrounds every handler, one file per middleware.
//!
//! Bodies are limited where they are read ([`super::body`]), by their kind: one image, or several.

mod compression;
mod errors;
mod linger;
mod log_request;
mod request_id;
mod response_headers;
mod shed;
mod timeout;

pub(super) use compression::Uncompressed;
pub(super) use shed::shed_requests;

use axum::Router;
use axum::error_handling::HandleErrorLayer;
use axum::middleware::from_fn_with_state;
use http::header;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::trace::TraceLayer;

use crate::server::app::App;
use crate::server::request::REQUEST_ID;
use response_headers::fixed_header;

/// Puts the middleware around all routes. Both lists are ordered from the outside in, `outer` around `inner`.
/// [`shed_requests`] is further inside, around the routes that it is for.
pub(super) fn apply_middleware(routes: Router<App>, app: &App) -> Router<App> {
    let outer = ServiceBuilder::new()
        .map_request(request_id::drop_invalid_request_id)
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(SetSensitiveRequestHeadersLayer::new([header::AUTHORIZATION, header::COOKIE]))
        .layer(
            TraceLayer::new_for_http().make_span_with(log_request::span).on_request(()).on_response(()).on_failure(()),
        )
        .layer(fixed_header(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(fixed_header(header::X_FRAME_OPTIONS, "DENY"))
        .layer(fixed_header(header::REFERRER_POLICY, "no-referrer"))
        .layer(fixed_header(header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"))
        .layer(fixed_header(header::CACHE_CONTROL, "no-store"))
        .layer(from_fn_with_state(app.clone(), log_request::log_request))
        .layer(from_fn_with_state(app.clone(), linger::linger));
    let inner = ServiceBuilder::new()
        .layer(CatchPanicLayer::custom(errors::panicked))
        .layer(compression::compression())
        .layer(HandleErrorLayer::new(timeout::timed_out))
        .layer(timeout::limit_time(app));
    routes.layer(inner).layer(outer)
}
