//! The whole server under load, compared with what the same machine computes without a server.
//!
//! Each round measures everything again, so that other activity on the machine affects all results alike. A round
//! starts with the serial limit: decoding, resizing and inference on one thread, times the number of cores. Then it
//! measures the server with one client, with sixteen (over HTTP; half of them over gRPC; requesting feature maps), and
//! in open loops at 70 %, 90 % and ten times the throughput of sixteen clients.
//!
//! Environment variables: PHOTOS is a folder of JPEG files; ROUNDS the number of rounds (5); SECONDS the length of a
//! run (5); BATCH the batch size of the serial limit (4); SLO_MS the latency objective (500); SERVE_ARGS additional
//! arguments of `ghostserve serve`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ghostserve::cores::Cores;
use ghostserve::model::ModelFolder;
use ghostserve::preprocess::{PoolConfig, Preprocessor, Transform};
use ghostserve::runtime::{Backend, LIBRARY_ENV, Runtime, Session, SessionSpec};
use ghostserve_loadtest::{
    ImageSet, LoadTarget, PreparedEndpoint, RequestFormat, RunMeasurement, RunObserver, RunSettings, Workload, measure,
    median,
};
use support::{SIDE, load_photos, random_model};
use tokio_util::sync::CancellationToken;

/// Time allowed for a connection and for the first response of an endpoint.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Length of one measurement of the serial limit.
const SERIAL_DURATION: Duration = Duration::from_secs(3);

/// The results of a round: name, and the goal where there is one.
const RESULTS: [(&str, &str); 15] = [
    ("serial limit, images/s", ""),
    ("throughput at 16 connections ÷ serial limit", "≥ 0.85"),
    ("latency of one client: p50, ms", ""),
    ("16 connections: p99, ms", ""),
    ("70 %: p50 ÷ that of one client", "≤ 1.5"),
    ("70 %: p99 ÷ p50 of one client", "≤ 4"),
    ("90 %: p99, ms", ""),
    ("10×: goodput ÷ throughput at 16 connections", "≥ 0.9"),
    ("10×: admitted p99 ÷ p99 at 90 %", "≤ 2"),
    ("10×: rejections' p50, ms", "< 10"),
    ("10×: errors other than rejections", "0"),
    ("10×: cores used by the load generator", ""),
    ("10×: growth of resident memory", "flat"),
    ("c3,c4,c5 in f16 safetensors: throughput ÷ classify", "≥ 0.8"),
    ("half over gRPC: throughput ÷ all over HTTP", "≥ 0.95"),
];

/// A number from the environment.
fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// A server process of this build, on random weights.
struct ServerProcess {
    process: Child,
    address: String,
}

