//! What every protocol reads from the head of a request: the client, the priority and the request id.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use http::request::Parts;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue};
use tokio::time::Duration;

use crate::cores::Priority;
use crate::fair_share::Client;

const PRIORITY: HeaderName = HeaderName::from_static("priority");
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longer ids from clients are replaced, because they appear in every log line.
const MAX_REQUEST_ID: usize = 128;

/// Handlers keep the deadline themselves. A request that still runs this long after the maximum time is stopped.
pub(super) const HANDLER_GRACE: Duration = Duration::from_secs(1);

/// The client at the other end of a request's connection.
pub(super) fn client_of(extensions: &Extensions) -> Client {
    // Every connection inserts its client. A request without one was made inside the process.
    extensions.get::<Client>().copied().unwrap_or(Client::LOCAL)
}

impl<S: Sync> FromRequestParts<S> for Client {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(client_of(&parts.extensions))
    }
}

/// The urgency of the `Priority` header (RFC 9218): 0 to 3 is interactive, 4 to 7 is background. The default is 3. As
/// that standard requires, a header that cannot be parsed is ignored.
pub(super) fn priority(headers: &HeaderMap) -> Priority {
    let value = headers.get(PRIORITY).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let urgency = value.split(',').filter_map(|item| item.trim().strip_prefix("u=")?.parse::<u8>().ok()).next_back();
    match urgency {
        Some(4..=7) => Priority::Background,
        _ => Priority::Interactive,
    }
}

/// Whether a client's request id can stand in a log.
pub(super) fn is_valid_request_id(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    (1..=MAX_REQUEST_ID).contains(&bytes.len()) && bytes.iter().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgencies_above_the_default_are_background_and_invalid_ones_are_ignored() {
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
