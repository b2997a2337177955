//! Feature maps, embeddings and attention: the same path as classification, with other outputs of the network.

use std::sync::Arc;

use futures::future::join_all;
use image::RgbImage;
use tokio::time::{Duration, Instant};
use tracing::Instrument;

use super::scores::{decode_time, is_large};
use super::{Ask, Error, How, Prediction, Ran, ServedModel, Service, Sort, Times, gather, predict, whole_seconds};
use crate::batch::{Demand, ONE_RUN};
use crate::cores::in_place;
use crate::fair_share::{Refused, Share};
use crate::model::Variant;
use crate::preprocess::{Estimate, Fit, Geometry, ImageInfo, Origin, PrepareError, Source, Transform};
use crate::runtime::{Claim, RowOutputs};
use crate::telemetry::spans;
use ghostserve_ghostnet::{Output, OutputShape, Size};

/// The smallest side of an input: below it, attention at the last stride has nothing to pool.
const MIN_SIDE: usize = 64;
/// What sides are multiples of: the largest stride.
const STRIDE: usize = 32;
/// The longest side, whatever the other is.
const MAX_SIDE: usize = 4096;

/// What writing a byte of a large answer takes: copied, converted, or as base64.
const ENCODE_BYTE: Duration = Duration::from_nanos(1);

/// What is wanted of every image.
#[derive(Clone, Debug)]
pub struct FeaturesRequest {
    /// Which model; the default one if `None`.
    pub model: Option<String>,
    /// Which maps or rows, each once.
    pub outputs: Vec<Output>,
    /// Height and width of the network's input; the model's own if `None`.
    pub size: Option<[usize; 2]>,
    /// How a photograph is fitted into it.
    pub fit: Fit,
    /// Predictions, too, from the same run.
    pub ask: Option<Ask>,
    /// Bytes that an element takes in the answer.
    pub element_bytes: usize,
    /// Whose images, whether somebody waits for the answer, and until when.
    pub origin: Origin,
}

/// A request that was found to be possible, before its images are there.
#[derive(Debug)]
pub struct FeaturePlan {
    /// The model that is going to answer.
    pub model: Arc<ServedModel>,
    /// Of each output asked for.
    pub shapes: Vec<OutputShape>,
    request: FeaturesRequest,
    sort: Sort,
    transform: Arc<Transform>,
    work: u64,
    /// Of a session that has to be made for it.
    claim: Option<Claim>,
    /// Of one image: its crop, what the model puts out, the answer.
    bytes: usize,
}

/// What became of a [`FeaturesRequest`].
#[derive(Debug)]
pub struct Extracted {
    /// One outcome an image, in order.
    pub results: Vec<Result<Extraction, Error>>,
    /// The longest that any image spent in each stage.
    pub times: Times,
    /// To be kept for as long as the maps, or an answer made of them, are in memory.
    pub memory: Share,
}

/// What was made of one image.
#[derive(Clone, Debug)]
pub struct Extraction {
    /// In the order in which they were asked for.
    pub outputs: RowOutputs,
    /// Most probable first, if they were asked for.
    pub predictions: Option<Vec<Prediction>>,
    /// What was looked at.
    pub image: ImageInfo,
    /// How the network's input shows it.
    pub geometry: Geometry,
    /// The network's input as a picture, if it is one.
    pub view: Option<Arc<RgbImage>>,
}

