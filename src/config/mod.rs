//! The settings of `ghostserve serve`. Each is declared once, on the field that the server reads.
//!
//! The field's name is the flag's name and its doc comment is the flag's help. Its attributes hold the environment
//! variable, the default and the parser of the value. A section of [`Config`] is a section of the help.
//! [`Config::validate`] checks that the values fit together.

mod execution;
mod features;
mod load;
mod request;
mod time;
mod validate;
pub(crate) mod values;

pub use execution::Execution;
pub use features::FeatureLimits;
pub use load::{LoadLimits, ShedStatus};
pub use request::RequestLimits;
pub use time::{DOWNLOAD_WINDOW, TRANSFER_GRACE, TimeLimits};
pub use validate::ConfigError;

use std::net::SocketAddr;

use clap::{Args, Command, FromArgMatches};

use crate::model::EMBEDDED_MODEL;

/// All settings of a server.
#[derive(Clone, Debug, Args)]
pub struct Config {
    /// Where clients and operators connect.
    #[command(flatten)]
    pub addresses: Addresses,

    /// Address and port of a second listener, for gRPC alone, written as --listen. The clients' port serves gRPC in
    /// any case.
    #[arg(long, env = "GHOSTSERVE_GRPC_LISTEN", value_parser = values::address, value_name = "ADDR")]
    pub grpc_listen: Option<SocketAddr>,

    /// Name of the embedded model, or a folder with a manifest.toml.
    #[arg(long, env = "GHOSTSERVE_MODEL", default_value = EMBEDDED_MODEL)]
    pub model: String,

    /// How cores are used.
    #[command(flatten, next_help_heading = "Execution")]
    pub execution: Execution,

    /// Bounds of one request.
    #[command(flatten, next_help_heading = "Request limits")]
    pub request: RequestLimits,

    /// Bounds of feature maps.
    #[command(flatten, next_help_heading = "Feature map limits")]
    pub features: FeatureLimits,

    /// Bounds over all requests.
    #[command(flatten, next_help_heading = "Load limits")]
    pub load: LoadLimits,

    /// Bounds in time.
    #[command(flatten, next_help_heading = "Time limits")]
    pub time: TimeLimits,
}

/// The listeners that `ghostserve health` can check.
#[derive(Clone, Copy, Debug, Args)]
pub struct Addresses {
    /// Address and port for clients: HOST:PORT, or :PORT or PORT for all IPv4 addresses of the machine;
    /// `[::]:PORT` includes IPv6.
    #[arg(
        long,
        env = "GHOSTSERVE_LISTEN",
        default_value = "0.0.0.0:8080",
        value_parser = values::address,
        value_name = "ADDR"
    )]
    pub listen: SocketAddr,

    /// Address and port for /metrics, /livez and /readyz, written as --listen. The clients' port then no longer
    /// serves them.
    #[arg(long, env = "GHOSTSERVE_ADMIN_ADDR", value_parser = values::address, value_name = "ADDR")]
    pub admin_addr: Option<SocketAddr>,
}

impl Config {
    /// The declarations, without the environment variables.
    fn command() -> Command {
        Self::augment_args(Command::new("serve")).mut_args(|arg| arg.env(None::<&'static str>))
    }
}

impl Default for Config {
    /// The declared defaults, independent of the process's arguments and environment.
    fn default() -> Self {
        let matches = Self::command().try_get_matches_from(["serve"]);
        matches
            .and_then(|matches| Self::from_arg_matches(&matches))
            .unwrap_or_else(|error| unreachable!("a declared default is not a valid value: {error}"))
    }
}
