//! A connection that makes calls, one after the other: HTTP/2 with messages that were written beforehand.
//!
//! Statuses are told as HTTP would have told them, so that reports and loops need not know two lists.

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;

use super::ErrorKind;
use super::client::{Answer, Failure, connect};

/// The call, if a target names none.
pub(super) const CLASSIFY: &str = "/ghostserve.v1.InferenceService/Classify";
/// Before every message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// What may be under way before it is acknowledged, bytes.
const WINDOW: u32 = 4 << 20;

/// The part of `ghostserve.v1.ClassifyRequest` that a load test writes.
#[derive(Clone, PartialEq, Message)]
struct ClassifyRequest {
    /// Image files.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    images: Vec<Bytes>,
}

/// The part of `ghostserve.v1.ClassifyResponse` that a load test reads.
#[derive(Clone, PartialEq, Message)]
struct ClassifyResponse {
    /// One result for each image; what is in them is not read.
    #[prost(message, repeated, tag = "2")]
    results: Vec<()>,
}

/// An open connection, and what all calls over it have in common.
#[derive(Debug)]
pub(super) struct Calls {
    sender: SendRequest<Full<Bytes>>,
    call: Call,
}

/// Where a call goes, with its metadata.
#[derive(Clone, Debug)]
pub(super) struct Call {
    uri: Uri,
    headers: HeaderMap,
}

impl Call {
    /// Takes header lines that were found to be such.
    pub(super) fn new(uri: Uri, lines: &[String]) -> Self {
        let mut headers = HeaderMap::new();
        for line in lines {
            let Some((name, value)) = line.split_once(':') else { continue };
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name.trim()), HeaderValue::try_from(value.trim())) {
                headers.insert(name, value);
            }
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        Self { uri, headers }
    }
}

/// The message that asks for the classes of one image, as it is sent.
pub(super) fn request(image: &[u8]) -> Bytes {
    let message = ClassifyRequest { images: vec![Bytes::copy_from_slice(image)] };
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX + length);
    framed.put_u8(0);
    framed.put_u32(length as u32);
    framed.extend_from_slice(&message.encode_to_vec());
    framed.freeze()
}

/// Whether an answer's body is the message that it should be.
pub(super) fn check(body: &[u8]) -> Result<(), String> {
    let message = body.get(PREFIX..).ok_or("the answer is no message")?;
    ClassifyResponse::decode(message).map(drop).map_err(|error| error.to_string())
}

/// The HTTP status that says what a gRPC status does.
fn http_status(status: i32) -> u16 {
    match tonic::Code::from(status) {
        tonic::Code::Ok => 200,
        tonic::Code::InvalidArgument | tonic::Code::FailedPrecondition | tonic::Code::OutOfRange => 400,
        tonic::Code::Unauthenticated => 401,
        tonic::Code::PermissionDenied => 403,
        tonic::Code::NotFound => 404,
        tonic::Code::ResourceExhausted => 429,
        tonic::Code::Unimplemented => 501,
        tonic::Code::Unavailable => 503,
        tonic::Code::DeadlineExceeded => 504,
        _ => 500,
    }
}

impl Calls {
    pub(super) async fn open(address: SocketAddr, call: Call) -> std::io::Result<Self> {
        let stream = connect(address).await?;
        let handshake = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(std::io::Error::other)?;
        // Ends with the sender, or when the server is gone, which the sender tells.
        tokio::spawn(connection);
        Ok(Self { sender, call })
    }

    pub(super) async fn exchange(&mut self, message: &Bytes, keep: usize) -> Result<Answer, Failure> {
        let reset = |error: hyper::Error| Failure { kind: ErrorKind::Reset, detail: error.to_string() };
        let protocol = |detail: &str| Failure { kind: ErrorKind::Protocol, detail: detail.to_owned() };
        let mut request = Request::new(Full::new(message.clone()));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.call.uri.clone();
        request.headers_mut().clone_from(&self.call.headers);
        let response = self.sender.send_request(request).await.map_err(reset)?;
        let (parts, mut body) = response.into_parts();
        if parts.status != http::StatusCode::OK {
            return Err(protocol(&format!("the server answered a call with HTTP's {}", parts.status)));
        }
        let (mut kept, mut received, mut trailers) = (Vec::new(), 0, parts.headers);
        while let Some(frame) = body.frame().await {
            match frame.map_err(reset)?.into_data() {
                Ok(data) => {
                    received += data.len() as u64;
                    kept.extend_from_slice(&data[..data.len().min(keep - kept.len().min(keep))]);
                }
                Err(frame) => trailers.extend(frame.into_trailers().ok().into_iter().flatten()),
            }
        }
        let status = trailers.get("grpc-status").and_then(|status| status.to_str().ok()?.parse().ok());
        let status = status.ok_or_else(|| protocol("the answer ended without a `grpc-status`"))?;
        if status != 0 {
            let said = trailers.get("grpc-message").map(|text| text.as_bytes().to_vec());
            kept = said.unwrap_or_default();
            kept.truncate(keep);
        }
        let (status, sent) = (http_status(status), message.len() as u64);
        Ok(Answer { status, retry_after: None, sent, received, body: kept })
    }

    pub(super) fn is_stale(&self) -> bool {
        self.sender.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_framed_message() {
        let framed = request(b"abc");
        assert_eq!(framed[..PREFIX], [0, 0, 0, 0, 5]);
        let message = ClassifyRequest::decode(&framed[PREFIX..]);
        assert!(message.is_ok_and(|message| message.images == [Bytes::from_static(b"abc")]));
        assert!(check(b"abc").is_err());
        assert_eq!(check(&[0; PREFIX]), Ok(()));
    }

    #[test]
    fn statuses_are_told_as_https() {
        for (grpc, http) in [(0, 200), (3, 400), (8, 429), (14, 503), (4, 504), (13, 500), (99, 500)] {
            assert_eq!(http_status(grpc), http);
        }
    }
}
