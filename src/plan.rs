//! How a model is run on this machine: workers, threads of each, images in a batch.
//!
//! What the user has not given is measured when the server starts: sessions run side by side on as many threads as there
//! would be workers, with every batch size in turn, and the smallest batch wins that is within four percent of the best
//! throughput, because a larger one only makes its images wait for each other. It takes a second or two, and what came of it
//! is kept in a file for the next start with the same model, processor, cores and runtime.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::runtime::{Prepared, Runtime, RuntimeError, Session, SessionSpec};
use ghostserve_weights::synthetic_tensor;

/// Images in a batch where nothing is given and nothing is measured.
pub const DEFAULT_BATCH: usize = 4;
/// The largest batch that is tried. Past it, the activations of a network worth serving here have long left the caches.
const LARGEST_BATCH: usize = 8;
/// Workers that are measured side by side; opening sessions for all of a large machine would take longer than it is worth.
const MOST_WORKERS: usize = 8;
/// Every candidate is measured so many times for so long, in turns, and its best counts.
const ROUNDS: usize = 5;
const SLICE: Duration = Duration::from_millis(40);
/// The share of the best throughput from which on smaller batches, and more workers instead of more threads, are preferred.
const WORTH: f64 = 0.96;

/// What the user has given, and what there is.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Cores that may compute.
    pub cores: usize,
    /// Sessions that run at the same time.
    pub workers: Option<usize>,
    /// Threads of each.
    pub threads_per_worker: Option<usize>,
    /// Images that a run takes at most.
    pub max_batch: Option<usize>,
    /// Whether to measure what is not given.
    pub calibrate: bool,
    /// The folder in which measurements are kept; nowhere if `None`.
    pub cache: Option<PathBuf>,
}

/// Where a plan's numbers are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// From the user, all of them.
    Given,
    /// From the user and from what suits most machines.
    Default,
    /// Measured at this start.
    Measured,
    /// Measured at an earlier start.
    Cached,
}

/// A combination, and what it did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Measurement {
    /// Sessions that ran side by side.
    pub workers: usize,
    /// Threads of each.
    pub threads_per_worker: usize,
    /// Images in a batch.
    pub batch: usize,
    /// Images a second, all workers together; the best of several rounds. The network alone, without decoding.
    pub images_per_second: f64,
}

/// A plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// Sessions that run at the same time.
    pub workers: usize,
    /// Threads of each.
    pub threads_per_worker: usize,
    /// Images that a run takes at most.
    pub max_batch: usize,
    /// Why these.
    pub origin: Origin,
    /// What they were chosen from, if they were measured.
    pub measured: Vec<Measurement>,
}

/// A measurement as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    key: String,
    measured: Vec<Measurement>,
}

/// What is to be run.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The library.
    pub runtime: &'a Runtime,
    /// The graph.
    pub graph: &'a Prepared,
    /// Its sessions, but for batch and threads.
    pub spec: SessionSpec,
    /// The model's identity, for the kept measurements.
    pub digest: &'a str,
}

/// Chooses a plan.
///
/// # Errors
/// The runtime does not take the graph.
pub fn choose(subject: Subject<'_>, wanted: &Wanted) -> Result<Chosen, RuntimeError> {
    let (mut candidates, mut batches) = (candidates(wanted), batches(wanted));
    if subject.spec.backend.compiles_sessions() {
        // Seconds for each session: only what is likely to win.
        candidates.truncate(1);
        batches.retain(|batch| *batch <= DEFAULT_BATCH || wanted.max_batch.is_some());
    }
    let plan = |(workers, threads_per_worker), max_batch, origin, measured| Chosen {
        workers,
        threads_per_worker,
        max_batch,
        origin,
        measured,
    };
    let first = candidates.first().copied().unwrap_or((1, 1));
    let Wanted { workers, threads_per_worker, max_batch, .. } = wanted;
    if workers.is_some() && threads_per_worker.is_some() && max_batch.is_some() {
        return Ok(plan(first, max_batch.unwrap_or(DEFAULT_BATCH), Origin::Given, Vec::new()));
    }
    if !wanted.calibrate {
        return Ok(plan(first, max_batch.unwrap_or(DEFAULT_BATCH), Origin::Default, Vec::new()));
    }
    let key = key(subject, &candidates, &batches);
    let file = wanted.cache.as_ref().map(|folder| folder.join(file_name(&key)));
    let (measured, origin) = match file.as_deref().and_then(|file| kept(file, &key)) {
        Some(measured) => (measured, Origin::Cached),
        None => {
            let mut measured = Vec::new();
            for candidate in &candidates {
                measured.extend(measure(subject, *candidate, &batches)?);
            }
            if let Some(file) = &file
                && let Err(error) = keep(file, Kept { key, measured: measured.clone() })
            {
                // A read-only file system is no reason not to serve.
                tracing::info!(%error, file = %file.display(), "the measured plan cannot be kept for the next start");
            }
            (measured, Origin::Measured)
        }
    };
    let best = best(&measured).unwrap_or((first, max_batch.unwrap_or(DEFAULT_BATCH)));
    Ok(plan(best.0, best.1, origin, measured))
}

