//! The execution plan of a model on this machine: workers, threads per worker, images per batch.
//!
//! What the user does not set is measured when the server starts. Sessions run side by side on as many threads as
//! there would be workers, with every batch size in turn. The smallest batch within four percent of the best
//! throughput wins, because a larger one only makes its images wait for each other. The measurement takes a second or
//! two. Its result is stored in a file for the next start with the same model, processor, cores and runtime.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::runtime::{PreparedGraph, Runtime, RuntimeError, Session, SessionSpec};
use ghostserve_manifest::{to_hex, write_atomically};
use ghostserve_weights::synthetic_tensor;

/// Images per batch where the user sets none and nothing is measured.
pub const DEFAULT_BATCH: usize = 4;
/// The largest batch that is measured. With larger ones, the activations of a network worth serving here do not fit
/// in the caches any more.
const MAX_MEASURED_BATCH: usize = 8;
/// Workers that are measured side by side. Opening sessions for all of a large machine would take too long.
const MAX_MEASURED_WORKERS: usize = 8;
/// Every candidate is measured this many times, in turns with the others, and its best rate counts.
const ROUNDS: usize = 5;
/// Duration of one measurement.
const ROUND_TIME: Duration = Duration::from_millis(40);
/// The share of the best throughput above which a smaller batch, and more workers instead of more threads, are
/// preferred.
const GOOD_SHARE: f64 = 0.96;

/// What the user has set, and the cores of the machine.
#[derive(Clone, Debug, Default)]
pub struct PlanOptions {
    /// Cores that may compute.
    pub cores: usize,
    /// Sessions that run at the same time.
    pub workers: Option<usize>,
    /// Threads of each session.
    pub threads_per_worker: Option<usize>,
    /// Images that one run takes at most.
    pub max_batch: Option<usize>,
    /// Whether to measure what is not set.
    pub calibrate: bool,
    /// The folder for stored measurements. `None` stores nothing.
    pub cache: Option<PathBuf>,
}

/// The source of a plan's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
// The name of the schema in the OpenAPI document.
#[schemars(rename = "Origin")]
pub enum PlanOrigin {
    /// The user has set all of them.
    Given,
    /// The user's values, and defaults that suit most machines.
    Default,
    /// Measured at this start.
    Measured,
    /// Measured at an earlier start.
    Cached,
}

/// The measured throughput of one combination of workers, threads and batch size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
// The name of the schema in the OpenAPI document.
#[schemars(rename = "Measurement")]
pub struct PlanMeasurement {
    /// Sessions that ran side by side.
    pub workers: usize,
    /// Threads of each session.
    pub threads_per_worker: usize,
    /// Images per batch.
    pub batch: usize,
    /// Images per second of all workers together, the best of several rounds. The network alone, without decoding.
    pub images_per_second: f64,
}

/// How a model is run on this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct ExecutionPlan {
    /// Sessions that run at the same time.
    pub workers: usize,
    /// Threads of each session.
    pub threads_per_worker: usize,
    /// Images that one run takes at most.
    pub max_batch: usize,
    /// The source of these numbers.
    pub origin: PlanOrigin,
    /// The measurements that the plan was chosen from; empty if nothing was measured.
    pub measured: Vec<PlanMeasurement>,
}

/// The contents of a file of stored measurements.
#[derive(Serialize, Deserialize)]
struct CachedMeasurements {
    key: String,
    measured: Vec<PlanMeasurement>,
}

/// The model that a plan is made for.
#[derive(Clone, Copy)]
pub struct PlannedModel<'a> {
    /// The loaded library.
    pub runtime: &'a Runtime,
    /// The model's graph.
    pub graph: &'a PreparedGraph,
    /// The specification of its sessions; the plan replaces batch and threads.
    pub spec: SessionSpec,
    /// The model's digest, which identifies it in stored measurements.
    pub digest: &'a str,
}

/// Workers and their threads, to be measured with several batch sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct WorkerLayout {
    workers: usize,
    threads_per_worker: usize,
}

impl WorkerLayout {
    fn new(workers: usize, threads_per_worker: usize) -> Self {
        Self { workers, threads_per_worker }
    }

    /// A plan with these workers.
    fn plan(self, max_batch: usize, origin: PlanOrigin, measured: Vec<PlanMeasurement>) -> ExecutionPlan {
        let Self { workers, threads_per_worker } = self;
        ExecutionPlan { workers, threads_per_worker, max_batch, origin, measured }
    }
}

