//! The server: it connects model, runtime, workers, service and listeners, and shuts them down.
//!
//! [`Server::start`] returns when clients can connect; the model is loaded and warm then. [`Server::run`] serves
//! until the server is stopped and every admitted request has its answer.
//!
//! Every request takes the same steps in every protocol, and its handler names them: plan (model, parameters,
//! admission), read (the body), run ([`crate::service`]), encode. `http` and `grpc` are the protocols, `oip` is
//! what both do for the Open Inference Protocol. What they share is in the files beside them.

mod app;
mod budget;
mod connection;
mod encode;
mod grpc;
mod http;
mod ingress;
mod oip;
mod outgoing;
mod pace;
mod parameters;
mod problem;
mod request;
mod retain;
mod shutdown;
mod startup;
mod tensors;

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
use crate::service::{Service, ServiceConfig};
use crate::telemetry::{BUILD_REVISION, Metrics, rounded_ms};
use app::App;
use connection::Listener;
pub use grpc::DescriptorError;
use shutdown::{Lifecycle, OtherSignals, Phase, Signals};
use startup::start_model;

/// A server whose listeners are bound.
pub struct Server {
    config: Arc<Config>,
    app: App,
    lifecycle: Lifecycle,
    public: TcpListener,
    admin: Option<TcpListener>,
    grpc: Option<TcpListener>,
    grpc_router: axum::Router,
    workers: Vec<thread::JoinHandle<()>>,
    signals: Signals,
}

/// The reason why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings contradict each other.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The runtime does not accept the model.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The server cannot listen on an address.
    #[error("cannot listen on {address}: {source}; is another server running there? `--listen` takes another address")]
    Listen {
        /// The address that could not be bound.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The model fails on its first image.
    #[error("the model fails on its first image: {0}")]
    FirstRun(#[from] ModelFailure),
    /// Signals cannot be received, so the server could not be stopped gracefully.
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
    /// Starts to drain the server.
    pub fn stop(&self) {
        self.0.advance(Phase::Draining);
    }
}

impl Server {
    /// Loads the model, starts and warms the workers, binds the listeners.
    ///
    /// # Errors
    /// The first problem that is found. The message says what to change.
    pub async fn start(config: Config, runtime: &Runtime) -> Result<Self, StartError> {
        config.validate()?;
        // From here on no signal ends the process at once.
        let signals = Signals::receive().map_err(StartError::Signals)?;
        let metrics = Arc::new(Metrics::new()?);
        metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION"), BUILD_REVISION, runtime.version()]).set(1);

        // Bound first: if an address is taken, the server fails before it loads a model.
        let public = listen(config.addresses.listen).await?;
        let admin = match config.addresses.admin_addr {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let grpc = match config.grpc_listen {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let loaded = ModelFolder::resolve(&config.model)?.load()?;
        let cores = Cores::oversubscribed(config.execution.core_count());
        let (model, workers) = start_model(loaded, &config, runtime, &metrics, &cores)?;
        let pool = PoolConfig {
            max_decoded_bytes: config.load.max_decoded_bytes_in_flight,
            limits: config.request.image_limits(),
            max_waiting_images: config.load.max_images_in_flight,
            max_wait: config.load.max_wait,
            max_client_share: config.load.max_client_share,
        };
        let preprocessor = Preprocessor::new(pool, cores);
        let service = Arc::new(Service::new(ServiceConfig {
            default_model: model,
            other_models: Vec::new(),
            preprocessor,
            feature_bytes: config.features.max_feature_bytes_in_flight,
            max_client_share: config.load.max_client_share,
            cache_bytes: config.load.response_cache,
            memory_guard: MemoryGuard::start(config.load.memory_limit()),
            metrics: Arc::clone(&metrics),
        }));

        // The workers' sessions are open; only their threads have to start.
        while !service.is_ready() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }

        let config = Arc::new(config);
        let lifecycle = Lifecycle::new();
        let app = App::new(service, metrics, Arc::clone(&config), lifecycle.clone());
        let grpc_router = grpc::router(&app)?;
        Ok(Self { config, app, lifecycle, public, admin, grpc, grpc_router, workers, signals })
    }

    /// The address of the public listener. If the configured port is 0, it has the port that the system chose.
    ///
    /// # Errors
    /// The socket is closed.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.public.local_addr()
    }

    /// The address of the listener for operators, if there is one.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(|admin| admin.local_addr().ok())
    }

    /// The address of the listener that serves only gRPC, if there is one.
    #[must_use]
    pub fn grpc_address(&self) -> Option<SocketAddr> {
        self.grpc.as_ref().and_then(|grpc| grpc.local_addr().ok())
    }

    /// A handle that stops the server from another task.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(self.lifecycle.clone())
    }

    /// Serves until SIGTERM, SIGINT, SIGQUIT or [`StopHandle::stop`], then drains. Returns when every admitted
    /// request has its answer, or when the drain time is over.
    pub async fn run(self) {
        let Self { config, app, lifecycle, public, admin, grpc, grpc_router, workers, signals } = self;
        let listener = |http, grpc| Listener {
            http,
            grpc,
            metrics: Arc::clone(&app.metrics),
            lifecycle: lifecycle.clone(),
            time: config.time,
            load: config.load,
        };
        let public = tokio::spawn(listener(app.public(), Some(grpc_router.clone())).serve(public));
        let grpc = grpc.map(|socket| tokio::spawn(listener(app.fallback_router(), Some(grpc_router)).serve(socket)));
        let admin = admin.map(|socket| tokio::spawn(listener(app.private(), None).serve(socket)));

        let Signals { mut stop, other } = signals;
        let ignored_signals = tokio::spawn(other.ignore());
        let stop_handle = lifecycle.clone();
        let grace_ms = rounded_ms(config.time.drain_grace);
        tokio::select! {
            signal = stop.next() => tracing::info!(signal, grace_ms, "draining"),
            () = stop_handle.reached(Phase::Draining) => tracing::info!(grace_ms, "draining"),
        }
        lifecycle.advance(Phase::Draining);
        tokio::select! {
            () = tokio::time::sleep(config.time.drain_grace) => {}
            _ = stop.next() => tracing::info!("a second signal: no longer accepting"),
        }
        lifecycle.advance(Phase::Stopping);
        let deadline = Instant::now() + config.time.drain_timeout;
        // Each listener waits for its connections, at most the drain time.
        let _ = public.await;
        for other in [admin, grpc].into_iter().flatten() {
            let _ = other.await;
        }
        app.service.close();
        let ended = tokio::task::spawn_blocking(move || workers.into_iter().for_each(|w| drop(w.join())));
        // Idle workers end immediately. The others get at least a second.
        if timeout_at(deadline.max(Instant::now() + Duration::from_secs(1)), ended).await.is_err() {
            tracing::warn!("a worker did not end in time");
        }
        ignored_signals.abort();
        tracing::info!("stopped");
    }
}

/// From here on, signals such as SIGHUP, which a closed terminal sends, no longer end the process. [`Server::start`]
/// does the same and logs them, but what comes before it also takes time. Must be called within a Tokio runtime.
///
/// # Errors
/// The system does not allow it.
pub fn ignore_unrelated_signals() -> io::Result<()> {
    // A handler stays installed when the value that has installed it is gone.
    OtherSignals::receive().map(drop)
}

/// Maximum number of connections that wait to be accepted. The system drops those beyond it, and their clients try
/// again after a second.
const BACKLOG: u32 = 4096;

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    let open = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A server that restarts must not wait for the connections of the previous one.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    open().map_err(|source| StartError::Listen { address, source })
}
