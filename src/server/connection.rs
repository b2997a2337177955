//! Connections: the accept loop, and a watch over every connection that closes it when its client is too slow.
//!
//! hyper's own header timeout is not enough here. It also runs between the requests of a kept-alive connection, so it
//! cannot be both short (against slow headers) and long (for load balancers, which keep connections open); and
//! hyper-util's detection of HTTP/2 reads the first bytes without any timeout. So a [`Watch`] is told what happens on
//! the connection: bytes came, a request began, a response is done.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::service::Service as _;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use super::grpc::is_call;
use super::outgoing::{LARGE_CHUNK, Outgoing, SlowReaders};
use super::retain::RetainBody;
use super::shutdown::{Lifecycle, Phase};
use crate::config::{DOWNLOAD_WINDOW, LoadLimits, TimeLimits};
use crate::fair_share::{Client, FairPool, Share};
use crate::telemetry::{GaugeGuard, Metrics};

/// The head of a request, at most; also the pieces in which a body is read.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// What an HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What every connection of a listener shares.
#[derive(Clone)]
pub(crate) struct Listener {
    /// What is not gRPC.
    pub(crate) http: Router,
    pub(crate) grpc: Option<Router>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) time: TimeLimits,
    pub(crate) load: LoadLimits,
}

impl Listener {
    /// Accepts connections until the server stops, then waits for those that are open, at most the drain time.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let slots = Arc::new(Semaphore::new(self.load.max_connections.min(Semaphore::MAX_PERMITS)));
        // Who has them; how many there are is for the semaphore, because it can be waited for.
        let shares = FairPool::new(self.load.max_connections, self.load.max_client_share);
        let open = TaskTracker::new();
        let stopping = {
            let lifecycle = self.lifecycle.clone();
            async move { lifecycle.reached(Phase::Stopping).await }
        };
        tokio::pin!(stopping);
        loop {
            // Past the bound, connections wait in the kernel's backlog.
            let next = async {
                let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
                Some((accept(&listener).await, slot))
            };
            tokio::select! {
                biased;
                () = &mut stopping => break,
                next = next => if let Some((socket, slot)) = next {
                    self.spawn(socket, slot, &shares, &open);
                },
            }
        }
        // Clients whose connection the kernel has already accepted are served too.
        while let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
            let Some(Ok(socket)) = futures::FutureExt::now_or_never(listener.accept()) else { break };
            self.spawn(socket, slot, &shares, &open);
        }
        drop(listener);
        open.close();
        if tokio::time::timeout(self.time.drain_timeout, open.wait()).await.is_err() {
            tracing::warn!("connections were still open at the end of the drain time");
        }
    }

    fn spawn(
        &self,
        (stream, peer): (TcpStream, SocketAddr),
        slot: OwnedSemaphorePermit,
        shares: &Arc<FairPool>,
        open: &TaskTracker,
    ) {
        let client = Client::of(peer.ip());
        let Ok(share) = shares.acquire(client, 1) else {
            // Closed without a word: an answer would have to wait for a request that may never come.
            self.metrics.client_share_refusals_total.with_label_values(&["connections"]).inc();
            tracing::debug!(%peer, "a connection was closed: its address holds its share of the connections");
            return;
        };
        // An answer is small and complete: waiting for more to send only delays it.
        let _ = stream.set_nodelay(true);
        let watch = Watch::new(&self.time);
        let io = TokioIo::new(WatchedStream { stream, watch: Arc::clone(&watch), preface: Some(0) });

        let http = TowerToHyperService::new(self.http.clone());
        let grpc = self.grpc.clone().map(TowerToHyperService::new);
        let (requests, slow_readers) = (Arc::clone(&watch), self.slow_readers());
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            let guard = RequestGuard::begin(&requests);
            request.extensions_mut().insert(client);
            let call = grpc.as_ref().filter(|_| is_call(&request));
            let streams = call.is_some();
            // Over HTTP/2 the connection has other streams, which go on.
            let connection = (request.version() < Version::HTTP_2).then(|| Arc::clone(&requests));
            let response = call.unwrap_or(&http).call(request);
            let slow_readers = slow_readers.clone();
            async move {
                let response: Result<Response<Body>, _> = response.await;
                response.map(|response| watch_answer(response, streams, guard, || slow_readers(connection)))
            }
        });

        let builder = self.http_builder();
        let (metrics, lifecycle) = (Arc::clone(&self.metrics), self.lifecycle.clone());
        open.spawn(async move {
            // The share first: whoever gets the slot must find the share free.
            let _slot: (Share, OwnedSemaphorePermit) = (share, slot);
            let _open = GaugeGuard::one(&metrics.http_connections);
            let mut connection = pin!(builder.serve_connection(io, service));
            let mut stop = pin!(async {
                lifecycle.reached(Phase::Stopping).await;
                // A request that is on its way is let in: hyper would close the connection over it.
                watch.past_header().await;
            });
            let mut stopping = false;
            loop {
                tokio::select! {
                    result = connection.as_mut() => {
                        if let Err(error) = result {
                            // Clients hang up, reset and talk nonsense; none of it is the server's trouble.
                            tracing::debug!(%error, "a connection ended");
                        }
                        return;
                    }
                    phase = watch.expired() => {
                        if let Some(phase) = phase {
                            metrics.http_connection_timeouts_total.with_label_values(&[phase]).inc();
                        }
                        tracing::debug!(phase, "a connection was closed for being too slow");
                        return;
                    }
                    () = &mut stop, if !stopping => {
                        stopping = true;
                        connection.as_mut().graceful_shutdown();
                    }
                }
            }
        });
    }
}

