//! The description at `/openapi.json` agrees with the routes, with real answers and with what a fuzzer gets. The page
//! that shows it loads nothing from other hosts.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::clients::python;
use crate::images::{JPEG, png};
use crate::models::{FOREIGN, colour_network, write_model_folder};
use crate::server::TestServer;

async fn fetch_document(server: &TestServer) -> Value {
    let response = server.get("/openapi.json").await;
    assert_eq!(response.headers()["content-type"], "application/json");
    response.json().await.unwrap()
}

/// Every `$ref` in a value.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => members.iter().for_each(|(name, member)| match member {
            Value::String(target) if name == "$ref" => found.push(target.clone()),
            _ => references(member, found),
        }),
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

/// Calls `check` with every object of a value, and its place in it.
fn visit(value: &Value, place: &str, check: &mut dyn FnMut(&str, &serde_json::Map<String, Value>)) {
    match value {
        Value::Object(members) => {
            check(place, members);
            members.iter().for_each(|(name, member)| visit(member, &format!("{place}/{name}"), check));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, item)| visit(item, &format!("{place}/{i}"), check));
        }
        _ => {}
    }
}

/// Asserts that an answer conforms to its schema in the document.
fn assert_conforms(document: &Value, method: &str, path: &str, status: u16, answer: &Value) {
    let content = &document["paths"][path][method]["responses"][status.to_string()]["content"];
    let kind = if status == 200 || path.starts_with("/v2") { "application/json" } else { "application/problem+json" };
    let schema = content[kind]["schema"].clone();
    assert!(schema.is_object(), "{method} {path} has no {status}: {content}");
    let whole = json!({ "allOf": [schema], "components": document["components"] });
    let errors: Vec<_> =
        jsonschema::validator_for(&whole).unwrap().iter_errors(answer).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{method} {path} {status}: {errors:?} in {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_described_and_every_reference_resolves() {
    let server = TestServer::start().await;
    let document = fetch_document(&server).await;
    assert_eq!(document["openapi"], "3.1.0");
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 50);
    for target in found {
        assert!(document.pointer(target.trim_start_matches('#')).is_some(), "{target}");
    }
    let mut ids = std::collections::BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{path}");
            // Every described route exists: an unknown route would be 404 with `unknown_route`, another method 405.
            let real = path
                .replace("{version}", "1")
                .replace("{model}", "ghostnetv2-cifar10")
                .replace("{id}", "ghostnetv2-cifar10");
            let method = reqwest::Method::from_bytes(method.to_ascii_uppercase().as_bytes()).unwrap();
            let status =
                server.client.request(method.clone(), server.url(&real)).send().await.unwrap().status().as_u16();
            assert!(![404, 405].contains(&status), "{method} {real}: {status}");
            assert!(
                operation["responses"].as_object().unwrap().contains_key(&status.to_string()),
                "{method} {real}: {status}"
            );
        }
    }
    // Every existing route is described; the metrics name the routes.
    let text = server.get("/metrics").await.text().await.unwrap();
    let routes =
        text.lines().filter_map(|line| line.strip_prefix("ghostserve_http_requests_total{route=\"")?.split('"').next());
    for route in routes.filter(|route| *route != "unmatched") {
        assert!(document["paths"].get(route).is_some(), "{route} is not described");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_have_the_form_that_generators_read() {
    let server = TestServer::start().await;
    let document = fetch_document(&server).await;
    visit(&document, "", &mut |place, object| {
        assert!(!object.get("items").is_some_and(Value::is_boolean), "{place}: generators reject boolean schemas");
        assert!(!object.contains_key("const"), "{place}: a constant is no enumeration for a generator");
        assert!(!object.contains_key("prefixItems"), "{place}: generators know no tuples");
        for choice in ["anyOf", "oneOf"].iter().filter_map(|choice| object.get(*choice)?.as_array()).flatten() {
            assert!(choice.is_object(), "{place}: {choice}");
            assert_ne!(choice["type"], "object", "{place}: an object of a choice must have a name");
        }
        if let Some(Value::Array(values)) = object.get("enum") {
            assert!(object["type"] == "string" && values.iter().all(Value::is_string), "{place}: {values:?}");
        }
    });
    let mut binary = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for operation in methods.as_object().unwrap().values() {
            assert_eq!(operation["tags"].as_array().map(Vec::len), Some(1), "{path}");
            let bodies = [&operation["requestBody"], &operation["responses"]["200"]];
            for (kind, content) in bodies.iter().filter_map(|body| body["content"].as_object()).flatten() {
                let schema = &content["schema"];
                assert!(schema.is_object(), "{path}: {kind} has no schema");
                assert!(!kind.contains('*'), "{path}: generators know no range of media types");
                if kind.ends_with("json") || kind.starts_with("text/") {
                    continue;
                }
                binary += 1;
                if kind == "multipart/form-data" {
                    let form = document.pointer(schema["$ref"].as_str().unwrap().trim_start_matches('#')).unwrap();
                    assert_eq!(form["properties"]["images"]["items"]["format"], "binary", "{path}");
                } else {
                    assert_eq!(*schema, json!({ "type": "string", "format": "binary" }), "{path}: {kind}");
                }
            }
        }
    }
    assert!(binary >= 14, "{binary} binary bodies");
    for name in ["Classified", "ImageOutcome", "ImageFailure", "FeatureMaps", "Fit", "Dtype", "InferRequest"] {
        assert!(document["components"]["schemas"][name].is_object(), "{name} has no name of its own");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_begins_with_classification_and_names_the_served_model() {
    let folder = write_model_folder(FOREIGN, "n1\tred\nn2\tgreen\nn3\tblue\n", "model.onnx", &colour_network(0.0));
    let server = TestServer::with(|config| config.model = folder.path().to_str().unwrap().to_owned()).await;
    let text = server.get("/openapi.json").await.text().await.unwrap();
    let place = |path: &str| text.find(&format!("\"{path}\":{{")).unwrap();
    for other in ["/v1/features", "/v1/models", "/v2", "/docs", "/metrics"] {
        assert!(place("/v1/classify") < place(other), "{other}");
    }
    let document: Value = serde_json::from_str(&text).unwrap();
    let mut named = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for parameter in methods.as_object().unwrap().values().filter_map(|o| o["parameters"].as_array()).flatten() {
            if ["model", "id"].iter().any(|name| parameter["name"] == *name) {
                assert_eq!(parameter["schema"]["examples"][0], "colours", "{path}");
                named += 1;
            }
        }
    }
    assert!(named >= 16, "{named}");
    assert!(!text.contains("ghostnetv2-cifar10"));
    for path in ["/docs", "/docs/docs.js"] {
        assert!(!server.get(path).await.text().await.unwrap().contains("ghostnetv2-cifar10"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn real_answers_match_their_schemas() {
    let server = TestServer::start().await;
    let document = fetch_document(&server).await;
    let two = json!({ "images": [base64::Engine::encode(&base64::engine::general_purpose::STANDARD, JPEG), "AAAA"] });
    for (path, query, body, status) in [
        ("/v1/classify", "?top_k=3", JPEG.to_vec(), 200),
        ("/v1/classify", "?top_k=99", JPEG.to_vec(), 400),
        ("/v1/classify", "?model=x", JPEG.to_vec(), 404),
        ("/v1/classify", "", b"text".to_vec(), 415),
        ("/v1/classify", "", JPEG[..300].to_vec(), 422),
        ("/v1/features", "?levels=c5,embedding&top_k=1", png(1), 200),
        ("/v1/features", "?size=3", png(1), 400),
        ("/v1/attention", "?dtype=f16", png(2), 200),
    ] {
        let response = server.post(&format!("{path}{query}")).body(body).send().await.unwrap();
        assert_eq!(response.status(), status, "{path}{query}");
        assert_conforms(&document, "post", path, status, &response.json().await.unwrap());
    }
    let mixed: Value = server.post("/v1/classify").json(&two).send().await.unwrap().json().await.unwrap();
    assert!(mixed["results"][1]["error"].is_object());
    assert_conforms(&document, "post", "/v1/classify", 200, &mixed);
    let model = "ghostnetv2-cifar10";
    for (path, url_path) in [
        ("/v1/models", "/v1/models".to_owned()),
        ("/v1/models/{id}", format!("/v1/models/{model}")),
        ("/v2", "/v2".to_owned()),
        ("/v2/models/{model}", format!("/v2/models/{model}-features")),
        ("/v2/models/{model}/config", format!("/v2/models/{model}/config")),
        ("/v2/models/{model}/stats", format!("/v2/models/{model}/stats")),
        ("/v2/models/{model}/ready", format!("/v2/models/{model}/ready")),
        ("/v2/health/ready", "/v2/health/ready".to_owned()),
    ] {
        assert_conforms(&document, "get", path, 200, &server.get(&url_path).await.json().await.unwrap());
    }
    let unknown = server.get("/v2/models/x").await;
    assert_eq!(unknown.status(), 404);
    assert_conforms(&document, "get", "/v2/models/{model}", 404, &unknown.json().await.unwrap());
    let rgb = json!({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": vec![7; 12]}]});
    let answer = server.post(&format!("/v2/models/{model}/infer")).json(&rgb).send().await.unwrap();
    assert_conforms(&document, "post", "/v2/models/{model}/infer", 200, &answer.json().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fuzzer_finds_nothing_undocumented() {
    let Some(python) = python() else {
        println!("SKIPPED: no Python with tests/clients/requirements.txt; `make test-clients` makes one");
        return;
    };
    let server = TestServer::start().await;
    let settings = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/schemathesis.toml");
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(python);
    command
        .args(["-c", "from schemathesis.cli import schemathesis; schemathesis()", "--config-file"])
        .arg(settings)
        .arg("run");
    command.arg(server.url("/openapi.json")).current_dir(folder.path()).env("NO_PROXY", "*");
    command.args(["--seed", "1", "--max-examples", "20", "--checks"]).arg(
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,\
         response_headers_conformance,unsupported_method,negative_data_rejection",
    );
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    // A run that tests nothing succeeds too.
    assert!(text.contains("Tested: 26"), "{text}");
    assert_eq!(server.metric("ghostserve_problems_total{code=\"internal\"}").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documentation_page_loads_nothing_from_other_hosts() {
    let server = TestServer::start().await;
    for (path, kind) in [("/docs", "text/html"), ("/docs/docs.js", "text/javascript"), ("/docs/docs.css", "text/css")] {
        let response = server.get(path).await;
        assert_eq!(response.status(), 200);
        assert!(response.headers()["content-type"].to_str().unwrap().starts_with(kind), "{path}");
        let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'"), "{policy}");
        let text = response.text().await.unwrap();
        assert!(!text.contains("http://") && !text.contains("https://") && !text.contains("innerHTML"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documentation_page_shows_the_served_model_and_lists_of_values() {
    let node = Command::new("node").arg("--version").output();
    if !node.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("GHOSTSERVE_NODE_MODULES").is_none(), "GHOSTSERVE_NODE_MODULES is set without node");
        println!("SKIPPED: no node; install it (Debian: apt-get install nodejs)");
        return;
    }
    let folder = write_model_folder(FOREIGN, "n1\tred\nn2\tgreen\nn3\tblue\n", "model.onnx", &colour_network(0.0));
    let server = TestServer::with(|config| config.model = folder.path().to_str().unwrap().to_owned()).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/docs_page.js");
    let mut command = Command::new("node");
    command.arg(script).arg(server.url("")).env("NO_PROXY", "*");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
