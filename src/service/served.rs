//! A model as it is served: its contract, its queue, how it is run.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use super::{ImageTask, Statistics};
use crate::batch::{Queue, WorkerState};
use crate::config::FeatureLimits;
use crate::plan::{Measurement, Origin};
use crate::preprocess::Transform;
use crate::runtime::{Agreement, Precision, Provider, Runs, Variants};
use ghostserve_ghostnet::{Cost, Network};
use ghostserve_manifest::{Label, Manifest};

/// A model that is being served.
#[derive(Debug)]
pub struct ServedModel {
    /// Its folder's contract.
    pub manifest: Manifest,
    /// The classes, in the order of the outputs.
    pub labels: Vec<Label>,
    /// What an image costs, where the architecture is known.
    pub cost: Option<Cost>,
    /// How it is run.
    pub plan: Plan,
    /// Pixels to rows.
    pub transform: Arc<Transform>,
    /// Rows to workers.
    pub queue: Arc<Queue<ImageTask>>,
    /// The workers, to be asked for their readiness.
    pub workers: Vec<Arc<WorkerState>>,
    /// Its feature maps, where the architecture is known.
    pub features: Option<Features>,
    /// Runs of its sessions.
    pub runs: Arc<Runs>,
    /// Requests for its scores.
    pub statistics: Statistics,
    /// Requests for its feature maps.
    pub features_statistics: Statistics,
}

/// Where feature maps come from.
#[derive(Debug)]
pub struct Features {
    /// What there is of them.
    pub network: Network,
    /// What may be asked for.
    pub limits: FeatureLimits,
    /// Sessions for them.
    pub variants: Arc<Variants>,
}

/// How a model is run on this machine.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Plan {
    /// What computes.
    pub provider: Provider,
    /// In what type.
    pub precision: Precision,
    /// How its answers differ from those of f32 on ONNX Runtime's own provider, where it is not that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// The form of the graph: `blocked`, `plain`, or `as given` by a foreign file.
    pub graph: &'static str,
    /// The runtime's version.
    pub onnxruntime: String,
    /// Cores that decode and compute.
    pub cores: usize,
    /// Sessions that run at the same time.
    pub workers: usize,
    /// Threads of each.
    pub threads_per_worker: usize,
    /// Images that a run takes at most.
    pub max_batch: usize,
    /// Milliseconds that the oldest image waits for a batch to fill.
    pub batch_delay_ms: f64,
    /// Where the numbers of workers, threads and images are from.
    pub origin: Origin,
    /// What they were chosen from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub measured: Vec<Measurement>,
    /// Milliseconds of predicted wait past which requests are shed.
    pub max_wait_ms: f64,
    /// Images admitted at most: being decoded, waiting and running.
    pub max_images_in_flight: usize,
}

impl ServedModel {
    /// Whether a worker can take a batch.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.workers.iter().any(|worker| worker.is_ready())
    }
}
