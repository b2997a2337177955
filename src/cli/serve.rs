//! `ghostserve serve`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory};

use super::locate::PullFlag;
use super::{Cli, RuntimeArgs, default_cache, environment, systemd};
use crate::config::Config;
use crate::memory;
use crate::server::{self, Server};
use crate::telemetry::logging::{self, LogFormat};
use crate::telemetry::traces::{OtlpProtocol, TraceConfig, TraceExporter};

/// Serve a model over HTTP.
///
/// Every flag is also an environment variable: --max-batch is GHOSTSERVE_MAX_BATCH. The defaults suit one server on
/// a machine or in a container of its own. Cores are those that the process may use (affinity, cgroup quota).
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    config: Config,

    #[command(flatten, next_help_heading = "Model")]
    pull: PullFlag,

    #[command(flatten, next_help_heading = "Runtime")]
    runtime: RuntimeArgs,

    #[command(flatten, next_help_heading = "Logs")]
    logs: LogArgs,

    #[command(flatten, next_help_heading = "Traces")]
    traces: TraceArgs,
}

#[derive(Debug, Args)]
struct LogArgs {
    /// What is logged: levels, also by module (info, warn, ghostserve=debug).
    #[arg(long, env = "GHOSTSERVE_LOG", default_value = "info", value_name = "FILTER")]
    log: String,

    /// Format of the log.
    #[arg(long, env = "GHOSTSERVE_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

/// Settings of traces. Their environment variables have OpenTelemetry's names, so that what configures other
/// services also configures this one.
#[derive(Debug, Args)]
struct TraceArgs {
    /// Address of the OTLP collector that receives traces, such as http://collector:4318. Without it, there are no
    /// traces.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,

    /// Transport to the collector.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_PROTOCOL", value_enum, default_value_t)]
    otlp_protocol: OtlpProtocol,

    /// Fraction of requests to trace, 0 to 1, of those whose callers have not decided [default: all].
    #[arg(long, env = "GHOSTSERVE_TRACE_RATIO", value_name = "PART")]
    trace_ratio: Option<f64>,

    /// The service's name in traces.
    #[arg(long, env = "OTEL_SERVICE_NAME", default_value = "ghostserve", value_name = "NAME")]
    service_name: String,
}

impl TraceArgs {
    fn config(&self) -> Option<TraceConfig> {
        // Deployments switch a setting off by setting it to nothing.
        let endpoint = self.otlp_endpoint.clone().filter(|endpoint| !endpoint.is_empty())?;
        let (protocol, ratio) = (self.otlp_protocol, self.trace_ratio);
        Some(TraceConfig { endpoint, protocol, ratio, service: self.service_name.clone() })
    }
}

impl ServeArgs {
    pub(super) fn run(mut self) -> anyhow::Result<ExitCode> {
        memory::tune_allocator();
        memory::raise_file_limit();
        let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let traces = {
            let _tokio = tokio.enter();
            server::ignore_unrelated_signals().context("cannot receive signals")?;
            let config = self.traces.config();
            config.as_ref().map(TraceExporter::start).transpose().context("--otlp-endpoint")?
        };
        let installed = logging::install(&self.logs.log, self.logs.log_format, traces.as_ref());
        installed.with_context(|| format!("--log `{}`", self.logs.log))?;
        for variable in environment::unknown_variables(&Cli::command()) {
            tracing::warn!("{}", variable.warning());
        }
        self.config.model = self.pull.locate(&self.config.model)?;
        let runtime = self.runtime.load()?;
        let result = tokio.block_on(async {
            let server = Server::start(self.into_config(), &runtime).await?;
            log_addresses(&server)?;
            if let Err(error) = systemd::report_ready() {
                tracing::warn!(%error, "cannot report readiness to the service manager ({})", systemd::SOCKET_ENV);
            }
            server.run().await;
            Ok(ExitCode::SUCCESS)
        });
        if let Some(traces) = traces {
            traces.end();
        }
        // A task that has not ended in time, such as a run of a model that hangs, must not keep the process alive.
        tokio.shutdown_background();
        result
    }

    /// The server's settings, with those that depend on the machine filled in. The machine is asked once, so that
    /// every part of the server uses the same numbers.
    fn into_config(self) -> Config {
        let mut config = self.config;
        config.execution.backend = self.runtime.backend();
        config.execution.cores = Some(config.execution.core_count());
        config.execution.plan_cache = config.execution.plan_cache.or_else(default_cache);
        config.load.max_memory = Some(config.load.memory_limit());
        config
    }
}

/// Logs the URLs to use. Programs that start the server wait for this line and read `address`.
fn log_addresses(server: &Server) -> std::io::Result<()> {
    let address = server.address()?;
    let (clients, operators) = (reachable(address), reachable(server.admin_address().unwrap_or(address)));
    tracing::info!(
        docs = %format_args!("http://{clients}/docs"),
        metrics = %format_args!("http://{operators}/metrics"),
        %address,
        admin = server.admin_address().map(tracing::field::display),
        grpc = server.grpc_address().map(tracing::field::display),
        "ready: POST images to http://{clients}/v1/classify"
    );
    Ok(())
}

/// An address that a client on this machine can connect to. A server that listens on all addresses of the machine is
/// reached on the loopback address.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}
