//! The scores of images: the cache, admission, and the way through pre-processing and the queue.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;
use tracing::Instrument;

use super::cache::{CacheKey, CacheOutcome, ScoreCache, Scored};
use super::run::{EstimatedImage, RunOptions, are_large, collect_outcomes};
use super::{ClassifyPlan, Error, ServedModel, Service, StageTimes};
use crate::batch::{AdmissionRequest, ONE_RUN, Permit};
use crate::cores::run_in_place;
use crate::preprocess::{RequestContext, Source};
use crate::telemetry::spans;

/// The scores of a request's images.
#[derive(Debug)]
pub struct Scores {
    /// One outcome per image, in order.
    pub rows: Vec<Result<Arc<Scored>, Error>>,
    /// The longest that any image spent in each stage.
    pub times: StageTimes,
}

/// One image of a request after the lookup in the cache, before any work.
enum ImageLookup {
    /// The model has to run.
    Run(ImageToRun),
    /// Its scores are in the cache.
    Cached(Arc<Scored>),
    /// It could not be read from the request.
    Unreadable(Error),
}

/// An image for which the model has to run.
struct ImageToRun {
    image: EstimatedImage,
    /// Where its scores go in the cache, if there is one.
    key: Option<CacheKey>,
}

/// The demand of images that a model classifies.
fn demand(images: usize, decode: Option<Duration>, context: RequestContext) -> AdmissionRequest {
    let RequestContext { priority, client, deadline } = context;
    AdmissionRequest { images, decode, work: ONE_RUN, opens: false, priority, client, deadline }
}

impl Service {
    /// Whether one image for a model would be admitted now. A handler asks before it reads a body: reading a body in
    /// order to refuse it costs other requests more than the refusal. It is no promise that the images will be
    /// admitted.
    ///
    /// # Errors
    /// The refusal of [`Service::scores`].
    pub fn would_admit(&self, model: &ServedModel, context: RequestContext) -> Result<(), Error> {
        if self.cache.is_some() {
            // Whether the request needs a permit depends on its images.
            return Ok(());
        }
        self.check_memory(model, 1)?;
        model.queue.would_admit(demand(1, None, context)).map_err(|e| self.refused(model, 1, e))
    }

    /// Whether so many images would be shed now. Unlike [`Service::would_admit`] this counts nothing as refused: it
    /// is for requests that wait instead.
    #[must_use]
    pub fn is_full(&self, plan: &ClassifyPlan, images: usize) -> bool {
        use crate::batch::AdmitError::{Full, WaitTooLong};
        matches!(plan.model.queue.would_admit(demand(images, None, plan.context)), Err(Full | WaitTooLong(_)))
    }

    /// Computes the scores of images.
    ///
    /// # Errors
    /// The request as a whole cannot be served; or every image in it failed, and then this is the first one's error.
    pub async fn scores(&self, plan: &ClassifyPlan, images: Vec<Result<Source, Error>>) -> Result<Scores, Error> {
        let (start, image_count) = (Instant::now(), images.len());
        let scores = self.score_images(plan, images).await;
        let outcome = scores.as_ref().map(|scores| (image_count, scores.times));
        plan.model.statistics.record(start.elapsed(), outcome);
        scores
    }

