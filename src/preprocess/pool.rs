//! Runs pre-processing on the cores that it is given, within a bounded amount of decoded pixels.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{Instrument, Span};

use super::cpu::thread_time;
use super::decode::probe_within;
use super::estimate::{Class, Costs, LARGE_BYTES, SMALL_TIME};
use super::line::{Line, LineRefused, Niceness, on_a_thread};
use super::source::{check_values, pixels};
use super::{Crop, Estimate, ImageError, ImageInfo, ImageLimits, Pixels, Source, Transform, decode};
use crate::cores::{Cores, Priority, Rank, Work, give_way};
use crate::fair_share::{Client, FairPool};
use crate::telemetry::{Stage, spans};

/// The pool's bounds.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Bytes of decoded pixels held at once, over all requests. At least the largest image accepted.
    pub max_decoded_bytes: u64,
    /// What one image may be.
    pub limits: ImageLimits,
    /// Expensive images that wait or are decoded; a quarter of as many large ones.
    pub max_waiting_images: usize,
    /// The longest that one waits, unless it takes long itself.
    pub max_wait: Duration,
    /// Fraction of the places for large ones that one client has while it is alone.
    pub max_client_share: f64,
}

impl Default for PoolConfig {
    /// No bounds but those of a single image: for one image at a time.
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
pub struct Prepared {
    /// The part of it that the network sees.
    pub crop: Crop,
    /// What it was.
    pub info: ImageInfo,
    /// Time spent on header and pixels.
    pub decode: Duration,
    /// Time spent on resize and crop.
    pub resize: Duration,
    /// The line in which it was decoded.
    pub class: Class,
}

/// Pre-processing for every model: the bounds are the machine's, not a model's.
#[derive(Clone, Debug)]
pub struct Preprocessor {
    limits: ImageLimits,
    cores: Arc<Cores>,
    costs: Arc<Costs>,
    medium: Arc<Line>,
    large: Arc<Line>,
    /// The longest that an image waits in a line, unless it takes long itself.
    max_wait: Duration,
    /// For images that are not large: those that are must not keep them waiting for memory.
    memory: Memory,
    large_memory: Memory,
}

/// Decoded pixels that may be in memory.
#[derive(Clone, Debug)]
struct Memory {
    kibibytes: Arc<Semaphore>,
    all: u32,
}

impl Memory {
    fn new(bytes: u64) -> Self {
        let all = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).max(1);
        Self { kibibytes: Arc::new(Semaphore::new(all as usize)), all }
    }

    /// Never more than there is, or it would be waited for in vain.
    fn kibibytes(&self, bytes: u64) -> u32 {
        bytes.div_ceil(1024).min(self.all.into()) as u32
    }
}

/// Whose image it is, and when it is no longer wanted.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Whether somebody waits for it.
    pub priority: Priority,
    /// Whose turn it takes if it is large.
    pub client: Client,
    /// When it is no longer wanted.
    pub deadline: tokio::time::Instant,
}

/// Why an image was not prepared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    /// It cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// It is expensive, and there is no room for it in its line.
    #[error("there is no room for another large image")]
    Line(LineRefused),
}

/// What an image must have before it is decoded.
struct Permits {
    memory: Option<OwnedSemaphorePermit>,
    /// The line that it is decoded in.
    class: Class,
}

/// What came of trying.
enum Attempt {
    Done(Result<Prepared, ImageError>),
    /// It needs so much memory first; nothing has been decoded.
    NeedsMemory(u64),
    /// It turned out to be large, and goes to their line: because it takes so much memory, or because it took too long.
    IsLarge {
        too_slow: bool,
    },
}

impl Preprocessor {
    /// A pool with the given bounds. Runs on the tokio runtime of whoever calls [`Preprocessor::run`].
    #[must_use]
    pub fn new(config: PoolConfig, cores: Arc<Cores>) -> Self {
        let small = config.max_decoded_bytes / 4;
        let places = FairPool::new(config.max_waiting_images.max(1), 1.0);
        // They wait longest: the rest of the places is for images that do not, and other clients have a part of these.
        let large_places = FairPool::new((config.max_waiting_images / 4).max(1), config.max_client_share);
        let (all, half) = (cores.total(), cores.total().div_ceil(2));
        Self {
            limits: config.limits,
            // Photographs from phones may be all that a server gets: they have all cores if nobody else needs them.
            medium: Line::new(all, all, &places),
            large: Line::new(half, half.div_ceil(2), &large_places),
            max_wait: config.max_wait,
            cores,
            costs: Arc::default(),
            memory: Memory::new(small),
            large_memory: Memory::new(config.max_decoded_bytes - small),
        }
    }

    /// The cores it runs on.
    #[must_use]
    pub fn cores(&self) -> &Arc<Cores> {
        &self.cores
    }

    /// What an image will cost, by its header.
    #[must_use]
    pub fn estimate(&self, transform: &Transform, source: &Source) -> Estimate {
        self.costs.estimate(transform, source, self.limits)
    }

