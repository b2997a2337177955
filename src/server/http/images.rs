//! From a request to image files: one raw image, the file parts of a form, or base64 in JSON.

use std::borrow::Cow;
use std::fmt;

use axum::body::Body;
use axum::extract::Request;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderMap, header};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tokio::time::{Duration, Instant};

use super::body::{BodyBounds, ReadBody, json_object, off_the_runtime, read};
use crate::config::RequestLimits;
use crate::preprocess::{Origin, Source};
use crate::server::app::App;
use crate::server::problem::Problem;
use crate::service::{Code, Error};

/// The images of a request, in order.
pub(super) struct Images {
    pub(super) files: Vec<Result<Source, Error>>,
    /// Time the body took.
    pub(super) read: Duration,
    /// Counts the bytes of the body for as long as the files are in use.
    _body: ReadBody,
}

/// Far above any sensible `--max-images-per-request`.
pub(super) const MAX_JSON_IMAGES: usize = 10_000;

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
    images: Texts<'a>,
}

/// The texts of a JSON array, where they stand in the body if they hold no escapes. An array of millions of empty texts
/// would take ten times the body's memory before anybody counted it, so it ends here.
struct Texts<'a>(Vec<Cow<'a, str>>);

/// One text, borrowed where it can be: a bare `Cow` is always copied.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Texts<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Array;
        impl<'de> Visitor<'de> for Array {
            type Value = Vec<Cow<'de, str>>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of base64 texts")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
                let mut texts = Vec::new();
                while let Some(Text(text)) = array.next_element()? {
                    if texts.len() == MAX_JSON_IMAGES {
                        return Err(Error::custom(format!("an array of more than {MAX_JSON_IMAGES} images")));
                    }
                    texts.push(text);
                }
                Ok(texts)
            }
        }
        use serde::de::Error;
        deserializer.deserialize_seq(Array).map(Texts)
    }
}

/// Reads the images of a request whose handling began at `start`.
pub(super) async fn images(app: &App, request: Request, start: Instant, origin: Origin) -> Result<Images, Problem> {
    let deadline = origin.deadline;
    let limits = &app.config.request;
    let (parts, body) = request.into_parts();
    let kind = kind(parts.headers.get(header::CONTENT_TYPE).map(|v| v.as_bytes()))?;
    check_encoding(&parts.headers)?;
    let limit = if matches!(kind, Kind::Raw) { limits.max_body } else { limits.max_multi_body };
    let until = start + app.config.time.body;
    let bounds = BodyBounds { limit, until: until.min(deadline) };
    let read_body = read(app, (origin.client, &parts.headers), body, bounds).await;
    let mut body = read_body.map_err(|problem| match problem.code {
        // It was the client's patience that ended, not ours.
        Code::BodyTimeout if deadline < until => Error::DeadlineExceeded.into(),
        _ => problem,
    })?;
    let read = start.elapsed();
    let size = body.bytes.len();
    let limits = *limits;
    let files = match kind {
        Kind::Raw => vec![Ok(body.bytes.clone().into())],
        Kind::Multipart { boundary } => {
            // The parser copies the body into its buffer, and each part out of it.
            body.memory.grow(2 * size)?;
            let bytes = std::mem::take(&mut body.bytes);
            let parse = move || from_multipart(bytes, boundary, &limits);
            let files = off_the_runtime(app, size, origin, parse).await?;
            body.memory.shrink(2 * size);
            files
        }
        Kind::Json => {
            body.memory.grow(size)?;
            let bytes = std::mem::take(&mut body.bytes);
            let files = off_the_runtime(app, size, origin, move || from_json(&bytes, &limits)).await?;
            body.memory.shrink(size);
            files
        }
    };
    if files.is_empty() {
        return Err(Error::NoImages.into());
    }
    Ok(Images { files, read, _body: body })
}

/// Refuses bodies that are compressed as a whole.
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
        None => Ok(()),
        Some(_) => {
            let detail = "compressed bodies are not read: images are compressed already; leave out `Content-Encoding`";
            Err(Problem::new(Code::UnsupportedMediaType, detail))
        }
    }
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

fn from_json(body: &[u8], limits: &RequestLimits) -> Result<Vec<Result<Source, Error>>, Problem> {
    let body: JsonBody<'_> = json_object(body)
        .map_err(|e| Problem::new(Code::InvalidJson, format!("expected {{\"images\": [\"<base64>\", …]}}: {e}")))?;
    let texts = body.images.0;
    if texts.len() > limits.max_images {
        return Err(too_many(limits));
    }
    Ok(texts.iter().map(|text| from_base64(text).map(Source::File)).collect())
}

pub(super) fn from_base64(text: &str) -> Result<Bytes, Error> {
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

/// Files of a multipart body that is in memory as a whole.
fn from_multipart(
    body: Bytes,
    boundary: String,
    limits: &RequestLimits,
) -> Result<Vec<Result<Source, Error>>, Problem> {
    // There is nothing to wait for: the stream is one chunk that is there.
    multipart_files(body, boundary, limits).now_or_never().unwrap_or_else(|| Err(Error::Internal.into()))
}

async fn multipart_files(
    body: Bytes,
    boundary: String,
    limits: &RequestLimits,
) -> Result<Vec<Result<Source, Error>>, Problem> {
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
        files.push(Ok(bytes.into()));
    }
    Ok(files)
}
