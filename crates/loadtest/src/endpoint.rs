//! Endpoints ready for load: addresses resolved, requests encoded, the first request answered.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use serde::de::IgnoredAny;
use tokio::time;

use super::client::{Connection, ExchangeError};
use super::grpc::{self, GrpcMethod};
use super::images::ImageFile;
use super::target::TargetProtocol;
use super::{ImageSet, LoadTarget, LoadTestError, ServerInfo};

/// Length of the error body that is shown if the first request is refused, bytes.
const SHOWN_BODY: usize = 300;

/// Length of the metrics that are read, bytes.
const METRICS_LIMIT: usize = 4 << 20;

/// Boundary between the parts of a multipart body; long enough not to occur in an image by chance.
const BOUNDARY: &str = "ghostserve-bench-7c1b1a60d9f14f0fa6e3c04b0d5a4c39";

/// Header names that follow from the body and the connection, and cannot be set.
const FRAMING_HEADERS: [&str; 4] = ["content-length", "transfer-encoding", "connection", "expect"];

/// How a request carries an image.
#[derive(Clone, Debug, Default)]
pub struct RequestFormat {
    /// Content type of the image; `None` derives it from the file's first bytes.
    pub content_type: Option<String>,
    /// Additional header lines, `name: value`.
    pub headers: Vec<String>,
    /// Name of the form field that carries the image in a `multipart/form-data` body; `None` sends the image as the
    /// body.
    pub multipart: Option<String>,
}

/// A target whose addresses are resolved and whose requests are encoded.
#[derive(Debug)]
pub struct PreparedEndpoint {
    /// The target.
    pub target: LoadTarget,
    /// Destinations of connections: one, or several of a mix.
    pub(super) destinations: Vec<Destination>,
    /// What the server says about itself; set by [`PreparedEndpoint::identify_server`].
    pub server: Option<ServerInfo>,
}

/// The server address that a connection is opened to, and its requests.
#[derive(Debug)]
pub(super) struct Destination {
    /// Resolved address.
    pub(super) address: SocketAddr,
    /// One complete request per image: head and body for HTTP, the message for gRPC.
    pub(super) requests: Vec<Bytes>,
    /// The method to call; `None` for HTTP.
    pub(super) method: Option<GrpcMethod>,
}

impl PreparedEndpoint {
    /// Resolves the target's host, encodes its requests and sends the first of them, which must succeed. Opening the
    /// connection and the response to that request may each take up to `time_limit`.
    ///
    /// # Errors
    /// The target cannot be reached or refuses the request, or `format` has a header that cannot be sent.
    pub async fn prepare(
        target: LoadTarget,
        images: &ImageSet,
        format: &RequestFormat,
        time_limit: Duration,
    ) -> Result<Self, LoadTestError> {
        format.validate()?;
        let mut destinations = Vec::with_capacity(1 + target.others.len());
        for part in std::iter::once(&target).chain(&target.others) {
            destinations.push(Destination::prepare(part, images, format, time_limit).await?);
        }
        Ok(Self { target, destinations, server: None })
    }

    /// Asks the server at its first address for `/metrics`, with the headers of `format`, and stores what a GhostServe
    /// says about itself there. If another port has the metrics, `/v2` and `/v1/models` tell less. All answers together
    /// may take up to `time_limit`; any failure means that nothing is known.
    pub async fn identify_server(&mut self, format: &RequestFormat, time_limit: Duration) {
        let Some(destination) = self.destinations.first() else { return };
        let get = async |path| {
            let request = format.encode_get(&self.target, path);
            let mut connection = Connection::open_http(destination.address).await.ok()?;
            let response = connection.exchange(&request, METRICS_LIMIT).await.ok()?;
            (response.status == 200).then(|| String::from_utf8_lossy(&response.body).into_owned())
        };
        let identify = async {
            if let Some(info) = get("/metrics").await.and_then(|text| ServerInfo::from_metrics(&text)) {
                return Some(info);
            }
            ServerInfo::from_metadata(&get("/v2").await?, &get("/v1/models").await?)
        };
        self.server = time::timeout(time_limit, identify).await.ok().flatten();
    }
}

