//! The process's log: one `tracing` subscriber on standard error, as text or JSON.

use std::io::IsTerminal;

use tracing::Metadata;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{FilterExt, ParseError, filter_fn};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use super::spans::TARGET;
use super::traces::TraceExporter;

/// Format of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text, for people.
    #[default]
    Text,
    /// One JSON object per line, for log collectors.
    Json,
}

/// Installs the log of the process and logs panics. With `exporter`, the spans of traces go to it.
///
/// # Errors
/// `filter` is not a list of `tracing` directives (`info`, `ghostserve=debug,hyper=warn`).
pub fn install(filter: &str, format: LogFormat, exporter: Option<&TraceExporter>) -> Result<(), ParseError> {
    let is_traced = |metadata: &Metadata<'_>| metadata.target() == TARGET;
    let filter = EnvFilter::try_new(filter)?.and(filter_fn(move |metadata| !is_traced(metadata)));
    // Only a terminal gets colours: files and collectors would store the escape sequences.
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    // A line that cannot be written must not be reported on standard error: that panics if it is standard error that is
    // closed, and a server whose terminal is gone must go on.
    let lines = lines.log_internal_errors(false);
    let lines = match format {
        LogFormat::Text => lines.with_target(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
    };
    let traces = exporter.map(|exporter| {
        // A span's parent is the `tracing` span around it. Nothing reads OpenTelemetry's current context, so it need
        // not be activated.
        let layer = tracing_opentelemetry::layer().with_tracer(exporter.tracer()).with_context_activation(false);
        let layer = layer.with_location(false).with_threads(false).with_target(false).with_level(false);
        layer.with_tracked_inactivity(false).with_filter(filter_fn(is_traced))
    });
    // Fails if a log is installed already (several tests in one process): the first one stays.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).with(traces).try_init();
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(message, location, "panic");
    }));
    Ok(())
}
