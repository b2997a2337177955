//! Runs pre-processing on the available cores, within a bounded amount of decoded pixels.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{Instrument, Span};

use super::cpu::thread_time;
use super::decode::probe_within;
use super::estimate::{CostClass, CostModel, LARGE_BYTES, SMALL_TIME};
use super::expensive::{ExpensiveQueue, QueueRejection, run_on_thread};
use super::source::{accept_pixels, check_tensor};
use super::{Crop, Estimate, ImageError, ImageInfo, ImageLimits, Pixels, Source, Transform, decode};
use crate::cores::{Cores, Niceness, Priority, Rank, Work, lower_priority};
use crate::fair_share::{Client, FairPool};
use crate::telemetry::{Stage, spans};

/// Bounds of pre-processing.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Maximum number of bytes of decoded pixels in memory at once, over all requests. At least the largest accepted
    /// image.
    pub max_decoded_bytes: u64,
    /// Limits on one image.
    pub limits: ImageLimits,
    /// Maximum number of expensive images that wait or are decoded; a quarter of that for large images.
    pub max_waiting_images: usize,
    /// Maximum time that an expensive image waits, unless it takes long itself.
    pub max_wait: Duration,
    /// Maximum fraction of the large images that one client may have in the queue while it is alone.
    pub max_client_share: f64,
}

impl Default for PoolConfig {
    /// Only the limits on a single image: for one image at a time.
    fn default() -> Self {
        let limits = ImageLimits::default();
        Self {
            max_decoded_bytes: u64::MAX,
            limits,
            max_waiting_images: 1,
            max_wait: Duration::MAX,
            max_client_share: 1.0,
        }
    }
}

/// An image ready for the network.
#[derive(Debug)]
pub struct PreparedImage {
    /// The part of the image that the network sees.
    pub crop: Crop,
    /// Facts about the original image.
    pub info: ImageInfo,
    /// Time spent on header and pixels.
    pub decode: Duration,
    /// Time spent on resize and crop.
    pub resize: Duration,
    /// The class in which the image was decoded.
    pub class: CostClass,
}

/// Pre-processing for all models. Its bounds are those of the machine and not of a model.
#[derive(Clone, Debug)]
pub struct Preprocessor {
    limits: ImageLimits,
    cores: Arc<Cores>,
    cost_model: Arc<CostModel>,
    medium: Arc<ExpensiveQueue>,
    large: Arc<ExpensiveQueue>,
    /// Maximum time that an image waits in a queue, unless it takes long itself.
    max_wait: Duration,
    /// Memory for images that are not large, so that large images do not keep them waiting for memory.
    memory: PixelMemory,
    large_memory: PixelMemory,
}

/// A budget of memory for decoded pixels.
#[derive(Clone, Debug)]
struct PixelMemory {
    kibibytes: Arc<Semaphore>,
    total: u32,
}

impl PixelMemory {
    fn new(bytes: u64) -> Self {
        let total = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).max(1);
        Self { kibibytes: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Converts bytes to kibibytes, at most the total: a request for more would wait forever.
    fn kibibytes(&self, bytes: u64) -> u32 {
        bytes.div_ceil(1024).min(self.total.into()) as u32
    }

    fn try_acquire(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.kibibytes).try_acquire_many_owned(self.kibibytes(bytes)).ok()
    }

    async fn acquire(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        // The semaphores are never closed.
        Arc::clone(&self.kibibytes).acquire_many_owned(self.kibibytes(bytes)).await.ok()
    }
}

/// The request that an image belongs to.
#[derive(Clone, Copy, Debug)]
pub struct RequestContext {
    /// Priority of the request.
    pub priority: Priority,
    /// The client that the image's cost is accounted to.
    pub client: Client,
    /// Time at which the client no longer needs the answer.
    pub deadline: tokio::time::Instant,
}

/// The reason why an image was not prepared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image is expensive and its queue rejected it.
    #[error("there is no room for another large image")]
    Rejected(QueueRejection),
}

/// An image to decode.
#[derive(Clone, Copy)]
struct DecodeJob<'a> {
    transform: &'a Arc<Transform>,
    source: &'a Source,
    estimate: Estimate,
    context: RequestContext,
}

