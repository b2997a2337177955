//! A model hub on a local port that answers as a test defines, and a user who pulls models from it.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ghostserve_hub::{
    Hub, HubError, HubSettings, Proxies, PullEvent, PullReport, PullRequest, Reference, TransferLimits,
};
use ghostserve_manifest::{Digest, to_hex};
use serde_json::{Value, json};
use sha1::Digest as _;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The request line and headers of a request; header names are in lower case.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    /// Number of requests for weights that came before this request.
    pub(crate) earlier: usize,
}

impl Request {
    pub(crate) fn is_for_weights(&self) -> bool {
        self.line.contains("/resolve/") && !self.line.contains("config.json")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| &value[..])
    }

    /// First byte that the `Range` header requests.
    pub(crate) fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }

    pub(crate) fn read(stream: &TcpStream) -> Option<Self> {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let line = lines.next()?;
        let headers = lines.take_while(|line| !line.is_empty());
        let headers = headers.filter_map(|l| l.split_once(": ").map(|(n, v)| (n.to_lowercase(), v.to_owned())));
        Some(Self { line, headers: headers.collect(), earlier: 0 })
    }
}

/// A hub that answers until the test process ends and records every request.
pub(crate) struct FakeHub {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl FakeHub {
    /// Starts the hub. Every connection carries one request and has its own thread.
    pub(crate) fn start(answer: impl Fn(&Request, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, answer) = (Arc::new(Mutex::new(Vec::<Request>::new())), Arc::new(answer));
        let requests = seen.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let (seen, answer) = (requests.clone(), answer.clone());
                std::thread::spawn(move || {
                    let Some(mut request) = Request::read(&stream) else { return };
                    {
                        let mut seen = seen.lock().unwrap();
                        request.earlier = seen.iter().filter(|r| r.is_for_weights()).count();
                        seen.push(request.clone());
                    }
                    answer(&request, &mut stream);
                });
            }
        });
        Self { address, seen }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn weights_requests(&self) -> Vec<Request> {
        self.seen().into_iter().filter(Request::is_for_weights).collect()
    }
}

/// Sends the head of a response. Each of `headers` ends with a line break. A client that has left is not an error.
pub(crate) fn head(stream: &mut TcpStream, status: &str, headers: &str) {
    let _ = write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n");
}

pub(crate) fn reply(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
    head(stream, status, &format!("Content-Length: {}\r\n{headers}", body.len()));
    let _ = stream.write_all(body);
}

/// A repository with one network.
#[derive(Clone)]
pub(crate) struct Repository {
    pub(crate) config: Value,
    pub(crate) weights: Vec<u8>,
    pub(crate) description: Value,
}

impl Repository {
    /// A repository like timm's, with a correct description.
    pub(crate) fn new(weights: Vec<u8>) -> Self {
        let config = json!({"architecture": "ghostnetv2_100", "num_classes": 1000, "global_pool": "avg",
            "pretrained_cfg": {"tag": "in1k", "input_size": [3, 224, 224], "interpolation": "bicubic",
                "crop_pct": 0.875, "crop_mode": "center", "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225]}});
        let text = config.to_string();
        let mut sha1 = sha1::Sha1::new();
        sha1.update(format!("blob {}\0{text}", text.len()));
        let blob_id = to_hex(&sha1.finalize());
        let sha256 = Digest::of(&weights).as_str().trim_start_matches("sha256:").to_owned();
        let description = json!({"sha": COMMIT, "cardData": {"license": "apache-2.0"}, "siblings": [
            {"rfilename": "config.json", "size": text.len(), "blobId": blob_id},
            {"rfilename": "model.safetensors", "size": weights.len(), "blobId": COMMIT,
             "lfs": {"sha256": sha256, "size": weights.len(), "pointerSize": 134}}]});
        Self { config, weights, description }
    }

    /// A repository whose weights are arbitrary bytes, for tests that do not parse them.
    pub(crate) fn with_arbitrary_bytes() -> Self {
        Self::new((0..300_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect())
    }

    pub(crate) fn answer(&self, request: &Request, stream: &mut TcpStream) {
        if request.line.contains("/api/models/") {
            reply(stream, "200 OK", "", self.description.to_string().as_bytes());
        } else if request.line.contains("/config.json") {
            reply(stream, "200 OK", "", self.config.to_string().as_bytes());
        } else if let Some(from) = request.range_start() {
            let total = self.weights.len();
            let range = format!("Content-Range: bytes {from}-{}/{total}\r\n", total - 1);
            reply(stream, "206 Partial Content", &range, &self.weights[from..]);
        } else {
            reply(stream, "200 OK", "ETag: \"one\"\r\n", &self.weights);
        }
    }
}

/// A user with a hub, a cache and a folder for models.
pub(crate) struct User {
    pub(crate) settings: HubSettings,
    home: tempfile::TempDir,
    events: Mutex<Vec<String>>,
}

impl User {
    pub(crate) fn of(endpoint: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let limits =
            TransferLimits { initial_backoff: Duration::from_millis(10), attempts: 3, ..TransferLimits::default() };
        let settings = HubSettings {
            endpoint: endpoint.to_owned(),
            token: None,
            proxies: Proxies::default(),
            cache: home.path().join("cache"),
            offline: false,
            limits,
        };
        Self { settings, home, events: Mutex::default() }
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.home.path().join("model")
    }

    pub(crate) fn pull(&self) -> Result<PullReport, HubError> {
        self.pull_with("me/net-in1k", None, false)
    }

    pub(crate) fn pull_with(&self, reference: &str, file: Option<&str>, force: bool) -> Result<PullReport, HubError> {
        let reference = &Reference::parse(reference)?;
        let folder = &self.folder();
        let request = PullRequest { reference, file, folder, force, architectures: &["ghostnetv2_100"] };
        let observer = |event: PullEvent<'_>| self.events.lock().unwrap().push(format!("{event:?}"));
        Hub::new(self.settings.clone())?.pull(&request, &observer)
    }

    /// Pulls, which must fail, and returns the error message. Asserts that the pull left no model folder and no
    /// complete file in the cache.
    pub(crate) fn pull_error(&self) -> String {
        let error = self.pull().unwrap_err().to_string();
        let remaining: Vec<_> = std::fs::read_dir(self.home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(remaining.iter().all(|name| name == "cache"), "{remaining:?}");
        assert!(self.blobs().iter().all(|b| !b.starts_with("sha256-") || b.ends_with(".part")), "{:?}", self.blobs());
        error
    }

    pub(crate) fn blobs(&self) -> Vec<String> {
        let blobs = std::fs::read_dir(self.settings.cache.join("blobs")).into_iter().flatten();
        blobs.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Number of partial downloads in the cache.
    pub(crate) fn parts(&self) -> usize {
        self.blobs().iter().filter(|name| name.ends_with(".part")).count()
    }

    pub(crate) fn weights(&self) -> Vec<u8> {
        std::fs::read(self.folder().join("weights.safetensors")).unwrap()
    }

    pub(crate) fn saw(&self, event: &str) -> bool {
        self.events.lock().unwrap().iter().any(|e| e.starts_with(event))
    }
}
