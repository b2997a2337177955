//! Remembered scores: the same file, asked of the same model, is decoded and run once.
//!
//! The key is a SHA-256 over the model's digest, its input and the file's bytes, so that nobody can make one file answer
//! for another. What a client asks of the scores (how many, how probable) is not in it: predictions are made for each
//! request. Requests for a file that is being worked on wait for that instead of doing it again; if whoever works on it
//! leaves or fails, the next takes over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

use crate::preprocess::ImageInfo;
use ghostserve_manifest::Manifest;

/// The scores of an image: what is remembered of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// What the model put out.
    pub scores: Vec<f32>,
    /// What was looked at.
    pub info: ImageInfo,
}

/// A file and what is asked about it.
pub(super) type Key = [u8; 32];

/// Scores of files, within a bound on their bytes.
#[derive(Debug)]
pub(super) struct ScoreCache {
    entries: Cache<Key, Arc<Scored>, Bytes>,
}

/// How an image got its scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    /// They were there.
    Hit,
    /// Another request was working on them.
    Coalesced,
    /// They were made.
    Miss,
}

impl Lookup {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Coalesced => "coalesced",
            Self::Miss => "miss",
        }
    }
}

/// Bytes that an entry takes beside its scores: key, information, and what the cache keeps of it.
const OVERHEAD: u64 = 160;

#[derive(Clone, Copy, Debug)]
struct Bytes;

impl Weighter<Key, Arc<Scored>> for Bytes {
    fn weight(&self, _: &Key, scored: &Arc<Scored>) -> u64 {
        OVERHEAD + 4 * scored.scores.len() as u64
    }
}

impl ScoreCache {
    /// A cache of at most so many bytes; `classes` is the length of most rows.
    pub(super) fn new(bytes: u64, classes: usize) -> Self {
        let entries = bytes / (OVERHEAD + 4 * classes as u64);
        let entries = usize::try_from(entries).unwrap_or(usize::MAX).max(1);
        Self { entries: Cache::with_weighter(entries, bytes, Bytes) }
    }

    /// The key of a file.
    pub(super) fn key(manifest: &Manifest, file: &[u8]) -> Key {
        let mut hash = Sha256::new();
        // Both are of bounded length and known before the file: no two of them can run into each other.
        let asked = format!("{} {:?}\n", manifest.network.digest.as_str(), manifest.input);
        hash.update((asked.len() as u64).to_le_bytes());
        hash.update(asked.as_bytes());
        hash.update(file);
        hash.finalize().into()
    }

    /// What is remembered.
    pub(super) fn get(&self, key: &Key) -> Option<Arc<Scored>> {
        self.entries.get(key)
    }

    /// What is remembered, or being made by another, or else what `make` makes. Errors are not remembered.
    pub(super) async fn get_or<E>(
        &self,
        key: &Key,
        make: impl Future<Output = Result<Scored, E>>,
    ) -> Result<(Arc<Scored>, Lookup), E> {
        let made = AtomicBool::new(false);
        let scored = self.entries.get_or_insert_async(key, async {
            made.store(true, Ordering::Relaxed);
            make.await.map(Arc::new)
        });
        let scored = scored.await?;
        Ok((scored, if made.load(Ordering::Relaxed) { Lookup::Miss } else { Lookup::Coalesced }))
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
    async fn requests_for_one_file_at_one_time_make_it_once() {
        let cache = ScoreCache::new(1 << 20, 10);
        let made = AtomicUsize::new(0);
        let ask = || async {
            let make = async {
                made.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok::<_, ()>(scored(1.0))
            };
            cache.get_or(&[7; 32], make).await.unwrap().1
        };
        let sources = futures::future::join_all((0..5).map(|_| ask())).await;
        assert_eq!(made.load(Ordering::Relaxed), 1);
        assert_eq!(sources.iter().filter(|source| **source == Lookup::Miss).count(), 1);
        assert_eq!(*cache.get(&[7; 32]).unwrap(), scored(1.0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_or_fails_is_replaced_by_who_waits() {
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
        assert_eq!(worked.unwrap().1, Lookup::Miss);

        let failing = cache.get_or(&[2; 32], async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Err::<Scored, _>("it fails")
        });
        let working = cache.get_or(&[2; 32], async { Ok::<_, &str>(scored(2.0)) });
        let (failed, worked) = futures::join!(failing, working);
        assert_eq!(failed.unwrap_err(), "it fails");
        assert_eq!(worked.unwrap().1, Lookup::Miss);
    }

    #[tokio::test]
    async fn it_stays_within_its_bytes() {
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
