//! A target that is ready to be asked: its address found, its requests written out.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use serde::de::IgnoredAny;
use tokio::time::timeout;

use super::client::{Connection, Failure};
use super::grpc::{self, Call};
use super::images::ImageFile;
use super::target::Protocol;
use super::{Images, LoadError, Target};

/// How much of an answer to the first request is shown, bytes.
const SHOWN: usize = 300;

/// Between the parts of a multipart body: long enough not to be found in an image by chance.
const BOUNDARY: &str = "ghostserve-bench-7c1b1a60d9f14f0fa6e3c04b0d5a4c39";

/// How an image becomes a request.
#[derive(Clone, Debug, Default)]
pub struct RequestStyle {
    /// The body's type; by the file's first bytes if absent.
    pub content_type: Option<String>,
    /// Further header lines, `name: value`.
    pub headers: Vec<String>,
    /// The form field that carries the image in a `multipart/form-data` body; the image is the body if absent.
    pub multipart: Option<String>,
}

/// A target, where it is, and what it is sent.
#[derive(Debug)]
pub struct Endpoint {
    /// Whom we measure.
    pub target: Target,
    /// One, or several of a mix.
    pub(super) parts: Vec<Part>,
}

/// Where a connection goes.
#[derive(Debug)]
pub(super) struct Part {
    /// What its name stands for.
    pub(super) address: SocketAddr,
    /// Whole requests, head and body, or messages; one an image.
    pub(super) requests: Vec<Bytes>,
    /// What calls have in common, if it speaks gRPC.
    pub(super) call: Option<Call>,
}

impl Endpoint {
    /// Looks the host up, writes the requests out, and sends the first of them: nothing is measured that does not work.
    pub async fn prepare(
        target: Target,
        images: &Images,
        style: &RequestStyle,
        patience: Duration,
    ) -> Result<Self, LoadError> {
        style.check()?;
        let mut parts = Vec::with_capacity(1 + target.others.len());
        for one in std::iter::once(&target).chain(&target.others) {
            parts.push(Part::prepare(one, images, style, patience).await?);
        }
        Ok(Self { target, parts })
    }
}

impl Part {
    async fn prepare(
        target: &Target,
        images: &Images,
        style: &RequestStyle,
        patience: Duration,
    ) -> Result<Self, LoadError> {
        let wrong = |reason: String| LoadError::Url { url: target.url.clone(), reason };
        let files = images.files().iter();
        let (requests, call): (Vec<_>, _) = match target.protocol {
            Protocol::Http => (files.map(|file| style.request(target, file)).collect(), None),
            Protocol::Grpc if style.multipart.is_some() => {
                return Err(wrong("gRPC has no forms: leave out --multipart".to_owned()));
            }
            Protocol::Grpc => {
                let uri = format!("http://{}{}", target.authority, target.path).parse();
                let uri = uri.map_err(|error: http::uri::InvalidUri| wrong(error.to_string()))?;
                (files.map(|file| grpc::request(&file.bytes)).collect(), Some(Call::new(uri, &style.headers)))
            }
        };
        let unreachable = |reason: String| LoadError::Unreachable { url: target.url.clone(), reason };
        let addresses = tokio::net::lookup_host((target.host.as_str(), target.port));
        let addresses: Vec<_> = addresses.await.map_err(|error| unreachable(error.to_string()))?.collect();
        let mut reason = "the name has no address".to_owned();
        for address in addresses {
            let part = Self { address, requests: requests.clone(), call: call.clone() };
            match timeout(patience, Connection::open(&part)).await {
                Ok(Ok(connection)) => {
                    probe(target, connection, &part.requests[0], patience).await?;
                    return Ok(part);
                }
                Ok(Err(error)) => reason = error.to_string(),
                Err(_) => reason = format!("no answer within {patience:?}"),
            }
        }
        Err(unreachable(reason))
    }

    /// Whether a success's body is what it should be.
    pub(super) fn check(&self, body: &[u8]) -> Result<(), String> {
        match self.call {
            None => serde_json::from_slice::<IgnoredAny>(body).map(drop).map_err(|error| error.to_string()),
            Some(_) => grpc::check(body),
        }
    }
}

/// One request, which must succeed.
async fn probe(
    target: &Target,
    mut connection: Connection,
    request: &Bytes,
    patience: Duration,
) -> Result<(), LoadError> {
    let no_answer = |reason: String| LoadError::NoAnswer { url: target.url.clone(), reason };
    let answer = match timeout(patience, connection.exchange(request, SHOWN)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(Failure { detail, .. })) => return Err(no_answer(detail)),
        Err(_) => return Err(no_answer(format!("nothing within {patience:?}"))),
    };
    if (200..300).contains(&answer.status) {
        return Ok(());
    }
    let body = String::from_utf8_lossy(&answer.body).trim().to_owned();
    let body = if body.is_empty() { "(no body)".to_owned() } else { body };
    Err(LoadError::Refused { url: target.url.clone(), status: answer.status, body })
}

