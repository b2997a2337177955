//! The use cases: what a handler of any protocol calls, once.
//!
//! [`Service::classify`] admits a request's images before anything is spent on them, takes each through pre-processing and
//! the model's queue on its own, and turns score rows into predictions. Every image has its own outcome: a bad one never
//! costs its neighbours. The service knows nothing of HTTP; it holds the models by name and is given them, running, by
//! the server's wiring.

mod error;

pub use error::{Code, Error};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use serde::Serialize;
use tokio::time::Instant;

use crate::batch::{AdmitError, Permit, Queue, WorkerState};
use crate::ghostnet::Cost;
use crate::manifest::{Label, Manifest, OutputKind};
use crate::preprocess::{ImageError, ImageInfo, Preprocessor, Transform};
use crate::telemetry::{Metrics, Stage};

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
    pub queue: Arc<Queue>,
    /// The workers, to be asked for their readiness.
    pub workers: Vec<Arc<WorkerState>>,
}

/// How a model is run on this machine.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// What computes.
    pub provider: &'static str,
    /// The form of the graph: `blocked`, `plain`, or `as given` by a foreign file.
    pub graph: &'static str,
    /// The runtime's version.
    pub onnxruntime: String,
    /// Sessions that run at the same time.
    pub workers: usize,
    /// Threads of each.
    pub threads_per_worker: usize,
    /// Images that a run takes at most.
    pub max_batch: usize,
    /// Images admitted at most: being decoded, waiting and running.
    pub max_images_in_flight: usize,
}

impl ServedModel {
    fn is_ready(&self) -> bool {
        self.workers.iter().any(|worker| worker.is_ready())
    }
}

/// The models by name, and what all of them share.
#[derive(Debug)]
pub struct Service {
    models: BTreeMap<String, Arc<ServedModel>>,
    default: String,
    preprocessor: Preprocessor,
    metrics: Arc<Metrics>,
}

/// Images to be classified.
#[derive(Debug)]
pub struct ClassifyRequest {
    /// Which model; the default one if `None`.
    pub model: Option<String>,
    /// Image files, in the order of the answers. What could not even be read from the request stays in its place.
    pub images: Vec<Result<Bytes, Error>>,
    /// Which predictions, for every image.
    pub ask: Ask,
    /// When the client no longer wants an answer.
    pub deadline: Instant,
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
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ImageResult {
    /// Most probable first.
    pub predictions: Vec<Prediction>,
    /// What was looked at.
    pub image: ImageInfo,
}

/// A class and how probable it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Index of the output.
    pub class: usize,
    /// Its label.
    #[serde(flatten)]
    pub label: Label,
    /// Between 0 and 1; those of all classes sum to 1.
    pub probability: f32,
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
        Self { models, default: id, preprocessor, metrics }
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
        let model = Arc::clone(self.model(request.model.as_deref())?);
        let classes = model.labels.len();
        if !(1..=classes).contains(&request.ask.top_k) {
            return Err(Error::TopK { classes, found: request.ask.top_k });
        }
        if request.images.is_empty() {
            return Err(Error::NoImages);
        }
        if !model.is_ready() {
            return Err(Error::NotReady);
        }
        let mut permit = model.queue.admit(request.images.len()).map_err(|e| self.refused(&model, e))?;

        let (ask, deadline) = (request.ask, request.deadline);
        let images = request.images.into_iter().map(|image| {
            let permit = permit.split_one();
            let model = &model;
            async move {
                let outcome = match (image, permit) {
                    (Ok(file), Some(permit)) => {
                        self.score_one(model, file, permit, deadline).await.map(|(scores, info, times)| {
                            let predictions = predict(scores, model.manifest.network.output, &model.labels, ask);
                            (ImageResult { predictions, image: info }, times)
                        })
                    }
                    (Err(error), _) => Err(error),
                    // Admission gave one permit an image.
                    (Ok(_), None) => Err(Error::Internal),
                };
                let label = outcome.as_ref().map_or_else(|e| e.code().as_str(), |_| "ok");
                self.metrics.images_total.with_label_values(&[&model.manifest.id[..], label]).inc();
                outcome
            }
        });
        let outcomes = join_all(images).await;

