//! The start of a model: its execution plan, its queue, its workers.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use super::StartError;
use crate::batch::{AdmissionLimits, Batching, ModelFailure, ONE_RUN, Queue, Worker, WorkerState};
use crate::config::Config;
use crate::cores::{Cores, Niceness, lower_priority};
use crate::model::LoadedModel;
use crate::plan::{self, ExecutionPlan, PlanOptions, PlannedModel};
use crate::preprocess::Transform;
use crate::runtime::{PreparedGraph, Runs, Runtime, Session, SessionSpec, Sessions, VariantLimits, Variants};
use crate::service::{Features, ImageTask, ModelPlan, RequestStatistics, ServedModel};
use crate::telemetry::Metrics;
use ghostserve_manifest::{Digest, Manifest};

/// Threads that run workers.
type WorkerThreads = Vec<thread::JoinHandle<()>>;

/// What every worker of a model needs.
struct WorkerSetup {
    runtime: Runtime,
    graph: PreparedGraph,
    spec: SessionSpec,
    batching: Batching,
    queue: Arc<Queue<ImageTask>>,
    variants: Option<Arc<Variants>>,
    runs: Arc<Runs>,
}

/// Opens a session for every worker, and starts a thread for each.
pub(super) fn start_model(
    loaded: LoadedModel,
    config: &Config,
    runtime: &Runtime,
    metrics: &Metrics,
    cores: &Arc<Cores>,
) -> Result<(ServedModel, WorkerThreads), StartError> {
    let cost = loaded.cost();
    let options = config.execution.plan_options();
    let spec = session_spec(&loaded, config, &options);
    let graph = runtime.prepare_for(&loaded, spec)?;
    let LoadedModel { manifest, digest, labels, backbone, .. } = loaded;
    let planned = PlannedModel { runtime, graph: &graph, spec, digest: digest.as_str() };
    let execution = plan::choose(planned, &options)?;

    let spec = SessionSpec { max_batch: execution.max_batch, threads: execution.threads_per_worker, ..spec };
    let queue = Queue::new(admission_limits(config), Arc::clone(cores), metrics.for_model(&manifest.id));
    let features = backbone.map(|backbone| Features {
        network: backbone.network().clone(),
        limits: config.features,
        variants: Variants::new(runtime, backbone, graph.clone(), spec, variant_limits(config)),
    });
    let runs = Arc::new(Runs::default());
    let setup = WorkerSetup {
        runtime: runtime.clone(),
        graph,
        spec,
        batching: Batching {
            max: execution.max_batch,
            delay: config.execution.batch_delay,
            cores: execution.threads_per_worker.min(cores.total()),
        },
        queue: Arc::clone(&queue),
        variants: features.as_ref().map(|features| Arc::clone(&features.variants)),
        runs: Arc::clone(&runs),
    };
    let (workers, threads) = spawn_workers(&setup, execution.workers)?;
    let plan = model_plan(config, &setup, execution, cores.total());
    publish_plan(metrics, &manifest, &digest, labels.len(), &plan);
    let transform = Transform::new(manifest.input);
    let transform = Arc::new(if config.request.exact_decode { transform.exact() } else { transform });
    let served = ServedModel {
        manifest,
        digest,
        labels,
        cost,
        plan,
        transform,
        queue,
        workers,
        features,
        runs,
        statistics: RequestStatistics::default(),
        features_statistics: RequestStatistics::default(),
    };
    Ok((served, threads))
}

/// The sessions' specification before the execution plan is chosen.
fn session_spec(loaded: &LoadedModel, config: &Config, options: &PlanOptions) -> SessionSpec {
    SessionSpec {
        input: loaded.manifest.input.crop,
        classes: loaded.labels.len(),
        max_batch: options.max_batch.unwrap_or(plan::DEFAULT_BATCH),
        threads: options.threads_per_worker.unwrap_or(1),
        backend: config.execution.backend,
    }
}

/// Background work leaves a quarter of the images in flight to other work, unless one request may have more images
/// than the rest.
fn admission_limits(config: &Config) -> AdmissionLimits {
    let images = config.load.max_images_in_flight;
    let background_images = (images - images / 4).max(config.request.max_images_per_request);
    AdmissionLimits { images, background_images, max_wait: config.load.max_wait }
}

/// A worker keeps sessions for two inputs of the largest size, or for more that are smaller.
fn variant_limits(config: &Config) -> VariantLimits {
    VariantLimits {
        sessions: config.features.feature_sessions,
        pixels: config.features.max_feature_pixels.saturating_mul(2),
    }
}