impl RequestStyle {
    fn check(&self) -> Result<(), LoadError> {
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b == b'\t' || (b' '..0x7F).contains(&b));
        for line in &self.headers {
            let name = line.split_once(':').map(|(name, _)| name.trim().to_ascii_lowercase());
            match name {
                Some(name) if plain(line) && !name.is_empty() && !name.contains([' ', '\t']) => {
                    if ["content-length", "transfer-encoding", "connection", "expect"].contains(&name.as_str()) {
                        return Err(LoadError::OwnHeader(name));
                    }
                }
                _ => return Err(LoadError::Header(line.clone())),
            }
        }
        if let Some(kind) = self.content_type.as_ref().filter(|kind| !plain(kind)) {
            return Err(LoadError::Header(format!("content-type: {kind}")));
        }
        match self.multipart.as_ref().filter(|name| !plain(name) || name.contains('"')) {
            Some(name) => Err(LoadError::Header(format!("content-disposition: form-data; name=\"{name}\""))),
            None => Ok(()),
        }
    }

    /// Head and body in one piece, so that they are one write.
    fn request(&self, target: &Target, file: &ImageFile) -> Bytes {
        let image_type = self.content_type.as_deref().unwrap_or_else(|| file.content_type());
        let (kind, before, after) = match &self.multipart {
            None => (image_type.to_owned(), String::new(), String::new()),
            Some(field) => {
                let name: String =
                    file.name.chars().map(|c| if c == '"' || c.is_control() { '_' } else { c }).collect();
                let before = format!(
                    "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{field}\"; filename=\"{name}\"\r\n\
                     content-type: {image_type}\r\n\r\n"
                );
                (format!("multipart/form-data; boundary={BOUNDARY}"), before, format!("\r\n--{BOUNDARY}--\r\n"))
            }
        };
        let own = [
            ("host", target.authority.clone()),
            ("user-agent", concat!("ghostserve-bench/", env!("CARGO_PKG_VERSION")).to_owned()),
            ("accept", "*/*".to_owned()),
            ("content-type", kind),
        ];
        let mut head = format!("POST {} HTTP/1.1\r\n", target.path);
        for (name, value) in own {
            let replaced = |line: &String| line.split(':').next().is_some_and(|n| n.trim().eq_ignore_ascii_case(name));
            if !self.headers.iter().any(replaced) {
                head += &format!("{name}: {value}\r\n");
            }
        }
        for line in &self.headers {
            head += line.trim();
            head += "\r\n";
        }
        head += &format!("content-length: {}\r\n\r\n", before.len() + file.bytes.len() + after.len());
        [head.as_bytes(), before.as_bytes(), &file.bytes, after.as_bytes()].concat().into()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn request(style: &RequestStyle) -> String {
        let target = Target::parse("http://example:81/classify?k=1").unwrap();
        let file = ImageFile { name: "a\"b.gif".to_owned(), bytes: b"GIF89a".to_vec() };
        style.check().unwrap();
        String::from_utf8(style.request(&target, &file).to_vec()).unwrap()
    }

    #[test]
    fn a_request_is_a_head_and_the_file() {
        let text = request(&RequestStyle::default());
        assert!(text.starts_with("POST /classify?k=1 HTTP/1.1\r\nhost: example:81\r\n"), "{text}");
        assert!(text.ends_with("content-type: image/gif\r\ncontent-length: 6\r\n\r\nGIF89a"), "{text}");
    }

    #[test]
    fn headers_are_added_or_replace_ours_and_cannot_break_the_request() {
        let headers = vec!["Host: other".to_owned(), "x-key: secret".to_owned()];
        let text = request(&RequestStyle { headers, content_type: Some("image/x".to_owned()), multipart: None });
        assert!(text.contains("\r\nHost: other\r\nx-key: secret\r\n") && !text.contains("example:81"), "{text}");
        assert!(text.contains("content-type: image/x\r\n"), "{text}");
        for line in ["no colon", "a: b\r\nc: d", ": b", "a b: c", "Content-Length: 5", "ü: x"] {
            let style = RequestStyle { headers: vec![line.to_owned()], ..RequestStyle::default() };
            assert!(style.check().is_err(), "{line}");
        }
    }

    #[test]
    fn a_form_field_carries_the_file() {
        let text = request(&RequestStyle { multipart: Some("image".to_owned()), ..RequestStyle::default() });
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert!(head.contains(&format!("content-type: multipart/form-data; boundary={BOUNDARY}")), "{head}");
        assert!(body.contains("name=\"image\"; filename=\"a_b.gif\"\r\ncontent-type: image/gif\r\n\r\nGIF89a\r\n--"));
    }
}