/// The permits that an image has.
struct DecodePermits {
    memory: Option<OwnedSemaphorePermit>,
    /// The class in which the image is decoded.
    class: CostClass,
}

/// The outcome of one attempt to decode an image.
enum DecodeOutcome {
    Done(Result<PreparedImage, ImageError>),
    /// The image needs this many bytes of memory first. Nothing has been decoded.
    NeedsMemory(u64),
    /// The image turned out to be large and moves to the queue of large images, because it takes too much memory or too
    /// much time.
    IsLarge {
        is_too_slow: bool,
    },
}

impl Preprocessor {
    /// Creates a pool with the given bounds. It runs on the tokio runtime that calls [`Preprocessor::run`].
    #[must_use]
    pub fn new(config: PoolConfig, cores: Arc<Cores>) -> Self {
        let small_bytes = config.max_decoded_bytes / 4;
        let capacity = FairPool::new(config.max_waiting_images.max(1), 1.0);
        // Large images wait longest. The rest of the capacity is for images that do not, and a part of this capacity is
        // kept for other clients.
        let large_capacity = FairPool::new((config.max_waiting_images / 4).max(1), config.max_client_share);
        let (all, half) = (cores.total(), cores.total().div_ceil(2));
        Self {
            limits: config.limits,
            // A server may get only photographs from phones: they use all cores that no other work needs.
            medium: ExpensiveQueue::new(all, all, &capacity),
            large: ExpensiveQueue::new(half, half.div_ceil(2), &large_capacity),
            max_wait: config.max_wait,
            cores,
            cost_model: Arc::default(),
            memory: PixelMemory::new(small_bytes),
            large_memory: PixelMemory::new(config.max_decoded_bytes - small_bytes),
        }
    }

    /// The cores on which the pool runs.
    #[must_use]
    pub fn cores(&self) -> &Arc<Cores> {
        &self.cores
    }

    /// Estimates the cost of an image by its header.
    #[must_use]
    pub fn estimate(&self, transform: &Transform, source: &Source) -> Estimate {
        self.cost_model.estimate(transform, source, self.limits)
    }

    /// Decodes one image and applies `transform`. Waits for a core, and for memory if there is not enough. An expensive
    /// image waits for its client's turn. If the caller stops waiting, its resources are released.
    ///
    /// # Errors
    /// The image cannot be used, or is large and cannot be decoded in time.
    pub async fn run(
        &self,
        transform: &Arc<Transform>,
        source: Source,
        estimate: Estimate,
        context: RequestContext,
    ) -> Result<PreparedImage, PrepareError> {
        if let Source::Tensor { width, height, values } = source {
            return Ok(accept_tensor(transform, width, height, values)?);
        }
        let job = DecodeJob { transform, source: &source, estimate, context };
        let mut class = estimate.class();
        let mut is_too_slow = false;
        if class == CostClass::Small {
            let mut permits = DecodePermits { memory: None, class };
            loop {
                let rank = Rank { priority: context.priority, work: Work::Decode };
                let core = self.cores.acquire_for(rank, context.client, estimate.time());
                let core = core.instrument(spans::wait_for_core()).await;
                let task = self.decode_task(job, permits);
                let outcome = tokio::task::spawn_blocking(move || {
                    let _core = core;
                    lower_priority(Niceness::COMPUTE);
                    task()
                });
                // Decoders have a panic guard of their own, so a panic here is an internal error.
                match outcome.await.map_err(|_| ImageError::Internal)? {
                    DecodeOutcome::Done(result) => return Ok(result?),
                    // The core is released while the image waits for memory.
                    DecodeOutcome::NeedsMemory(bytes) => {
                        permits = DecodePermits { memory: self.memory.acquire(bytes).await, class };
                    }
                    DecodeOutcome::IsLarge { is_too_slow: slow } => {
                        is_too_slow = slow;
                        break;
                    }
                }
            }
            class = CostClass::Large;
        }
        if class == CostClass::Medium {
            match self.run_in_queue(job, class, estimate.time()).await? {
                Some(prepared) => return Ok(prepared),
                None => class = CostClass::Large,
            }
            is_too_slow = true;
        }
        // An image that took longer than its estimate counts with the time that it has already taken.
        let cost = if is_too_slow { estimate.time().max(estimate.limit(CostClass::Small)) } else { estimate.time() };
        let prepared = self.run_in_queue(job, class, cost).await?;
        prepared.ok_or(ImageError::Internal.into())
    }

