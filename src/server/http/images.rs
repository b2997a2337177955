//! Reads the images of a request: one raw image, the file parts of a form, or base64 in JSON.

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
use tracing::Instrument;

use super::body::{BodyBounds, ReadBody, json_object, parse_body, read_body};
use crate::config::RequestLimits;
use crate::preprocess::{Format, RequestContext, Source};
use crate::server::app::App;
use crate::server::problem::Problem;
use crate::service::{Code, Error};
use crate::telemetry::{Stage, spans};
use crate::text::shortened;

/// The images of a request, in order.
pub(super) struct RequestImages {
    pub(super) files: Vec<Result<Source, Error>>,
    /// Time until the body was complete.
    pub(super) read_time: Duration,
    /// Counts the bytes of the body as long as the files are in use.
    _body: ReadBody,
}

/// Maximum number of images in a JSON array while it is parsed: far above any sensible `--max-images-per-request`.
pub(super) const MAX_JSON_IMAGES: usize = 10_000;

/// The kind of a body, by its `Content-Type`.
enum BodyKind {
    Raw,
    /// The type of a form, which `curl --data-binary` sends with a raw image, and `curl -d` with a damaged one.
    Form,
    Multipart {
        boundary: String,
    },
    Json,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonBody<'a> {
    #[serde(borrow)]
    images: Base64Texts<'a>,
}

/// The strings of a JSON array, borrowed from the body if they have no escapes. An array of millions of empty strings
/// would take ten times the body's memory, so their number is limited while they are parsed.
struct Base64Texts<'a>(Vec<Cow<'a, str>>);

/// One string, borrowed if possible: serde always copies a `Cow` that is not in a struct.
#[derive(Deserialize)]
struct Base64Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Base64Texts<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextsVisitor;
        impl<'de> Visitor<'de> for TextsVisitor {
            type Value = Vec<Cow<'de, str>>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of base64 texts")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
                let mut texts = Vec::new();
                while let Some(Base64Text(text)) = array.next_element()? {
                    if texts.len() == MAX_JSON_IMAGES {
                        return Err(Error::custom(format!("an array of more than {MAX_JSON_IMAGES} images")));
                    }
                    texts.push(text);
                }
                Ok(texts)
            }
        }
        use serde::de::Error;
        deserializer.deserialize_seq(TextsVisitor).map(Base64Texts)
    }
}

/// Reads the images of a request whose handling began at `start`.
pub(super) async fn read_images(
    app: &App,
    request: Request,
    start: Instant,
    context: RequestContext,
) -> Result<RequestImages, Problem> {
    let images = read_and_parse(app, request, start, context).instrument(spans::stage(Stage::Read)).await?;
    app.metrics.record_stage(Stage::Read, images.read_time);
    Ok(images)
}

