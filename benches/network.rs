//! One inference of a network on one thread: the export people have, our plain graph, our blocked graph.
//!
//! The candidates take turns, run by run, so that whatever else the machine does hits all of them alike; the medians and
//! their ratios are what to keep. Then each is profiled at batch 4. `make bench` makes the export first
//! (`benches/export.py`); ROUNDS says how many runs each gets.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use ghostserve::ghostnet::{Form, Network, Output, Size, Target, preset};
use ghostserve::kernels::native_block;
use ghostserve::model::OnnxSource;
use ghostserve::runtime::{LIBRARY_ENV, Prepared, Runtime, Session, SessionSpec};
use ghostserve::weights::{Synthetic, synthetic_tensor};

const NETWORK: &str = "ghostnetv2_100";
const SIDE: usize = 224;

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
        candidates.push(("export", Prepared::from(OnnxSource::File(export))));
    } else {
        println!("SKIPPED: the export: {} is not there; `make bench` makes it", export.display());
    }
    candidates.push(("plain", lower(Form::Plain).into()));
    match native_block() {
        Some(block) => candidates.push(("blocked", Prepared::blocked(&runtime, &lower(Form::Blocked(block))).unwrap())),
        None => println!("SKIPPED: the blocked form: ONNX Runtime has none for this processor"),
    }

    println!("{NETWORK}, {SIDE}x{SIDE}, one thread, ONNX Runtime {}, {rounds} rounds", runtime.version());
    println!("{:>5}  {:<8} {:>10} {:>10} {:>8}", "batch", "graph", "ms/image", "min", "ratio");
    for batch in [1, 2, 4] {
        let input = synthetic_tensor("input", &[batch, 3, SIDE, SIDE]);
        let rows: Vec<&[f32]> = input.chunks_exact(input.len() / batch).collect();
        let mut sessions: Vec<Session> = candidates
            .iter()
            .map(|(_, graph)| {
                let spec = SessionSpec { input: [SIDE, SIDE], classes: 1000, max_batch: batch, threads: 1 };
                runtime.session(graph, spec).unwrap()
            })
            .collect();
        let mut times = vec![Vec::with_capacity(rounds); sessions.len()];
        for _ in 0..rounds {
            for (session, times) in sessions.iter_mut().zip(&mut times) {
                let start = Instant::now();
                session.run_rows(&rows).unwrap();
                times.push(start.elapsed().as_secs_f64() * 1e3 / batch as f64);
            }
        }
        let mut first = None;
        for ((name, _), times) in candidates.iter().zip(&mut times) {
            times.sort_by(f64::total_cmp);
            let median = times[times.len() / 2];
            let base = *first.get_or_insert(median);
            println!("{batch:>5}  {name:<8} {median:>10.3} {:>10.3} {:>8.3}", times[0], median / base);
        }
    }

    let batch = 4;
    let input = synthetic_tensor("input", &[batch, 3, SIDE, SIDE]);
    let folder = PathBuf::from("target/bench");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, graph) in &candidates {
        let shape = [batch, 3, SIDE, SIDE];
        let times = runtime.profile(graph, (shape, &input), rounds.min(50), folder.clone()).unwrap();
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
