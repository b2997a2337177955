//! A cache of scores: the same file for the same model is decoded and run once.
//!
//! The key is a SHA-256 over the model's digest, its input and the file's bytes, so that no client can make one file
//! answer for another. The prediction options (how many, how probable) are not part of it: predictions are made for
//! each request. A request for a file that another request computes waits for that result. If the other request
//! leaves or fails, the next one takes over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use sha2::{Digest as _, Sha256};

use crate::preprocess::ImageInfo;
use ghostserve_manifest::{Digest, InputSpec};

/// The scores of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The model's output.
    pub scores: Vec<f32>,
    /// The image.
    pub info: ImageInfo,
}

/// Identity of a file and of the model that scores it.
pub(super) type CacheKey = [u8; 32];

/// Scores of files. The cache has a maximum size in bytes.
#[derive(Debug)]
pub(super) struct ScoreCache {
    entries: Cache<CacheKey, Arc<Scored>, ScoredWeight>,
}

/// Where an image's scores came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CacheOutcome {
    /// The cache.
    Hit,
    /// Another request that computed them at the same time.
    Coalesced,
    /// This request computed them.
    Miss,
}

impl CacheOutcome {
    /// The name in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Coalesced => "coalesced",
            Self::Miss => "miss",
        }
    }
}

/// Bytes of an entry beside its scores: key, image information, and the cache's own data.
const OVERHEAD: u64 = 160;

#[derive(Clone, Copy, Debug)]
struct ScoredWeight;

impl Weighter<CacheKey, Arc<Scored>> for ScoredWeight {
    fn weight(&self, _: &CacheKey, scored: &Arc<Scored>) -> u64 {
        OVERHEAD + 4 * scored.scores.len() as u64
    }
}

impl ScoreCache {
    /// A cache of at most `bytes` bytes. `classes` is the length of most rows.
    pub(super) fn new(bytes: u64, classes: usize) -> Self {
        let entries = bytes / (OVERHEAD + 4 * classes as u64);
        let entries = usize::try_from(entries).unwrap_or(usize::MAX).max(1);
        Self { entries: Cache::with_weighter(entries, bytes, ScoredWeight) }
    }

    /// The key of a file, for the model with these weights and this input.
    pub(super) fn key(weights: &Digest, input: &InputSpec, file: &[u8]) -> CacheKey {
        let mut hash = Sha256::new();
        // The prefix states its length, so that no prefix and file can be taken for another pair.
        let prefix = format!("{weights} {input:?}\n");
        hash.update((prefix.len() as u64).to_le_bytes());
        hash.update(prefix.as_bytes());
        hash.update(file);
        hash.finalize().into()
    }

    /// The scores in the cache.
    pub(super) fn get(&self, key: &CacheKey) -> Option<Arc<Scored>> {
        self.entries.get(key)
    }

    /// The scores in the cache, or those that another request computes now, or else those that `compute` returns.
    /// Errors are not cached.
    pub(super) async fn get_or<E>(
        &self,
        key: &CacheKey,
        compute: impl Future<Output = Result<Scored, E>>,
    ) -> Result<(Arc<Scored>, CacheOutcome), E> {
        let computed = AtomicBool::new(false);
        let scored = self.entries.get_or_insert_async(key, async {
            computed.store(true, Ordering::Relaxed);
            compute.await.map(Arc::new)
        });
        let scored = scored.await?;
        let outcome = if computed.load(Ordering::Relaxed) { CacheOutcome::Miss } else { CacheOutcome::Coalesced };
        Ok((scored, outcome))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;
    use crate::preprocess::Format;

    fn scored(value: f32) -> Scored {
        Scored { scores: vec![value; 10], info: ImageInfo { format: Some(Format::Png), width: 1, height: 1 } }
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_requests_for_one_file_compute_its_scores_once() {
        let cache = ScoreCache::new(1 << 20, 10);
        let computations = AtomicUsize::new(0);
        let look_up = || async {
            let compute = async {
                computations.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok::<_, ()>(scored(1.0))
            };
            cache.get_or(&[7; 32], compute).await.unwrap().1
        };
        let sources = futures::future::join_all((0..5).map(|_| look_up())).await;
        assert_eq!(computations.load(Ordering::Relaxed), 1);
        assert_eq!(sources.iter().filter(|source| **source == CacheOutcome::Miss).count(), 1);
        assert_eq!(*cache.get(&[7; 32]).unwrap(), scored(1.0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_request_takes_over_when_the_first_one_leaves_or_fails() {
        let cache = Arc::new(ScoreCache::new(1 << 20, 10));
        let first = Arc::clone(&cache);
        let leaving = tokio::spawn(async move {
            let _ = first.get_or(&[1; 32], std::future::pending::<Result<Scored, ()>>()).await;
        });
        tokio::task::yield_now().await;
        let working = cache.get_or(&[1; 32], async { Ok::<_, ()>(scored(2.0)) });
        let end = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            leaving.abort();
        };
        let (worked, ()) = futures::join!(working, end);
        assert_eq!(worked.unwrap().1, CacheOutcome::Miss);

        let failing = cache.get_or(&[2; 32], async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Err::<Scored, _>("it fails")
        });
        let working = cache.get_or(&[2; 32], async { Ok::<_, &str>(scored(2.0)) });
        let (failed, worked) = futures::join!(failing, working);
        assert_eq!(failed.unwrap_err(), "it fails");
        assert_eq!(worked.unwrap().1, CacheOutcome::Miss);
    }

    #[tokio::test]
    async fn the_cache_stays_within_its_bytes() {
        let cache = ScoreCache::new(100 * (OVERHEAD + 40), 10);
        for i in 0..10_000u32 {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&i.to_le_bytes());
            cache.get_or(&key, async { Ok::<_, ()>(scored(0.0)) }).await.unwrap();
        }
        assert!(cache.entries.weight() <= 100 * (OVERHEAD + 40));
        assert!(!cache.entries.is_empty());
    }
}