impl ServerProcess {
    fn start(model: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_ghostserve"))
            .args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json", "--model"])
            .arg(model)
            .args(std::env::var("SERVE_ARGS").unwrap_or_default().split_whitespace())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("the server starts").unwrap();
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            if let Some(address) = line["address"].as_str() {
                break address.to_owned();
            }
            if line["workers"].is_number() {
                println!("{line}");
            }
        };
        // The log must be read: the server blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, address }
    }

    /// Resident memory, kilobytes.
    fn resident(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(f64::NAN)
    }

    /// The sum of a metric over its labels.
    fn metric(&self, name: &str) -> f64 {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(&self.address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\nhost: here\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let values = text.lines().filter(|line| line.starts_with(name));
        values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Decoding, resizing and inference on one thread, without a server.
struct SerialPipeline {
    preprocessor: Preprocessor,
    transform: Arc<Transform>,
    session: Session,
    batch: usize,
}

impl SerialPipeline {
    fn new(model: &Path) -> Self {
        let library = std::env::var_os(LIBRARY_ENV).expect("cargo sets it, see .cargo/config.toml");
        let runtime = Runtime::load(Some(Path::new(&library))).expect("`make runtime` has been run");
        let model = ModelFolder::resolve(&model.to_string_lossy()).unwrap().load().unwrap();
        let batch = number("BATCH", 4);
        let spec = SessionSpec {
            input: [SIDE, SIDE],
            classes: 1000,
            max_batch: batch,
            threads: 1,
            backend: Backend::default(),
        };
        let graph = runtime.prepare(&model.graph).unwrap();
        let session = runtime.session(&graph, spec).unwrap();
        let transform = Arc::new(Transform::new(model.manifest.input));
        let preprocessor = Preprocessor::new(PoolConfig::default(), Cores::new(1));
        Self { preprocessor, transform, session, batch }
    }

    /// Images per second.
    fn throughput(&mut self, photos: &[Vec<u8>]) -> f64 {
        let start = Instant::now();
        let mut images = 0;
        while start.elapsed() < SERIAL_DURATION {
            for chunk in photos.chunks(self.batch) {
                let prepared = chunk.iter().map(|photo| self.preprocessor.run_sync(&self.transform, photo).unwrap());
                let crops: Vec<_> = prepared.map(|image| image.crop).collect();
                self.session.run_rows(&crops).unwrap();
                images += chunk.len();
            }
        }
        images as f64 / start.elapsed().as_secs_f64()
    }
}

/// The load generator with its endpoints on one server.
struct LoadGenerator {
    tokio: tokio::runtime::Runtime,
    settings: RunSettings,
    classify: Arc<PreparedEndpoint>,
    /// Feature maps c3, c4 and c5 in f16 safetensors.
    features: Arc<PreparedEndpoint>,
    /// Classification, half of the connections over gRPC.
    mix: Arc<PreparedEndpoint>,
}

impl LoadGenerator {
    fn new(address: &str, images: &ImageSet, seconds: usize) -> Self {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endpoint = |url: &str, format: &RequestFormat| {
            let target = LoadTarget::parse(url).unwrap();
            Arc::new(tokio.block_on(PreparedEndpoint::prepare(target, images, format, PROBE_TIMEOUT)).unwrap())
        };
        let plain = RequestFormat::default();
        let safetensors =
            RequestFormat { headers: vec!["accept: application/vnd.safetensors".into()], ..RequestFormat::default() };
        let classify = endpoint(&format!("http://{address}/v1/classify"), &plain);
        let features = endpoint(&format!("http://{address}/v1/features?levels=c3,c4,c5&dtype=f16"), &safetensors);
        let mix = endpoint(&format!("mix=http://{address}/v1/classify+grpc://{address}"), &plain);
        let settings = RunSettings {
            duration: Duration::from_secs(seconds as u64),
            warm_up: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
            slo: Duration::from_millis(number("SLO_MS", 500) as u64),
            max_connections: 1024,
            seed: 1,
            obey_retry_after: false,
            check_json: false,
        };
        Self { tokio, settings, classify, features, mix }
    }

    /// One run; the round is the seed of its arrival times.
    fn run(&self, endpoint: &Arc<PreparedEndpoint>, workload: Workload, round: usize) -> RunMeasurement {
        let settings = RunSettings { seed: round as u64, ..self.settings.clone() };
        let observer = RunObserver { on_progress: &|_| (), stop: CancellationToken::new() };
        self.tokio.block_on(measure(endpoint, workload, &settings, &observer)).unwrap()
    }
}

/// Measures one round: the numbers named in [`RESULTS`]. `serial_limit` is in images per second.
fn measure_round(server: &ServerProcess, load: &LoadGenerator, serial_limit: f64, round: usize) -> [f64; 15] {
    let closed = |endpoint, connections| load.run(endpoint, Workload::ClosedLoop { connections }, round);
    let one = closed(&load.classify, 1);
    let sixteen = closed(&load.classify, 16);
    let peak = sixteen.throughput();
    let mixed = closed(&load.mix, 16);
    let maps = closed(&load.features, 16);
    let open = |share: f64| load.run(&load.classify, Workload::OpenLoop { arrival_rate: share * peak }, round);
    let (moderate, high) = (open(0.7), open(0.9));
    let before = server.resident();
    let overload = open(10.0);
    let after = server.resident();
    let ms = |m: &RunMeasurement, percent| m.success.percentile(percent).as_secs_f64() * 1e3;
    let unexpected = overload.statuses.iter().filter(|(status, _)| !matches!(status, 200 | 429 | 503));
    let errors = unexpected.map(|(_, count)| count).sum::<u64>() + overload.errors.values().sum::<u64>();
    let results = [
        serial_limit,
        peak / serial_limit,
        ms(&one, 50.0),
        ms(&sixteen, 99.0),
        ms(&moderate, 50.0) / ms(&one, 50.0),
        ms(&moderate, 99.0) / ms(&one, 50.0),
        ms(&high, 99.0),
        overload.goodput() / peak,
        ms(&overload, 99.0) / ms(&high, 99.0),
        overload.rejected.percentile(50.0).as_secs_f64() * 1e3,
        errors as f64,
        overload.cpu_cores().unwrap_or(f64::NAN),
        (after - before) / before,
        maps.throughput() / peak,
        mixed.throughput() / peak,
    ];
    println!("round {}: {}", round + 1, results.map(|v| format!("{v:.3}")).join("  "));
    if errors > 0 {
        println!("  {:?} {:?}", overload.statuses, overload.first_errors);
    }
    results
}

fn main() {
    let (rounds, seconds) = (number("ROUNDS", 5), number("SECONDS", 5));
    let photos = load_photos();
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path());
    let cores = std::thread::available_parallelism().unwrap().get();
    let mut serial = SerialPipeline::new(folder.path());

    let server = ServerProcess::start(folder.path());
    let paths: Vec<_> = photos
        .iter()
        .enumerate()
        .map(|(i, photo)| {
            let path = folder.path().join(format!("{i}.jpg"));
            std::fs::write(&path, photo).unwrap();
            path
        })
        .collect();
    let load = LoadGenerator::new(&server.address, &ImageSet::read(&paths).unwrap(), seconds);

    let mut rows: Vec<[f64; 15]> = Vec::new();
    for round in 0..rounds {
        let serial_limit = cores as f64 * serial.throughput(&photos);
        rows.push(measure_round(&server, &load, serial_limit, round));
    }
    println!("\nmedians of {rounds} rounds of {seconds} s; {cores} cores");
    for (column, (name, goal)) in RESULTS.into_iter().enumerate() {
        println!("{name:<50} {:>9.3}  {goal}", median(rows.iter().map(|row| row[column])));
    }
    println!("worker restarts: {}", server.metric("ghostserve_worker_restarts_total"));
}