async fn read_and_parse(
    app: &App,
    request: Request,
    start: Instant,
    context: RequestContext,
) -> Result<RequestImages, Problem> {
    let deadline = context.deadline;
    let limits = &app.config.request;
    let (parts, body) = request.into_parts();
    let kind = body_kind(parts.headers.get(header::CONTENT_TYPE).map(|v| v.as_bytes()))?;
    check_encoding(&parts.headers)?;
    let limit = if matches!(kind, BodyKind::Raw | BodyKind::Form) {
        limits.max_body_bytes
    } else {
        limits.max_multi_body_bytes
    };
    let until = start + app.config.time.body_timeout;
    let bounds = BodyBounds { limit, until: until.min(deadline) };
    let body = read_body(app, context.client, &parts.headers, body, bounds).await;
    let mut body = body.map_err(|problem| match problem.code {
        // The client's deadline was earlier than the server's time limit for the body.
        Code::BodyTimeout if deadline < until => Error::DeadlineExceeded.into(),
        _ => problem,
    })?;
    let read_time = start.elapsed();
    let size = body.bytes.len();
    let limits = *limits;
    let files = match kind {
        BodyKind::Raw => vec![Ok(body.bytes.clone().into())],
        BodyKind::Form if is_damaged_by_a_form(&body.bytes) => return Err(damaged_by_a_form()),
        BodyKind::Form => vec![Ok(body.bytes.clone().into())],
        BodyKind::Multipart { boundary } => {
            // The parser copies the body into its buffer, and each part out of it.
            body.memory.grow(2 * size)?;
            let bytes = std::mem::take(&mut body.bytes);
            let parse = move || from_multipart(bytes, boundary, &limits);
            let files = parse_body(app, size, context, parse).await?;
            body.memory.shrink(2 * size);
            files
        }
        BodyKind::Json => {
            body.memory.grow(size)?;
            let bytes = std::mem::take(&mut body.bytes);
            let files = parse_body(app, size, context, move || from_json(&bytes, &limits)).await?;
            body.memory.shrink(size);
            files
        }
    };
    if files.is_empty() {
        return Err(Error::NoImages.into());
    }
    Ok(RequestImages { files, read_time, _body: body })
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

fn body_kind(content_type: Option<&[u8]>) -> Result<BodyKind, Problem> {
    // A body without a type is an image, and so is one of the type that curl sets by default.
    let Some(value) = content_type else { return Ok(BodyKind::Raw) };
    let text = String::from_utf8_lossy(value);
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "" | "application/octet-stream" => Ok(BodyKind::Raw),
        "application/x-www-form-urlencoded" => Ok(BodyKind::Form),
        image if image.starts_with("image/") => Ok(BodyKind::Raw),
        "application/json" => Ok(BodyKind::Json),
        "multipart/form-data" => {
            multer::parse_boundary(&*text).map(|boundary| BodyKind::Multipart { boundary }).map_err(|_| {
                Problem::new(
                    Code::InvalidMultipart,
                    "`Content-Type: multipart/form-data` has no `boundary`; let the client library set it",
                )
            })
        }
        other => {
            let other = shortened(other, 100);
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

/// Size of a compressed file that holds a line break if it is of a photograph: its bytes are nearly random, and two of
/// 256 values are line breaks.
const SURELY_HAS_LINE_BREAKS: usize = 4096;

/// Whether bytes that were sent as a form are no longer a whole image. `curl -d @FILE` leaves out line breaks and, in
/// later versions, zero bytes, which every image file has in its header. The fields of a real form have neither.
fn is_damaged_by_a_form(body: &[u8]) -> bool {
    let has = |wanted: &[u8]| body.iter().any(|byte| wanted.contains(byte));
    let is_compressed = !matches!(Format::sniff(body), Ok(Format::Bmp | Format::Tiff));
    let is_long = is_compressed && body.len() >= SURELY_HAS_LINE_BREAKS && is_varied(body);
    !body.is_empty() && !has(b"\r\n") && (is_long || !has(&[0]))
}

/// Whether the bytes are as varied as those of a photograph. Files of images of one colour repeat a few bytes.
fn is_varied(body: &[u8]) -> bool {
    let mut values = [false; 256];
    body.iter().for_each(|byte| values[usize::from(*byte)] = true);
    values.into_iter().filter(|seen| *seen).count() >= 128
}

fn damaged_by_a_form() -> Problem {
    let detail = "the body has the type of a form, `application/x-www-form-urlencoded`, and no line breaks, as if \
                  `curl -d` had removed them from a file; send the file unchanged, as `curl --data-binary @FILE` or \
                  Python's `requests.post(url, data=open(FILE, \"rb\"))`, or as a file of a `multipart/form-data` \
                  body, as `curl -F image=@FILE`";
    Problem::new(Code::UnsupportedMediaType, detail)
}

fn too_many(limits: &RequestLimits) -> Problem {
    let images = limits.max_images_per_request;
    let detail = format!("the request holds more than the {images} images accepted; send several requests");
    Problem::new(Code::TooManyImages, detail)
}

fn from_json(body: &[u8], limits: &RequestLimits) -> Result<Vec<Result<Source, Error>>, Problem> {
    let body: JsonBody<'_> = json_object(body)
        .map_err(|e| Problem::new(Code::InvalidJson, format!("expected {{\"images\": [\"<base64>\", …]}}: {e}")))?;
    let texts = body.images.0;
    if texts.len() > limits.max_images_per_request {
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

/// The files of a multipart body that is completely in memory.
fn from_multipart(
    body: Bytes,
    boundary: String,
    limits: &RequestLimits,
) -> Result<Vec<Result<Source, Error>>, Problem> {
    // There is nothing to wait for: the stream is one chunk that is already there.
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
        if parts > limits.max_multipart_parts {
            return Err(invalid(format!("the body has more than the {} parts accepted", limits.max_multipart_parts)));
        }
        if part.headers().len() > limits.max_part_headers {
            let detail = format!("part {parts} has more than the {} headers accepted", limits.max_part_headers);
            return Err(invalid(detail));
        }
        let typed_as_file = part.content_type().is_some_and(|t| t.type_() == "image" || t.subtype() == "octet-stream");
        if part.file_name().is_none() && !typed_as_file {
            let name = shortened(part.name().unwrap_or_default(), 100);
            let detail =
                format!("the form's field `{name}` is not a file; send images as file parts, parameters in the query");
            return Err(Problem::new(Code::InvalidParameter, detail));
        }
        if files.len() == limits.max_images_per_request {
            return Err(too_many(limits));
        }
        let bytes = part.bytes().await.map_err(|e| invalid(format!("part {parts} is not complete: {e}")))?;
        files.push(Ok(bytes.into()));
    }
    Ok(files)
}
