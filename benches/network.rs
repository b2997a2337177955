//! One inference of a network on one thread: PyTorch's own ONNX export, our plain graph, our blocked graph; and
//! OpenVINO with the plain graph, if the library has it (`make bench EP=openvino`).
//!
//! The candidates take turns, run by run, so that other activity on the machine affects all of them alike; the medians
//! and their ratios are the result. Then two sessions of each run at the same time, and each is profiled at batch 4,
//! except OpenVINO, for which a graph is a single node. `make bench` makes the export first (`benches/export.py`). The
//! environment variable ROUNDS is the number of runs of each candidate (200).
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use ghostserve::model::OnnxSource;
use ghostserve::runtime::{Backend, LIBRARY_ENV, Precision, PreparedGraph, Provider, Runtime, Session, SessionSpec};
use ghostserve_ghostnet::{Form, Network, Output, Size, Target, preset};
use ghostserve_kernels::native_block;
use ghostserve_weights::{Synthetic, synthetic_tensor};

const NETWORK: &str = "ghostnetv2_100";
const SIDE: usize = 224;
/// Runs of each session in one timed turn of [`two_at_a_time`].
const RUNS_PER_TURN: usize = 4;

/// A graph and the backend that runs it.
struct Candidate {
    name: &'static str,
    graph: PreparedGraph,
    backend: Backend,
}

impl Candidate {
    fn new(name: &'static str, graph: impl Into<PreparedGraph>) -> Self {
        Self { name, graph: graph.into(), backend: Backend::default() }
    }

    fn session(&self, runtime: &Runtime, max_batch: usize) -> Session {
        let spec = SessionSpec { input: [SIDE, SIDE], classes: 1000, max_batch, threads: 1, backend: self.backend };
        runtime.session(&self.graph, spec).unwrap()
    }
}

fn main() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let library = std::env::var_os(LIBRARY_ENV).expect("cargo sets it, see .cargo/config.toml");
    let runtime = Runtime::load(Some(Path::new(&library))).expect("`make runtime` has been run");
    let network = Network::new(preset(NETWORK).unwrap()).unwrap();
    let lower = |form| {
        let target = Target { size: Size { height: SIDE, width: SIDE }, outputs: &[Output::Logits], form };
        OnnxSource::Memory(network.lower(&Synthetic, &target).unwrap().graph.into_onnx(&[]).into())
    };
    let export = PathBuf::from(format!("target/bench/{NETWORK}.onnx"));
    let mut candidates = Vec::new();
    if export.is_file() {
        candidates.push(Candidate::new("export", OnnxSource::File(export)));
    } else {
        println!("SKIPPED: the export: {} does not exist; `make bench` writes it", export.display());
    }
    candidates.push(Candidate::new("plain", lower(Form::Plain)));
    match native_block() {
        Some(block) => {
            let graph = PreparedGraph::blocked(&runtime, &lower(Form::Blocked(block))).unwrap();
            candidates.push(Candidate::new("blocked", graph));
        }
        None => println!("SKIPPED: the blocked form: ONNX Runtime has none for this processor"),
    }
    for (name, precision) in [("openvino f32", Precision::F32), ("openvino bf16", Precision::Bf16)] {
        let backend = Backend { provider: Provider::OpenVino, precision };
        if runtime.has(backend) {
            candidates.push(Candidate { backend, ..Candidate::new(name, lower(Form::Plain)) });
        } else {
            println!(
                "SKIPPED: {name}: this ONNX Runtime has no OpenVINO; `make bench EP=openvino` uses one that has it"
            );
        }
    }

    println!("{NETWORK}, {SIDE}x{SIDE}, one thread, ONNX Runtime {}, {rounds} rounds", runtime.version());
    println!("{:>5}  {:<13} {:>10} {:>10} {:>8}", "batch", "graph", "ms/image", "min", "ratio");
    for batch in [1, 2, 4] {
        let input = synthetic_tensor("input", &[batch, 3, SIDE, SIDE]);
        let rows: Vec<&[f32]> = input.chunks_exact(input.len() / batch).collect();
        let mut sessions: Vec<Session> = candidates.iter().map(|c| c.session(&runtime, batch)).collect();
        let mut times = vec![Vec::with_capacity(rounds); sessions.len()];
        for _ in 0..rounds {
            for (session, times) in sessions.iter_mut().zip(&mut times) {
                let start = Instant::now();
                session.run_rows(&rows).unwrap();
                times.push(start.elapsed().as_secs_f64() * 1e3 / batch as f64);
            }
        }
        print_times(&batch.to_string(), &candidates, &mut times);
    }
    two_at_a_time(&runtime, &candidates, rounds.div_ceil(RUNS_PER_TURN));

    let batch = 4;
    let input = synthetic_tensor("input", &[batch, 3, SIDE, SIDE]);
    let folder = PathBuf::from("target/bench");
    std::fs::create_dir_all(&folder).unwrap();
    for Candidate { name, graph, .. } in candidates.iter().filter(|c| c.backend == Backend::default()) {
        let shape = [batch, 3, SIDE, SIDE];
        let times = runtime.profile(graph, shape, &input, rounds.min(50), folder.clone()).unwrap();
        let total: f64 = times.iter().map(|t| t.milliseconds).sum();
        println!("\n{name}, batch {batch}: ms/image by operator (total {:.3})", total / batch as f64);
        for time in times {
            let ms = time.milliseconds / batch as f64;
            if ms >= 0.005 {
                println!(
                    "{:>5} x {:<18} {ms:>7.3} {:>5.1} %",
                    time.nodes,
                    time.operator,
                    100.0 * ms * batch as f64 / total
                );
            }
        }
    }
}

/// Prints one line per candidate: median, minimum, and the ratio of the median to the first candidate's.
fn print_times(label: &str, candidates: &[Candidate], times: &mut [Vec<f64>]) {
    let mut first = None;
    for (Candidate { name, .. }, times) in candidates.iter().zip(times) {
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        let base = *first.get_or_insert(median);
        println!("{label:>5}  {name:<13} {median:>10.3} {:>10.3} {:>8.3}", times[0], median / base);
    }
}

/// Times two sessions of each candidate on two threads at batch 4: shows whether they slow each other down.
fn two_at_a_time(runtime: &Runtime, candidates: &[Candidate], rounds: usize) {
    let batch = 4;
    let input = synthetic_tensor("input", &[batch, 3, SIDE, SIDE]);
    let rows: Vec<&[f32]> = input.chunks_exact(input.len() / batch).collect();
    let mut pairs: Vec<_> = candidates.iter().map(|c| [0, 1].map(|_| c.session(runtime, batch))).collect();
    let mut times = vec![Vec::with_capacity(rounds); pairs.len()];
    for _ in 0..rounds {
        for (pair, times) in pairs.iter_mut().zip(&mut times) {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for session in pair {
                    scope.spawn(|| (0..RUNS_PER_TURN).for_each(|_| drop(session.run_rows(&rows).unwrap())));
                }
            });
            times.push(start.elapsed().as_secs_f64() * 1e3 / (2 * RUNS_PER_TURN * batch) as f64);
        }
    }
    println!("two sessions on two threads, batch {batch}:");
    print_times("2 x 4", candidates, &mut times);
}