    /// Decodes an expensive image when it is its client's turn. `None` if it belongs in the queue of large images.
    async fn run_in_queue(
        &self,
        job: DecodeJob<'_>,
        class: CostClass,
        cost: Duration,
    ) -> Result<Option<PreparedImage>, PrepareError> {
        let DecodeJob { context, .. } = job;
        let (queue, memory, niceness) = match class {
            CostClass::Large => (&self.large, &self.large_memory, Niceness::LARGE),
            _ => (&self.medium, &self.memory, Niceness::MEDIUM),
        };
        // A client whose image takes half a second expects to wait for some seconds.
        let max_wait = self.max_wait.max(8 * cost);
        let entry = queue.enter(context.client, cost, max_wait, context.deadline).map_err(PrepareError::Rejected)?;
        let mut permits = DecodePermits { memory: None, class };
        loop {
            let slot = entry.slot().instrument(spans::wait_for_core()).await;
            let task = self.decode_task(job, permits);
            let outcome = run_on_thread(niceness, move || {
                let _slot = slot;
                task()
            });
            match outcome.await.ok_or(ImageError::Internal)? {
                DecodeOutcome::Done(result) => return Ok(Some(result?)),
                DecodeOutcome::NeedsMemory(bytes) => {
                    permits = DecodePermits { memory: memory.acquire(bytes).await, class };
                }
                DecodeOutcome::IsLarge { .. } => return Ok(None),
            }
        }
    }