/// Chooses the plan for a model.
///
/// # Errors
/// The runtime does not accept the graph.
pub fn choose(model: PlannedModel<'_>, options: &PlanOptions) -> Result<ExecutionPlan, RuntimeError> {
    let (mut layouts, mut batches) = (worker_layouts(options), batch_sizes(options));
    if model.spec.backend.compiles_sessions() {
        // Each session takes seconds to open: measure only the candidates that are likely to win.
        layouts.truncate(1);
        batches.retain(|batch| *batch <= DEFAULT_BATCH || options.max_batch.is_some());
    }
    let first = layouts.first().copied().unwrap_or(WorkerLayout::new(1, 1));
    let PlanOptions { workers, threads_per_worker, max_batch, .. } = options;
    let default_batch = max_batch.unwrap_or(DEFAULT_BATCH);
    if workers.is_some() && threads_per_worker.is_some() && max_batch.is_some() {
        return Ok(first.plan(default_batch, PlanOrigin::Given, Vec::new()));
    }
    if !options.calibrate {
        return Ok(first.plan(default_batch, PlanOrigin::Default, Vec::new()));
    }
    let key = cache_key(model, &layouts, &batches);
    let file = options.cache.as_ref().map(|folder| folder.join(file_name(&key)));
    let (measured, origin) = match file.as_deref().and_then(|file| load_cached(file, &key)) {
        Some(measured) => (measured, PlanOrigin::Cached),
        None => {
            let mut measured = Vec::new();
            for layout in &layouts {
                measured.extend(measure(model, *layout, &batches)?);
            }
            if let Some(file) = &file
                && let Err(error) = store(file, CachedMeasurements { key, measured: measured.clone() })
            {
                // On a read-only file system the server still serves.
                tracing::info!(%error, file = %file.display(), "the measured plan cannot be stored for the next start");
            }
            (measured, PlanOrigin::Measured)
        }
    };
    let (layout, batch) = best(&measured).unwrap_or((first, default_batch));
    Ok(layout.plan(batch, origin, measured))
}

/// Workers and threads to measure, the preferred first.
fn worker_layouts(options: &PlanOptions) -> Vec<WorkerLayout> {
    let cores = options.cores.max(1);
    let new = WorkerLayout::new;
    match (options.workers, options.threads_per_worker) {
        (Some(workers), threads) => vec![new(workers, threads.unwrap_or((cores / workers.max(1)).max(1)))],
        (None, Some(threads)) => vec![new((cores / threads.max(1)).max(1), threads)],
        (None, None) if cores == 1 || !options.calibrate => vec![new(cores, 1)],
        (None, None) => vec![new(cores, 1), new(cores / 2, 2)],
    }
}

/// Batch sizes to measure.
fn batch_sizes(options: &PlanOptions) -> Vec<usize> {
    match options.max_batch {
        Some(batch) => vec![batch],
        None => (0..).map(|power| 1 << power).take_while(|batch| *batch <= MAX_MEASURED_BATCH).collect(),
    }
}

/// Measures one layout with every batch size, in turns.
fn measure(
    model: PlannedModel<'_>,
    layout: WorkerLayout,
    batches: &[usize],
) -> Result<Vec<PlanMeasurement>, RuntimeError> {
    let WorkerLayout { workers, threads_per_worker } = layout;
    let max_batch = batches.iter().copied().max().unwrap_or(1);
    let spec = SessionSpec { max_batch, threads: threads_per_worker, ..model.spec };
    let side_by_side = workers.min(MAX_MEASURED_WORKERS);
    let mut sessions = (0..side_by_side)
        .map(|_| model.runtime.session(model.graph, spec))
        .collect::<Result<Vec<Session>, RuntimeError>>()?;
    let row = synthetic_tensor("input", &[3, spec.input[0], spec.input[1]]);
    let rows = vec![&row[..]; max_batch];
    let mut rates = vec![Vec::with_capacity(ROUNDS); batches.len()];
    for _ in 0..ROUNDS {
        for (batch, rates) in batches.iter().zip(&mut rates) {
            rates.push(throughput(&mut sessions, &rows[..*batch])?);
        }
    }
    let scale = workers as f64 / side_by_side as f64;
    // Other work on the machine only lowers a rate, so the highest one counts.
    let highest = |rates: Vec<f64>| rates.into_iter().fold(0.0, f64::max) * scale;
    let measured = batches.iter().zip(rates).map(|(batch, rates)| PlanMeasurement {
        workers,
        threads_per_worker,
        batch: *batch,
        images_per_second: highest(rates),
    });
    Ok(measured.collect())
}

/// Images per second of all sessions together. Each session runs repeatedly on its own thread.
fn throughput(sessions: &mut [Session], rows: &[&[f32]]) -> Result<f64, RuntimeError> {
    let start = Barrier::new(sessions.len());
    let run_repeatedly = |session: &mut Session| -> Result<f64, RuntimeError> {
        start.wait();
        let (begin, mut images) = (Instant::now(), 0);
        while begin.elapsed() < ROUND_TIME {
            session.run_rows(rows).map_err(|e| RuntimeError::Load(e.to_string()))?;
            images += rows.len();
        }
        Ok(images as f64 / begin.elapsed().as_secs_f64())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = sessions.iter_mut().map(|session| scope.spawn(|| run_repeatedly(session))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).sum()
    })
}

