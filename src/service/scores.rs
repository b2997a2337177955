//! The scores of images: admission, the cache, and the way through pre-processing and the queue.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;
use tracing::Instrument;

use super::cache::{Key, Lookup, ScoreCache, Scored};
use super::{Error, How, ServedModel, Service, Times, gather};
use crate::batch::{Demand, ONE_RUN, Permit};
use crate::cores::in_place;
use crate::preprocess::{Class, Estimate, Origin, Source};
use crate::telemetry::spans;

/// Images whose scores are wanted.
#[derive(Debug)]
pub struct ScoresRequest {
    /// Which model; the default one if `None`.
    pub model: Option<String>,
    /// In the order of the answers. What could not even be read from the request stays in its place.
    pub images: Vec<Result<Source, Error>>,
    /// Whose images, whether somebody waits for the answer, and until when.
    pub origin: Origin,
}

/// What became of a [`ScoresRequest`].
#[derive(Debug)]
pub struct Scores {
    /// The model that answered.
    pub model: Arc<ServedModel>,
    /// One outcome an image, in order.
    pub rows: Vec<Result<Arc<Scored>, Error>>,
    /// The longest that any image spent in each stage.
    pub times: Times,
}

/// One image of a request, before any work.
enum Asked {
    /// To be run; with its key if scores are remembered.
    New(Source, Estimate, Option<Key>),
    /// Its scores are remembered.
    Known(Arc<Scored>),
    /// It could not be read from the request.
    Unreadable(Error),
}

fn demand(images: usize, decode: Option<Duration>, origin: Origin) -> Demand {
    let Origin { priority, client, deadline } = origin;
    Demand { images, decode, work: ONE_RUN, opens: false, priority, client, deadline }
}

/// What an image's decoding keeps the cores busy for: expensive ones get what others leave.
pub(super) fn decode_time(estimate: &Estimate) -> Duration {
    if estimate.class() == Class::Small { estimate.time() } else { Duration::ZERO }
}

/// Whether images are so long together that looking at all of their bytes takes milliseconds.
pub(super) fn is_large(images: &[Result<Source, Error>]) -> bool {
    images.iter().flatten().map(Source::len).sum::<usize>() > 256 << 10
}

impl Service {
    /// Whether images would be admitted at this moment: to be asked before a body is read. That they were does not say that
    /// they will be.
    ///
    /// # Errors
    /// What [`Service::scores`] would fail with.
    pub fn would_admit(&self, model: Option<&str>, origin: Origin) -> Result<(), Error> {
        let model = self.model(model)?;
        if self.cache.is_some() {
            // Whether it needs to be admitted depends on what is in it.
            return Ok(());
        }
        self.check_memory(model, 1)?;
        model.queue.would_admit(demand(1, None, origin)).map_err(|e| self.refused(model, 1, e))
    }

    /// Whether so many images would be shed at this moment. Unlike [`Service::would_admit`] nothing is counted as refused: this
    /// is for those who can wait instead.
    #[must_use]
    pub fn is_full(&self, model: &ServedModel, images: usize, origin: Origin) -> bool {
        use crate::batch::AdmitError::{Full, WaitTooLong};
        matches!(model.queue.would_admit(demand(images, None, origin)), Err(Full | WaitTooLong(_)))
    }

    /// The scores of images, as the model puts them out.
    ///
    /// # Errors
    /// The request as a whole cannot be served; or every image in it failed, and then this is the first one's error.
    pub async fn scores(&self, request: ScoresRequest) -> Result<Scores, Error> {
        let model = Arc::clone(self.model(request.model.as_deref())?);
        let (start, images) = (Instant::now(), request.images.len());
        let scored = self.score(&model, request).await;
        model.statistics.record(start.elapsed(), scored.as_ref().map(|(_, times)| (images, *times)));
        let (rows, times) = scored?;
        Ok(Scores { model, rows, times })
    }