impl Listener {
    fn http_builder(&self) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MAX_HEAD_BYTES);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.load.max_http2_streams)
            // A peer that is gone without a word is noticed, and one that never sends its preface's settings too.
            .keep_alive_interval(Some(self.time.idle_timeout / 2))
            .keep_alive_timeout(self.time.header_timeout);
        builder
    }

    /// Makes what happens to slow readers on a connection, which is closed if it is given.
    fn slow_readers(&self) -> impl Fn(Option<Arc<Watch>>) -> SlowReaders + Clone + use<> {
        let least = self.time.min_download_rate.saturating_mul(DOWNLOAD_WINDOW.as_secs());
        let cuts = self.metrics.http_connection_timeouts_total.with_label_values(&["response"]);
        move |connection| {
            let cuts = cuts.clone();
            let on_cut = Box::new(move || {
                cuts.inc();
                tracing::info!(least, window = ?DOWNLOAD_WINDOW, "an answer was dropped: its client took it too slowly");
                if let Some(connection) = &connection {
                    connection.close();
                }
            });
            SlowReaders { least, on_cut }
        }
    }
}

/// Has an answer that takes time to send keep its request open, and drops it for slow readers.
fn watch_answer(
    response: Response<Body>,
    streams: bool,
    guard: RequestGuard,
    slow_readers: impl FnOnce() -> SlowReaders,
) -> Response<Body> {
    // A request goes on while its answer does, but a small answer is out of our hands at once.
    let large = response.body().size_hint().upper().is_none_or(|bytes| bytes > LARGE_CHUNK as u64);
    match streams || large {
        true => response.map(|body| Body::new(Outgoing::new(RetainBody::wrap(body, guard), slow_readers()))),
        false => response,
    }
}

