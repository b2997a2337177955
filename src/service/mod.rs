//! The use cases: a handler of any protocol plans a request, reads its images, and makes one call here.
//!
//! [`Service::plan_classify`] and [`Service::plan_features`] look up the model of a request once.
//! [`Service::classify`] and [`Service::features`] admit the images before anything is spent on them, take each
//! through pre-processing and the model's queue on its own, and return predictions or feature maps. Every image has
//! its own outcome: a bad image does not fail the others. The service knows nothing of HTTP. It holds the running
//! models by name; the server starts them.

mod attention;
mod cache;
mod classify;
mod error;
mod features;
mod predictions;
mod run;
mod scores;
mod served;
mod statistics;
mod task;

pub use attention::AttentionGate;
use cache::ScoreCache;
pub use cache::Scored;
pub use classify::{Classified, ClassifyPlan, ImageResult};
pub use error::{Code, Error};
pub use features::{Extracted, Extraction, FeaturePlan, FeaturesRequest};
pub use predictions::{Prediction, PredictionOptions, predict, probabilities, top};
pub use run::StageTimes;
pub use scores::Scores;
pub use served::{Features, ModelPlan, ServedModel};
pub use statistics::{RequestStatistics, TimeCounter};
pub use task::ImageTask;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::batch::AdmitError;
use crate::fair_share::FairPool;
use crate::memory::MemoryGuard;
use crate::preprocess::Preprocessor;
use crate::telemetry::Metrics;
use crate::text::shortened;

/// The models by name, and what all of them share.
#[derive(Debug)]
pub struct Service {
    models: BTreeMap<String, Arc<ServedModel>>,
    default: String,
    preprocessor: Preprocessor,
    /// Scores by file, if they are cached.
    cache: Option<ScoreCache>,
    /// Bytes of feature maps.
    feature_memory: Arc<FairPool>,
    memory_guard: Option<Arc<MemoryGuard>>,
    metrics: Arc<Metrics>,
}

/// The parts and the limits of a [`Service`].
#[derive(Debug)]
pub struct ServiceConfig {
    /// The running model that answers requests which name none.
    pub default_model: ServedModel,
    /// Other running models, which requests name.
    pub other_models: Vec<ServedModel>,
    /// Decodes images for all models.
    pub preprocessor: Preprocessor,
    /// Bytes of the feature maps of all requests.
    pub feature_bytes: usize,
    /// Fraction of the feature maps' bytes that one client can use while it is alone.
    pub max_client_share: f64,
    /// Bytes of cached scores. The same file is decoded and run once as long as its scores are cached, and once for
    /// all requests that have it at the same time. 0 disables the cache.
    pub cache_bytes: u64,
    /// Refuses work while the process uses more memory than it allows; no limit if `None`.
    pub memory_guard: Option<Arc<MemoryGuard>>,
    /// The metrics of the server.
    pub metrics: Arc<Metrics>,
}

impl Service {
    /// Makes a service of its parts.
    #[must_use]
    pub fn new(config: ServiceConfig) -> Self {
        let default = config.default_model.manifest.id.clone();
        let all = std::iter::once(config.default_model).chain(config.other_models);
        let models: BTreeMap<_, _> = all.map(|model| (model.manifest.id.clone(), Arc::new(model))).collect();
        let classes = models.values().map(|model| model.labels.len()).max().unwrap_or(1);
        Self {
            models,
            default,
            preprocessor: config.preprocessor,
            cache: (config.cache_bytes > 0).then(|| ScoreCache::new(config.cache_bytes, classes)),
            feature_memory: FairPool::new(config.feature_bytes, config.max_client_share),
            memory_guard: config.memory_guard,
            metrics: config.metrics,
        }
    }

    /// The models, by name.
    pub fn models(&self) -> impl Iterator<Item = &Arc<ServedModel>> {
        self.models.values()
    }

    /// The name of the default model.
    #[must_use]
    pub fn default_model(&self) -> &str {
        &self.default
    }

    /// Looks up a model by name, or the default model.
    ///
    /// # Errors
    /// [`Error::UnknownModel`].
    pub fn model(&self, name: Option<&str>) -> Result<&Arc<ServedModel>, Error> {
        let name = name.unwrap_or(&self.default);
        self.models.get(name).ok_or_else(|| {
            let served = self.models.keys().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ");
            Error::UnknownModel { asked: shortened(name, 128).to_owned(), served }
        })
    }

    /// Whether every model has a worker that can take a batch.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.models.values().all(|model| model.is_ready())
    }

    /// Updates the metrics that are computed when they are read.
    pub fn refresh_metrics(&self) {
        for model in self.models.values() {
            let wait = model.queue.predicted_wait();
            let gauge = self.metrics.predicted_wait_seconds.with_label_values(&[&model.manifest.id[..]]);
            gauge.set(wait.as_secs_f64());
        }
        self.metrics.feature_bytes.set(self.feature_memory.used() as i64);
        let cores = self.preprocessor.cores();
        self.metrics.cores.set(cores.total() as i64);
        self.metrics.cores_busy.set(cores.busy() as i64);
    }

    /// Time until there is capacity again, by the longest backlog; whole seconds.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        whole_seconds(self.models.values().map(|model| model.queue.backlog()).max().unwrap_or_default())
    }

    /// Admits no more images, and lets the workers end when their queues are empty.
    pub fn close(&self) {
        self.models.values().for_each(|model| model.queue.close());
    }

    /// Refuses new work while the process uses more memory than allowed. It refuses nothing while no images are in
    /// flight: waiting would free no memory then.
    fn check_memory(&self, model: &ServedModel, images: usize) -> Result<(), Error> {
        let over = self.memory_guard.as_ref().is_some_and(|guard| guard.is_over());
        if !over || self.models.values().all(|model| model.queue.is_idle()) {
            return Ok(());
        }
        self.metrics.images_shed_total.with_label_values(&[&model.manifest.id[..], "memory"]).inc_by(images as u64);
        Err(Error::Overloaded { limit: "memory of the process", retry_after: Duration::from_secs(1) })
    }

    /// The error of a request whose images were not admitted, counted.
    fn refused(&self, model: &ServedModel, images: usize, error: AdmitError) -> Error {
        let retry_after = whole_seconds(model.queue.backlog());
        let (reason, error) = match error {
            AdmitError::Closed => return Error::Draining,
            AdmitError::Full => ("images", Error::Overloaded { limit: "images in flight", retry_after }),
            AdmitError::WaitTooLong(_) => ("wait", Error::Overloaded { limit: "waiting time", retry_after }),
            AdmitError::TooLate(time) => ("deadline", Error::DeadlineUnmeetable { time }),
        };
        self.metrics.images_shed_total.with_label_values(&[&model.manifest.id[..], reason]).inc_by(images as u64);
        error
    }
}

/// A wait as `Retry-After` counts it: in seconds, rounded up. 0 would make clients try again at once.
fn whole_seconds(wait: Duration) -> Duration {
    Duration::from_secs(wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_whole_seconds_and_never_zero() {
        for (millis, seconds) in [(0, 1), (900, 1), (1000, 1), (1001, 2)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), Duration::from_secs(seconds));
        }
    }
}