/// Starts the threads of so many workers.
fn spawn_workers(setup: &WorkerSetup, count: usize) -> Result<(Vec<Arc<WorkerState>>, WorkerThreads), StartError> {
    let (mut states, mut threads) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for index in 0..count {
        // The first session of each worker is opened here, so that a model that does not work fails the start.
        let mut session = setup.runtime.session(&setup.graph, setup.spec)?;
        if index == 0 {
            setup.record_first_run(&mut session)?;
        }
        let worker = Worker::new(Arc::clone(&setup.queue), setup.batching, setup.load(session));
        states.push(worker.state());
        // The worker computes on this thread; its runtime is only for waiting.
        let clock = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(StartError::Thread)?;
        let run = move || {
            lower_priority(Niceness::COMPUTE);
            clock.block_on(worker.run());
        };
        let thread = thread::Builder::new().name(format!("worker-{index}"));
        threads.push(thread.spawn(run).map_err(StartError::Thread)?);
    }
    Ok((states, threads))
}

impl WorkerSetup {
    /// Runs one image and records its time, so that the wait of the first requests can be predicted.
    fn record_first_run(&self, session: &mut Session) -> Result<(), ModelFailure> {
        let [height, width] = self.spec.input;
        let row = vec![0.0; 3 * height * width];
        let start = Instant::now();
        session.run_rows(&[&row[..]])?;
        self.queue.record_infer(ONE_RUN, self.batching.cores, start.elapsed());
        Ok(())
    }

    /// Loads a worker's model: the first time with a session that is already open, and with a new one after a failure.
    fn load(&self, first: Session) -> impl FnMut() -> Result<Sessions, ModelFailure> + Send + use<> {
        let mut first = Some(first);
        let (runtime, graph, spec) = (self.runtime.clone(), self.graph.clone(), self.spec);
        let (variants, runs) = (self.variants.clone(), Arc::clone(&self.runs));
        move || {
            let again = || runtime.session(&graph, spec).map_err(|e| ModelFailure(e.to_string()));
            Ok(Sessions::new(first.take().map_or_else(again, Ok)?, variants.clone(), Arc::clone(&runs)))
        }
    }
}

/// How the model runs, as it is reported.
fn model_plan(config: &Config, setup: &WorkerSetup, execution: ExecutionPlan, cores: usize) -> ModelPlan {
    ModelPlan {
        provider: setup.spec.backend.provider,
        precision: setup.spec.backend.precision,
        agreement: setup.graph.agreement(),
        graph: setup.graph.form(),
        onnxruntime: setup.runtime.version().to_owned(),
        cores,
        workers: execution.workers,
        threads_per_worker: execution.threads_per_worker,
        max_batch: execution.max_batch,
        batch_delay_ms: config.execution.batch_delay.as_secs_f64() * 1e3,
        origin: execution.origin,
        measured: execution.measured,
        max_wait_ms: config.load.max_wait.as_secs_f64() * 1e3,
        max_images_in_flight: config.load.max_images_in_flight,
    }
}

/// Reports the model and its plan in the metrics and the log.
fn publish_plan(metrics: &Metrics, manifest: &Manifest, digest: &Digest, classes: usize, plan: &ModelPlan) {
    let architecture = manifest.network.architecture.to_string();
    metrics.model_info.with_label_values(&[&manifest.id[..], digest.as_str(), &architecture]).set(1);
    metrics
        .plan_info
        .with_label_values(&[
            &manifest.id[..],
            &plan.provider.to_string(),
            &plan.precision.to_string(),
            plan.graph.as_str(),
            &plan.workers.to_string(),
            &plan.threads_per_worker.to_string(),
            &plan.max_batch.to_string(),
        ])
        .set(1);
    log_plan(manifest, digest, classes, plan);
}

/// Number of characters of a digest that tell models apart: the algorithm and twelve digits.
const SHORT_DIGEST: usize = "sha256:".len() + 12;

/// Logs the model and what runs it, a line each; measurements and limits only at the level debug.
fn log_plan(manifest: &Manifest, digest: &Digest, classes: usize, plan: &ModelPlan) {
    let digest = digest.as_str();
    let digest = digest.get(..SHORT_DIGEST).unwrap_or(digest);
    let architecture = &manifest.network.architecture;
    tracing::info!(model = %manifest.id, %digest, %architecture, classes, "model loaded");
    tracing::info!(
        provider = %plan.provider,
        precision = %plan.precision,
        form = %plan.graph.as_str(),
        workers = plan.workers,
        threads_per_worker = plan.threads_per_worker,
        max_batch = plan.max_batch,
        "runs on ONNX Runtime {}",
        plan.onnxruntime
    );
    tracing::debug!(model = %manifest.id, ?plan, "plan");
}
