//! A gRPC connection that makes one unary call at a time: HTTP/2 with messages that were encoded beforehand.
//!
//! gRPC statuses become the corresponding HTTP statuses, so that recording and reports handle one kind of status.

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;

use super::RequestErrorKind;
use super::client::{ExchangeError, ReceivedResponse, connect};

/// Path of the method that is called if the target's URL has no path.
pub(super) const CLASSIFY: &str = "/ghostserve.v1.InferenceService/Classify";
/// Length of the prefix of every message, bytes: a compression flag and the message's length.
const PREFIX: usize = 5;
/// HTTP/2 flow-control window, bytes: data that the server may send before the client acknowledges it.
const WINDOW: u32 = 4 << 20;

/// The fields of `ghostserve.v1.ClassifyRequest` that the load generator writes.
#[derive(Clone, PartialEq, Message)]
struct ClassifyRequest {
    /// Image files.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    images: Vec<Bytes>,
}

/// The fields of `ghostserve.v1.ClassifyResponse` that the load generator reads.
#[derive(Clone, PartialEq, Message)]
struct ClassifyResponse {
    /// One result per image; their content is not read.
    #[prost(message, repeated, tag = "2")]
    results: Vec<()>,
}

/// An open connection, and the method that is called over it.
#[derive(Debug)]
pub(super) struct GrpcConnection {
    sender: SendRequest<Full<Bytes>>,
    method: GrpcMethod,
}

/// URI of a method, and the metadata that every call sends.
#[derive(Clone, Debug)]
pub(super) struct GrpcMethod {
    uri: Uri,
    metadata: HeaderMap,
}

impl GrpcMethod {
    /// Creates a method with metadata from `name: value` lines, which were validated before.
    pub(super) fn new(uri: Uri, lines: &[String]) -> Self {
        let mut metadata = HeaderMap::new();
        for line in lines {
            let Some((name, value)) = line.split_once(':') else { continue };
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name.trim()), HeaderValue::try_from(value.trim())) {
                metadata.insert(name, value);
            }
        }
        metadata.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        metadata.insert(header::TE, HeaderValue::from_static("trailers"));
        Self { uri, metadata }
    }
}

/// Encodes a `ClassifyRequest` for one image, with its length prefix.
pub(super) fn classify_message(image: &[u8]) -> Bytes {
    let message = ClassifyRequest { images: vec![Bytes::copy_from_slice(image)] };
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX + length);
    framed.put_u8(0);
    framed.put_u32(length as u32);
    framed.extend_from_slice(&message.encode_to_vec());
    framed.freeze()
}

/// Checks that a response body is a `ClassifyResponse`.
pub(super) fn check_classify_response(body: &[u8]) -> Result<(), String> {
    let message = body.get(PREFIX..).ok_or("the answer is no message")?;
    ClassifyResponse::decode(message).map(drop).map_err(|error| error.to_string())
}

/// The HTTP status that corresponds to a gRPC status.
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

impl GrpcConnection {
    pub(super) async fn open(address: SocketAddr, method: GrpcMethod) -> std::io::Result<Self> {
        let stream = connect(address).await?;
        let handshake = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(std::io::Error::other)?;
        // The task ends when the sender is dropped, or when the server closes; `sender` reports the latter.
        tokio::spawn(connection);
        Ok(Self { sender, method })
    }

    pub(super) async fn exchange(
        &mut self,
        message: &Bytes,
        body_limit: usize,
    ) -> Result<ReceivedResponse, ExchangeError> {
        let reset = |error: hyper::Error| ExchangeError { kind: RequestErrorKind::Reset, detail: error.to_string() };
        let protocol = |detail: &str| ExchangeError { kind: RequestErrorKind::Protocol, detail: detail.to_owned() };
        let mut request = Request::new(Full::new(message.clone()));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.method.uri.clone();
        request.headers_mut().clone_from(&self.method.metadata);
        let response = self.sender.send_request(request).await.map_err(reset)?;
        let (parts, mut frames) = response.into_parts();
        if parts.status != http::StatusCode::OK {
            return Err(protocol(&format!("the server answered a call with HTTP's {}", parts.status)));
        }
        let (mut body, mut received, mut trailers) = (Vec::new(), 0, parts.headers);
        while let Some(frame) = frames.frame().await {
            match frame.map_err(reset)?.into_data() {
                Ok(data) => {
                    received += data.len() as u64;
                    let free = body_limit - body.len().min(body_limit);
                    body.extend_from_slice(&data[..data.len().min(free)]);
                }
                Err(frame) => trailers.extend(frame.into_trailers().ok().into_iter().flatten()),
            }
        }
        let status = trailers.get("grpc-status").and_then(|status| status.to_str().ok()?.parse().ok());
        let status = status.ok_or_else(|| protocol("the answer ended without a `grpc-status`"))?;
        if status != 0 {
            let status_message = trailers.get("grpc-message").map(|text| text.as_bytes().to_vec());
            body = status_message.unwrap_or_default();
            body.truncate(body_limit);
        }
        let (status, sent) = (http_status(status), message.len() as u64);
        Ok(ReceivedResponse { status, retry_after: None, sent, received, body })
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
        let framed = classify_message(b"abc");
        assert_eq!(framed[..PREFIX], [0, 0, 0, 0, 5]);
        let message = ClassifyRequest::decode(&framed[PREFIX..]);
        assert!(message.is_ok_and(|message| message.images == [Bytes::from_static(b"abc")]));
        assert!(check_classify_response(b"abc").is_err());
        assert_eq!(check_classify_response(&[0; PREFIX]), Ok(()));
    }

    #[test]
    fn grpc_statuses_become_http_statuses() {
        for (grpc, http) in [(0, 200), (3, 400), (8, 429), (14, 503), (4, 504), (13, 500), (99, 500)] {
            assert_eq!(http_status(grpc), http);
        }
    }
}
