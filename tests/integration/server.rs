//! A server in this process, on its own port, and helpers that read its answers.

use std::net::SocketAddr;
use std::time::Duration;

use ghostserve::config::Config;
use ghostserve::server::{Server, StopHandle};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::runtime;

pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) grpc: Option<SocketAddr>,
    pub(crate) stop: StopHandle,
    pub(crate) running: JoinHandle<()>,
    pub(crate) client: reqwest::Client,
}

/// The program's defaults, except for the address, the cores, and times that tests can wait for.
pub(crate) fn config() -> Config {
    let mut config = Config::default();
    config.addresses.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.execution.cores = Some(2);
    // Calibration assumes one server per machine, and has its own tests.
    config.execution.no_calibration = true;
    config.load.max_wait = Duration::from_secs(10);
    config.load.max_memory = Some(0);
    config.time.drain_grace = Duration::from_millis(100);
    config.time.drain_timeout = Duration::from_secs(10);
    config
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Self::with(|_| ()).await
    }

    /// A server with some settings changed.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config();
        change(&mut config);
        let server = Server::start(config, &runtime()).await.unwrap();
        Self {
            address: server.address().unwrap(),
            admin: server.admin_address(),
            grpc: server.grpc_address(),
            stop: server.stop_handle(),
            running: tokio::spawn(server.run()),
            client: reqwest::Client::new(),
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.post(self.url(path))
    }

    /// Status and JSON of a classification of one raw body.
    pub(crate) async fn classify(&self, query: &str, body: impl Into<reqwest::Body>) -> (u16, Value) {
        answer(self.post(&format!("/v1/classify{query}")).body(body).send().await.unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(self.url(path)).send().await.unwrap()
    }

    /// The value of a series on `/metrics`; 0 if it is not there.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").await.text().await.unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until a series has this value. The server may still be working when its answer arrives.
    pub(crate) async fn settles(&self, series: &str, value: f64) {
        self.wait_for(series, &format!("{value}"), |found| found == value).await;
    }

    /// Waits until a series is at least this value.
    pub(crate) async fn reaches(&self, series: &str, value: f64) {
        self.wait_for(series, &format!("at least {value}"), |found| found >= value).await;
    }

    async fn wait_for(&self, series: &str, expected: &str, accepts: impl Fn(f64) -> bool) {
        let start = std::time::Instant::now();
        loop {
            let found = self.metric(series).await;
            if accepts(found) {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "{series}: expected {expected}, found {found}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Status and JSON of a response. Asserts its content type, and that an error is a complete problem.
pub(crate) async fn answer(response: reqwest::Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let json: Value = response.json().await.unwrap();
    if status >= 400 {
        assert_eq!(kind, "application/problem+json");
        assert_problem(&json, status, &id);
    } else {
        assert_eq!(kind, "application/json");
    }
    (status, json)
}

/// Asserts that a problem has every member of RFC 9457 and of this API, and that they agree with the response.
pub(crate) fn assert_problem(json: &Value, status: u16, id: &str) {
    assert_eq!(json["status"], status);
    assert_eq!(json["request_id"], id);
    let code = json["code"].as_str().unwrap();
    assert_eq!(json["type"], format!("urn:ghostserve:problem:{code}"));
    for member in ["title", "detail"] {
        assert!(!json[member].as_str().unwrap().is_empty(), "{member} of {json}");
    }
}

/// The status and code of a problem.
pub(crate) fn code((status, json): (u16, Value)) -> (u16, String) {
    let code = json["code"].as_str().unwrap_or_else(|| panic!("no problem: {status} {json}"));
    (status, code.to_owned())
}

/// The probabilities of the first image of a classification with all ten classes, in class order.
pub(crate) fn probabilities(json: &Value) -> Vec<f64> {
    let mut row = vec![0.0; 10];
    for prediction in json["results"][0]["predictions"].as_array().unwrap() {
        row[prediction["class"].as_u64().unwrap() as usize] = prediction["probability"].as_f64().unwrap();
    }
    row
}