impl Destination {
    async fn prepare(
        target: &LoadTarget,
        images: &ImageSet,
        format: &RequestFormat,
        time_limit: Duration,
    ) -> Result<Self, LoadTestError> {
        let url_error = |reason: String| LoadTestError::Url { url: target.url.clone(), reason };
        let files = images.files().iter();
        let (requests, method): (Vec<_>, _) = match target.protocol {
            TargetProtocol::Http => (files.map(|file| format.encode(target, file)).collect(), None),
            TargetProtocol::Grpc if format.multipart.is_some() => {
                return Err(url_error("gRPC has no forms: leave out --multipart".to_owned()));
            }
            TargetProtocol::Grpc => {
                let uri = format!("http://{}{}", target.authority, target.path).parse();
                let uri = uri.map_err(|error: http::uri::InvalidUri| url_error(error.to_string()))?;
                let messages = files.map(|file| grpc::classify_message(&file.bytes)).collect();
                (messages, Some(GrpcMethod::new(uri, &format.headers)))
            }
        };
        let unreachable = |reason: String| LoadTestError::Unreachable { url: target.url.clone(), reason };
        let addresses = tokio::net::lookup_host((target.host.as_str(), target.port));
        let addresses: Vec<_> = addresses.await.map_err(|error| unreachable(error.to_string()))?.collect();
        let mut reason = "the name has no address".to_owned();
        for address in addresses {
            let destination = Self { address, requests: requests.clone(), method: method.clone() };
            match time::timeout(time_limit, Connection::open(&destination)).await {
                Ok(Ok(connection)) => {
                    probe(target, connection, &destination.requests[0], time_limit).await?;
                    return Ok(destination);
                }
                Ok(Err(error)) => reason = error.to_string(),
                Err(_) => reason = format!("no answer within {time_limit:?}"),
            }
        }
        Err(unreachable(reason))
    }

    /// Checks the body of a successful response: JSON from HTTP, a `ClassifyResponse` from gRPC.
    pub(super) fn check_body(&self, body: &[u8]) -> Result<(), String> {
        match self.method {
            None => serde_json::from_slice::<IgnoredAny>(body).map(drop).map_err(|error| error.to_string()),
            Some(_) => grpc::check_classify_response(body),
        }
    }
}

/// Sends one request, which must succeed.
async fn probe(
    target: &LoadTarget,
    mut connection: Connection,
    request: &Bytes,
    time_limit: Duration,
) -> Result<(), LoadTestError> {
    let no_answer = |reason: String| LoadTestError::NoAnswer { url: target.url.clone(), reason };
    let response = match time::timeout(time_limit, connection.exchange(request, SHOWN_BODY)).await {
        Ok(Ok(response)) => response,
        Ok(Err(ExchangeError { detail, .. })) => return Err(no_answer(detail)),
        Err(_) => return Err(no_answer(format!("nothing within {time_limit:?}"))),
    };
    if (200..300).contains(&response.status) {
        return Ok(());
    }
    let body = String::from_utf8_lossy(&response.body).trim().to_owned();
    let body = if body.is_empty() { "(no body)".to_owned() } else { body };
    Err(LoadTestError::Refused { url: target.url.clone(), status: response.status, body })
}

