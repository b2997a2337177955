//! Client connections: each sends prepared requests and reads the responses, with as little work as possible.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

use super::RequestErrorKind;
use super::endpoint::Destination;
use super::grpc::GrpcConnection;
use super::response::{ProtocolError, ResponseParser};

/// Size of the socket's send buffer, bytes: one system call usually takes a whole photograph.
const SEND_BUFFER: u32 = 256 << 10;

/// Size of the read buffer, bytes: responses are small.
const READ_BUFFER: usize = 8 << 10;

/// Time allowed to send the rest of a request after an early response, so that the connection can be reused.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// An open connection to one destination.
#[derive(Debug)]
pub(super) enum Connection {
    Http(HttpConnection),
    Grpc(GrpcConnection),
}

impl Connection {
    pub(super) async fn open(destination: &Destination) -> io::Result<Self> {
        match &destination.method {
            None => Self::open_http(destination.address).await,
            Some(method) => Ok(Self::Grpc(GrpcConnection::open(destination.address, method.clone()).await?)),
        }
    }

    /// Opens an HTTP connection to an address, whatever protocol the measured requests have.
    pub(super) async fn open_http(address: SocketAddr) -> io::Result<Self> {
        Ok(Self::Http(HttpConnection::open(address).await?))
    }

    /// Sends a request and reads its response; stores at most `body_limit` bytes of the body.
    pub(super) async fn exchange(
        &mut self,
        request: &Bytes,
        body_limit: usize,
    ) -> Result<ReceivedResponse, ExchangeError> {
        match self {
            Self::Http(connection) => connection.exchange(request, body_limit).await,
            Self::Grpc(connection) => connection.exchange(request, body_limit).await,
        }
    }

    /// Prepares the connection for the next request. `None` if it cannot be reused.
    pub(super) async fn into_reusable(self) -> Option<Self> {
        match self {
            Self::Http(connection) => connection.into_reusable().await.map(Self::Http),
            Self::Grpc(_) => Some(self),
        }
    }

    /// Whether the server has closed the connection since its last response.
    pub(super) fn is_stale(&self) -> bool {
        match self {
            Self::Http(connection) => connection.is_stale(),
            Self::Grpc(connection) => connection.is_stale(),
        }
    }
}

/// Opens a TCP connection that sends without delay (`TCP_NODELAY`).
pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    // Best effort: the system may limit the size.
    let _ = socket.set_send_buffer_size(SEND_BUFFER);
    socket.connect(address).await
}

/// An open HTTP/1.1 connection.
#[derive(Debug)]
pub(super) struct HttpConnection {
    stream: TcpStream,
    buffer: Box<[u8]>,
    /// A request that was answered before all of it was sent, and the number of its bytes that were sent.
    unsent: Option<(Bytes, usize)>,
    reusable: bool,
}

/// A complete response.
#[derive(Debug)]
pub(super) struct ReceivedResponse {
    pub(super) status: u16,
    /// Value of the `Retry-After` header, seconds.
    pub(super) retry_after: Option<u64>,
    /// Bytes of the request that were sent.
    pub(super) sent: u64,
    /// Bytes of the response.
    pub(super) received: u64,
    /// Beginning of the body, up to the limit that the caller set.
    pub(super) body: Vec<u8>,
}

/// The reason why a request has no usable response.
#[derive(Debug)]
pub(super) struct ExchangeError {
    pub(super) kind: RequestErrorKind,
    pub(super) detail: String,
}

impl HttpConnection {
    async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = connect(address).await?;
        Ok(Self { stream, buffer: vec![0; READ_BUFFER].into(), unsent: None, reusable: true })
    }

    /// Sends a request and reads its response at the same time. A server that sheds load may respond before it has
    /// read the body and may close the connection: then writing fails, but the response can still be read.
    async fn exchange(&mut self, request: &Bytes, body_limit: usize) -> Result<ReceivedResponse, ExchangeError> {
        let mut response = ResponseParser::new(body_limit);
        let mut sent = 0;
        let mut write_error = None;
        self.reusable = false;
        poll_fn(|cx| {
            while sent < request.len() && write_error.is_none() {
                match Pin::new(&mut self.stream).poll_write(cx, &request[sent..]) {
                    Poll::Ready(Ok(n)) => sent += n,
                    // A response may still be readable.
                    Poll::Ready(Err(error)) => write_error = Some(error),
                    Poll::Pending => break,
                }
            }
            self.poll_response(cx, &mut response, write_error.as_ref())
        })
        .await?;
        self.reusable = response.keep_alive && write_error.is_none();
        if self.reusable && sent < request.len() {
            self.unsent = Some((request.clone(), sent));
        }
        Ok(ReceivedResponse {
            status: response.status,
            retry_after: response.retry_after,
            sent: sent as u64,
            received: response.received,
            body: response.body,
        })
    }

    fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        response: &mut ResponseParser,
        write_error: Option<&io::Error>,
    ) -> Poll<Result<(), ExchangeError>> {
        let protocol =
            |error: ProtocolError| ExchangeError { kind: RequestErrorKind::Protocol, detail: error.to_string() };
        loop {
            let mut buffer = ReadBuf::new(&mut self.buffer);
            let read = match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(read) => read,
            };
            if let Err(error) = read {
                let detail = write_error.unwrap_or(&error).to_string();
                return Poll::Ready(Err(ExchangeError { kind: RequestErrorKind::Reset, detail }));
            }
            if buffer.filled().is_empty() {
                if response.received == 0 {
                    let detail = "the server closed the connection without an answer".to_owned();
                    return Poll::Ready(Err(ExchangeError { kind: RequestErrorKind::Reset, detail }));
                }
                return Poll::Ready(response.finish().map_err(protocol));
            }
            match response.feed(buffer.filled()) {
                Ok(true) => return Poll::Ready(Ok(())),
                Ok(false) => {}
                Err(error) => return Poll::Ready(Err(protocol(error))),
            }
        }
    }

    /// Sends the rest of a request that was answered early. `None` if the connection cannot be reused.
    async fn into_reusable(mut self) -> Option<Self> {
        if !self.reusable {
            return None;
        }
        if let Some((request, mut sent)) = self.unsent.take() {
            let send_rest = poll_fn(|cx| {
                while sent < request.len() {
                    match Pin::new(&mut self.stream).poll_write(cx, &request[sent..]) {
                        Poll::Ready(Ok(n)) => sent += n,
                        Poll::Ready(Err(_)) => return Poll::Ready(false),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                Poll::Ready(true)
            });
            if tokio::time::timeout(DRAIN_TIMEOUT, send_rest).await != Ok(true) {
                return None;
            }
        }
        Some(self)
    }

    /// Whether the server has closed the connection since, or has sent bytes without a request. Makes no system call
    /// if nothing arrived.
    fn is_stale(&self) -> bool {
        !matches!(self.stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}
