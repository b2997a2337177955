//! Accepts connections, and closes a connection whose client is too slow.
//!
//! hyper's header timeout is not enough here. It also runs between the requests of a connection that is kept open. It
//! therefore cannot be both short (against slow headers) and long (for load balancers, which keep connections open).
//! hyper-util's detection of HTTP/2 reads the first bytes without any timeout. So a [`Watch`] records the events of
//! each connection: bytes received, request started, response sent.

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
use crate::telemetry::{GaugeGuard, Metrics, rounded_ms};

/// Size of a connection's read buffer, bytes: the maximum length of a request's head, and of a piece of a body.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// The first bytes of an HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Accepts the connections of one socket. Holds what they share.
#[derive(Clone)]
pub(crate) struct Listener {
    /// Handles all requests that are not gRPC.
    pub(crate) http: Router,
    /// Handles gRPC, if the socket serves it.
    pub(crate) grpc: Option<Router>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) time: TimeLimits,
    pub(crate) load: LoadLimits,
}

impl Listener {
    /// Accepts connections until the server stops. Then waits at most the drain time for the open ones.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let slots = Arc::new(Semaphore::new(self.load.max_connections.min(Semaphore::MAX_PERMITS)));
        // Counts the slots of each client. The semaphore limits the total, because it can be awaited.
        let shares = FairPool::new(self.load.max_connections, self.load.max_client_share);
        let open = TaskTracker::new();
        let stopping = {
            let lifecycle = self.lifecycle.clone();
            async move { lifecycle.reached(Phase::Stopping).await }
        };
        tokio::pin!(stopping);
        loop {
            // Beyond the limit, connections wait in the kernel's backlog.
            let next = async {
                let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
                Some((accept(&listener).await, slot))
            };
            tokio::select! {
                biased;
                () = &mut stopping => break,
                next = next => if let Some(((stream, peer), slot)) = next {
                    self.spawn(stream, peer, slot, &shares, &open);
                },
            }
        }
        // Connections that the kernel has already accepted are served too.
        while let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
            let Some(Ok((stream, peer))) = futures::FutureExt::now_or_never(listener.accept()) else { break };
            self.spawn(stream, peer, slot, &shares, &open);
        }
        drop(listener);
        open.close();
        if tokio::time::timeout(self.time.drain_timeout, open.wait()).await.is_err() {
            tracing::warn!("connections are still open at the end of the drain time");
        }
    }

    /// Serves a connection in a task, or closes it if its client has its share of the connections.
    fn spawn(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        slot: OwnedSemaphorePermit,
        shares: &Arc<FairPool>,
        open: &TaskTracker,
    ) {
        let client = Client::of(peer.ip());
        let Ok(share) = shares.acquire(client, 1) else {
            // Closed without an answer: an answer would have to wait for a request that may never arrive.
            self.metrics.client_share_refusals_total.with_label_values(&["connections"]).inc();
            tracing::debug!(%peer, "closed a connection: its client address already has its share of the connections");
            return;
        };
        // An answer is small and complete. Waiting for more data would only delay it.
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
            let is_grpc = call.is_some();
            // An HTTP/2 connection stays open for its other streams.
            let connection = (request.version() < Version::HTTP_2).then(|| Arc::clone(&requests));
            let response = call.unwrap_or(&http).call(request);
            let slow_readers = slow_readers.clone();
            async move {
                let response: Result<Response<Body>, _> = response.await;
                response.map(|response| watch_answer(response, is_grpc, guard, || slow_readers(connection)))
            }
        });

        let builder = self.http_builder();
        let (metrics, lifecycle) = (Arc::clone(&self.metrics), self.lifecycle.clone());
        open.spawn(async move {
            // The share is dropped first: when the slot is free, the share must be free too.
            let _slot: (Share, OwnedSemaphorePermit) = (share, slot);
            let _open = GaugeGuard::one(&metrics.http_connections);
            let mut connection = pin!(builder.serve_connection(io, service));
            let mut stop = pin!(async {
                lifecycle.reached(Phase::Stopping).await;
                // Waits for a head that is arriving: hyper would close the connection without reading it.
                watch.past_header().await;
            });
            let mut stopping = false;
            loop {
                tokio::select! {
                    result = connection.as_mut() => {
                        if let Err(error) = result {
                            // Clients hang up, reset and send invalid bytes. None of this is the server's error.
                            tracing::debug!(%error, "a connection ended with an error");
                        }
                        return;
                    }
                    phase = watch.expired() => {
                        if let Some(phase) = phase {
                            metrics.http_connection_timeouts_total.with_label_values(&[phase]).inc();
                        }
                        tracing::debug!(phase, "closed a connection: its client was too slow");
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

    fn http_builder(&self) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MAX_HEAD_BYTES);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.load.max_http2_streams)
            // Detects a peer that has disappeared, and one that never sends its first SETTINGS frame.
            .keep_alive_interval(Some(self.time.idle_timeout / 2))
            .keep_alive_timeout(self.time.header_timeout);
        builder
    }

    /// Returns a function that makes the [`SlowReaders`] of an answer. It takes the connection to close, if any.
    fn slow_readers(&self) -> impl Fn(Option<Arc<Watch>>) -> SlowReaders + Clone + use<> {
        let min_bytes = self.time.min_download_rate.saturating_mul(DOWNLOAD_WINDOW.as_secs());
        let cuts = self.metrics.http_connection_timeouts_total.with_label_values(&["response"]);
        move |connection| {
            let cuts = cuts.clone();
            let on_cut = Box::new(move || {
                cuts.inc();
                let window_ms = rounded_ms(DOWNLOAD_WINDOW);
                tracing::info!(min_bytes, window_ms, "dropped an answer: its client reads it too slowly");
                if let Some(connection) = &connection {
                    connection.close();
                }
            });
            SlowReaders { min_bytes, on_cut }
        }
    }
}

/// Keeps the request open while a gRPC or large answer is being sent. Drops the answer if the client reads too slowly.
fn watch_answer(
    response: Response<Body>,
    is_grpc: bool,
    guard: RequestGuard,
    slow_readers: impl FnOnce() -> SlowReaders,
) -> Response<Body> {
    // A request lasts as long as its answer, but hyper takes a small answer at once.
    let large = response.body().size_hint().upper().is_none_or(|bytes| bytes > LARGE_CHUNK as u64);
    match is_grpc || large {
        true => response.map(|body| Body::new(Outgoing::new(RetainBody::wrap(body, guard), slow_readers()))),
        false => response,
    }
}

/// Accepts the next connection. Ignores errors of the peer (a reset). Waits a second after other errors (no file
/// descriptors).
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_peer_error(&error) => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept connections; trying again in a second");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

fn is_peer_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Records the state of a connection and finds out when its client is too slow.
#[derive(Debug)]
struct Watch {
    state: Mutex<WatchState>,
    /// Since when the client's system has accepted no bytes, if there are bytes to send.
    blocked: Mutex<Option<Instant>>,
    /// Notified of every change that a task may wait for.
    changed: Notify,
    /// Whether the connection uses HTTP/2. There, bytes also arrive between requests (pings, settings), and the start
    /// of a head cannot be seen.
    http2: AtomicBool,
    header_timeout: Duration,
    idle_timeout: Duration,
    /// Time after which a client that accepts no bytes at all is too slow. Zero for no limit.
    blocked_timeout: Duration,
}

/// State of a connection. Instants are deadlines.
#[derive(Debug)]
enum WatchState {
    /// A head is arriving: the connection is new, or bytes were received after the last response.
    Header(Instant),
    /// Number of requests being handled. They have their own timeouts.
    Busy(usize),
    /// Between requests.
    Idle(Instant),
    /// The connection is to be closed: the client does not read its answer.
    Closing,
}

impl Watch {
    fn new(time: &TimeLimits) -> Arc<Self> {
        let TimeLimits { header_timeout, idle_timeout, .. } = *time;
        let blocked_timeout = if time.min_download_rate > 0 { DOWNLOAD_WINDOW } else { Duration::ZERO };
        Arc::new(Self {
            state: Mutex::new(WatchState::Header(Instant::now() + header_timeout)),
            blocked: Mutex::default(),
            changed: Notify::new(),
            http2: AtomicBool::new(false),
            header_timeout,
            idle_timeout,
            blocked_timeout,
        })
    }

    fn update(&self, change: impl FnOnce(&mut WatchState)) {
        change(&mut self.state.lock());
    }

    /// Records whether bytes could be sent or have to wait.
    fn record_write<T>(&self, result: Poll<T>) -> Poll<T> {
        let mut blocked = self.blocked.lock();
        match (&result, *blocked) {
            (Poll::Ready(_), Some(_)) => *blocked = None,
            (Poll::Pending, None) => *blocked = Some(Instant::now()),
            // No change.
            _ => return result,
        }
        drop(blocked);
        self.changed.notify_waiters();
        result
    }

    /// Records that bytes were received, and whether they complete the preface of HTTP/2.
    fn record_read(&self, preface: bool) {
        self.http2.fetch_or(preface, Ordering::Relaxed);
        let mut changed = false;
        self.update(|state| {
            if preface {
                *state = WatchState::Idle(Instant::now() + self.idle_timeout);
                changed = true;
            } else if matches!(state, WatchState::Idle(_)) && !self.http2.load(Ordering::Relaxed) {
                *state = WatchState::Header(Instant::now() + self.header_timeout);
                changed = true;
            }
        });
        if changed {
            self.changed.notify_waiters();
        }
    }

    /// Causes the connection to be closed.
    fn close(&self) {
        self.update(|state| *state = WatchState::Closing);
        self.changed.notify_waiters();
    }

    /// Waits until the client is too slow. Returns the phase that took too long, or `None` if it was already counted.
    async fn expired(&self) -> Option<&'static str> {
        loop {
            // Registered before the state is read, so that no change is missed.
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
            // The timeouts of requests do not cover an answer that hyper holds and cannot send.
            if let Some(since) = blocked.filter(|_| self.blocked_timeout > Duration::ZERO) {
                let at = since + self.blocked_timeout;
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

    /// Waits until no head is arriving: a request is being handled, or the last one is done.
    async fn past_header(&self) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let mut arriving = false;
            self.update(|state| arriving = matches!(state, WatchState::Header(_)));
            if !arriving {
                return;
            }
            changed.await;
        }
    }
}

/// Marks a request as being handled until it is dropped.
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
                _ => WatchState::Idle(Instant::now() + self.0.idle_timeout),
            }
        });
        self.0.changed.notify_waiters();
    }
}

/// A TCP stream that reports its reads and writes to a [`Watch`].
struct WatchedStream {
    stream: TcpStream,
    watch: Arc<Watch>,
    /// Number of bytes of HTTP/2's preface received. `None` once the preface is complete or excluded.
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
            // Decided once the preface is complete or does not match.
            self.preface = self.preface.filter(|matched| *matched < PREFACE.len());
            self.watch.record_read(preface);
        }
        result
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch.record_write(result)
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
        self.watch.record_write(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
