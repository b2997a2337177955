//! The Python package in clients/python, by its own tests against a server of this process.
//!
//! They need a Python with the packages of `tests/clients/requirements.txt`, which GHOSTSERVE_CLIENTS_PYTHON names;
//! continuous integration always has one. Without it the test is skipped, and says so.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::server::TestServer;

const MODULES: &str = "httpx, mypy, numpy, pytest, ruff";

/// A Python with the packages that the client's tests import.
fn python() -> Option<PathBuf> {
    let named = std::env::var_os("GHOSTSERVE_CLIENTS_PYTHON").map(PathBuf::from);
    let python = named.clone().unwrap_or_else(|| "python3".into());
    let output = Command::new(&python).args(["-c", &format!("import {MODULES}")]).output();
    let has = output.is_ok_and(|output| output.status.success());
    assert!(has || named.is_none(), "{} lacks tests/clients/requirements.txt", python.display());
    if !has {
        println!("SKIPPED: no Python with tests/clients/requirements.txt; `make test-python-client` makes one");
    }
    has.then_some(python)
}

/// A command of a module of Python in the package's folder, without files left there.
fn command(python: &Path, arguments: &[&str], cache: &Path) -> Command {
    let mut command = Command::new(python);
    command.arg("-m").args(arguments).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python"));
    command.env("PYTHONPATH", "src").env("PYTHONDONTWRITEBYTECODE", "1").env("NO_PROXY", "*");
    command.env("MYPY_CACHE_DIR", cache).env("RUFF_CACHE_DIR", cache);
    command
}

async fn succeeds(mut command: Command) -> String {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{out}{}", String::from_utf8_lossy(&output.stderr));
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_package_passes_its_tests_against_this_server() {
    let Some(python) = python() else { return };
    let cache = tempfile::tempdir().unwrap();
    // Few images at once: the tests also send far more than that.
    let server = TestServer::with(|config| {
        config.load.max_images_in_flight = 8;
        config.request.max_images_per_request = 8;
    })
    .await;
    let mut tests = command(&python, &["pytest", "-q", "-p", "no:cacheprovider"], cache.path());
    tests.env("GHOSTSERVE_URL", format!("http://{}", server.address));
    let out = succeeds(tests).await;
    println!("{out}");
    assert!(out.contains(" passed") && !out.contains("skipped"), "{out}");
    let refused = server.metric("ghostserve_problems_total{code=\"overloaded\"}").await;
    assert!(refused > 0.0, "the tests never overloaded the server, so its refusals were not tested");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_package_is_fully_typed() {
    let Some(python) = python() else { return };
    let cache = tempfile::tempdir().unwrap();
    succeeds(command(&python, &["mypy"], cache.path())).await;
    succeeds(command(&python, &["ruff", "check", "."], cache.path())).await;
    succeeds(command(&python, &["ruff", "format", "--check", "."], cache.path())).await;
}