        let mut times = Times::default();
        let mut results = Vec::with_capacity(outcomes.len());
        for outcome in outcomes {
            results.push(outcome.map(|(result, spent)| {
                times = times.longest(spent);
                result
            }));
        }
        match results.iter().find_map(|r| r.as_ref().err()) {
            Some(first) if results.iter().all(Result::is_err) => Err(first.clone()),
            _ => Ok(Classified { model, results, times }),
        }
    }

    /// The scores of one image.
    async fn score_one(
        &self,
        model: &ServedModel,
        file: Bytes,
        permit: Permit,
        deadline: Instant,
    ) -> Result<(Vec<f32>, ImageInfo, Times), Error> {
        let prepared = tokio::time::timeout_at(deadline, self.preprocessor.run(&model.transform, file));
        let prepared = match prepared.await.map_err(|_| Error::DeadlineExceeded)? {
            Err(error @ ImageError::DecoderPanic(_)) => {
                self.metrics.decoder_panics_total.inc();
                return Err(error.into());
            }
            other => other?,
        };
        self.metrics.stage(Stage::Decode, prepared.decode);
        self.metrics.stage(Stage::Resize, prepared.resize);
        let answer = model.queue.run(permit, prepared.row, deadline).await?;
        let times =
            Times { decode: prepared.decode, resize: prepared.resize, queue: answer.queued, infer: answer.infer };
        Ok((answer.output, prepared.info, times))
    }

    fn refused(&self, model: &ServedModel, error: AdmitError) -> Error {
        match error {
            AdmitError::Full => {
                Error::Overloaded { limit: "images in flight", retry_after: whole_seconds(model.queue.backlog()) }
            }
            AdmitError::Closed => Error::Draining,
        }
    }
}

/// Which predictions are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// At most so many.
    pub top_k: usize,
    /// None below this probability.
    pub min_confidence: f32,
}

/// `Retry-After` counts in seconds, and "0" would be an invitation to hammer.
fn whole_seconds(wait: Duration) -> Duration {
    Duration::from_secs(wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(Duration::from_secs(1))
}

/// Turns a row of scores into the `top_k` most probable classes that have at least `min_confidence`.
#[must_use]
pub fn predict(mut scores: Vec<f32>, kind: OutputKind, labels: &[Label], ask: Ask) -> Vec<Prediction> {
    if kind == OutputKind::Logits {
        softmax(&mut scores);
    }
    top(&scores, ask.top_k, ask.min_confidence)
        .into_iter()
        .map(|class| Prediction { class, label: labels[class].clone(), probability: scores[class] })
        .collect()
}

/// Turns logits into probabilities, in place.
fn softmax(scores: &mut [f32]) {
    // The largest becomes exp(0): nothing overflows.
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|s| *s = (*s - largest).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|s| *s /= sum);
}

/// The indices of the `k` highest scores that are at least `least`, highest first; equal ones in the order of classes.
#[must_use]
pub fn top(scores: &[f32], k: usize, least: f32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).filter(|&i| scores[i] >= least).collect();
    let descending = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    if k < order.len() {
        order.select_nth_unstable_by(k, descending);
        order.truncate(k);
    }
    order.sort_unstable_by(descending);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_sums_to_one_even_for_huge_logits() {
        let mut scores = vec![1000.0, 999.0, -1000.0];
        softmax(&mut scores);
        assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((scores[0] - 0.731_058_6).abs() < 1e-6, "{scores:?}");
    }

    #[test]
    fn the_best_come_first_and_ties_in_class_order() {
        let scores = [0.1, 0.4, 0.1, 0.4];
        assert_eq!(top(&scores, 3, 0.0), [1, 3, 0]);
        assert_eq!(top(&scores, 4, 0.2), [1, 3]);
        assert_eq!(top(&scores, 9, 0.0), [1, 3, 0, 2]);
    }

    #[test]
    fn retry_after_is_whole_seconds_and_never_zero() {
        for (millis, seconds) in [(0, 1), (900, 1), (1000, 1), (1001, 2)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), Duration::from_secs(seconds));
        }
    }
}