    async fn score_images(&self, plan: &ClassifyPlan, images: Vec<Result<Source, Error>>) -> Result<Scores, Error> {
        let model = &plan.model;
        if images.is_empty() {
            return Err(Error::NoImages);
        }
        if !model.is_ready() {
            return Err(Error::NotReady);
        }
        // Headers are read, and files are hashed for the cache.
        let large = are_large(&images);
        let look_up = || images.into_iter().map(|image| self.look_up(model, image)).collect();
        let images: Vec<ImageLookup> = run_in_place(large, look_up);
        let estimates = images.iter().filter_map(|image| match image {
            ImageLookup::Run(ImageToRun { image, .. }) => Some(image.decode_time()),
            _ => None,
        });
        let (to_run, decode) = estimates.fold((0, Duration::ZERO), |(count, sum), one| (count + 1, sum + one));
        let mut permits = match to_run {
            0 => None,
            to_run => {
                let admitted = model.queue.admit(demand(to_run, Some(decode), plan.context));
                Some(admitted.map_err(|e| self.refused(model, to_run, e))?)
            }
        };
        let images = images.into_iter().enumerate().map(|(index, image)| {
            let permit = match (&image, &mut permits) {
                (ImageLookup::Run(ImageToRun { image, .. }), Some(permits)) => permits.split_one(image.decode_time()),
                _ => None,
            };
            async move {
                let outcome = match (image, permit) {
                    (ImageLookup::Run(image), Some(permit)) => self.score_cached(plan, image, permit).await,
                    (ImageLookup::Cached(scored), _) => Ok((scored, StageTimes::default())),
                    (ImageLookup::Unreadable(error), _) => Err(error),
                    // Admission gave one permit per image.
                    (ImageLookup::Run(_), None) => Err(Error::Internal),
                };
                self.count_image(model, &outcome);
                outcome
            }
            .instrument(spans::image(index))
        });
        let (rows, times) = collect_outcomes(join_all(images).await)?;
        Ok(Scores { rows, times })
    }

    /// Looks an image up in the cache, and estimates what its decoding costs.
    fn look_up(&self, model: &ServedModel, image: Result<Source, Error>) -> ImageLookup {
        let source = match image {
            Ok(source) => source,
            Err(error) => return ImageLookup::Unreadable(error),
        };
        // Only files are remembered: a client that sends tensors is not expected to send the same one again.
        let key = match (&self.cache, &source) {
            (Some(cache), Source::File(file)) => {
                let key = ScoreCache::key(&model.digest, &model.manifest.input, file);
                if let Some(scored) = cache.get(&key) {
                    self.count_lookup(model, CacheOutcome::Hit);
                    return ImageLookup::Cached(scored);
                }
                Some(key)
            }
            _ => None,
        };
        let estimate = self.preprocessor.estimate(&model.transform, &source);
        ImageLookup::Run(ImageToRun { image: EstimatedImage { source, estimate }, key })
    }

    /// Computes the scores of one image, at most once for all requests that have the same file at the same time.
    async fn score_cached(
        &self,
        plan: &ClassifyPlan,
        image: ImageToRun,
        mut permit: Permit,
    ) -> Result<(Arc<Scored>, StageTimes), Error> {
        let ImageToRun { image, key } = image;
        let (Some(cache), Some(key)) = (&self.cache, key) else {
            let (scored, times) = self.score_one(plan, image, permit).await?;
            return Ok((Arc::new(scored), times));
        };
        let mut times = StageTimes::default();
        // A request that waits for another's computation has no work in progress: if it leaves, nothing counts as
        // dropped.
        permit.settle();
        let compute = async {
            permit.begin();
            let (scored, spent) = self.score_one(plan, image, permit).await?;
            times = spent;
            Ok(scored)
        };
        let scored = tokio::time::timeout_at(plan.context.deadline, cache.get_or(&key, compute)).await;
        let (scored, outcome) = scored.unwrap_or(Err(Error::DeadlineExceeded))?;
        self.count_lookup(&plan.model, outcome);
        Ok((scored, times))
    }

    fn count_lookup(&self, model: &ServedModel, outcome: CacheOutcome) {
        self.metrics.response_cache_total.with_label_values(&[&model.manifest.id[..], outcome.name()]).inc();
    }

    /// Computes the scores of one image.
    async fn score_one(
        &self,
        plan: &ClassifyPlan,
        image: EstimatedImage,
        permit: Permit,
    ) -> Result<(Scored, StageTimes), Error> {
        let options = RunOptions { transform: &plan.model.transform, variant: None, context: plan.context };
        let (output, times) = self.run_one(&plan.model, image, permit, options).await?;
        Ok((Scored { scores: output.outputs.data(0).to_vec(), info: output.info }, times))
    }
}