    /// Runs other work of a client as an image of the same cost would be decoded.
    ///
    /// # Errors
    /// The work panicked, or it is expensive and its queue rejected it.
    pub async fn run_work<O: Send + 'static>(
        &self,
        context: RequestContext,
        cost: Duration,
        work: impl FnOnce() -> O + Send + 'static,
    ) -> Result<O, PrepareError> {
        if cost > SMALL_TIME {
            // The work belongs to an admitted request: it may wait as long as the request may.
            let entry = self.medium.enter(context.client, cost, Duration::MAX, context.deadline);
            let entry = entry.map_err(PrepareError::Rejected)?;
            let slot = entry.slot().await;
            let run = move || {
                let _slot = slot;
                work()
            };
            return run_on_thread(Niceness::MEDIUM, run).await.ok_or(ImageError::Internal.into());
        }
        let rank = Rank { priority: context.priority, work: Work::Decode };
        let core = self.cores.acquire_for(rank, context.client, cost).await;
        let run = tokio::task::spawn_blocking(move || {
            let _core = core;
            lower_priority(Niceness::COMPUTE);
            work()
        });
        Ok(run.await.map_err(|_| ImageError::Internal)?)
    }

    /// Returns the work on an image, for the thread that decodes it.
    fn decode_task(
        &self,
        job: DecodeJob<'_>,
        permits: DecodePermits,
    ) -> impl FnOnce() -> DecodeOutcome + Send + 'static {
        let DecodeJob { estimate, context, .. } = job;
        let (this, transform, source) = (self.clone(), Arc::clone(job.transform), job.source.clone());
        let span = Span::current();
        move || {
            let _span = span.entered();
            let (start, class) = (thread_time(), permits.class);
            let outcome = this.try_decode(&transform, &source, estimate, permits);
            let took = thread_time().saturating_sub(start);
            let is_measurement = match &outcome {
                DecodeOutcome::Done(Ok(_)) | DecodeOutcome::IsLarge { is_too_slow: true } => true,
                // A rejected header does not show how long decoding takes. Damage that is found late does.
                DecodeOutcome::Done(Err(_)) => took > estimate.time(),
                DecodeOutcome::NeedsMemory(_) | DecodeOutcome::IsLarge { is_too_slow: false } => false,
            };
            if is_measurement {
                this.cost_model.record(&estimate, took);
            }
            if class == CostClass::Small {
                // A client whose images take longer than their estimates waits longer.
                this.cores.charge(context.client, took.saturating_sub(estimate.time()));
            }
            outcome
        }
    }

    /// Decodes an image file as [`Preprocessor::run`] does, on the calling thread and outside tokio.
    ///
    /// # Errors
    /// The image cannot be used, or another thread has the memory that it needs.
    pub fn run_sync(&self, transform: &Arc<Transform>, file: &[u8]) -> Result<PreparedImage, ImageError> {
        let source = Source::File(Bytes::copy_from_slice(file));
        let estimate = self.estimate(transform, &source);
        let permits = DecodePermits { memory: None, class: CostClass::Large };
        match self.try_decode(transform, &source, estimate, permits) {
            DecodeOutcome::Done(result) => result,
            DecodeOutcome::NeedsMemory(_) | DecodeOutcome::IsLarge { .. } => Err(ImageError::Internal),
        }
    }

    fn try_decode(
        &self,
        transform: &Arc<Transform>,
        source: &Source,
        estimate: Estimate,
        permits: DecodePermits,
    ) -> DecodeOutcome {
        let class = permits.class;
        let outcome = match source {
            Source::File(file) => match probe_within(file, self.limits, estimate.limit(class)) {
                Ok(image) => {
                    let info = image.info();
                    let image = image.reduce(transform.scale(info.width, info.height));
                    self.decode_within_memory(transform, permits, info, image.decoded_bytes(), || decode(image))
                }
                Err(error) => DecodeOutcome::Done(Err(error)),
            },
            Source::Pixels { width, height, rgb } => {
                let info = ImageInfo { format: None, width: *width, height: *height };
                let get_pixels = || accept_pixels(*width, *height, rgb, self.limits);
                self.decode_within_memory(transform, permits, info, rgb.len() as u64, get_pixels)
            }
            Source::Tensor { width, height, values } => {
                DecodeOutcome::Done(accept_tensor(transform, *width, *height, values.clone()))
            }
        };
        match outcome {
            // A large image may take more time.
            DecodeOutcome::Done(Err(ImageError::TooSlow(_))) if class != CostClass::Large => {
                DecodeOutcome::IsLarge { is_too_slow: true }
            }
            outcome => outcome,
        }
    }

    /// Gets the pixels of an image from `get_pixels`, which takes `bytes` of memory, if there are permits for these.
    fn decode_within_memory(
        &self,
        transform: &Arc<Transform>,
        permits: DecodePermits,
        info: ImageInfo,
        bytes: u64,
        get_pixels: impl FnOnce() -> Result<Pixels, ImageError>,
    ) -> DecodeOutcome {
        let start = Instant::now();
        let class = permits.class;
        let is_large = class == CostClass::Large;
        if !is_large && bytes > LARGE_BYTES {
            return DecodeOutcome::IsLarge { is_too_slow: false };
        }
        let memory = if is_large { &self.large_memory } else { &self.memory };
        let Some(_permit) = permits.memory.or_else(|| memory.try_acquire(bytes)) else {
            return DecodeOutcome::NeedsMemory(bytes);
        };
        DecodeOutcome::Done(spans::stage(Stage::Decode).in_scope(get_pixels).map(|pixels| {
            let decoded = Instant::now();
            let crop = spans::stage(Stage::Resize).in_scope(|| Crop::new(transform, &pixels));
            PreparedImage { crop, info, decode: decoded - start, resize: decoded.elapsed(), class }
        }))
    }
}

/// Takes a tensor that the client prepared.
fn accept_tensor(
    transform: &Arc<Transform>,
    width: u32,
    height: u32,
    values: Bytes,
) -> Result<PreparedImage, ImageError> {
    check_tensor(width, height, &values, transform.size())?;
    let info = ImageInfo { format: None, width, height };
    let crop = Crop::from_tensor(transform, values);
    Ok(PreparedImage { crop, info, decode: Duration::ZERO, resize: Duration::ZERO, class: CostClass::Small })
}