/// The next connection. Errors of the listener pass (a peer that reset) or are waited out (no file descriptors).
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_about_the_peer(&error) => {}
            Err(error) => {
                tracing::error!(%error, "connections cannot be accepted; trying again in a second");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

fn is_about_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// A connection's clock.
#[derive(Debug)]
struct Watch {
    state: Mutex<WatchState>,
    /// Since when the client's system takes no bytes that are to be sent.
    blocked: Mutex<Option<Instant>>,
    /// Told of every change that somebody may wait for.
    changed: Notify,
    /// Over HTTP/2 bytes also come between requests (pings, settings), and heads have no beginning of their own.
    http2: AtomicBool,
    header: Duration,
    idle: Duration,
    /// For a client to take any bytes at all; zero if it need not.
    unread: Duration,
}

#[derive(Debug)]
enum WatchState {
    /// A head should be arriving: the connection is new, or bytes came after the last response.
    Header(Instant),
    /// This many requests are being handled; they have timeouts of their own.
    Busy(usize),
    /// Between requests.
    Idle(Instant),
    /// To be closed: the client does not take its answer.
    Closing,
}

impl Watch {
    fn new(time: &TimeLimits) -> Arc<Self> {
        let TimeLimits { header_timeout: header, idle_timeout: idle, .. } = *time;
        let unread = if time.min_download_rate > 0 { DOWNLOAD_WINDOW } else { Duration::ZERO };
        let state = Mutex::new(WatchState::Header(Instant::now() + header));
        let (blocked, changed, http2) = (Mutex::default(), Notify::new(), AtomicBool::new(false));
        Arc::new(Self { state, blocked, changed, http2, header, idle, unread })
    }

    fn update(&self, change: impl FnOnce(&mut WatchState)) {
        change(&mut self.state.lock());
    }

    /// Notes whether bytes could be sent, or have to wait.
    fn sent<T>(&self, result: Poll<T>) -> Poll<T> {
        let mut blocked = self.blocked.lock();
        match (&result, *blocked) {
            (Poll::Ready(_), Some(_)) => *blocked = None,
            (Poll::Pending, None) => *blocked = Some(Instant::now()),
            // It stays as it is, and nobody has to be told.
            _ => return result,
        }
        drop(blocked);
        self.changed.notify_waiters();
        result
    }

    /// Notes that bytes came between requests, or that they make the connection one of HTTP/2.
    fn received(&self, preface: bool) {
        self.http2.fetch_or(preface, Ordering::Relaxed);
        let mut changed = false;
        self.update(|state| {
            if preface {
                *state = WatchState::Idle(Instant::now() + self.idle);
                changed = true;
            } else if matches!(state, WatchState::Idle(_)) && !self.http2.load(Ordering::Relaxed) {
                *state = WatchState::Header(Instant::now() + self.header);
                changed = true;
            }
        });
        if changed {
            self.changed.notify_waiters();
        }
    }

    /// Has the connection closed.
    fn close(&self) {
        self.update(|state| *state = WatchState::Closing);
        self.changed.notify_waiters();
    }

    /// Waits until the client has taken too long, and says over what; `None` if that was counted already.
    async fn expired(&self) -> Option<&'static str> {
        loop {
            // Listening before looking: a change in between is not missed.
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let (mut deadline, mut closing) = (None, false);
            self.update(|state| match state {
                WatchState::Closing => closing = true,
                WatchState::Header(at) => deadline = Some((*at, "header")),
                WatchState::Idle(at) => deadline = Some((*at, "idle")),
                WatchState::Busy(_) => {}
            });
            let blocked = *self.blocked.lock();
            // Requests have timeouts of their own, but not once hyper holds an answer that it cannot send.
            if let Some(since) = blocked.filter(|_| self.unread > Duration::ZERO) {
                let at = since + self.unread;
                deadline = Some(deadline.filter(|(other, _)| *other <= at).unwrap_or((at, "response")));
            }
            match deadline {
                _ if closing => return None,
                None => changed.await,
                Some((at, phase)) if at <= Instant::now() => return Some(phase),
                Some((at, _)) => tokio::select! {
                    () = sleep_until(at) => {}
                    () = changed => {}
                },
            }
        }
    }

    /// Waits until no head is expected: a request is being handled, or the last one is done.
    async fn past_header(&self) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let mut expected = false;
            self.update(|state| expected = matches!(state, WatchState::Header(_)));
            if !expected {
                return;
            }
            changed.await;
        }
    }
}

/// A request being handled.
struct RequestGuard(Arc<Watch>);

impl RequestGuard {
    fn begin(watch: &Arc<Watch>) -> Self {
        watch.update(|state| {
            *state = match state {
                WatchState::Busy(n) => WatchState::Busy(*n + 1),
                WatchState::Closing => WatchState::Closing,
                _ => WatchState::Busy(1),
            }
        });
        watch.changed.notify_waiters();
        Self(Arc::clone(watch))
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.update(|state| {
            *state = match state {
                WatchState::Busy(n) if *n > 1 => WatchState::Busy(*n - 1),
                WatchState::Closing => WatchState::Closing,
                _ => WatchState::Idle(Instant::now() + self.0.idle),
            }
        });
        self.0.changed.notify_waiters();
    }
}

/// A stream that tells its watch when bytes arrive.
struct WatchedStream {
    stream: TcpStream,
    watch: Arc<Watch>,
    /// Bytes of HTTP/2's preface that have come, as long as it may still be one.
    preface: Option<usize>,
}

impl AsyncRead for WatchedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        let bytes = &buf.filled()[before..];
        if !bytes.is_empty() {
            let preface = self.preface.as_mut().is_some_and(|matched| {
                let expected = &PREFACE[*matched..];
                let length = expected.len().min(bytes.len());
                *matched = if expected[..length] == bytes[..length] { *matched + length } else { usize::MAX };
                *matched == PREFACE.len()
            });
            // Settled, one way or the other, once it is complete or does not match.
            self.preface = self.preface.filter(|matched| *matched < PREFACE.len());
            self.watch.received(preface);
        }
        result
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch.sent(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch.sent(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
