//! The use cases: what a handler of any protocol calls, once.
//!
//! [`Service::classify`] admits a request's images before anything is spent on them, takes each through pre-processing and
//! the model's queue on its own, and turns score rows into predictions. Every image has its own outcome: a bad one never
//! costs its neighbours. The service knows nothing of HTTP; it holds the models by name and is given them, running, by
//! the server's wiring.

mod cache;
mod error;
mod features;
mod predictions;
mod scores;
mod served;
mod statistics;
mod task;

use cache::ScoreCache;
pub use cache::Scored;
pub use error::{Code, Error};
pub use features::{Extracted, Extraction, FeaturePlan, FeaturesRequest};
pub use predictions::{Ask, Prediction, predict, probabilities, top};
pub use scores::{Scores, ScoresRequest};
pub use served::{Features, Plan, ServedModel};
pub use statistics::{Spent, Statistics};
pub use task::ImageTask;
use task::Sort;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::batch::{AdmitError, Permit};
use crate::fair_share::FairPool;
use crate::memory::MemoryGuard;
use crate::preprocess::{
    Class, Estimate, ImageError, ImageInfo, LineRefused, Origin, PrepareError, Preprocessor, Source, Transform,
};
use crate::runtime::RowOutputs;
use crate::telemetry::{Metrics, Stage};
use image::RgbImage;
use schemars::JsonSchema;
use serde::Serialize;

/// The models by name, and what all of them share.
#[derive(Debug)]
pub struct Service {
    models: BTreeMap<String, Arc<ServedModel>>,
    default: String,
    preprocessor: Preprocessor,
    /// Scores by file, if they are to be remembered.
    cache: Option<ScoreCache>,
    /// For feature maps, bytes.
    feature_memory: Arc<FairPool>,
    memory_guard: Option<Arc<MemoryGuard>>,
    metrics: Arc<Metrics>,
}

/// Images to be classified.
#[derive(Debug)]
pub struct ClassifyRequest {
    /// Whose scores.
    pub scores: ScoresRequest,
    /// Which predictions, for every image.
    pub ask: Ask,
}

/// What became of a [`ClassifyRequest`].
#[derive(Debug)]
pub struct Classified {
    /// The model that answered.
    pub model: Arc<ServedModel>,
    /// One outcome an image, in order.
    pub results: Vec<Result<ImageResult, Error>>,
    /// The longest that any image spent in each stage.
    pub times: Times,
}

/// The answer for one image.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct ImageResult {
    /// Most probable first.
    pub predictions: Vec<Prediction>,
    /// What was looked at.
    pub image: ImageInfo,
}

/// How an image is to be run.
#[derive(Clone, Copy)]
struct How<'a> {
    transform: &'a Arc<Transform>,
    sort: Option<&'a Sort>,
    origin: Origin,
}

/// An image that was run.
struct Ran {
    outputs: RowOutputs,
    /// What the network saw, if that is a picture.
    view: Option<Arc<RgbImage>>,
    info: ImageInfo,
}

/// Time spent in the stages that the service sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Header and pixels.
    pub decode: Duration,
    /// Resize, crop, normalisation.
    pub resize: Duration,
    /// Waiting for a worker.
    pub queue: Duration,
    /// The model.
    pub infer: Duration,
}

impl Times {
    fn longest(self, other: Self) -> Self {
        Self {
            decode: self.decode.max(other.decode),
            resize: self.resize.max(other.resize),
            queue: self.queue.max(other.queue),
            infer: self.infer.max(other.infer),
        }
    }
}

impl Service {
    /// A service over running models: the one that answers when a request names none, and others.
    #[must_use]
    pub fn new(
        default: ServedModel,
        others: Vec<ServedModel>,
        preprocessor: Preprocessor,
        metrics: Arc<Metrics>,
    ) -> Self {
        let id = default.manifest.id.clone();
        let all = std::iter::once(default).chain(others);
        let models = all.map(|m| (m.manifest.id.clone(), Arc::new(m))).collect();
        let feature_memory = FairPool::new(0, 1.0);
        Self { models, default: id, preprocessor, cache: None, feature_memory, memory_guard: None, metrics }
    }

    /// Lets feature maps of all requests take so many bytes, those of one client a fraction `share`; none until then.
    #[must_use]
    pub fn with_features(mut self, bytes: usize, share: f64) -> Self {
        self.feature_memory = FairPool::new(bytes, share);
        self
    }

    /// Refuses work while the process takes more memory than the guard allows.
    #[must_use]
    pub fn with_memory_guard(mut self, guard: Option<Arc<MemoryGuard>>) -> Self {
        self.memory_guard = guard;
        self
    }

    /// Remembers the scores of files, in so many bytes. The same file is then decoded and run once for as long as it is
    /// remembered, and once for all who ask at the same time.
    #[must_use]
    pub fn with_cache(mut self, bytes: u64) -> Self {
        let classes = self.models.values().map(|model| model.labels.len()).max().unwrap_or(1);
        self.cache = Some(ScoreCache::new(bytes, classes));
        self
    }

    /// The models served, by name.
    pub fn models(&self) -> impl Iterator<Item = &ServedModel> {
        self.models.values().map(AsRef::as_ref)
    }

    /// The name of the model that answers when a request names none.
    #[must_use]
    pub fn default_model(&self) -> &str {
        &self.default
    }

    /// A model by name, or the default.
    ///
    /// # Errors
    /// [`Error::UnknownModel`].
    pub fn model(&self, name: Option<&str>) -> Result<&Arc<ServedModel>, Error> {
        let name = name.unwrap_or(&self.default);
        self.models.get(name).ok_or_else(|| {
            let served = self.models.keys().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ");
            Error::UnknownModel { asked: name.chars().take(128).collect(), served }
        })
    }

