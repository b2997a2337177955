//! Starting a model: its plan, its queue, its workers.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use super::StartError;
use crate::batch::{Batching, Bounds, ModelFailure, ONE_RUN, Queue, Worker, WorkerState};
use crate::config::Config;
use crate::cores::{Cores, give_way};
use crate::model::LoadedModel;
use crate::plan::{self, Subject};
use crate::preprocess::Transform;
use crate::runtime::{Runs, Runtime, SessionSpec, Sessions, Variants};
use crate::service::{Features, ImageTask, Plan, ServedModel, Statistics};
use crate::telemetry::Metrics;

/// Threads that run workers.
type Threads = Vec<thread::JoinHandle<()>>;

/// Makes a session for every worker, and a thread for each to live on.
pub(super) fn start_model(
    loaded: LoadedModel,
    config: &Config,
    runtime: &Runtime,
    metrics: &Metrics,
    cores: &Arc<Cores>,
) -> Result<(ServedModel, Threads), StartError> {
    let cost = loaded.cost();
    let wanted = &config.execution.plan;
    let spec = SessionSpec {
        input: loaded.manifest.input.crop,
        classes: loaded.labels.len(),
        max_batch: wanted.max_batch.unwrap_or(plan::DEFAULT_BATCH),
        threads: wanted.threads_per_worker.unwrap_or(1),
        backend: config.execution.backend,
    };
    let graph = runtime.prepare_for(&loaded, spec)?;
    let LoadedModel { manifest, labels, backbone, .. } = loaded;
    let digest = manifest.network.digest.as_str();
    let chosen = plan::choose(Subject { runtime, graph: &graph, spec, digest }, wanted)?;

    let spec = SessionSpec { max_batch: chosen.max_batch, threads: chosen.threads_per_worker, ..spec };
    let queue = Queue::<ImageTask>::new(bounds(config), Arc::clone(cores), metrics.for_model(&manifest.id));
    let batching = Batching {
        max: chosen.max_batch,
        delay: config.execution.batch_delay,
        cores: chosen.threads_per_worker.min(cores.total()),
    };
    // Two of the largest, or more that are smaller.
    let keep = (config.features.sessions, config.features.max_pixels.saturating_mul(2));
    let features = backbone.map(|backbone| Features {
        network: backbone.network().clone(),
        limits: config.features,
        variants: Variants::new(runtime, backbone, graph.clone(), spec, keep),
    });
    let runs = Arc::new(Runs::default());
    let mut threads = Vec::with_capacity(chosen.workers);
    let mut states: Vec<Arc<WorkerState>> = Vec::with_capacity(chosen.workers);
    for index in 0..chosen.workers {
        // The first session is made here, so that a model that does not work stops the start instead of the worker.
        let mut session = runtime.session(&graph, spec)?;
        if index == 0 {
            // So that the first requests, too, are held against a pace.
            let row = vec![0.0; 3 * spec.input[0] * spec.input[1]];
            let start = Instant::now();
            session.run_rows(&[&row[..]])?;
            queue.record_infer(ONE_RUN, batching.cores, start.elapsed());
        }
        let mut first = Some(session);
        let (runtime, graph) = (runtime.clone(), graph.clone());
        let counts = Arc::clone(&runs);
        let variants = features.as_ref().map(|features| Arc::clone(&features.variants));
        let load = move || -> Result<Sessions, ModelFailure> {
            let again = || runtime.session(&graph, spec).map_err(|e| ModelFailure(e.to_string()));
            Ok(Sessions::new(first.take().map_or_else(again, Ok)?, variants.clone(), Arc::clone(&counts)))
        };
        let worker = Worker::new(Arc::clone(&queue), batching, load);
        states.push(worker.state());
        // The worker computes on this thread; its runtime is only for waiting.
        let clock = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(StartError::Thread)?;
        let thread = thread::Builder::new().name(format!("worker-{index}"));
        threads.push(
            thread
                .spawn(move || {
                    give_way();
                    clock.block_on(worker.run());
                })
                .map_err(StartError::Thread)?,
        );
    }
    let architecture = manifest.network.architecture.to_string();
    metrics.model_info.with_label_values(&[&manifest.id[..], digest, &architecture]).set(1);
    let plan = Plan {
        provider: spec.backend.provider,
        precision: spec.backend.precision,
        agreement: graph.agreement(),
        graph: graph.form(),
        onnxruntime: runtime.version().to_owned(),
        cores: cores.total(),
        workers: chosen.workers,
        threads_per_worker: chosen.threads_per_worker,
        max_batch: chosen.max_batch,
        batch_delay_ms: config.execution.batch_delay.as_secs_f64() * 1e3,
        origin: chosen.origin,
        measured: chosen.measured,
        max_wait_ms: config.load.max_wait.as_secs_f64() * 1e3,
        max_images_in_flight: config.load.max_images,
    };
    metrics
        .plan_info
        .with_label_values(&[
            &manifest.id[..],
            &plan.provider.to_string(),
            &plan.precision.to_string(),
            plan.graph,
            &plan.workers.to_string(),
            &plan.threads_per_worker.to_string(),
            &plan.max_batch.to_string(),
        ])
        .set(1);
    tracing::info!(model = %manifest.id, architecture, ?plan, "model loaded");
    let transform = Transform::new(manifest.input);
    let transform = Arc::new(if config.exact_decode { transform.exact() } else { transform });
    let (statistics, features_statistics) = (Statistics::default(), Statistics::default());
    let served = ServedModel {
        manifest,
        labels,
        cost,
        plan,
        transform,
        queue,
        workers: states,
        features,
        runs,
        statistics,
        features_statistics,
    };
    Ok((served, threads))
}

/// Background work leaves a quarter of the places to others, unless one request may have more than the rest.
fn bounds(config: &Config) -> Bounds {
    let images = config.load.max_images;
    let background_images = (images - images / 4).max(config.request.max_images);
    Bounds { images, background_images, max_wait: config.load.max_wait }
}
