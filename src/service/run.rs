//! One image on its way through pre-processing and the model, and other work on the cores.

use std::sync::Arc;
use std::time::Duration;

use image::RgbImage;
use tokio::time::Instant;

use super::task::VariantTask;
use super::{Error, ImageTask, ServedModel, Service, whole_seconds};
use crate::batch::Permit;
use crate::preprocess::{
    CostClass, Estimate, ImageError, ImageInfo, PrepareError, QueueRejection, RequestContext, Source, Transform,
};
use crate::runtime::RowOutputs;
use crate::telemetry::Stage;

/// Bytes of images from which on looking at all of them (headers, hashes) takes a substantial part of a millisecond.
/// The thread that does it then hands its other connections over first.
const LARGE_REQUEST: usize = 256 << 10;

/// An image, and what its decoding is expected to cost.
pub(super) struct EstimatedImage {
    pub(super) source: Source,
    pub(super) estimate: Estimate,
}

/// How one image is run.
#[derive(Clone, Copy)]
pub(super) struct RunOptions<'a> {
    pub(super) transform: &'a Arc<Transform>,
    /// The graph and its batch size; the classifier if `None`.
    pub(super) variant: Option<&'a VariantTask>,
    pub(super) context: RequestContext,
}

/// The model's outputs for one image.
pub(super) struct RunOutput {
    pub(super) outputs: RowOutputs,
    /// The model's input as 8-bit pixels, if it was made of pixels.
    pub(super) view: Option<Arc<RgbImage>>,
    pub(super) info: ImageInfo,
}

/// Time spent in the stages that the service runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// Header and pixels.
    pub decode: Duration,
    /// Resize, crop, normalisation.
    pub resize: Duration,
    /// Waiting for a worker.
    pub queue: Duration,
    /// The model.
    pub infer: Duration,
}

impl StageTimes {
    fn longest(self, other: Self) -> Self {
        Self {
            decode: self.decode.max(other.decode),
            resize: self.resize.max(other.resize),
            queue: self.queue.max(other.queue),
            infer: self.infer.max(other.infer),
        }
    }
}

impl EstimatedImage {
    /// How long its decoding occupies the cores that other images need. Expensive images only use cores that are idle.
    pub(super) fn decode_time(&self) -> Duration {
        if self.estimate.class() == CostClass::Small { self.estimate.time() } else { Duration::ZERO }
    }
}

/// Whether images have more than [`LARGE_REQUEST`] bytes together.
pub(super) fn are_large(images: &[Result<Source, Error>]) -> bool {
    images.iter().flatten().map(Source::len).sum::<usize>() > LARGE_REQUEST
}

/// Separates the outcomes of a request's images from their times, and takes the longest time of each stage. If every
/// image failed, the request fails with the first one's error.
pub(super) fn collect_outcomes<O>(
    outcomes: Vec<Result<(O, StageTimes), Error>>,
) -> Result<(Vec<Result<O, Error>>, StageTimes), Error> {
    let mut times = StageTimes::default();
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

impl Service {
    /// Runs work that takes milliseconds, such as parsing and encoding large tensors, on a core that decodes images:
    /// it does not hold up the threads that serve connections. It waits for its turn as an image of that cost does.
    ///
    /// # Errors
    /// The work panicked, or its turn would come too late.
    pub async fn run_on_core<O: Send + 'static>(
        &self,
        context: RequestContext,
        cost: Duration,
        work: impl FnOnce() -> O + Send + 'static,
    ) -> Result<O, Error> {
        let done = tokio::time::timeout_at(context.deadline, self.preprocessor.run_work(context, cost, work)).await;
        done.map_err(|_| Error::DeadlineExceeded)?.map_err(|error| match error {
            PrepareError::Image(_) => Error::Internal,
            PrepareError::Rejected(_) => Error::Overloaded {
                limit: "large requests",
                retry_after: whole_seconds(context.deadline - Instant::now()),
            },
        })
    }

    pub(super) fn count_image<O>(&self, model: &ServedModel, outcome: &Result<O, Error>) {
        let label = outcome.as_ref().map_or_else(|e| e.code().as_str(), |_| "ok");
        self.metrics.images_total.with_label_values(&[&model.manifest.id[..], label]).inc();
    }

    /// Takes one image through pre-processing and the model.
    pub(super) async fn run_one(
        &self,
        model: &ServedModel,
        image: EstimatedImage,
        mut permit: Permit,
        options: RunOptions<'_>,
    ) -> Result<(RunOutput, StageTimes), Error> {
        let deadline = options.context.deadline;
        // An expensive image waits in a queue for such images. There it keeps no other image from the cores and the
        // model.
        permit.set_aside(image.estimate.class() != CostClass::Small);
        let prepared = self.preprocessor.run(options.transform, image.source, image.estimate, options.context);
        let prepared = match tokio::time::timeout_at(deadline, prepared).await {
            Ok(Ok(prepared)) => prepared,
            Ok(Err(error)) => {
                permit.settle();
                return Err(self.decode_error(model, error));
            }
            Err(_) => {
                permit.expire();
                return Err(Error::DeadlineExceeded);
            }
        };
        permit.set_aside(false);
        self.metrics.record_stage(Stage::Decode, prepared.decode);
        self.metrics.record_stage(Stage::Resize, prepared.resize);
        if prepared.class == CostClass::Small {
            model.queue.record_decode(prepared.decode + prepared.resize);
        }
        let view = prepared.crop.pixels().cloned();
        let task = ImageTask { crop: prepared.crop, variant: options.variant.cloned() };
        let answer = model.queue.run(permit, task, deadline).await?;
        let times =
            StageTimes { decode: prepared.decode, resize: prepared.resize, queue: answer.queued, infer: answer.infer };
        Ok((RunOutput { outputs: answer.output, view, info: prepared.info }, times))
    }

    /// The error of an image that could not be decoded, counted.
    fn decode_error(&self, model: &ServedModel, error: PrepareError) -> Error {
        let (reason, error) = match error {
            PrepareError::Image(error) => {
                if matches!(error, ImageError::DecoderPanic(_)) {
                    self.metrics.decoder_panics_total.inc();
                }
                return error.into();
            }
            // As for other waits that are too long: the client may try again, or allow more time.
            PrepareError::Rejected(QueueRejection::TooLate(time)) => {
                ("wait", Error::Overloaded { limit: "large images", retry_after: whole_seconds(time) })
            }
            PrepareError::Rejected(refused) => {
                let limit = match refused {
                    QueueRejection::ClientShare => {
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
}
