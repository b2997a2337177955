//! The whole server under load, beside what the same machine does without one.
//!
//! Every round measures all of it again, so that what the machine does meanwhile hits everything: the serial limit (decoding,
//! resizing and inference on one thread, times the cores), then the server with one client, with sixteen, at 70 and at 90 % of
//! its throughput, and at ten times that; and with sixteen clients that ask for feature maps. PHOTOS names a folder of JPEG files, ROUNDS how often (5), SECONDS for how long (5).
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
    Endpoint, Images, Load, Measurement, Progress, RequestStyle, Settings, Target, Watch, measure, median,
};
use support::{SIDE, photos, random_model};
use tokio_util::sync::CancellationToken;

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// A server of this build, on random weights.
struct Server {
    process: Child,
    address: String,
}

impl Server {
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
            if let Some(plan) = line["plan"].as_str() {
                println!("{plan}");
            }
        };
        // Its log has to go somewhere, or it would stop when the pipe is full.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, address }
    }

    /// Kilobytes of memory: resident now.
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

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Images a second of one thread that does nothing else: decode, resize, batches of `batch`.
fn serial(
    preprocessor: &Preprocessor,
    transform: &Arc<Transform>,
    session: &mut Session,
    photos: &[Vec<u8>],
    batch: usize,
) -> f64 {
    let start = Instant::now();
    let mut images = 0;
    while start.elapsed() < Duration::from_secs(3) {
        for photos in photos.chunks(batch) {
            let crops: Vec<_> =
                photos.iter().map(|photo| preprocessor.run_here(transform, photo).unwrap().crop).collect();
            session.run_rows(&crops).unwrap();
            images += photos.len();
        }
    }
    images as f64 / start.elapsed().as_secs_f64()
}

fn main() {
    let (rounds, seconds) = (number("ROUNDS", 5), number("SECONDS", 5));
    let photos = photos();
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path());
    let cores = std::thread::available_parallelism().unwrap().get();

    let library = std::env::var_os(LIBRARY_ENV).expect("cargo sets it, see .cargo/config.toml");
    let runtime = Runtime::load(Some(Path::new(&library))).expect("`make runtime` has been run");
    let model = ModelFolder::resolve(&folder.path().to_string_lossy()).unwrap().load().unwrap();
    let batch = number("BATCH", 4);
    let spec =
        SessionSpec { input: [SIDE, SIDE], classes: 1000, max_batch: batch, threads: 1, backend: Backend::default() };
    let graph = runtime.prepare(&model.graph).unwrap();
    let mut session = runtime.session(&graph, spec).unwrap();
    let transform = Arc::new(Transform::new(model.manifest.input));
    let pool = PoolConfig::default();
    let preprocessor = Preprocessor::new(pool, Cores::new(1));

    let server = Server::start(folder.path());
    let paths: Vec<_> = photos
        .iter()
        .enumerate()
        .map(|(i, photo)| {
            let path = folder.path().join(format!("{i}.jpg"));
            std::fs::write(&path, photo).unwrap();
            path
        })
        .collect();
    let images = Images::read(&paths).unwrap();
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let target = Target::parse(&format!("http://{}/v1/classify", server.address)).unwrap();
    let patience = Duration::from_secs(5);
    let endpoint = tokio.block_on(Endpoint::prepare(target, &images, &RequestStyle::default(), patience)).unwrap();
    let endpoint = Arc::new(endpoint);
    let features = format!("http://{}/v1/features?levels=c3,c4,c5&dtype=f16", server.address);
    let features = Target::parse(&features).unwrap();
    let style = RequestStyle { headers: vec!["accept: application/vnd.safetensors".into()], ..RequestStyle::default() };
    let features = Arc::new(tokio.block_on(Endpoint::prepare(features, &images, &style, patience)).unwrap());
    let mix = format!("mix=http://{0}/v1/classify+grpc://{0}", server.address);
    let mix = Target::parse(&mix).unwrap();
    let mix = Arc::new(tokio.block_on(Endpoint::prepare(mix, &images, &RequestStyle::default(), patience)).unwrap());
    let settings = Settings {
        duration: Duration::from_secs(seconds as u64),
        warm_up: Duration::from_secs(1),
        timeout: Duration::from_secs(10),
        slo: Duration::from_millis(number("SLO_MS", 500) as u64),
        max_connections: 1024,
        seed: 1,
        obey_retry_after: false,
        check_json: false,
    };
    let run_at = |endpoint: &Arc<Endpoint>, load: Load, round: usize| {
        let settings = Settings { seed: round as u64, ..settings.clone() };
        let ignore = |_: Progress| ();
        let watch = Watch { progress: &ignore, stop: CancellationToken::new() };
        tokio.block_on(measure(endpoint, load, &settings, &watch)).unwrap()
    };
    let run = |load: Load, round: usize| run_at(&endpoint, load, round);

    let mut rows: Vec<[f64; 15]> = Vec::new();
    for round in 0..rounds {
        let limit = cores as f64 * serial(&preprocessor, &transform, &mut session, &photos, batch);
        let alone = run(Load::Closed { connections: 1 }, round);
        let full = run(Load::Closed { connections: 16 }, round);
        let peak = full.throughput();
        let mixed = run_at(&mix, Load::Closed { connections: 16 }, round);
        let maps = run_at(&features, Load::Closed { connections: 16 }, round);
        let at = |share: f64| run(Load::Open { rate: share * peak }, round);
        let (moderate, high) = (at(0.7), at(0.9));
        let before = server.resident();
        let over = at(10.0);
        let after = server.resident();
        let ms = |m: &Measurement, percent| m.success.percentile(percent).as_secs_f64() * 1e3;
        let strange: u64 = over.statuses.iter().filter(|(s, _)| !matches!(s, 200 | 429 | 503)).map(|(_, n)| n).sum();
        let errors = (strange + over.errors.values().sum::<u64>()) as f64;
        let row = [
            limit,
            peak / limit,
            ms(&alone, 50.0),
            ms(&full, 99.0),
            ms(&moderate, 50.0) / ms(&alone, 50.0),
            ms(&moderate, 99.0) / ms(&alone, 50.0),
            ms(&high, 99.0),
            over.goodput() / peak,
            ms(&over, 99.0) / ms(&high, 99.0),
            over.rejected.percentile(50.0).as_secs_f64() * 1e3,
            errors,
            over.cpu_cores().unwrap_or(f64::NAN),
            (after - before) / before,
            maps.throughput() / peak,
            mixed.throughput() / peak,
        ];
        println!("round {}: {}", round + 1, row.map(|v| format!("{v:.3}")).join("  "));
        if errors > 0.0 {
            println!("  {:?} {:?}", over.statuses, over.first_errors);
        }
        rows.push(row);
    }
    let names = [
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
        ("10×: errors that are not refusals", "0"),
        ("10×: cores that the load tester took", ""),
        ("10×: growth of resident memory", "flat"),
        ("c3,c4,c5 in f16 safetensors: throughput ÷ classify", "≥ 0.8"),
        ("half over gRPC: throughput ÷ all over HTTP", "≥ 0.95"),
    ];
    println!("\nmedians of {rounds} rounds of {seconds} s; {cores} cores");
    for (column, (name, goal)) in names.into_iter().enumerate() {
        println!("{name:<50} {:>9.3}  {goal}", median(rows.iter().map(|row| row[column])));
    }
    println!("worker restarts: {}", server.metric("ghostserve_worker_restarts_total"));
}
