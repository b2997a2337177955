//! What users rely on, tested from outside: the networks' numbers, the pixels, the HTTP interface over real sockets, and
//! the program itself. One binary, a module for each surface.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attacks;
mod bench;
mod classify;
mod cli;
mod clients;
mod fake_hub;
mod features;
mod grpc;
mod hostile;
mod hub;
mod images;
mod imports;
mod inference;
mod models;
mod network;
mod openapi;
mod openvino;
mod pixels;
mod pull;
mod scaled;
mod scheduling;
mod server;
mod shutdown;
mod slow;
#[path = "../../benches/support/mod.rs"]
mod support;
mod traces;

use std::path::Path;
use std::sync::OnceLock;

use ghostserve::runtime::{LIBRARY_ENV, Runtime};

/// ONNX Runtime, which a process can load once. `make runtime` fetches it.
pub(crate) fn runtime() -> Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let load = || {
        let library = std::env::var_os(LIBRARY_ENV).expect("cargo sets it, see .cargo/config.toml");
        Runtime::load(Some(Path::new(&library))).expect("`make runtime` has been run")
    };
    RUNTIME.get_or_init(load).clone()
}
