//! Integration tests: the networks' values, the decoded pixels, the HTTP and gRPC interfaces over real sockets, and the
//! program itself. One binary, with one module for each subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attacks;
mod bad_requests;
mod bench;
mod classify;
mod cli;
mod clients;
mod docs;
mod fake_hub;
mod features;
mod grpc;
mod hub;
mod images;
mod imports;
mod init;
mod models;
mod network;
mod oip_rest;
mod openapi;
mod openvino;
mod pixels;
mod pull_command;
mod python_client;
mod readme;
mod scaled_decoding;
mod scheduling;
mod server;
mod shutdown;
mod slow_clients;
#[path = "../../benches/support/mod.rs"]
mod support;
mod traces;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ghostserve::runtime::{LIBRARY_ENV, Runtime};

/// ONNX Runtime, which a process can load only once. `make runtime` downloads it.
pub(crate) fn runtime() -> Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let load = || {
        let library = std::env::var_os(LIBRARY_ENV).expect("cargo sets it, see .cargo/config.toml");
        Runtime::load(Some(Path::new(&library))).expect("`make runtime` has been run")
    };
    RUNTIME.get_or_init(load).clone()
}

/// The path of ONNX Runtime, for programs that run in another folder.
pub(crate) fn runtime_path() -> PathBuf {
    let library = std::env::var_os(LIBRARY_ENV).expect("cargo sets it, see .cargo/config.toml");
    std::path::absolute(library).unwrap()
}
