//! `ghostserve health`.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::values;

/// Ask a running server whether it is well: exit code 0 if so, 1 if not. For container health checks.
#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// Where the server's administrative listener is, if it has one.
    #[arg(long, env = "GHOSTSERVE_ADMIN_ADDR", value_name = "ADDR")]
    admin_addr: Option<SocketAddr>,

    /// Where the server listens otherwise.
    #[arg(long, env = "GHOSTSERVE_LISTEN", default_value = "0.0.0.0:8080", value_name = "ADDR")]
    listen: SocketAddr,

    /// Ready for requests, or merely alive.
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
        let mut address = self.admin_addr.unwrap_or(self.listen);
        // The address a server listens on may be "all of them"; it is asked on the local one.
        if address.ip().is_unspecified() {
            let local =
                if address.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) };
            address.set_ip(local);
        }
        let path = match self.check {
            Check::Ready => "/readyz",
            Check::Live => "/livez",
        };
        let answer = ask(address, path, self.timeout).with_context(|| format!("no answer from {address}"))?;
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
fn ask(address: SocketAddr, path: &str, timeout: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    // Whatever answers here may not be us: no more than a health answer can be is read.
    stream.take(64 << 10).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
