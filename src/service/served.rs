//! A model that is served: its manifest, its queue, and how it runs.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use super::attention::default_size;
use super::{ImageTask, RequestStatistics};
use crate::batch::{Queue, WorkerState};
use crate::config::FeatureLimits;
use crate::plan::{PlanMeasurement, PlanOrigin};
use crate::preprocess::Transform;
use crate::runtime::{Agreement, GraphForm, Precision, Provider, Runs, Variants};
use ghostserve_ghostnet::{Cost, Network};
use ghostserve_manifest::{Digest, Label, Manifest};

/// A model that is being served.
#[derive(Debug)]
pub struct ServedModel {
    /// The manifest of its folder.
    pub manifest: Manifest,
    /// SHA-256 of its weights file.
    pub digest: Digest,
    /// The classes, in the order of the outputs.
    pub labels: Vec<Label>,
    /// Parameters and operations per image, where the architecture is known.
    pub cost: Option<Cost>,
    /// How it runs on this machine.
    pub plan: ModelPlan,
    /// Turns pixels into rows of its input.
    pub transform: Arc<Transform>,
    /// Hands rows to its workers.
    pub queue: Arc<Queue<ImageTask>>,
    /// States of its workers.
    pub workers: Vec<Arc<WorkerState>>,
    /// Its feature maps, where the architecture is known.
    pub features: Option<Features>,
    /// Counts the runs of its sessions.
    pub runs: Arc<Runs>,
    /// Requests for its scores.
    pub statistics: RequestStatistics,
    /// Requests for its feature maps.
    pub features_statistics: RequestStatistics,
}

/// The source of a model's feature maps.
#[derive(Debug)]
pub struct Features {
    /// The network, which knows its outputs and their shapes.
    pub network: Network,
    /// Limits of requests.
    pub limits: FeatureLimits,
    /// Sessions for other inputs and outputs than the classifier's.
    pub variants: Arc<Variants>,
}

impl Features {
    /// Height and width of the input for attention if a request names none: the model's own, `own`, enlarged to a
    /// shorter side of 224 as far as the limit of pixels allows.
    #[must_use]
    pub fn attention_size(&self, own: [usize; 2]) -> [usize; 2] {
        default_size(own, self.limits.max_feature_pixels)
    }
}

/// How a model runs on this machine, as it is reported to clients.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Plan")]
pub struct ModelPlan {
    /// The execution provider.
    pub provider: Provider,
    /// The type of its arithmetic.
    pub precision: Precision,
    /// How its answers differ from those of f32 on ONNX Runtime's own provider, if it runs in another way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// The form of the graph: `blocked`, `plain`, or `as given` by a foreign file.
    pub graph: GraphForm,
    /// The runtime's version.
    pub onnxruntime: String,
    /// Cores for decoding and inference.
    pub cores: usize,
    /// Sessions that run at the same time.
    pub workers: usize,
    /// Threads of each session.
    pub threads_per_worker: usize,
    /// Maximum number of images in one run.
    pub max_batch: usize,
    /// Milliseconds that the oldest image waits for a batch to fill.
    pub batch_delay_ms: f64,
    /// Source of the numbers of workers, threads and images.
    pub origin: PlanOrigin,
    /// The measurements that they were chosen from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub measured: Vec<PlanMeasurement>,
    /// Milliseconds of predicted wait above which requests are shed.
    pub max_wait_ms: f64,
    /// Maximum number of images in flight: being decoded, waiting and running.
    pub max_images_in_flight: usize,
}

impl ServedModel {
    /// Whether a worker can take a batch.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.workers.iter().any(|worker| worker.is_ready())
    }
}
