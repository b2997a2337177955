//! The process's log: one `tracing` subscriber on standard error, as text or JSON.

use std::io::IsTerminal;

use tracing::Metadata;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{FilterExt, ParseError, filter_fn};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use super::spans::TARGET;
use super::traces::Traces;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// Installs the log for the whole process, and sends panics to it. With `traces`, spans go there.
///
/// # Errors
/// `filter` is not a list of `tracing` directives (`info`, `ghostserve=debug,hyper=warn`).
pub fn install(filter: &str, format: LogFormat, traces: Option<&Traces>) -> Result<(), ParseError> {
    let traced = |metadata: &Metadata<'_>| metadata.target() == TARGET;
    let filter = EnvFilter::try_new(filter)?.and(filter_fn(move |metadata| !traced(metadata)));
    // Colours are for people, not for files and collectors.
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = match format {
        LogFormat::Text => lines.with_target(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
    };
    // A second installation (tests in one process) keeps the first.
    let traces = traces.map(|traces| {
        // A span's parent is the one around it in our own code: nothing here asks OpenTelemetry for the current one.
        let layer = tracing_opentelemetry::layer().with_tracer(traces.tracer()).with_context_activation(false);
        let layer = layer.with_location(false).with_threads(false).with_target(false).with_level(false);
        layer.with_tracked_inactivity(false).with_filter(filter_fn(traced))
    });
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).with(traces).try_init();
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(message, location, "panic");
    }));
    Ok(())
}
