//! Request ids.

use crate::server::request::{REQUEST_ID, is_valid_request_id};

/// Removes a client's request id that cannot stand in a log; the request then gets a new one.
pub(super) fn drop_invalid_request_id<B>(mut request: http::Request<B>) -> http::Request<B> {
    if request.headers().get(REQUEST_ID).is_some_and(|id| !is_valid_request_id(id)) {
        request.headers_mut().remove(REQUEST_ID);
    }
    request
}