    async fn score(
        &self,
        model: &ServedModel,
        request: ScoresRequest,
    ) -> Result<(Vec<Result<Arc<Scored>, Error>>, Times), Error> {
        if request.images.is_empty() {
            return Err(Error::NoImages);
        }
        if !model.is_ready() {
            return Err(Error::NotReady);
        }
        let origin = request.origin;
        // Headers are gone over, and files are hashed for the cache.
        let large = is_large(&request.images);
        let ask = || request.images.into_iter().map(|image| self.ask(model, image)).collect();
        let images: Vec<Asked> = in_place(large, ask);
        let estimates = images.iter().filter_map(|image| match image {
            Asked::New(_, estimate, _) => Some(decode_time(estimate)),
            _ => None,
        });
        let (to_do, decode) = estimates.fold((0, Duration::ZERO), |(count, sum), one| (count + 1, sum + one));
        let mut permit = match to_do {
            0 => None,
            to_do => {
                let admitted = model.queue.admit(demand(to_do, Some(decode), origin));
                Some(admitted.map_err(|e| self.refused(model, to_do, e))?)
            }
        };
        let images = images.into_iter().enumerate().map(|(index, image)| {
            let permit = match (&image, &mut permit) {
                (Asked::New(_, estimate, _), Some(permit)) => permit.split_one(decode_time(estimate)),
                _ => None,
            };
            async move {
                let outcome = match (image, permit) {
                    (Asked::New(source, estimate, key), Some(permit)) => {
                        self.score_cached(model, ((source, estimate), key), permit, origin).await
                    }
                    (Asked::Known(scored), _) => Ok((scored, Times::default())),
                    (Asked::Unreadable(error), _) => Err(error),
                    // Admission gave one permit an image.
                    (Asked::New(..), None) => Err(Error::Internal),
                };
                self.count_image(model, &outcome);
                outcome
            }
            .instrument(spans::image(index))
        });
        gather(join_all(images).await)
    }

    /// What one image of a request asks for.
    fn ask(&self, model: &ServedModel, image: Result<Source, Error>) -> Asked {
        let source = match image {
            Ok(source) => source,
            Err(error) => return Asked::Unreadable(error),
        };
        // Whoever sends tensors has prepared them; they are not expected to come again.
        let key = match (&self.cache, &source) {
            (Some(cache), Source::File(file)) => {
                let key = ScoreCache::key(&model.manifest, file);
                if let Some(scored) = cache.get(&key) {
                    self.count(model, Lookup::Hit);
                    return Asked::Known(scored);
                }
                Some(key)
            }
            _ => None,
        };
        let estimate = self.preprocessor.estimate(&model.transform, &source);
        Asked::New(source, estimate, key)
    }

    /// The scores of one image, made at most once for all who ask for them at the same time.
    async fn score_cached(
        &self,
        model: &ServedModel,
        (image, key): ((Source, Estimate), Option<Key>),
        mut permit: Permit,
        origin: Origin,
    ) -> Result<(Arc<Scored>, Times), Error> {
        let (Some(cache), Some(key)) = (&self.cache, key) else {
            let (scored, times) = self.score_one(model, image, permit, origin).await?;
            return Ok((Arc::new(scored), times));
        };
        let mut times = Times::default();
        // Who only waits for another's work has nothing dropped when he leaves.
        permit.settle();
        let make = async {
            permit.begin();
            let (scored, spent) = self.score_one(model, image, permit, origin).await?;
            times = spent;
            Ok(scored)
        };
        let scored = tokio::time::timeout_at(origin.deadline, cache.get_or(&key, make)).await;
        let (scored, lookup) = scored.unwrap_or(Err(Error::DeadlineExceeded))?;
        self.count(model, lookup);
        Ok((scored, times))
    }

    fn count(&self, model: &ServedModel, lookup: Lookup) {
        self.metrics.response_cache_total.with_label_values(&[&model.manifest.id[..], lookup.name()]).inc();
    }

    /// The scores of one image.
    async fn score_one(
        &self,
        model: &ServedModel,
        image: (Source, Estimate),
        permit: Permit,
        origin: Origin,
    ) -> Result<(Scored, Times), Error> {
        let how = How { transform: &model.transform, sort: None, origin };
        let (ran, times) = self.run_one(model, image, permit, how).await?;
        Ok((Scored { scores: ran.outputs.data(0).to_vec(), info: ran.info }, times))
    }
}