impl Service {
    /// Checks a request before its body is read.
    ///
    /// # Errors
    /// Something is asked for that the model does not have or that is past a limit, or there is no room.
    pub fn plan_features(&self, request: FeaturesRequest) -> Result<FeaturePlan, Error> {
        let model = Arc::clone(self.model(request.model.as_deref())?);
        let Some(features) = &model.features else {
            return Err(Error::NoFeatures { model: model.manifest.id.clone() });
        };
        if let Some(Ask { top_k, .. }) = request.ask
            && !(1..=model.labels.len()).contains(&top_k)
        {
            return Err(Error::TopK { classes: model.labels.len(), found: top_k });
        }
        let own = model.manifest.input.crop;
        let size @ [height, width] = request.size.unwrap_or(own);
        if size != own {
            check_size(size, features.limits.max_pixels)?;
        }
        let known = features.network.shapes(Size { height, width });
        let shapes = request.outputs.iter().map(|output| {
            known.of(*output).ok_or_else(|| Error::NoOutput {
                found: output.to_string(),
                known: names(&features.network.outputs(), *output),
            })
        });
        let shapes = shapes.collect::<Result<Vec<_>, _>>()?;

        let mut outputs = request.outputs.clone();
        outputs.extend(request.ask.map(|_| Output::Logits));
        let variant = Arc::new(Variant { input: size, outputs });
        let elements: usize = shapes.iter().map(OutputShape::elements).sum();
        let bytes = 3 * height * width + elements * (size_of::<f32>() + request.element_bytes);
        let pixels = |[height, width]: [usize; 2]| (height * width) as u64;
        let plan = FeaturePlan {
            shapes,
            work: (ONE_RUN * pixels(size)).div_ceil(pixels(own).max(1)),
            bytes,
            transform: Arc::new(model.transform.view(size, request.fit)),
            claim: features.variants.claim(&variant),
            sort: Sort { most_together: features.variants.most_together(&variant), variant },
            request,
            model: Arc::clone(&model),
        };
        check_bytes(&plan, 1, features.limits.max_bytes)?;
        self.check_memory(&model, 1)?;
        let would = model.queue.would_admit(plan.demand(1, None));
        would.map_err(|e| self.refused(&model, 1, e))?;
        Ok(plan)
    }

    /// Makes feature maps of images.
    ///
    /// # Errors
    /// The request as a whole cannot be served; or every image in it failed, and then this is the first one's error.
    pub async fn features(&self, plan: &FeaturePlan, images: Vec<Result<Source, Error>>) -> Result<Extracted, Error> {
        let (start, images_count) = (Instant::now(), images.len());
        let extracted = self.extract(plan, images).await;
        let outcome = extracted.as_ref().map(|extracted| (images_count, extracted.times));
        plan.model.features_statistics.record(start.elapsed(), outcome);
        extracted
    }

    async fn extract(&self, plan: &FeaturePlan, images: Vec<Result<Source, Error>>) -> Result<Extracted, Error> {
        let model = &plan.model;
        if images.is_empty() {
            return Err(Error::NoImages);
        }
        if !model.is_ready() {
            return Err(Error::NotReady);
        }
        let limit = model.features.as_ref().map_or(0, |features| features.limits.max_bytes);
        let bytes = check_bytes(plan, images.len(), limit)?;
        let origin = plan.request.origin;
        let memory = self.feature_memory.take(origin.client, bytes).map_err(|refused| {
            let limit = match refused {
                Refused::Full => "memory for feature maps",
                Refused::ClientShare => {
                    self.metrics.client_share_refusals_total.with_label_values(&["feature_bytes"]).inc();
                    "memory for feature maps from one client address"
                }
            };
            let shed = &self.metrics.images_shed_total;
            shed.with_label_values(&[&model.manifest.id[..], "memory"]).inc_by(images.len() as u64);
            Error::Overloaded { limit, retry_after: Duration::from_secs(1) }
        })?;
        let estimate = |source: Source| {
            let estimate = self.preprocessor.estimate(&plan.transform, &source);
            (source, estimate)
        };
        let large = is_large(&images);
        let images: Vec<Result<(Source, Estimate), Error>> =
            in_place(large, || images.into_iter().map(|image| image.map(estimate)).collect());
        let good = images.iter().filter_map(|image| image.as_ref().ok());
        let (to_do, decode) =
            good.fold((0, Duration::ZERO), |(count, sum), (_, estimate)| (count + 1, sum + decode_time(estimate)));
        let admitted = match to_do {
            0 => Ok(None),
            to_do => model.queue.admit(plan.demand(to_do, Some(decode))).map(Some),
        };
        let mut permits = admitted.map_err(|e| self.refused(model, to_do, e))?;

        let work = images.into_iter().enumerate().map(|(index, image)| {
            let permit = match (&image, &mut permits) {
                (Ok((_, estimate)), Some(permits)) => permits.split_one(decode_time(estimate)),
                _ => None,
            };
            async move {
                let outcome = match (image, permit) {
                    (Ok(image), Some(permit)) => {
                        let how = How { transform: &plan.transform, sort: Some(&plan.sort), origin };
                        self.run_one(model, image, permit, how).await
                    }
                    (Err(error), _) => Err(error),
                    // Admission gave one permit a file.
                    (Ok(_), None) => Err(Error::Internal),
                };
                self.count_image(model, &outcome);
                outcome.map(|(ran, times)| (plan.extraction(ran), times))
            }
            .instrument(spans::image(index))
        });
        let (results, times) = gather(join_all(work).await)?;
        Ok(Extracted { results, times, memory })
    }

