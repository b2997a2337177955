//! Feature maps, embeddings and attention: the same path as classification, with other outputs of the network.

use std::sync::Arc;

use futures::future::join_all;
use image::RgbImage;
use tokio::time::{Duration, Instant};
use tracing::Instrument;

use super::run::{EstimatedImage, RunOptions, RunOutput, are_large, collect_outcomes};
use super::task::VariantTask;
use super::{Error, Prediction, PredictionOptions, ServedModel, Service, StageTimes, predict};
use crate::batch::{AdmissionRequest, ONE_RUN};
use crate::cores::run_in_place;
use crate::fair_share::{PoolRejection, Share};
use crate::model::Variant;
use crate::preprocess::{Fit, Geometry, ImageInfo, RequestContext, Source, Transform};
use crate::runtime::{Claim, RowOutputs};
use crate::telemetry::spans;
use ghostserve_ghostnet::{Output, OutputShape, Size};

/// The smallest side of an input: below it, attention at the last stride has nothing to pool.
pub(super) const MIN_SIDE: usize = 64;
/// Sides are multiples of the largest stride.
pub(super) const STRIDE: usize = 32;
/// The longest side, whatever the other is.
pub(super) const MAX_SIDE: usize = 4096;

/// Time for encoding one byte of a large answer: it is copied, converted, or written as base64.
const ENCODE_BYTE: Duration = Duration::from_nanos(1);

/// The outputs that a request wants of every image.
#[derive(Clone, Debug)]
pub struct FeaturesRequest {
    /// The model, which the handler has looked up.
    pub model: Arc<ServedModel>,
    /// The maps or rows, each once.
    pub outputs: Vec<Output>,
    /// Height and width of the network's input; the model's own if `None`.
    pub size: Option<[usize; 2]>,
    /// How an image is fitted into the input.
    pub fit: Fit,
    /// Which predictions from the same run; none if `None`.
    pub predictions: Option<PredictionOptions>,
    /// Bytes of an element in the answer.
    pub element_bytes: usize,
    /// Client, priority and deadline.
    pub context: RequestContext,
}

/// A request for features that is possible. It is made before the images are there.
#[derive(Debug)]
pub struct FeaturePlan {
    /// The shapes of the requested outputs, in the same order.
    pub shapes: Vec<OutputShape>,
    request: FeaturesRequest,
    task: VariantTask,
    transform: Arc<Transform>,
    work: u64,
    /// Of a session that has to be opened for it.
    claim: Option<Claim>,
    /// Bytes per image: its crop, the model's outputs, the answer.
    bytes: usize,
}

/// The answer to a request for features.
#[derive(Debug)]
pub struct Extracted {
    /// One outcome per image, in order.
    pub results: Vec<Result<Extraction, Error>>,
    /// The longest that any image spent in each stage.
    pub times: StageTimes,
    /// The memory of the maps. It is dropped when neither the maps nor an answer that is made of them are in memory
    /// any more.
    pub memory: Share,
}

/// The features of one image.
#[derive(Clone, Debug)]
pub struct Extraction {
    /// The outputs, in the order of the request.
    pub outputs: RowOutputs,
    /// Most probable first, if they were requested.
    pub predictions: Option<Vec<Prediction>>,
    /// The image.
    pub image: ImageInfo,
    /// How the network's input shows it.
    pub geometry: Geometry,
    /// The network's input as 8-bit pixels, if it was made of pixels.
    pub view: Option<Arc<RgbImage>>,
}

