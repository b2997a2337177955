//! The snippets of docs/clients.md, run as printed there, a detection head on the server's feature maps, and clients
//! that are generated from /openapi.json.
//!
//! The snippets need a Python with the packages of `tests/clients/requirements.txt`. GHOSTSERVE_CLIENTS_PYTHON names
//! it; continuous integration always has one. Snippets with PyTorch also need `requirements-torch.txt`, the generated
//! Python client `requirements-generated.txt`. The TypeScript client needs node and the packages of
//! `tests/clients/typescript`; GHOSTSERVE_NODE_MODULES names the folder `node_modules` that has them. A test whose
//! packages are missing is skipped, and says so.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::images::JPEG;
use crate::server::TestServer;

const MANUAL: &str = include_str!("../../docs/clients.md");

/// A Python with the packages that the snippets import.
pub(crate) fn python() -> Option<PathBuf> {
    let named = std::env::var_os("GHOSTSERVE_CLIENTS_PYTHON").map(PathBuf::from);
    let python = named.clone().unwrap_or_else(|| "python3".into());
    let has = can_import(&python, "numpy, requests, safetensors, schemathesis, tritonclient.grpc, tritonclient.http");
    assert!(has || named.is_none(), "{} lacks tests/clients/requirements.txt", python.display());
    has.then_some(python)
}

fn can_import(python: &Path, modules: &str) -> bool {
    let output = Command::new(python).args(["-c", &format!("import {modules}")]).output();
    output.is_ok_and(|output| output.status.success())
}

/// The folder `node_modules` with the packages of the TypeScript client.
fn node_modules() -> Option<PathBuf> {
    let named = std::env::var_os("GHOSTSERVE_NODE_MODULES").map(PathBuf::from);
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join(".runtime/typescript/node_modules");
    let folder = named.clone().unwrap_or_else(default);
    let has = ["openapi-fetch", "openapi-typescript", "typescript"].iter().all(|name| folder.join(name).is_dir());
    assert!(has || named.is_none(), "{} lacks the packages of tests/clients/typescript", folder.display());
    has.then_some(folder)
}

/// The Python blocks of the manual, each with the output that follows it.
fn snippets() -> Vec<(&'static str, &'static str)> {
    let blocks = MANUAL.split("```python\n").skip(1);
    blocks
        .map(|rest| {
            let (code, rest) = rest.split_once("```\n").unwrap();
            let text = rest.split_once("```text\n").unwrap().1;
            (code, text.split_once("```").unwrap().0)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_snippets_of_the_manual_print_the_documented_output() {
    let Some(python) = python() else {
        println!("SKIPPED: no Python with tests/clients/requirements.txt; `make test-clients` makes one");
        return;
    };
    let torch = can_import(&python, "torch");
    let server = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("photo.jpg"), JPEG).unwrap();
    let examples = snippets();
    assert_eq!(examples.len(), 8);
    let mut examples_run = 0;
    for (code, expected) in examples {
        if code.contains("torch") && !torch {
            println!("SKIPPED: a snippet that imports torch, which {} lacks", python.display());
            continue;
        }
        assert!(code.contains("http://localhost:8080"));
        let code = code.replace("localhost:8080", &server.address.to_string());
        let mut command = Command::new(&python);
        command.args(["-W", "ignore", "-c", &code]).current_dir(folder.path()).env("NO_PROXY", "*");
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{code}\n{err}");
        assert_eq!(out, expected, "{code}");
        examples_run += 1;
    }
    assert!(examples_run >= 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn tritons_clients_get_the_answers_of_classify() {
    let Some(python) = python() else {
        println!("SKIPPED: no Python with tests/clients/requirements.txt; `make test-clients` makes one");
        return;
    };
    let server = TestServer::start().await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut command = Command::new(python);
    command.arg(root.join("clients/triton.py")).arg(server.address.to_string()).env("NO_PROXY", "*");
    for photo in ["jpeg-420.jpg", "jpeg-444.jpg"] {
        command.arg(root.join("goldens/images").join(photo));
    }
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    print!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_detection_head_gives_the_same_on_the_servers_maps_and_on_timms() {
    let python = python().filter(|python| can_import(python, "torch, timm"));
    let Some(python) = python else {
        println!("SKIPPED: no Python with tests/clients/requirements-torch.txt; `make test-clients TORCH=1` makes one");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/head.py");
    let output = Command::new(python).arg(script).arg(env!("CARGO_BIN_EXE_ghostserve")).output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The label that the server gives a photograph.
async fn best_label(server: &TestServer) -> String {
    let response = server.post("/v1/classify").body(JPEG).send().await.unwrap();
    let answer: serde_json::Value = response.json().await.unwrap();
    answer["results"][0]["predictions"][0]["label"].as_str().unwrap().to_owned()
}

/// Runs a script of `tests/clients` with the server's URL and a photograph, and returns what it prints.
async fn run_generated_client(server: &TestServer, python: PathBuf, script: &str, before: Option<PathBuf>) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    let folder = tempfile::tempdir().unwrap();
    let photo = folder.path().join("photo.jpg");
    std::fs::write(&photo, JPEG).unwrap();
    let mut command = Command::new(python);
    command.arg(root.join(script)).args(before).arg(server.url("")).arg(photo);
    command.current_dir(folder.path()).env("NO_PROXY", "*");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_generated_by_openapi_python_client_classifies_a_photograph() {
    let named = std::env::var_os("GHOSTSERVE_CLIENTS_PYTHON").map(PathBuf::from);
    let python = named.clone().unwrap_or_else(|| "python3".into());
    if !can_import(&python, "openapi_python_client") {
        assert!(named.is_none(), "{} lacks tests/clients/requirements-generated.txt", python.display());
        println!("SKIPPED: no Python with openapi-python-client; `make clients` makes one");
        return;
    }
    let server = TestServer::start().await;
    let printed = run_generated_client(&server, python, "generated.py", None).await;
    assert_eq!(printed, format!("python: {}\n", best_label(&server).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn types_generated_by_openapi_typescript_check_a_program_that_classifies_a_photograph() {
    let Some(modules) = node_modules() else {
        println!("SKIPPED: no node_modules of tests/clients/typescript; `make clients` installs them");
        return;
    };
    let python = std::env::var_os("GHOSTSERVE_CLIENTS_PYTHON").map_or_else(|| "python3".into(), PathBuf::from);
    let server = TestServer::start().await;
    let printed = run_generated_client(&server, python, "typescript.py", Some(modules)).await;
    assert_eq!(printed, format!("typescript: {}\n", best_label(&server).await));
}