    /// Runs what takes milliseconds, such as reading and writing large tensors, where it does not hold up the threads that serve
    /// connections. It waits for its turn as decoding an image of that cost does.
    ///
    /// # Errors
    /// It panicked, or its turn would come too late.
    pub async fn off_the_runtime<O: Send + 'static>(
        &self,
        origin: Origin,
        cost: Duration,
        work: impl FnOnce() -> O + Send + 'static,
    ) -> Result<O, Error> {
        let done = tokio::time::timeout_at(origin.deadline, self.preprocessor.run_work(origin, cost, work)).await;
        done.map_err(|_| Error::DeadlineExceeded)?.map_err(|error| match error {
            PrepareError::Image(_) => Error::Internal,
            PrepareError::Line(_) => Error::Overloaded {
                limit: "large requests",
                retry_after: whole_seconds(origin.deadline - Instant::now()),
            },
        })
    }
}

impl FeaturePlan {
    /// What was asked for.
    #[must_use]
    pub fn request(&self) -> &FeaturesRequest {
        &self.request
    }

    /// What writing the answer for so many images takes.
    #[must_use]
    pub fn encode_cost(&self, images: usize) -> Duration {
        ENCODE_BYTE * u32::try_from(self.bytes.saturating_mul(images)).unwrap_or(u32::MAX)
    }

    /// Of the network's input.
    #[must_use]
    pub fn size(&self) -> Size {
        let [height, width] = self.sort.variant.input;
        Size { height, width }
    }

    fn extraction(&self, ran: Ran) -> Extraction {
        let scores = |ask| {
            let row = ran.outputs.data(self.request.outputs.len()).to_vec();
            predict(row, self.model.manifest.network.output, &self.model.labels, ask)
        };
        Extraction {
            predictions: self.request.ask.map(scores),
            geometry: self.transform.geometry(ran.info.width, ran.info.height),
            image: ran.info,
            view: ran.view,
            outputs: ran.outputs,
        }
    }

    fn demand(&self, images: usize, decode: Option<Duration>) -> Demand {
        let Origin { priority, client, deadline } = self.request.origin;
        Demand { images, decode, work: self.work, opens: self.claim.is_some(), priority, client, deadline }
    }
}

fn check_size([height, width]: [usize; 2], max_pixels: usize) -> Result<(), Error> {
    if [height, width].iter().any(|side| *side < MIN_SIDE || side % STRIDE != 0) {
        return Err(Error::Size { height, width, multiple: STRIDE, least: MIN_SIDE });
    }
    if height.max(width) > MAX_SIDE || height * width > max_pixels {
        return Err(Error::FeaturesTooLarge(format!(
            "an input of {width}x{height} is more than the {max_pixels} pixels accepted; ask for a smaller `size`"
        )));
    }
    Ok(())
}

fn check_bytes(plan: &FeaturePlan, images: usize, limit: usize) -> Result<usize, Error> {
    match plan.bytes.saturating_mul(images) {
        bytes if bytes <= limit => Ok(bytes),
        bytes => Err(Error::FeaturesTooLarge(format!(
            "{images} images of {} bytes each, with what is made of them, are more than the {limit} bytes accepted \
             ({bytes}); ask for fewer `levels`, a smaller `size`, `dtype=f16`, or send fewer images",
            plan.bytes
        ))),
    }
}

/// The outputs of the same kind as one, for people.
fn names(known: &[Output], like: Output) -> String {
    let same = |output: &&Output| match (like, output) {
        (Output::Features { cut: wanted, .. }, Output::Features { cut, .. }) => wanted == *cut,
        (
            Output::Attention { .. } | Output::OutputAttention { .. },
            Output::Attention { .. } | Output::OutputAttention { .. },
        ) => true,
        _ => false,
    };
    let names: Vec<_> = known.iter().filter(same).map(ToString::to_string).collect();
    if names.is_empty() { "none of the kind".to_owned() } else { names.join(", ") }
}
