//! The server: puts model, runtime, workers, service and listeners together, and takes them apart again.
//!
//! [`Server::start`] returns when clients can connect; the models are loaded and warm by then. [`Server::run`] serves
//! until it is told to stop and everything admitted has been answered.

mod app;
mod asked;
mod budget;
mod connection;
mod grpc;
mod held;
mod http;
mod ingress;
mod model;
mod oip;
mod outgoing;
mod pace;
mod problem;
mod shutdown;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::time::{Instant, timeout_at};

use crate::batch::ModelFailure;
use crate::config::{Config, ConfigError};
use crate::cores::Cores;
use crate::memory::MemoryGuard;
use crate::model::{ModelError, ModelFolder};
use crate::preprocess::{PoolConfig, Preprocessor};
use crate::runtime::{Runtime, RuntimeError};
use crate::service::Service;
use crate::telemetry::Metrics;
use app::App;
use connection::Listener;
pub use grpc::DescriptorError;
use model::start_model;
use shutdown::{Lifecycle, Phase, Signals};

/// A server whose listeners are bound.
pub struct Server {
    config: Arc<Config>,
    app: App,
    lifecycle: Lifecycle,
    public: TcpListener,
    admin: Option<TcpListener>,
    grpc: Option<TcpListener>,
    calls: axum::Router,
    workers: Vec<thread::JoinHandle<()>>,
    signals: Signals,
}

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings contradict each other.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The runtime does not take it.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}; is another server running there? `--listen` takes another address")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The model fails on its first image.
    #[error("the model fails on its first image: {0}")]
    FirstRun(#[from] ModelFailure),
    /// Signals cannot be received, so the server could not be stopped well.
    #[error("cannot receive signals: {0}")]
    Signals(io::Error),
    /// A thread cannot be started.
    #[error("cannot start a worker thread: {0}")]
    Thread(io::Error),
    /// A mistake in the services' definitions.
    #[error(transparent)]
    Descriptors(#[from] DescriptorError),
    /// A mistake in the metrics' definitions.
    #[error("cannot register the metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Stops a [`Server`] from outside, as SIGTERM does.
#[derive(Clone, Debug)]
pub struct StopHandle(Lifecycle);

impl StopHandle {
    /// Begins draining.
    pub fn stop(&self) {
        self.0.advance(Phase::Draining);
    }
}

impl Server {
    /// Loads the model, starts and warms the workers, binds the listeners.
    ///
    /// # Errors
    /// Whatever is wrong first; the message says what to change.
    pub async fn start(config: Config, runtime: &Runtime) -> Result<Self, StartError> {
        config.validate()?;
        // From here on none of them ends the process at once.
        let signals = Signals::receive().map_err(StartError::Signals)?;
        let metrics = Arc::new(Metrics::new()?);
        let revision = option_env!("GHOSTSERVE_BUILD_REVISION").unwrap_or("unknown");
        metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION"), revision, runtime.version()]).set(1);

        // Bound first: an address that is taken should not cost the time of loading a model.
        let public = listen(config.listen).await?;
        let admin = match config.admin {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let grpc = match config.grpc {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let loaded = ModelFolder::resolve(&config.model)?.load()?;
        let cores = Cores::oversubscribed(config.execution.plan.cores);
        let (model, workers) = start_model(loaded, &config, runtime, &metrics, &cores)?;
        let pool = PoolConfig {
            max_decoded_bytes: config.load.max_decoded_bytes,
            limits: config.image,
            max_waiting_images: config.load.max_images,
            max_wait: config.load.max_wait,
            max_client_share: config.load.max_client_share,
        };
        let preprocessor = Preprocessor::new(pool, cores);
        let mut service = Service::new(model, Vec::new(), preprocessor, Arc::clone(&metrics))
            .with_features(config.features.max_bytes_in_flight, config.load.max_client_share)
            .with_memory_guard(MemoryGuard::start(config.load.max_memory));
        if config.load.response_cache_bytes > 0 {
            service = service.with_cache(config.load.response_cache_bytes);
        }
        let service = Arc::new(service);

        // The workers' threads have their models already; they only have to come up.
        while !service.is_ready() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }

        let config = Arc::new(config);
        let lifecycle = Lifecycle::new();
        let app = App::new(service, metrics, Arc::clone(&config), lifecycle.clone());
        let calls = grpc::router(&app)?;
        Ok(Self { config, app, lifecycle, public, admin, grpc, calls, workers, signals })
    }

    /// Where clients connect; the port is the real one if 0 was asked for.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.public.local_addr()
    }

    /// Where operators connect, if that is another listener.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(|admin| admin.local_addr().ok())
    }

    /// Where gRPC is served, too, if it is.
    #[must_use]
    pub fn grpc_address(&self) -> Option<SocketAddr> {
        self.grpc.as_ref().and_then(|grpc| grpc.local_addr().ok())
    }

    /// Stops the server from another task.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(self.lifecycle.clone())
    }

    /// Serves until SIGTERM, SIGINT or [`StopHandle::stop`]; then drains. Returns when everything admitted has been
    /// answered, or the drain time is over.
    pub async fn run(self) {
        let Self { config, app, lifecycle, public, admin, grpc, calls, workers, signals } = self;
        let listener = |http, grpc| Listener {
            http,
            grpc,
            metrics: Arc::clone(&app.metrics),
            lifecycle: lifecycle.clone(),
            time: config.time,
            load: config.load,
        };
        let public = tokio::spawn(listener(app.public(), Some(calls.clone())).serve(public));
        let grpc = grpc.map(|socket| tokio::spawn(listener(app.nothing(), Some(calls)).serve(socket)));
        let admin = admin.map(|socket| tokio::spawn(listener(app.private(), None).serve(socket)));

        let Signals { mut stop, other } = signals;
        let survive = tokio::spawn(other.survive());
        let told = lifecycle.clone();
        tokio::select! {
            signal = stop.next() => tracing::info!(signal, grace = ?config.time.drain_grace, "draining"),
            () = told.reached(Phase::Draining) => tracing::info!(grace = ?config.time.drain_grace, "draining"),
        }
        lifecycle.advance(Phase::Draining);
        tokio::select! {
            () = tokio::time::sleep(config.time.drain_grace) => {}
            _ = stop.next() => tracing::info!("a second signal: no longer accepting"),
        }
        lifecycle.advance(Phase::Stopping);
        let deadline = Instant::now() + config.time.drain;
        // Each waits for its connections, at most the drain time.
        let _ = public.await;
        for other in [admin, grpc].into_iter().flatten() {
            let _ = other.await;
        }
        app.service.close();
        let ended = tokio::task::spawn_blocking(move || workers.into_iter().for_each(|w| drop(w.join())));
        // Idle workers end at once; a moment for those that only just got there.
        if timeout_at(deadline.max(Instant::now() + Duration::from_secs(1)), ended).await.is_err() {
            tracing::warn!("a worker did not end in time");
        }
        survive.abort();
        tracing::info!("stopped");
    }
}

/// Connections that wait to be accepted. A burst beyond it is dropped by the system, and its clients try again after a second.
const BACKLOG: u32 = 4096;

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    let open = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A server that is started again must not wait for the connections of the one before.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    open().map_err(|source| StartError::Listen { address, source })
}