/// Workers and threads to try, the preferred first.
fn candidates(wanted: &Wanted) -> Vec<(usize, usize)> {
    let cores = wanted.cores.max(1);
    match (wanted.workers, wanted.threads_per_worker) {
        (Some(workers), threads) => vec![(workers, threads.unwrap_or((cores / workers.max(1)).max(1)))],
        (None, Some(threads)) => vec![((cores / threads.max(1)).max(1), threads)],
        (None, None) if cores == 1 || !wanted.calibrate => vec![(cores, 1)],
        (None, None) => vec![(cores, 1), (cores / 2, 2)],
    }
}

/// Batch sizes to try.
fn batches(wanted: &Wanted) -> Vec<usize> {
    match wanted.max_batch {
        Some(batch) => vec![batch],
        None => (0..).map(|power| 1 << power).take_while(|batch| *batch <= LARGEST_BATCH).collect(),
    }
}

/// Runs one candidate with every batch size, in turns.
fn measure(
    subject: Subject<'_>,
    (workers, threads): (usize, usize),
    batches: &[usize],
) -> Result<Vec<Measurement>, RuntimeError> {
    let max_batch = batches.iter().copied().max().unwrap_or(1);
    let spec = SessionSpec { max_batch, threads, ..subject.spec };
    let side_by_side = workers.min(MOST_WORKERS);
    let mut sessions = (0..side_by_side)
        .map(|_| subject.runtime.session(subject.graph, spec))
        .collect::<Result<Vec<Session>, RuntimeError>>()?;
    let row = synthetic_tensor("input", &[3, spec.input[0], spec.input[1]]);
    let rows = vec![&row[..]; max_batch];
    let mut rates = vec![Vec::with_capacity(ROUNDS); batches.len()];
    for _ in 0..ROUNDS {
        for (batch, rates) in batches.iter().zip(&mut rates) {
            rates.push(together(&mut sessions, &rows[..*batch])?);
        }
    }
    let scale = workers as f64 / side_by_side as f64;
    // Whatever else the machine does only takes away.
    let best = |rates: Vec<f64>| rates.into_iter().fold(0.0, f64::max) * scale;
    let measured = batches.iter().zip(rates).map(|(batch, rates)| Measurement {
        workers,
        threads_per_worker: threads,
        batch: *batch,
        images_per_second: best(rates),
    });
    Ok(measured.collect())
}

/// Images a second of all sessions together, each run over and over on a thread of its own.
fn together(sessions: &mut [Session], rows: &[&[f32]]) -> Result<f64, RuntimeError> {
    let start = Barrier::new(sessions.len());
    let one = |session: &mut Session| -> Result<f64, RuntimeError> {
        start.wait();
        let (begin, mut images) = (Instant::now(), 0);
        while begin.elapsed() < SLICE {
            session.run_rows(rows).map_err(|e| RuntimeError::Load(e.to_string()))?;
            images += rows.len();
        }
        Ok(images as f64 / begin.elapsed().as_secs_f64())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = sessions.iter_mut().map(|session| scope.spawn(|| one(session))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).sum()
    })
}

/// The smallest batch of the first candidate that is nearly as good as the best of all.
fn best(measured: &[Measurement]) -> Option<((usize, usize), usize)> {
    let highest = measured.iter().map(|m| m.images_per_second).fold(0.0, f64::max);
    let good = measured.iter().find(|m| m.images_per_second >= WORTH * highest)?;
    Some(((good.workers, good.threads_per_worker), good.batch))
}