/// The smallest batch of the first layout whose throughput is close to the best of all.
fn best(measured: &[PlanMeasurement]) -> Option<(WorkerLayout, usize)> {
    let highest = measured.iter().map(|m| m.images_per_second).fold(0.0, f64::max);
    let good = measured.iter().find(|m| m.images_per_second >= GOOD_SHARE * highest)?;
    Some((WorkerLayout::new(good.workers, good.threads_per_worker), good.batch))
}

/// Text that names everything a measurement depends on.
fn cache_key(model: PlannedModel<'_>, layouts: &[WorkerLayout], batches: &[usize]) -> String {
    let layouts: Vec<_> = layouts.iter().map(|layout| (layout.workers, layout.threads_per_worker)).collect();
    format!(
        "ghostserve {}; model {}; input {:?}; graph {}; {:?}; onnxruntime {}; processor {}; workers and threads {:?}; \
         batches {:?}",
        env!("CARGO_PKG_VERSION"),
        model.digest,
        model.spec.input,
        model.graph.form(),
        model.spec.backend,
        model.runtime.version(),
        processor(),
        layouts,
        batches
    )
}

/// The processor's name as the system reports it, or else its architecture.
fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or(std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

fn file_name(key: &str) -> String {
    let digest = Sha256::digest(key.as_bytes());
    format!("plan-{}.json", to_hex(&digest[..12]))
}

/// Reads stored measurements. `None` if the file is missing, damaged or belongs to another key: they are then
/// measured again.
fn load_cached(file: &Path, key: &str) -> Option<Vec<PlanMeasurement>> {
    let cached: CachedMeasurements = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    let is_valid = |m: &PlanMeasurement| m.workers > 0 && m.threads_per_worker > 0 && m.batch > 0;
    let usable = cached.key == key && !cached.measured.is_empty() && cached.measured.iter().all(is_valid);
    usable.then_some(cached.measured)
}

fn store(file: &Path, measurements: CachedMeasurements) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    // Several servers may start at once: a reader must not see an incomplete file.
    write_atomically(file, &serde_json::to_vec_pretty(&measurements)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn measurement(workers: usize, threads_per_worker: usize, batch: usize, images_per_second: f64) -> PlanMeasurement {
        PlanMeasurement { workers, threads_per_worker, batch, images_per_second }
    }

    fn layout(workers: usize, threads_per_worker: usize) -> WorkerLayout {
        WorkerLayout::new(workers, threads_per_worker)
    }

    #[test]
    fn the_smallest_batch_near_the_best_wins_and_more_threads_need_a_clear_gain() {
        let single = [measurement(2, 1, 1, 270.0), measurement(2, 1, 2, 340.0), measurement(2, 1, 4, 350.0)];
        assert_eq!(best(&single), Some((layout(2, 1), 2)), "340 is within four percent of 350");
        let slightly_faster = [&single[..], &[measurement(1, 2, 4, 360.0)]].concat();
        assert_eq!(best(&slightly_faster), Some((layout(2, 1), 4)), "350 is within four percent of 360");
        let faster = [&single[..], &[measurement(1, 2, 4, 400.0)]].concat();
        assert_eq!(best(&faster), Some((layout(1, 2), 4)));
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn the_users_values_are_respected_and_the_cores_are_shared() {
        let options = PlanOptions { cores: 8, calibrate: true, ..PlanOptions::default() };
        let layouts = |options: PlanOptions| worker_layouts(&options);
        assert_eq!(layouts(options.clone()), [layout(8, 1), layout(4, 2)]);
        assert_eq!(batch_sizes(&options), [1, 2, 4, 8]);
        assert_eq!(layouts(PlanOptions { threads_per_worker: Some(4), ..options.clone() }), [layout(2, 4)]);
        assert_eq!(layouts(PlanOptions { workers: Some(2), ..options.clone() }), [layout(2, 4)]);
        assert_eq!(layouts(PlanOptions { workers: Some(9), ..options.clone() }), [layout(9, 1)]);
        assert_eq!(layouts(PlanOptions { cores: 1, ..options.clone() }), [layout(1, 1)]);
        assert_eq!(batch_sizes(&PlanOptions { max_batch: Some(3), ..options }), [3]);
    }

    #[test]
    fn stored_measurements_are_used_only_with_the_same_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep").join(file_name("key"));
        assert_eq!(load_cached(&file, "key"), None);
        let measured = vec![measurement(2, 1, 4, 300.0)];
        store(&file, CachedMeasurements { key: "key".into(), measured: measured.clone() }).unwrap();
        assert_eq!(load_cached(&file, "key"), Some(measured));
        assert_eq!(load_cached(&file, "another key"), None);
        fs::write(
            &file,
            r#"{"key":"key","measured":[{"workers":0,"threads_per_worker":1,"batch":1,"images_per_second":1}]}"#,
        )
        .unwrap();
        assert_eq!(load_cached(&file, "key"), None, "no workers");
        fs::write(&file, "{").unwrap();
        assert_eq!(load_cached(&file, "key"), None, "an incomplete file");
    }
}