    /// Decodes one image and takes it through `transform`. Waits for a core, and for memory if there is not enough; an expensive one
    /// waits for its client's turn. A caller that stops waiting takes nothing with it.
    ///
    /// # Errors
    /// The image cannot be used, or is large and cannot be decoded in time.
    pub async fn run(
        &self,
        transform: &Arc<Transform>,
        (source, estimate): (Source, Estimate),
        origin: Origin,
    ) -> Result<Prepared, PrepareError> {
        if let Source::Values { width, height, values } = source {
            return Ok(given(transform, (width, height), values)?);
        }
        let mut class = estimate.class();
        let mut too_slow = false;
        if class == Class::Small {
            let mut permits = Permits { memory: None, class };
            loop {
                let rank = Rank { priority: origin.priority, work: Work::Prepare };
                let core = self.cores.take_for(rank, origin.client, estimate.time());
                let core = core.instrument(spans::wait_for_core()).await;
                let attempt = self.task(transform, (&source, estimate), permits, origin.client);
                let work = tokio::task::spawn_blocking(move || {
                    let _core = core;
                    give_way();
                    attempt()
                });
                // Decoders are behind a guard of their own; what fails here is ours.
                match work.await.map_err(|_| ImageError::Internal)? {
                    Attempt::Done(result) => return Ok(result?),
                    // Without a core in hand: others have work for it.
                    Attempt::NeedsMemory(bytes) => {
                        permits = Permits { memory: self.memory.acquire(bytes).await, class };
                    }
                    Attempt::IsLarge { too_slow: slow } => {
                        too_slow = slow;
                        break;
                    }
                }
            }
            class = Class::Large;
        }
        if class == Class::Medium {
            match self.run_in_line(transform, (&source, estimate), (class, estimate.time()), origin).await? {
                Some(prepared) => return Ok(prepared),
                None => class = Class::Large,
            }
            too_slow = true;
        }
        // An image that was not as cheap as it looked is not believed again.
        let cost = if too_slow { estimate.time().max(estimate.limit(Class::Small)) } else { estimate.time() };
        let prepared = self.run_in_line(transform, (&source, estimate), (class, cost), origin).await?;
        prepared.ok_or(ImageError::Internal.into())
    }

    /// Decodes an expensive image when it is its client's turn; `None` if it belongs in the next line.
    async fn run_in_line(
        &self,
        transform: &Arc<Transform>,
        image: (&Source, Estimate),
        (class, cost): (Class, Duration),
        origin: Origin,
    ) -> Result<Option<Prepared>, PrepareError> {
        let large = class == Class::Large;
        let (line, memory) = if large { (&self.large, &self.large_memory) } else { (&self.medium, &self.memory) };
        // Whoever sends what takes half a second expects to wait for some seconds.
        let longest = self.max_wait.max(8 * cost);
        let ticket = line.enter(origin.client, cost, (longest, origin.deadline)).map_err(PrepareError::Line)?;
        let mut permits = Permits { memory: None, class };
        loop {
            let slot = ticket.turn().instrument(spans::wait_for_core()).await;
            let attempt = self.task(transform, image, permits, origin.client);
            let niceness = if large { Niceness::LARGE } else { Niceness::MEDIUM };
            let work = on_a_thread(niceness, move || {
                let _slot = slot;
                attempt()
            });
            match work.await.ok_or(ImageError::Internal)? {
                Attempt::Done(result) => return Ok(Some(result?)),
                Attempt::NeedsMemory(bytes) => permits = Permits { memory: memory.acquire(bytes).await, class },
                Attempt::IsLarge { .. } => return Ok(None),
            }
        }
    }

