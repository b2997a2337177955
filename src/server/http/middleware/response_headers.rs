//! Headers that every answer has.

use http::{HeaderName, HeaderValue};
use tower_http::set_header::SetResponseHeaderLayer;

/// Adds a header to answers that do not set it themselves.
pub(super) fn fixed_header(name: HeaderName, value: &'static str) -> SetResponseHeaderLayer<HeaderValue> {
    SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value))
}
