//! Runs pre-processing on the cores that it is given, within a bounded amount of decoded pixels.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{Instrument, Span};

use super::source::{check_values, pixels};
use super::{Crop, ImageError, ImageInfo, ImageLimits, Pixels, Source, Transform, decode, probe};
use crate::cores::{Cores, Priority, Rank, Work, give_way};
use crate::telemetry::{Stage, spans};

/// The pool's bounds.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Bytes of decoded pixels held at once, over all requests. At least the largest image accepted.
    pub max_decoded_bytes: u64,
    /// What one image may be.
    pub limits: ImageLimits,
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
}

/// Images of more decoded bytes than this do not hold a core while they are decoded: they take some tenths of a second, and
/// a core that is held cannot do anything else. They share the cores' time with everything else instead, few at once.
const LARGE: u64 = 16 << 20;

/// Pre-processing for every model: the bounds are the machine's, not a model's.
#[derive(Clone, Debug)]
pub struct Preprocessor {
    limits: ImageLimits,
    cores: Arc<Cores>,
    /// For the large ones: half as many at once as there are cores.
    large: Arc<Semaphore>,
    kibibytes: Arc<Semaphore>,
    all_kibibytes: u32,
}

/// What an image must have before it is decoded.
#[derive(Default)]
struct Means {
    memory: Option<OwnedSemaphorePermit>,
    large: Option<OwnedSemaphorePermit>,
}

/// What came of trying.
enum Attempt {
    Done(Result<Prepared, ImageError>),
    /// It lacks memory, or is large; nothing has been decoded.
    Lacks {
        kibibytes: u32,
        large: bool,
    },
}

impl Preprocessor {
    /// A pool with the given bounds. Runs on the tokio runtime of whoever calls [`Preprocessor::run`].
    #[must_use]
    pub fn new(config: PoolConfig, cores: Arc<Cores>) -> Self {
        let kibibytes = u32::try_from(config.max_decoded_bytes / 1024).unwrap_or(u32::MAX);
        Self {
            limits: config.limits,
            large: Arc::new(Semaphore::new(cores.total().div_ceil(2))),
            cores,
            kibibytes: Arc::new(Semaphore::new(kibibytes as usize)),
            all_kibibytes: kibibytes,
        }
    }

    /// The cores it runs on.
    #[must_use]
    pub fn cores(&self) -> &Arc<Cores> {
        &self.cores
    }

    /// Decodes one image and takes it through `transform`. Waits for a core, and for memory if there is not enough;
    /// a caller that stops waiting takes nothing with it.
    ///
    /// # Errors
    /// The image cannot be used.
    pub async fn run(
        &self,
        transform: &Arc<Transform>,
        source: Source,
        priority: Priority,
    ) -> Result<Prepared, ImageError> {
        if let Source::Values { width, height, values } = source {
            return given(transform, (width, height), values);
        }
        let mut means = Means::default();
        loop {
            // Large ones have waited for their place among the large.
            let core = match means.large {
                None => {
                    let core = self.cores.take(Rank { priority, work: Work::Prepare }, 1);
                    Some(core.instrument(spans::wait_for_core()).await)
                }
                Some(_) => None,
            };
            let (this, transform, source) = (self.clone(), Arc::clone(transform), source.clone());
            let given = std::mem::take(&mut means);
            let span = Span::current();
            let work = tokio::task::spawn_blocking(move || {
                let _core = core;
                let _span = span.entered();
                give_way();
                this.attempt(&transform, &source, given)
            });
            // Decoders are behind a guard of their own; what fails here is ours.
            match work.await.map_err(|_| ImageError::Internal)? {
                Attempt::Done(result) => return result,
                // Without a core in hand: others have work for it.
                Attempt::Lacks { kibibytes, large } => {
                    if large {
                        // The semaphores are never closed.
                        means.large = Arc::clone(&self.large).acquire_owned().await.ok();
                    }
                    means.memory = Arc::clone(&self.kibibytes).acquire_many_owned(kibibytes).await.ok();
                }
            }
        }
    }

    /// The same, on the calling thread and outside tokio.
    ///
    /// # Errors
    /// The image cannot be used, or another thread has the memory it needs.
    pub fn run_here(&self, transform: &Arc<Transform>, file: &[u8]) -> Result<Prepared, ImageError> {
        let large = Arc::clone(&self.large).try_acquire_owned().ok();
        let file = Source::File(Bytes::copy_from_slice(file));
        match self.attempt(transform, &file, Means { memory: None, large }) {
            Attempt::Done(result) => result,
            Attempt::Lacks { .. } => Err(ImageError::Internal),
        }
    }

    fn attempt(&self, transform: &Arc<Transform>, source: &Source, means: Means) -> Attempt {
        match source {
            Source::File(file) => match probe(file, self.limits) {
                Ok(header) => {
                    let info = header.info();
                    let header = header.reduce(transform.scale(info.width, info.height));
                    self.attempt_with(transform, means, (info, header.decoded_bytes()), || decode(header))
                }
                Err(error) => Attempt::Done(Err(error)),
            },
            Source::Pixels { width, height, rgb } => {
                let info = ImageInfo { format: None, width: *width, height: *height };
                let decode = || pixels(*width, *height, rgb, self.limits);
                self.attempt_with(transform, means, (info, rgb.len() as u64), decode)
            }
            Source::Values { width, height, values } => {
                Attempt::Done(given(transform, (*width, *height), values.clone()))
            }
        }
    }

    /// Decodes, which takes so many bytes, if there are the means for it.
    fn attempt_with(
        &self,
        transform: &Arc<Transform>,
        mut means: Means,
        (info, bytes): (ImageInfo, u64),
        decode: impl FnOnce() -> Result<Pixels, ImageError>,
    ) -> Attempt {
        let start = Instant::now();
        // Never more than there is, or it would wait for ever.
        let kibibytes = bytes.div_ceil(1024).min(self.all_kibibytes.into()) as u32;
        if means.memory.is_none() {
            means.memory = Arc::clone(&self.kibibytes).try_acquire_many_owned(kibibytes).ok();
        }
        let large = bytes > LARGE && means.large.is_none();
        if means.memory.is_none() || large {
            return Attempt::Lacks { kibibytes, large };
        }
        Attempt::Done(spans::stage(Stage::Decode).in_scope(decode).map(|pixels| {
            let decoded = Instant::now();
            let crop = spans::stage(Stage::Resize).in_scope(|| Crop::new(transform, &pixels));
            Prepared { crop, info, decode: decoded - start, resize: decoded.elapsed() }
        }))
    }
}

/// An input that somebody else prepared.
fn given(transform: &Arc<Transform>, sides: (u32, u32), values: Bytes) -> Result<Prepared, ImageError> {
    check_values(sides, &values, transform.size())?;
    let info = ImageInfo { format: None, width: sides.0, height: sides.1 };
    let crop = Crop::of_values(transform, values);
    Ok(Prepared { crop, info, decode: Duration::ZERO, resize: Duration::ZERO })
}
