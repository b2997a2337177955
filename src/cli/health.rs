//! `ghostserve health`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::serve::reachable;
use crate::config::{Addresses, values};

/// Check whether a running server is well: exit code 0 if so, 1 if not. For container health checks.
///
/// The request goes to the administrative address if there is one, else to the clients' address.
#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    #[command(flatten)]
    addresses: Addresses,

    /// Whether the server must be ready for requests, or only alive.
    #[arg(long, value_enum, default_value_t)]
    check: Check,

    /// How long to wait for the answer.
    #[arg(long, default_value = "2s", value_parser = values::duration, value_name = "TIME")]
    timeout: Duration,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Check {
    #[default]
    Ready,
    Live,
}

impl HealthArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let address = reachable(self.addresses.admin_addr.unwrap_or(self.addresses.listen));
        let path = match self.check {
            Check::Ready => "/readyz",
            Check::Live => "/livez",
        };
        let answer = get(address, path, self.timeout).with_context(|| format!("no answer from {address}"))?;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        if status == "200" {
            println!("ok");
            return Ok(ExitCode::SUCCESS);
        }
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body.trim());
        bail!("{path} answered {status}: {body}")
    }
}

/// The answer to a GET, head and body.
fn get(address: SocketAddr, path: &str, timeout: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    // Another program may answer here, so only as much is read as a health answer can have.
    stream.take(64 << 10).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