impl Service {
    /// Plans a request for features: checks it, and whether one image would be admitted, before its body is read.
    ///
    /// # Errors
    /// The model does not have an output, a limit is exceeded, or there is no capacity.
    pub fn plan_features(&self, request: FeaturesRequest) -> Result<FeaturePlan, Error> {
        let model = Arc::clone(&request.model);
        let Some(features) = &model.features else {
            return Err(Error::NoFeatures { model: model.manifest.id.clone() });
        };
        if let Some(PredictionOptions { top_k, .. }) = request.predictions
            && !(1..=model.labels.len()).contains(&top_k)
        {
            return Err(Error::TopK { classes: model.labels.len(), found: top_k });
        }
        let own = model.manifest.input.crop;
        let size @ [height, width] = request.size.unwrap_or(own);
        if size != own {
            check_size(size, features.limits.max_feature_pixels)?;
        }
        let known = features.network.shapes(Size { height, width });
        let shapes = request.outputs.iter().map(|output| {
            known.of(*output).ok_or_else(|| Error::NoOutput {
                found: output.to_string(),
                known: names_of_kind(&features.network.outputs(), *output),
            })
        });
        let shapes = shapes.collect::<Result<Vec<_>, _>>()?;

        let mut outputs = request.outputs.clone();
        outputs.extend(request.predictions.map(|_| Output::Logits));
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
            task: VariantTask { max_batch: features.variants.max_batch(&variant), variant },
            request,
        };
        check_bytes(&plan, 1, features.limits.max_feature_bytes)?;
        self.check_memory(&model, 1)?;
        let admission = model.queue.would_admit(plan.demand(1, None));
        admission.map_err(|e| self.refused(&model, 1, e))?;
        Ok(plan)
    }

    /// Computes feature maps of images, given in the order of the results. An image that could not be read from the
    /// request keeps its position as an error.
    ///
    /// # Errors
    /// The request as a whole cannot be served; or every image in it failed, and then this is the first one's error.
    pub async fn features(&self, plan: &FeaturePlan, images: Vec<Result<Source, Error>>) -> Result<Extracted, Error> {
        let (start, image_count) = (Instant::now(), images.len());
        let extracted = self.extract(plan, images).await;
        let outcome = extracted.as_ref().map(|extracted| (image_count, extracted.times));
        plan.model().features_statistics.record(start.elapsed(), outcome);
        extracted
    }

    async fn extract(&self, plan: &FeaturePlan, images: Vec<Result<Source, Error>>) -> Result<Extracted, Error> {
        let model = plan.model();
        if images.is_empty() {
            return Err(Error::NoImages);
        }
        if !model.is_ready() {
            return Err(Error::NotReady);
        }
        let memory = self.acquire_feature_memory(plan, images.len())?;
        let estimate = |source: Source| {
            let estimate = self.preprocessor.estimate(&plan.transform, &source);
            EstimatedImage { source, estimate }
        };
        let large = are_large(&images);
        let images: Vec<Result<EstimatedImage, Error>> =
            run_in_place(large, || images.into_iter().map(|image| image.map(estimate)).collect());
        let readable = images.iter().filter_map(|image| image.as_ref().ok());
        let (to_run, decode) =
            readable.fold((0, Duration::ZERO), |(count, sum), image| (count + 1, sum + image.decode_time()));
        let admitted = match to_run {
            0 => Ok(None),
            to_run => model.queue.admit(plan.demand(to_run, Some(decode))).map(Some),
        };
        let mut permits = admitted.map_err(|e| self.refused(model, to_run, e))?;

        let work = images.into_iter().enumerate().map(|(index, image)| {
            let permit = match (&image, &mut permits) {
                (Ok(image), Some(permits)) => permits.split_one(image.decode_time()),
                _ => None,
            };
            async move {
                let outcome = match (image, permit) {
                    (Ok(image), Some(permit)) => {
                        let (transform, context) = (&plan.transform, plan.request.context);
                        let options = RunOptions { transform, variant: Some(&plan.task), context };
                        self.run_one(model, image, permit, options).await
                    }
                    (Err(error), _) => Err(error),
                    // Admission gave one permit per image.
                    (Ok(_), None) => Err(Error::Internal),
                };
                self.count_image(model, &outcome);
                outcome.map(|(output, times)| (plan.extraction(output), times))
            }
            .instrument(spans::image(index))
        });
        let (results, times) = collect_outcomes(join_all(work).await)?;
        Ok(Extracted { results, times, memory })
    }

    /// Acquires the memory of so many images and of what is made of them.
    fn acquire_feature_memory(&self, plan: &FeaturePlan, images: usize) -> Result<Share, Error> {
        let model = plan.model();
        let limit = model.features.as_ref().map_or(0, |features| features.limits.max_feature_bytes);
        let bytes = check_bytes(plan, images, limit)?;
        self.feature_memory.acquire(plan.request.context.client, bytes).map_err(|rejection| {
            let limit = match rejection {
                PoolRejection::Full => "memory for feature maps",
                PoolRejection::ClientShare => {
                    self.metrics.client_share_refusals_total.with_label_values(&["feature_bytes"]).inc();
                    "memory for feature maps from one client address"
                }
            };
            let shed = &self.metrics.images_shed_total;
            shed.with_label_values(&[&model.manifest.id[..], "memory"]).inc_by(images as u64);
            Error::Overloaded { limit, retry_after: Duration::from_secs(1) }
        })
    }
}

impl FeaturePlan {
    /// The model that answers.
    #[must_use]
    pub fn model(&self) -> &Arc<ServedModel> {
        &self.request.model
    }

    /// The request.
    #[must_use]
    pub fn request(&self) -> &FeaturesRequest {
        &self.request
    }

    /// Bytes of the tensors in an answer about so many images.
    #[must_use]
    pub fn tensor_bytes(&self, images: usize) -> usize {
        let elements: usize = self.shapes.iter().map(OutputShape::elements).sum();
        elements * self.request.element_bytes * images
    }

    /// Time for encoding the answer about so many images.
    #[must_use]
    pub fn encode_cost(&self, images: usize) -> Duration {
        ENCODE_BYTE * u32::try_from(self.bytes.saturating_mul(images)).unwrap_or(u32::MAX)
    }

    /// The size of the network's input.
    #[must_use]
    pub fn size(&self) -> Size {
        let [height, width] = self.task.variant.input;
        Size { height, width }
    }

    fn extraction(&self, output: RunOutput) -> Extraction {
        let model = self.model();
        let predictions = |options| {
            let row = output.outputs.data(self.request.outputs.len()).to_vec();
            predict(row, model.manifest.network.output, &model.labels, options)
        };
        Extraction {
            predictions: self.request.predictions.map(predictions),
            geometry: self.transform.geometry(output.info.width, output.info.height),
            image: output.info,
            view: output.view,
            outputs: output.outputs,
        }
    }

    fn demand(&self, images: usize, decode: Option<Duration>) -> AdmissionRequest {
        let RequestContext { priority, client, deadline } = self.request.context;
        AdmissionRequest { images, decode, work: self.work, opens: self.claim.is_some(), priority, client, deadline }
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

/// The bytes of so many images and of what is made of them, if they are within the limit.
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

/// The names of the outputs of the same kind as `like`, for a message.
fn names_of_kind(known: &[Output], like: Output) -> String {
    let same_kind = |output: &&Output| match (like, output) {
        (Output::Features { cut: requested, .. }, Output::Features { cut, .. }) => requested == *cut,
        (
            Output::Attention { .. } | Output::OutputAttention { .. },
            Output::Attention { .. } | Output::OutputAttention { .. },
        ) => true,
        _ => false,
    };
    let names: Vec<_> = known.iter().filter(same_kind).map(ToString::to_string).collect();
    if names.is_empty() { "none of the kind".to_owned() } else { names.join(", ") }
}