/// Everything that a measurement depends on.
fn key(subject: Subject<'_>, candidates: &[(usize, usize)], batches: &[usize]) -> String {
    format!(
        "ghostserve {}; model {}; input {:?}; graph {}; {:?}; onnxruntime {}; processor {}; workers and threads {:?}; batches {:?}",
        env!("CARGO_PKG_VERSION"),
        subject.digest,
        subject.spec.input,
        subject.graph.form(),
        subject.spec.backend,
        subject.runtime.version(),
        processor(),
        candidates,
        batches
    )
}

/// The processor's name as the system gives it, or at least its architecture.
fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or(std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

fn file_name(key: &str) -> String {
    let digest = Sha256::digest(key.as_bytes());
    let hex: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    format!("plan-{hex}.json")
}

/// A kept measurement; anything that is not exactly that is measured again.
fn kept(file: &Path, key: &str) -> Option<Vec<Measurement>> {
    let kept: Kept = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    let sound = |m: &Measurement| m.workers > 0 && m.threads_per_worker > 0 && m.batch > 0;
    (kept.key == key && !kept.measured.is_empty() && kept.measured.iter().all(sound)).then_some(kept.measured)
}

fn keep(file: &Path, kept: Kept) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    // Several servers may start at once; a reader must never see half a file.
    let unfinished = file.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&unfinished, serde_json::to_vec_pretty(&kept)?)?;
    fs::rename(unfinished, file)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn measurement(workers: usize, threads_per_worker: usize, batch: usize, images_per_second: f64) -> Measurement {
        Measurement { workers, threads_per_worker, batch, images_per_second }
    }

    #[test]
    fn the_smallest_batch_near_the_best_is_taken_and_threads_must_earn_their_place() {
        let alone = [measurement(2, 1, 1, 270.0), measurement(2, 1, 2, 340.0), measurement(2, 1, 4, 350.0)];
        assert_eq!(best(&alone), Some(((2, 1), 2)), "340 is within four percent of 350");
        let wide = [&alone[..], &[measurement(1, 2, 4, 360.0)]].concat();
        assert_eq!(best(&wide), Some(((2, 1), 4)), "so is 350 of 360");
        let wider = [&alone[..], &[measurement(1, 2, 4, 400.0)]].concat();
        assert_eq!(best(&wider), Some(((1, 2), 4)));
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn what_is_given_is_kept_and_the_cores_are_shared_out() {
        let wanted = Wanted { cores: 8, calibrate: true, ..Wanted::default() };
        assert_eq!(candidates(&wanted), [(8, 1), (4, 2)]);
        assert_eq!(batches(&wanted), [1, 2, 4, 8]);
        assert_eq!(candidates(&Wanted { threads_per_worker: Some(4), ..wanted.clone() }), [(2, 4)]);
        assert_eq!(candidates(&Wanted { workers: Some(2), ..wanted.clone() }), [(2, 4)]);
        assert_eq!(candidates(&Wanted { workers: Some(9), ..wanted.clone() }), [(9, 1)]);
        assert_eq!(candidates(&Wanted { cores: 1, ..wanted.clone() }), [(1, 1)]);
        assert_eq!(batches(&Wanted { max_batch: Some(3), ..wanted }), [3]);
    }

    #[test]
    fn a_kept_plan_is_only_taken_for_what_it_was_measured_on() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep").join(file_name("key"));
        assert_eq!(kept(&file, "key"), None);
        let measured = vec![measurement(2, 1, 4, 300.0)];
        keep(&file, Kept { key: "key".into(), measured: measured.clone() }).unwrap();
        assert_eq!(kept(&file, "key"), Some(measured));
        assert_eq!(kept(&file, "another key"), None);
        fs::write(
            &file,
            r#"{"key":"key","measured":[{"workers":0,"threads_per_worker":1,"batch":1,"images_per_second":1}]}"#,
        )
        .unwrap();
        assert_eq!(kept(&file, "key"), None, "no workers");
        fs::write(&file, "{").unwrap();
        assert_eq!(kept(&file, "key"), None, "half a file");
    }
}
