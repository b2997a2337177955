//! Runs pre-processing on a bounded number of threads, within a bounded amount of decoded pixels.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};

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
    all_kibibytes: u32,
}

impl Preprocessor {
    /// A pool with the given bounds. Runs on the tokio runtime of whoever calls [`Preprocessor::run`].
    #[must_use]
    pub fn new(config: PoolConfig) -> Self {
        let kibibytes = u32::try_from(config.max_decoded_bytes / 1024).unwrap_or(u32::MAX);
        Self {
            limits: config.limits,
            threads: Arc::new(Semaphore::new(config.threads)),
            kibibytes: Arc::new(Semaphore::new(kibibytes as usize)),
            all_kibibytes: kibibytes,
        }
    }

    /// Decodes one image file and takes it through `transform`. Waits for a thread, and for memory if there is not enough;
    /// a caller that stops waiting takes nothing with it.
    ///
    /// # Errors
    /// The image cannot be used.
    pub async fn run(&self, transform: &Arc<Transform>, file: Bytes) -> Result<Prepared, ImageError> {
        // The semaphores are never closed.
        let slot = Arc::clone(&self.threads).acquire_owned().await.map_err(|_| ImageError::Internal)?;
        let (this, transform) = (self.clone(), Arc::clone(transform));
        let work = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            this.prepare(&transform, &file, |kibibytes| {
                // A thread holds memory only while it decodes, and needs no more to end: waiting here always ends too.
                Handle::current().block_on(this.kibibytes.acquire_many(kibibytes)).ok()
            })
        });
        // Decoders are behind a guard of their own; what fails here is ours.
        work.await.unwrap_or(Err(ImageError::Internal))
    }

    /// The same, on the calling thread and outside tokio.
    ///
    /// # Errors
    /// The image cannot be used, or another thread has the memory it needs.
    pub fn run_here(&self, transform: &Transform, file: &[u8]) -> Result<Prepared, ImageError> {
        self.prepare(transform, file, |kibibytes| self.kibibytes.try_acquire_many(kibibytes).ok())
    }

    fn prepare<'a>(
        &'a self,
        transform: &Transform,
        file: &[u8],
        acquire: impl FnOnce(u32) -> Option<SemaphorePermit<'a>>,
    ) -> Result<Prepared, ImageError> {
        let start = Instant::now();
        let header = probe(file, self.limits)?;
        let info = header.info();
        // Never more than there is, or it would wait for ever.
        let kibibytes = header.decoded_bytes().div_ceil(1024).min(self.all_kibibytes.into()) as u32;
        let waiting = Instant::now();
        let _memory = acquire(kibibytes).ok_or(ImageError::Internal)?;
        let waited = waiting.elapsed();
        let pixels = decode(header)?;
        let decoded = Instant::now();

        let mut row = vec![0.0; transform.row_len()];
        transform.normalise(&transform.crop(&pixels), &mut row);
        Ok(Prepared { row, info, decode: decoded - start - waited, resize: decoded.elapsed() })
    }
}