    /// Runs other work of a client, of some cost, where an image of that cost would be decoded.
    ///
    /// # Errors
    /// It panicked, or is expensive and there is no room for it in its line.
    pub async fn run_work<O: Send + 'static>(
        &self,
        origin: Origin,
        cost: Duration,
        work: impl FnOnce() -> O + Send + 'static,
    ) -> Result<O, PrepareError> {
        if cost > SMALL_TIME {
            // It belongs to a request that was admitted: it waits for as long as that does.
            let patience = (Duration::MAX, origin.deadline);
            let ticket = self.medium.enter(origin.client, cost, patience).map_err(PrepareError::Line)?;
            let slot = ticket.turn().await;
            let run = move || {
                let _slot = slot;
                work()
            };
            return on_a_thread(Niceness::MEDIUM, run).await.ok_or(ImageError::Internal.into());
        }
        let rank = Rank { priority: origin.priority, work: Work::Prepare };
        let core = self.cores.take_for(rank, origin.client, cost).await;
        let run = tokio::task::spawn_blocking(move || {
            let _core = core;
            give_way();
            work()
        });
        Ok(run.await.map_err(|_| ImageError::Internal)?)
    }

    /// What is to be done with an image, for the thread that does it.
    fn task(
        &self,
        transform: &Arc<Transform>,
        (source, estimate): (&Source, Estimate),
        permits: Permits,
        client: Client,
    ) -> impl FnOnce() -> Attempt + Send + 'static {
        let (this, transform, source, span) = (self.clone(), Arc::clone(transform), source.clone(), Span::current());
        move || {
            let _span = span.entered();
            let (start, class) = (thread_time(), permits.class);
            let attempt = this.attempt(&transform, (&source, estimate), permits);
            let took = thread_time().saturating_sub(start);
            let learn = match &attempt {
                Attempt::Done(Ok(_)) | Attempt::IsLarge { too_slow: true } => true,
                // A header that is refused says nothing of what decoding takes; damage that is found late does.
                Attempt::Done(Err(_)) => took > estimate.time(),
                Attempt::NeedsMemory(_) | Attempt::IsLarge { too_slow: false } => false,
            };
            if learn {
                this.costs.record(&estimate, took);
            }
            if class == Class::Small {
                // Whoever sends what takes longer than it looks waits for longer.
                this.cores.charge(client, took.saturating_sub(estimate.time()));
            }
            attempt
        }
    }

    /// The same, on the calling thread and outside tokio.
    ///
    /// # Errors
    /// The image cannot be used, or another thread has the memory it needs.
    pub fn run_here(&self, transform: &Arc<Transform>, file: &[u8]) -> Result<Prepared, ImageError> {
        let file = Source::File(Bytes::copy_from_slice(file));
        let estimate = self.estimate(transform, &file);
        match self.attempt(transform, (&file, estimate), Permits { memory: None, class: Class::Large }) {
            Attempt::Done(result) => result,
            Attempt::NeedsMemory(_) | Attempt::IsLarge { .. } => Err(ImageError::Internal),
        }
    }

    fn attempt(
        &self,
        transform: &Arc<Transform>,
        (source, estimate): (&Source, Estimate),
        permits: Permits,
    ) -> Attempt {
        let class = permits.class;
        let attempt = match source {
            Source::File(file) => match probe_within(file, self.limits, estimate.limit(class)) {
                Ok(header) => {
                    let info = header.info();
                    let header = header.reduce(transform.scale(info.width, info.height));
                    self.attempt_with(transform, permits, (info, header.decoded_bytes()), || decode(header))
                }
                Err(error) => Attempt::Done(Err(error)),
            },
            Source::Pixels { width, height, rgb } => {
                let info = ImageInfo { format: None, width: *width, height: *height };
                let decode = || pixels(*width, *height, rgb, self.limits);
                self.attempt_with(transform, permits, (info, rgb.len() as u64), decode)
            }
            Source::Values { width, height, values } => {
                Attempt::Done(given(transform, (*width, *height), values.clone()))
            }
        };
        match attempt {
            // It has more time there.
            Attempt::Done(Err(ImageError::TooSlow(_))) if class != Class::Large => Attempt::IsLarge { too_slow: true },
            attempt => attempt,
        }
    }

    /// Decodes, which takes so many bytes, if there are the permits for it.
    fn attempt_with(
        &self,
        transform: &Arc<Transform>,
        permits: Permits,
        (info, bytes): (ImageInfo, u64),
        decode: impl FnOnce() -> Result<Pixels, ImageError>,
    ) -> Attempt {
        let start = Instant::now();
        let class = permits.class;
        let large = class == Class::Large;
        if !large && bytes > LARGE_BYTES {
            return Attempt::IsLarge { too_slow: false };
        }
        let memory = if large { &self.large_memory } else { &self.memory };
        let Some(_memory) = permits.memory.or_else(|| memory.try_acquire(bytes)) else {
            return Attempt::NeedsMemory(bytes);
        };
        Attempt::Done(spans::stage(Stage::Decode).in_scope(decode).map(|pixels| {
            let decoded = Instant::now();
            let crop = spans::stage(Stage::Resize).in_scope(|| Crop::new(transform, &pixels));
            Prepared { crop, info, decode: decoded - start, resize: decoded.elapsed(), class }
        }))
    }
}

impl Memory {
    fn try_acquire(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.kibibytes).try_acquire_many_owned(self.kibibytes(bytes)).ok()
    }

    async fn acquire(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        // The semaphores are never closed.
        Arc::clone(&self.kibibytes).acquire_many_owned(self.kibibytes(bytes)).await.ok()
    }
}

/// An input that somebody else prepared.
fn given(transform: &Arc<Transform>, sides: (u32, u32), values: Bytes) -> Result<Prepared, ImageError> {
    check_values(sides, &values, transform.size())?;
    let info = ImageInfo { format: None, width: sides.0, height: sides.1 };
    let crop = Crop::of_values(transform, values);
    Ok(Prepared { crop, info, decode: Duration::ZERO, resize: Duration::ZERO, class: Class::Small })
}
