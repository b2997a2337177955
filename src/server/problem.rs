//! Errors as clients see them: `application/problem+json` (RFC 9457), and the one table from codes to statuses.
//!
//! A handler returns a [`Problem`]; its body is written further out ([`super::http::layers`]), where the request's id is
//! known. Nothing internal is in it: an internal error says only that there was one, and the id leads to the log.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::config::ShedStatus;
use crate::service::{Code, Error};

/// Characters of a detail.
const MAX_DETAIL: usize = 500;

/// An error answer, before its body is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) code: Code,
    pub(crate) detail: String,
    pub(crate) retry_after: Option<Duration>,
}

/// The body, as RFC 9457 names its members, with `code` and `request_id` of our own.
#[derive(Debug, Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: Code,
    request_id: &'a str,
}

/// The table: a code's status and title.
pub(crate) fn status_and_title(code: Code, shed: ShedStatus) -> (StatusCode, &'static str) {
    match code {
        Code::InvalidParameter => (StatusCode::BAD_REQUEST, "Invalid parameter"),
        Code::InvalidJson => (StatusCode::BAD_REQUEST, "Invalid JSON"),
        Code::InvalidMultipart => (StatusCode::BAD_REQUEST, "Invalid multipart body"),
        Code::InvalidBase64 => (StatusCode::BAD_REQUEST, "Invalid base64"),
        Code::InvalidRequest => (StatusCode::BAD_REQUEST, "Invalid request"),
        Code::NoImage => (StatusCode::BAD_REQUEST, "No image"),
        Code::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "Body too large"),
        Code::TooManyImages => (StatusCode::PAYLOAD_TOO_LARGE, "Too many images"),
        Code::ImageTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "Image too large"),
        Code::FeaturesTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "Features too large"),
        Code::NotAcceptable => (StatusCode::NOT_ACCEPTABLE, "Not acceptable"),
        Code::UnsupportedMediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported media type"),
        Code::UnsupportedImageFormat => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported image format"),
        Code::UndecodableImage => (StatusCode::UNPROCESSABLE_ENTITY, "Undecodable image"),
        Code::UnknownModel => (StatusCode::NOT_FOUND, "Unknown model"),
        Code::UnknownRoute => (StatusCode::NOT_FOUND, "Unknown route"),
        Code::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "Method not allowed"),
        Code::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, "Body timeout"),
        Code::Overloaded => match shed {
            ShedStatus::TooManyRequests => (StatusCode::TOO_MANY_REQUESTS, "Overloaded"),
            ShedStatus::ServiceUnavailable => (StatusCode::SERVICE_UNAVAILABLE, "Overloaded"),
        },
        Code::NotReady => (StatusCode::SERVICE_UNAVAILABLE, "Not ready"),
        Code::Draining => (StatusCode::SERVICE_UNAVAILABLE, "Draining"),
        Code::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, "Deadline exceeded"),
        Code::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "Internal error"),
    }
}

impl Problem {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        // Libraries' errors repeat what the client sent, which may be megabytes.
        let mut detail: String = detail.into();
        if let Some((end, _)) = detail.char_indices().nth(MAX_DETAIL) {
            detail.truncate(end);
            detail.push('…');
        }
        Self { code, detail, retry_after: None }
    }

    /// The problem that an error answer from a library stands for: axum's routing, tower-http's limits.
    pub(crate) fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::NOT_FOUND => Self::new(Code::UnknownRoute, "there is nothing at this path"),
            StatusCode::METHOD_NOT_ALLOWED => {
                Self::new(Code::MethodNotAllowed, "this path does not take this method; `Allow` lists those it takes")
            }
            StatusCode::PAYLOAD_TOO_LARGE => {
                Self::new(Code::BodyTooLarge, "the body is larger than the server accepts")
            }
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                Self::new(Code::UnsupportedMediaType, "the body is of a type that this path does not take")
            }
            status if status.is_client_error() => Self::new(Code::InvalidRequest, "the request is not valid"),
            _ => Self::from(Error::Internal),
        }
    }

    /// The answer, complete.
    pub(crate) fn render(&self, shed: ShedStatus, request_id: &str) -> Response {
        let (status, title) = status_and_title(self.code, shed);
        let body = Body {
            r#type: format!("urn:ghostserve:problem:{}", self.code.as_str()),
            title,
            status: status.as_u16(),
            detail: &self.detail,
            code: self.code,
            request_id,
        };
        // Strings and numbers always serialise.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        if let Some(wait) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs()));
        }
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let retry_after = match &error {
            Error::Overloaded { retry_after, .. } => Some(*retry_after),
            Error::NotReady | Error::Draining => Some(Duration::from_secs(1)),
            _ => None,
        };
        Self { retry_after, ..Self::new(error.code(), error.to_string()) }
    }
}

/// Carries the problem outwards; [`super::http::layers`] writes the body.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, _) = status_and_title(self.code, ShedStatus::default());
        let mut response = status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The whole table, so that a change of it is seen here.
    #[test]
    fn every_code_has_its_status() {
        let expected = [
            ("invalid_parameter", 400),
            ("invalid_json", 400),
            ("invalid_multipart", 400),
            ("invalid_base64", 400),
            ("invalid_request", 400),
            ("no_image", 400),
            ("body_too_large", 413),
            ("too_many_images", 413),
            ("image_too_large", 413),
            ("features_too_large", 413),
            ("not_acceptable", 406),
            ("unsupported_media_type", 415),
            ("unsupported_image_format", 415),
            ("undecodable_image", 422),
            ("unknown_model", 404),
            ("unknown_route", 404),
            ("method_not_allowed", 405),
            ("body_timeout", 408),
            ("overloaded", 429),
            ("not_ready", 503),
            ("draining", 503),
            ("deadline_exceeded", 504),
            ("internal", 500),
        ];
        let table: Vec<_> = Code::ALL
            .iter()
            .map(|code| (code.as_str(), status_and_title(*code, ShedStatus::default()).0.as_u16()))
            .collect();
        assert_eq!(table, expected);
        let titles: BTreeSet<_> =
            Code::ALL.iter().map(|code| status_and_title(*code, ShedStatus::default()).1).collect();
        assert_eq!(titles.len(), Code::ALL.len(), "titles tell codes apart");
    }

    #[test]
    fn shedding_can_be_a_503() {
        assert_eq!(status_and_title(Code::Overloaded, ShedStatus::ServiceUnavailable).0, 503);
    }

    #[test]
    fn an_overload_says_when_to_come_back() {
        let error = Error::Overloaded { limit: "images in flight", retry_after: Duration::from_secs(3) };
        let response = Problem::from(error).render(ShedStatus::default(), "id");
        assert_eq!(response.headers()[header::RETRY_AFTER], "3");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
    }
}
