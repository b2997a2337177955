//! From a request to image files: one raw image, the file parts of a form, or base64 in JSON.

use axum::body::Body;
use axum::extract::Request;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header;
use serde::Deserialize;
use tokio::time::{Duration, Instant};

use super::App;
use super::body::{ReadBody, read};
use crate::config::RequestLimits;
use crate::server::problem::Problem;
use crate::service::{Code, Error};

/// The images of a request, in order.
pub(super) struct Images {
    pub(super) files: Vec<Result<Bytes, Error>>,
    /// Time the body took.
    pub(super) read: Duration,
    /// What the files are slices of.
    _body: ReadBody,
}

/// What a body is, by its `Content-Type`.
enum Kind {
    Raw,
    Multipart { boundary: String },
    Json,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonBody<'a> {
    #[serde(borrow)]
    images: Vec<std::borrow::Cow<'a, str>>,
}

/// Reads the images of a request whose handling began at `start` and must end at `deadline`.
pub(super) async fn images(app: &App, request: Request, start: Instant, deadline: Instant) -> Result<Images, Problem> {
    let limits = &app.config.request;
    let (parts, body) = request.into_parts();
    let kind = kind(parts.headers.get(header::CONTENT_TYPE).map(|v| v.as_bytes()))?;
    if let Some(encoding) = parts.headers.get(header::CONTENT_ENCODING)
        && encoding != "identity"
    {
        let detail = "compressed bodies are not read: images are compressed already; leave out `Content-Encoding`";
        return Err(Problem::new(Code::UnsupportedMediaType, detail));
    }
    let limit = if matches!(kind, Kind::Raw) { limits.max_body } else { limits.max_multi_body };
    let until = deadline.min(start + app.config.time.body);
    let body = read(app, &parts.headers, body, limit, until).await?;
    let read = start.elapsed();
    let files = match kind {
        Kind::Raw => vec![Ok(body.bytes.clone())],
        Kind::Multipart { boundary } => from_multipart(body.bytes.clone(), boundary, limits).await?,
        Kind::Json => from_json(&body.bytes, limits)?,
    };
    if files.is_empty() {
        return Err(Error::NoImages.into());
    }
    Ok(Images { files, read, _body: body })
}

fn kind(content_type: Option<&[u8]>) -> Result<Kind, Problem> {
    // Bytes without a type, and the type that curl puts on them when it is not told another, are an image.
    let Some(value) = content_type else { return Ok(Kind::Raw) };
    let text = String::from_utf8_lossy(value);
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "" | "application/octet-stream" | "application/x-www-form-urlencoded" => Ok(Kind::Raw),
        image if image.starts_with("image/") => Ok(Kind::Raw),
        "application/json" => Ok(Kind::Json),
        "multipart/form-data" => {
            multer::parse_boundary(&*text).map(|boundary| Kind::Multipart { boundary }).map_err(|_| {
                Problem::new(
                    Code::InvalidMultipart,
                    "`Content-Type: multipart/form-data` has no `boundary`; let the client library set it",
                )
            })
        }
        other => {
            let other: String = other.chars().take(100).collect();
            Err(Problem::new(
                Code::UnsupportedMediaType,
                format!(
                    "a body of type `{other}` is not read; send one image as `image/*` or `application/octet-stream`, \
                     several as `multipart/form-data` or `application/json`"
                ),
            ))
        }
    }
}

fn too_many(limits: &RequestLimits) -> Problem {
    let detail =
        format!("the request holds more than the {} images accepted; send several requests", limits.max_images);
    Problem::new(Code::TooManyImages, detail)
}

fn from_json(body: &[u8], limits: &RequestLimits) -> Result<Vec<Result<Bytes, Error>>, Problem> {
    let body: JsonBody<'_> = serde_json::from_slice(body)
        .map_err(|e| Problem::new(Code::InvalidJson, format!("expected {{\"images\": [\"<base64>\", …]}}: {e}")))?;
    if body.images.len() > limits.max_images {
        return Err(too_many(limits));
    }
    Ok(body.images.iter().map(|text| from_base64(text)).collect())
}

fn from_base64(text: &str) -> Result<Bytes, Error> {
    let text = match text.strip_prefix("data:") {
        None => text,
        Some(url) => match url.split_once(";base64,") {
            Some((_, data)) => data,
            None => return Err(Error::Base64("a data URL must contain `;base64,`".to_owned())),
        },
    };
    match STANDARD.decode(text.trim_ascii()) {
        Ok(bytes) => Ok(bytes.into()),
        Err(e) => Err(Error::Base64(e.to_string())),
    }
}

async fn from_multipart(
    body: Bytes,
    boundary: String,
    limits: &RequestLimits,
) -> Result<Vec<Result<Bytes, Error>>, Problem> {
    let invalid = |detail: String| Problem::new(Code::InvalidMultipart, detail);
    // The body is in memory and within its limit, so a part cannot be larger than that.
    let mut form = multer::Multipart::new(Body::from(body).into_data_stream(), boundary);
    let mut files = Vec::new();
    let mut parts = 0;
    while let Some(part) =
        form.next_field().await.map_err(|e| invalid(format!("the body is not valid multipart: {e}")))?
    {
        parts += 1;
        if parts > limits.max_parts {
            return Err(invalid(format!("the body has more than the {} parts accepted", limits.max_parts)));
        }
        if part.headers().len() > limits.max_part_headers {
            let detail = format!("part {parts} has more than the {} headers accepted", limits.max_part_headers);
            return Err(invalid(detail));
        }
        let typed_as_file = part.content_type().is_some_and(|t| t.type_() == "image" || t.subtype() == "octet-stream");
        if part.file_name().is_none() && !typed_as_file {
            let name: String = part.name().unwrap_or_default().chars().take(100).collect();
            let detail =
                format!("the form's field `{name}` is not a file; send images as file parts, parameters in the query");
            return Err(Problem::new(Code::InvalidParameter, detail));
        }
        if files.len() == limits.max_images {
            return Err(too_many(limits));
        }
        let bytes = part.bytes().await.map_err(|e| invalid(format!("part {parts} is not complete: {e}")))?;
        files.push(Ok(bytes));
    }
    Ok(files)
}
