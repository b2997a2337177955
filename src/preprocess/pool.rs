//! Runs pre-processing on a bounded number of threads, within a bounded amount of decoded pixels.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::{ImageError, ImageInfo, ImageLimits, Transform, decode, probe};

/// The pool's bounds.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Images decoded at once. As many as there are cores: more only share them.
    pub threads: usize,
    /// Bytes of decoded pixels held at once, over all requests. At least the largest image accepted.
    pub max_decoded_bytes: u64,
    /// What one image may be.
    pub limits: ImageLimits,
}

/// An image ready for the network.
#[derive(Debug)]
pub struct Prepared {
    /// The input row, 3 × height × width.
    pub row: Vec<f32>,
    /// What it was.
    pub info: ImageInfo,
    /// Time spent on header and pixels.
    pub decode: Duration,
    /// Time spent on resize, crop, normalisation.
    pub resize: Duration,
}

/// Pre-processing for every model: the bounds are the machine's, not a model's.
#[derive(Clone, Debug)]
pub struct Preprocessor {
    limits: ImageLimits,
    threads: Arc<Semaphore>,
    kibibytes: Arc<Semaphore>,
}

impl Preprocessor {
    /// A pool with the given bounds. Runs on the tokio runtime of whoever calls [`Preprocessor::run`].
    #[must_use]
    pub fn new(config: PoolConfig) -> Self {
        let kibibytes = usize::try_from(config.max_decoded_bytes / 1024).unwrap_or(usize::MAX);
        Self {
            limits: config.limits,
            threads: Arc::new(Semaphore::new(config.threads)),
            kibibytes: Arc::new(Semaphore::new(kibibytes.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// Decodes one image file and takes it through `transform`. Waits for a thread; a caller that stops waiting takes
    /// nothing with it.
    ///
    /// # Errors
    /// The image cannot be used, or ([`ImageError::Busy`]) the decoded-bytes bound is reached.
    pub async fn run(&self, transform: &Arc<Transform>, file: Bytes) -> Result<Prepared, ImageError> {
        // The semaphore is never closed.
        let slot = Arc::clone(&self.threads).acquire_owned().await.map_err(|_| ImageError::Internal)?;
        let (this, transform) = (self.clone(), Arc::clone(transform));
        let work = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            this.run_here(&transform, &file)
        });
        // Decoders are behind a guard of their own; what fails here is ours.
        work.await.unwrap_or(Err(ImageError::Internal))
    }

    /// The same, on the calling thread.
    ///
    /// # Errors
    /// As [`Preprocessor::run`].
    pub fn run_here(&self, transform: &Transform, file: &[u8]) -> Result<Prepared, ImageError> {
        let start = Instant::now();
        let header = probe(file, self.limits)?;
        let info = header.info();
        let kibibytes = u32::try_from(header.decoded_bytes().div_ceil(1024)).unwrap_or(u32::MAX);
        let _memory = self.kibibytes.try_acquire_many(kibibytes).map_err(|_| ImageError::Busy)?;
        let pixels = decode(header)?;
        let decoded = Instant::now();

        let mut row = vec![0.0; transform.row_len()];
        transform.normalise(&transform.crop(&pixels), &mut row);
        Ok(Prepared { row, info, decode: decoded - start, resize: decoded.elapsed() })
    }
}
