//! A connection that sends whole requests and reads answers, with as little work as possible in between.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

use super::ErrorKind;
use super::endpoint::Part;
use super::grpc::Calls;
use super::response::Response;

/// Room for a photograph, bytes, so that a request usually is one call of the system.
const SEND_BUFFER: u32 = 256 << 10;

/// How much is read at once, bytes: answers are small.
const READ_BUFFER: usize = 8 << 10;

/// How long the rest of a request is sent on after an early answer, so that the connection can be used again.
const SETTLE: Duration = Duration::from_secs(1);

/// An open connection, to one of a target's parts.
#[derive(Debug)]
pub(super) enum Connection {
    Http(Requests),
    Grpc(Calls),
}

impl Connection {
    pub(super) async fn open(part: &Part) -> io::Result<Self> {
        match &part.call {
            None => Ok(Self::Http(Requests::open(part.address).await?)),
            Some(call) => Ok(Self::Grpc(Calls::open(part.address, call.clone()).await?)),
        }
    }

    /// Sends a request and reads its answer, of whose body at most `keep` bytes are kept.
    pub(super) async fn exchange(&mut self, request: &Bytes, keep: usize) -> Result<Answer, Failure> {
        match self {
            Self::Http(requests) => requests.exchange(request, keep).await,
            Self::Grpc(calls) => calls.exchange(request, keep).await,
        }
    }

    /// Makes the connection ready for the next request; gives it up where that does not work.
    pub(super) async fn settle(self) -> Option<Self> {
        match self {
            Self::Http(requests) => requests.settle().await.map(Self::Http),
            Self::Grpc(_) => Some(self),
        }
    }

    /// Whether the server has closed it since.
    pub(super) fn is_stale(&self) -> bool {
        match self {
            Self::Http(requests) => requests.is_stale(),
            Self::Grpc(calls) => calls.is_stale(),
        }
    }
}

/// A connection that is written to at once.
pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    // A wish: the system gives what it allows.
    let _ = socket.set_send_buffer_size(SEND_BUFFER);
    socket.connect(address).await
}

/// An open connection of HTTP/1.1.
#[derive(Debug)]
pub(super) struct Requests {
    stream: TcpStream,
    buffer: Box<[u8]>,
    /// What was not yet sent of a request that was answered early, and how much of it was.
    unsent: Option<(Bytes, usize)>,
    reusable: bool,
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) retry_after: Option<u64>,
    /// Bytes of the request that were sent.
    pub(super) sent: u64,
    /// Bytes of the answer.
    pub(super) received: u64,
    /// Its beginning, as much as was asked for.
    pub(super) body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    pub(super) detail: String,
}

impl Requests {
    async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = connect(address).await?;
        Ok(Self { stream, buffer: vec![0; READ_BUFFER].into(), unsent: None, reusable: true })
    }

    /// Sends a request and reads its answer at the same time: a server that sheds may answer before it has read the body,
    /// and may close, so that writing fails, while the answer is already here.
    async fn exchange(&mut self, request: &Bytes, keep: usize) -> Result<Answer, Failure> {
        let mut response = Response::new(keep);
        let mut sent = 0;
        let mut broken = None;
        self.reusable = false;
        poll_fn(|cx| {
            while sent < request.len() && broken.is_none() {
                match Pin::new(&mut self.stream).poll_write(cx, &request[sent..]) {
                    Poll::Ready(Ok(n)) => sent += n,
                    // The answer, if there is one, can still be read.
                    Poll::Ready(Err(error)) => broken = Some(error),
                    Poll::Pending => break,
                }
            }
            self.poll_response(cx, &mut response, broken.as_ref())
        })
        .await?;
        self.reusable = response.keep_alive && broken.is_none();
        if self.reusable && sent < request.len() {
            self.unsent = Some((request.clone(), sent));
        }
        Ok(Answer {
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
        response: &mut Response,
        broken: Option<&io::Error>,
    ) -> Poll<Result<(), Failure>> {
        loop {
            let mut buffer = ReadBuf::new(&mut self.buffer);
            let read = match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(read) => read,
            };
            if let Err(error) = read {
                let detail = broken.unwrap_or(&error).to_string();
                return Poll::Ready(Err(Failure { kind: ErrorKind::Reset, detail }));
            }
            let protocol = |error: super::response::ProtocolError| Failure {
                kind: ErrorKind::Protocol,
                detail: error.to_string(),
            };
            if buffer.filled().is_empty() {
                if response.received == 0 {
                    let detail = "the server closed the connection without an answer".to_owned();
                    return Poll::Ready(Err(Failure { kind: ErrorKind::Reset, detail }));
                }
                return Poll::Ready(response.end().map_err(protocol));
            }
            match response.feed(buffer.filled()) {
                Ok(true) => return Poll::Ready(Ok(())),
                Ok(false) => {}
                Err(error) => return Poll::Ready(Err(protocol(error))),
            }
        }
    }

    /// Makes the connection ready for the next request; gives it up where that does not work.
    async fn settle(mut self) -> Option<Self> {
        if !self.reusable {
            return None;
        }
        if let Some((request, mut sent)) = self.unsent.take() {
            let rest = poll_fn(|cx| {
                while sent < request.len() {
                    match Pin::new(&mut self.stream).poll_write(cx, &request[sent..]) {
                        Poll::Ready(Ok(n)) => sent += n,
                        Poll::Ready(Err(_)) => return Poll::Ready(false),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                Poll::Ready(true)
            });
            if tokio::time::timeout(SETTLE, rest).await != Ok(true) {
                return None;
            }
        }
        Some(self)
    }

    /// Whether the server has closed it since, or said something unasked. Costs no call of the system if nothing came.
    fn is_stale(&self) -> bool {
        !matches!(self.stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}