    /// Whether every model has a worker that can take a batch.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.models.values().all(|model| model.is_ready())
    }

    /// Brings the metrics up to date that nobody changes when what they show changes.
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

    /// When there will be room again: by the longest backlog, in whole seconds.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        whole_seconds(self.models.values().map(|model| model.queue.backlog()).max().unwrap_or_default())
    }

    /// Admits no more and lets the workers end once their queues are empty.
    pub fn close(&self) {
        self.models.values().for_each(|model| model.queue.close());
    }

    /// Classifies images.
    ///
    /// # Errors
    /// The request as a whole cannot be served; or every image in it failed, and then this is the first one's error.
    pub async fn classify(&self, request: ClassifyRequest) -> Result<Classified, Error> {
        let ClassifyRequest { scores, ask } = request;
        let model = self.model(scores.model.as_deref())?;
        let classes = model.labels.len();
        if !(1..=classes).contains(&ask.top_k) {
            return Err(Error::TopK { classes, found: ask.top_k });
        }
        let Scores { model, rows, times } = self.scores(scores).await?;
        let predict = |scored: Arc<Scored>| ImageResult {
            predictions: predict(scored.scores.clone(), model.manifest.network.output, &model.labels, ask),
            image: scored.info,
        };
        let results = rows.into_iter().map(|row| row.map(predict)).collect();
        Ok(Classified { model, results, times })
    }

    fn count_image<O>(&self, model: &ServedModel, outcome: &Result<O, Error>) {
        let label = outcome.as_ref().map_or_else(|e| e.code().as_str(), |_| "ok");
        self.metrics.images_total.with_label_values(&[&model.manifest.id[..], label]).inc();
    }

    /// Takes one image through pre-processing and the model.
    async fn run_one(
        &self,
        model: &ServedModel,
        (source, estimate): (Source, Estimate),
        mut permit: Permit,
        how: How<'_>,
    ) -> Result<(Ran, Times), Error> {
        // An expensive image waits in a line of its own, where it keeps nobody from the cores and the model.
        permit.set_aside(estimate.class() != Class::Small);
        let prepared = self.preprocessor.run(how.transform, (source, estimate), how.origin);
        let prepared = match tokio::time::timeout_at(how.origin.deadline, prepared).await {
            Ok(Ok(prepared)) => prepared,
            Ok(Err(error)) => {
                permit.settle();
                return Err(self.not_prepared(model, error));
            }
            Err(_) => {
                permit.expire();
                return Err(Error::DeadlineExceeded);
            }
        };
        permit.set_aside(false);
        self.metrics.stage(Stage::Decode, prepared.decode);
        self.metrics.stage(Stage::Resize, prepared.resize);
        if prepared.class == Class::Small {
            model.queue.record_prepare(prepared.decode + prepared.resize);
        }
        let view = prepared.crop.pixels().cloned();
        let task = ImageTask { crop: prepared.crop, sort: how.sort.cloned() };
        let answer = model.queue.run(permit, task, how.origin.deadline).await?;
        let times =
            Times { decode: prepared.decode, resize: prepared.resize, queue: answer.queued, infer: answer.infer };
        Ok((Ran { outputs: answer.output, view, info: prepared.info }, times))
    }

    /// What becomes of an image that could not be prepared.
    fn not_prepared(&self, model: &ServedModel, error: PrepareError) -> Error {
        let (reason, error) = match error {
            PrepareError::Image(error) => {
                if matches!(error, ImageError::DecoderPanic(_)) {
                    self.metrics.decoder_panics_total.inc();
                }
                return error.into();
            }
            // As with the waiting time of others: the client may come again, or allow more time.
            PrepareError::Line(LineRefused::TooLate(time)) => {
                ("wait", Error::Overloaded { limit: "large images", retry_after: whole_seconds(time) })
            }
            PrepareError::Line(refused) => {
                let limit = match refused {
                    LineRefused::ClientShare => {
                        self.metrics.client_share_refusals_total.with_label_values(&["large_images"]).inc();
                        "large images from one client address"
                    }
                    _ => "large images",
                };
                ("images", Error::Overloaded { limit, retry_after: Duration::from_secs(1) })
            }
        };
        self.metrics.images_shed_total.with_label_values(&[&model.manifest.id[..], reason]).inc();
        error
    }

    /// Refuses new work while the process takes more memory than it may. With nothing in flight it is not refused: waiting would free
    /// nothing then.
    fn check_memory(&self, model: &ServedModel, images: usize) -> Result<(), Error> {
        let over = self.memory_guard.as_ref().is_some_and(|guard| guard.is_over());
        if !over || self.models.values().all(|model| model.queue.is_idle()) {
            return Ok(());
        }
        self.metrics.images_shed_total.with_label_values(&[&model.manifest.id[..], "memory"]).inc_by(images as u64);
        Err(Error::Overloaded { limit: "memory of the process", retry_after: Duration::from_secs(1) })
    }

    /// What becomes of a request whose images were not admitted.
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

/// Every image's outcome, and the longest that any spent in each stage; if all of them failed, the first one's error.
fn gather<O>(outcomes: Vec<Result<(O, Times), Error>>) -> Result<(Vec<Result<O, Error>>, Times), Error> {
    let mut times = Times::default();
    let results: Vec<_> = outcomes
        .into_iter()
        .map(|outcome| {
            outcome.map(|(result, spent)| {
                times = times.longest(spent);
                result
            })
        })
        .collect();
    match results.iter().find_map(|r| r.as_ref().err()) {
        Some(first) if results.iter().all(Result::is_err) => Err(first.clone()),
        _ => Ok((results, times)),
    }
}

/// `Retry-After` counts in seconds, and "0" would be an invitation to hammer.
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
