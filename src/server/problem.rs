//! Errors as clients see them: `application/problem+json` (RFC 9457), and the tables from codes to HTTP and gRPC
//! statuses.
//!
//! A handler returns a [`Problem`]. A middleware writes its body, because it knows the request's id. A problem has no
//! internal details: the message of an internal error is always the same, and the log has its cause under the
//! request's id.

use std::collections::HashMap;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

use crate::config::ShedStatus;
use crate::service::{Code, Error};
use crate::text::shortened;

/// Maximum number of characters of a detail.
const MAX_DETAIL: usize = 500;

/// Error answer without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) code: Code,
    pub(crate) detail: String,
    pub(crate) retry_after: Option<Duration>,
}

/// Body of an error answer: the members of RFC 9457, `code` and `request_id`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub(super) struct ProblemBody<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: Code,
    request_id: &'a str,
}

/// HTTP status and title of a code.
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

/// gRPC status of a code.
pub(crate) fn grpc_code(code: Code, shed: ShedStatus) -> tonic::Code {
    match code {
        Code::InvalidParameter
        | Code::InvalidJson
        | Code::InvalidMultipart
        | Code::InvalidBase64
        | Code::InvalidRequest
        | Code::NoImage
        | Code::TooManyImages
        | Code::ImageTooLarge
        | Code::FeaturesTooLarge
        | Code::NotAcceptable
        | Code::UnsupportedMediaType
        | Code::UnsupportedImageFormat
        | Code::UndecodableImage => tonic::Code::InvalidArgument,
        // The code that gRPC libraries use for messages that are too large.
        Code::BodyTooLarge => tonic::Code::ResourceExhausted,
        Code::UnknownModel => tonic::Code::NotFound,
        Code::UnknownRoute | Code::MethodNotAllowed => tonic::Code::Unimplemented,
        Code::Overloaded => match shed {
            ShedStatus::TooManyRequests => tonic::Code::ResourceExhausted,
            ShedStatus::ServiceUnavailable => tonic::Code::Unavailable,
        },
        Code::NotReady | Code::Draining => tonic::Code::Unavailable,
        Code::BodyTimeout | Code::DeadlineExceeded => tonic::Code::DeadlineExceeded,
        Code::Internal => tonic::Code::Internal,
    }
}

impl Problem {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        // Errors of libraries repeat what the client sent, which may be megabytes.
        let mut detail: String = detail.into();
        let length = shortened(&detail, MAX_DETAIL).len();
        if length < detail.len() {
            detail.truncate(length);
            detail.push('…');
        }
        Self { code, detail, retry_after: None }
    }

    /// Error of a request with more images than are accepted.
    pub(crate) fn too_many_images(images: usize, max_images: usize) -> Self {
        let detail =
            format!("the request holds {images} images, more than the {max_images} accepted; send several requests");
        Self::new(Code::TooManyImages, detail)
    }

    /// Problem for an error answer that a library made (axum's routing, tower-http's limits).
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

    /// Status of a gRPC call. Its details are those of an HTTP answer: the code, the request's id, when to try again.
    pub(crate) fn status(&self, shed: ShedStatus, request_id: &str) -> Status {
        let mut details = ErrorDetails::new();
        details.set_error_info(self.code.as_str(), env!("CARGO_PKG_NAME"), HashMap::new());
        details.set_request_info(request_id, "");
        if let Some(wait) = self.retry_after {
            details.set_retry_info(Some(wait));
        }
        Status::with_error_details(grpc_code(self.code, shed), self.detail.clone(), details)
    }

    /// Makes the answer in the format of the Open Inference Protocol.
    pub(crate) fn render_oip(&self, shed: ShedStatus) -> Response {
        let (status, _) = status_and_title(self.code, shed);
        self.with_retry((status, axum::Json(serde_json::json!({ "error": self.detail }))).into_response())
    }

    /// Adds `Retry-After`, if the problem has a time.
    fn with_retry(&self, mut response: Response) -> Response {
        if let Some(wait) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs()));
        }
        response
    }

    /// Makes the complete answer.
    pub(crate) fn render(&self, shed: ShedStatus, request_id: &str) -> Response {
        let (status, title) = status_and_title(self.code, shed);
        let body = ProblemBody {
            r#type: format!("urn:ghostserve:problem:{}", self.code.as_str()),
            title,
            status: status.as_u16(),
            detail: &self.detail,
            code: self.code,
            request_id,
        };
        // Strings and numbers always serialise.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        self.with_retry((status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response())
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

/// Attaches the problem to the response as an extension. A middleware writes the body.
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

    /// The expected table is complete, so that every change of it appears here.
    #[test]
    fn every_code_has_its_status() {
        let expected = [
            ("invalid_parameter", 400, tonic::Code::InvalidArgument),
            ("invalid_json", 400, tonic::Code::InvalidArgument),
            ("invalid_multipart", 400, tonic::Code::InvalidArgument),
            ("invalid_base64", 400, tonic::Code::InvalidArgument),
            ("invalid_request", 400, tonic::Code::InvalidArgument),
            ("no_image", 400, tonic::Code::InvalidArgument),
            ("body_too_large", 413, tonic::Code::ResourceExhausted),
            ("too_many_images", 413, tonic::Code::InvalidArgument),
            ("image_too_large", 413, tonic::Code::InvalidArgument),
            ("features_too_large", 413, tonic::Code::InvalidArgument),
            ("not_acceptable", 406, tonic::Code::InvalidArgument),
            ("unsupported_media_type", 415, tonic::Code::InvalidArgument),
            ("unsupported_image_format", 415, tonic::Code::InvalidArgument),
            ("undecodable_image", 422, tonic::Code::InvalidArgument),
            ("unknown_model", 404, tonic::Code::NotFound),
            ("unknown_route", 404, tonic::Code::Unimplemented),
            ("method_not_allowed", 405, tonic::Code::Unimplemented),
            ("body_timeout", 408, tonic::Code::DeadlineExceeded),
            ("overloaded", 429, tonic::Code::ResourceExhausted),
            ("not_ready", 503, tonic::Code::Unavailable),
            ("draining", 503, tonic::Code::Unavailable),
            ("deadline_exceeded", 504, tonic::Code::DeadlineExceeded),
            ("internal", 500, tonic::Code::Internal),
        ];
        let table: Vec<_> = Code::ALL
            .iter()
            .map(|code| {
                let shed = ShedStatus::default();
                (code.as_str(), status_and_title(*code, shed).0.as_u16(), grpc_code(*code, shed))
            })
            .collect();
        assert_eq!(table, expected);
        let titles: BTreeSet<_> =
            Code::ALL.iter().map(|code| status_and_title(*code, ShedStatus::default()).1).collect();
        assert_eq!(titles.len(), Code::ALL.len(), "every code has its own title");
    }

    #[test]
    fn overload_can_be_reported_as_a_503() {
        assert_eq!(status_and_title(Code::Overloaded, ShedStatus::ServiceUnavailable).0, 503);
        assert_eq!(grpc_code(Code::Overloaded, ShedStatus::ServiceUnavailable), tonic::Code::Unavailable);
    }

    #[test]
    fn an_overload_has_a_retry_after_header() {
        let error = Error::Overloaded { limit: "images in flight", retry_after: Duration::from_secs(3) };
        let response = Problem::from(error).render(ShedStatus::default(), "id");
        assert_eq!(response.headers()[header::RETRY_AFTER], "3");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
    }
}