impl RequestFormat {
    /// Checks that every configured value fits into a header line and keeps the request's framing intact.
    fn validate(&self) -> Result<(), LoadTestError> {
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b == b'\t' || (b' '..0x7F).contains(&b));
        for line in &self.headers {
            let name = line.split_once(':').map(|(name, _)| name.trim().to_ascii_lowercase());
            match name {
                Some(name) if plain(line) && !name.is_empty() && !name.contains([' ', '\t']) => {
                    if FRAMING_HEADERS.contains(&name.as_str()) {
                        return Err(LoadTestError::OwnHeader(name));
                    }
                }
                _ => return Err(LoadTestError::Header(line.clone())),
            }
        }
        if let Some(content_type) = self.content_type.as_ref().filter(|content_type| !plain(content_type)) {
            return Err(LoadTestError::Header(format!("content-type: {content_type}")));
        }
        match self.multipart.as_ref().filter(|name| !plain(name) || name.contains('"')) {
            Some(name) => Err(LoadTestError::Header(format!("content-disposition: form-data; name=\"{name}\""))),
            None => Ok(()),
        }
    }

    /// Encodes a GET request with the configured headers, which may authorise it. It has no body.
    fn encode_get(&self, target: &LoadTarget, path: &str) -> Bytes {
        let mut head = format!("GET {path} HTTP/1.1\r\n");
        let sets_host = |line: &String| line.split(':').next().is_some_and(|n| n.trim().eq_ignore_ascii_case("host"));
        if !self.headers.iter().any(sets_host) {
            head += &format!("host: {}\r\n", target.authority);
        }
        for line in self.headers.iter().filter(|line| !is_header_of_the_image(line)) {
            head += line.trim();
            head += "\r\n";
        }
        (head + "\r\n").into()
    }

    /// Encodes an HTTP request, head and body in one buffer, so that one write can send it.
    fn encode(&self, target: &LoadTarget, file: &ImageFile) -> Bytes {
        let image_type = self.content_type.as_deref().unwrap_or_else(|| file.content_type());
        let (body_type, before, after) = match &self.multipart {
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
        let defaults = [
            ("host", target.authority.clone()),
            ("user-agent", concat!("ghostserve-bench/", env!("CARGO_PKG_VERSION")).to_owned()),
            ("accept", "*/*".to_owned()),
            ("content-type", body_type),
        ];
        let mut head = format!("POST {} HTTP/1.1\r\n", target.path);
        for (name, value) in defaults {
            let overrides = |line: &String| line.split(':').next().is_some_and(|n| n.trim().eq_ignore_ascii_case(name));
            if !self.headers.iter().any(overrides) {
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

/// Whether a header line describes the image's body or the wanted form of its answer.
fn is_header_of_the_image(line: &str) -> bool {
    let name = line.split(':').next().unwrap_or_default().trim().to_ascii_lowercase();
    name == "accept" || name == "range" || name.starts_with("content-")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn encoded(format: &RequestFormat) -> String {
        let target = LoadTarget::parse("http://example:81/classify?k=1").unwrap();
        let file = ImageFile { name: "a\"b.gif".to_owned(), bytes: b"GIF89a".to_vec() };
        format.validate().unwrap();
        String::from_utf8(format.encode(&target, &file).to_vec()).unwrap()
    }

    #[test]
    fn a_request_is_a_head_followed_by_the_file() {
        let text = encoded(&RequestFormat::default());
        assert!(text.starts_with("POST /classify?k=1 HTTP/1.1\r\nhost: example:81\r\n"), "{text}");
        assert!(text.ends_with("content-type: image/gif\r\ncontent-length: 6\r\n\r\nGIF89a"), "{text}");
    }

    #[test]
    fn headers_extend_or_override_the_defaults_and_cannot_break_the_framing() {
        let headers = vec!["Host: other".to_owned(), "x-key: secret".to_owned()];
        let text = encoded(&RequestFormat { headers, content_type: Some("image/x".to_owned()), multipart: None });
        assert!(text.contains("\r\nHost: other\r\nx-key: secret\r\n") && !text.contains("example:81"), "{text}");
        assert!(text.contains("content-type: image/x\r\n"), "{text}");
        for line in ["no colon", "a: b\r\nc: d", ": b", "a b: c", "Content-Length: 5", "ü: x"] {
            let format = RequestFormat { headers: vec![line.to_owned()], ..RequestFormat::default() };
            assert!(format.validate().is_err(), "{line}");
        }
    }

    #[test]
    fn a_request_for_the_metrics_carries_credentials_and_no_header_of_the_image() {
        let headers = ["authorization: Bearer x", "Accept: image/png", "content-language: en"].map(str::to_owned);
        let target = LoadTarget::parse("http://example:81/classify").unwrap();
        let format = RequestFormat { headers: headers.to_vec(), ..RequestFormat::default() };
        let text = String::from_utf8(format.encode_get(&target, "/metrics").to_vec()).unwrap();
        assert_eq!(text, "GET /metrics HTTP/1.1\r\nhost: example:81\r\nauthorization: Bearer x\r\n\r\n");
    }

    #[test]
    fn a_form_field_carries_the_file() {
        let text = encoded(&RequestFormat { multipart: Some("image".to_owned()), ..RequestFormat::default() });
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert!(head.contains(&format!("content-type: multipart/form-data; boundary={BOUNDARY}")), "{head}");
        assert!(body.contains("name=\"image\"; filename=\"a_b.gif\"\r\ncontent-type: image/gif\r\n\r\nGIF89a\r\n--"));
    }
}
