//! The command line: one file per subcommand, each from arguments to one call of the library.
//!
//! Arguments and environment variables are parsed here, also those that [`crate::config`] declares. Errors become
//! text on standard error here and nowhere else.

mod bench;
mod build;
mod classify;
mod completions;
mod environment;
mod errors;
mod eval;
mod health;
mod init;
mod inspect;
mod locate;
mod pull;
mod serve;
mod systemd;
mod values;
mod version;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::runtime::{Backend, LIBRARY_ENV, Precision, Provider, Runtime, RuntimeError};

/// Image inference over HTTP: GhostNetV2 on plain CPUs.
///
/// POST an image to /v1/classify, get labelled probabilities; scrape /metrics. A small model is built in.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::ServeArgs>),
    Classify(classify::ClassifyArgs),
    Eval(eval::EvalArgs),
    Inspect(inspect::InspectArgs),
    Build(build::BuildArgs),
    Pull(pull::PullArgs),
    Init(Box<init::InitArgs>),
    Health(health::HealthArgs),
    Bench(Box<bench::BenchArgs>),
    Completions(completions::CompletionsArgs),
    Man(completions::ManArgs),
}

/// Where ONNX Runtime is, and which of its providers computes.
#[derive(Debug, Args)]
struct RuntimeArgs {
    /// ONNX Runtime's shared library, or the folder that holds it [default: beside the program, then the system's
    /// path].
    #[arg(long, env = LIBRARY_ENV, value_name = "PATH")]
    onnxruntime: Option<PathBuf>,

    /// Execution provider: ONNX Runtime's own, or OpenVINO, for which `make runtime EP=openvino` fetches a library.
    #[arg(long, env = "GHOSTSERVE_PROVIDER", value_enum, default_value_t)]
    provider: Provider,

    /// Number type of the computation. bf16 needs OpenVINO, and serves a model only if its answers stay the same.
    #[arg(long, env = "GHOSTSERVE_PRECISION", value_enum, default_value_t)]
    precision: Precision,
}

impl RuntimeArgs {
    fn load(&self) -> Result<Runtime, RuntimeError> {
        self.backend().check()?;
        Runtime::load(self.onnxruntime.as_deref())
    }

    fn backend(&self) -> Backend {
        Backend { provider: self.provider, precision: self.precision }
    }
}

/// Keeps ONNX Runtime from writing an identifier of the machine into the user's cache folder. The session's own setting
/// switches off only that it is sent.
#[allow(unsafe_code)]
fn disable_runtime_telemetry() {
    const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: `main` calls this before there is another thread that could read the environment.
        unsafe { std::env::set_var(VARIABLE, "1") };
    }
}

/// Parses the process's arguments, runs the subcommand and returns its exit code. The process must have no other thread
/// when it is called.
#[must_use]
pub fn main() -> ExitCode {
    disable_runtime_telemetry();
    let mut command = Cli::command();
    // Only this flag needs the runtime's version, for which a library is loaded.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "--version") {
        command = command.long_version(version::long_version());
    }
    let arguments = command.clone().get_matches();
    let parsed = Cli::from_arg_matches(&arguments).unwrap_or_else(|error| error.format(&mut command).exit());
    warn_about_variables(&parsed.command, &command);
    let result = match parsed.command {
        Command::Serve(args) => args.run(),
        Command::Classify(args) => args.run(),
        Command::Eval(args) => args.run(),
        Command::Inspect(args) => args.run(),
        Command::Build(args) => args.run(),
        Command::Pull(args) => args.run(),
        Command::Init(args) => args.run(),
        Command::Health(args) => args.run(),
        Command::Bench(args) => args.run(),
        Command::Completions(args) => args.run(Cli::command()),
        Command::Man(args) => args.run(Cli::command()),
    };
    match result {
        Ok(code) => code,
        // A reader that stops early (`| head`) is no failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", errors::describe(&error));
            ExitCode::FAILURE
        }
    }
}

/// Warns about variables that are probably misspelt settings. `serve` does that itself, in its log, and also names
/// those that resemble no setting.
fn warn_about_variables(command: &Command, declared: &clap::Command) {
    if matches!(command, Command::Serve(_) | Command::Completions(_) | Command::Man(_)) {
        return;
    }
    let unknown = environment::unknown_variables(declared);
    for variable in unknown.iter().filter(|variable| variable.nearest.is_some()) {
        eprintln!("warning: {}", variable.warning());
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The user's folder for files that the program can make again.
fn default_cache() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    base.or_else(|| std::env::home_dir().map(|home| home.join(".cache"))).map(|base| base.join("ghostserve"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Arg;

    use super::*;
    use crate::runtime::NoSuchPrecision;

    #[test]
    fn the_declarations_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_flags_that_the_error_about_the_precision_names_exist() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").unwrap();
        let flags: Vec<_> = serve.get_arguments().filter_map(Arg::get_long).collect();
        let message = NoSuchPrecision.to_string();
        for word in message.split([' ', '(', ')']) {
            assert!(word.strip_prefix("--").is_none_or(|flag| flags.contains(&flag)), "{message}");
        }
    }
}
