//! Embeddings kept, bounded in bytes, the least recently used leaving first. Callers that want the same text at the same
//! time share one computation.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use moka::{future::Cache, policy::EvictionPolicy};

use crate::error::EmbedError;

/// What the cache itself needs for an entry, roughly.
const ENTRY_BYTES: usize = 160;

/// An embedding as it goes over the wire. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// f32 `[tokens, width]`, row-major, little-endian.
    pub(crate) data: Bytes,
    /// Text tokens, the end token included.
    pub(crate) tokens: u32,
    /// Length of an embedding vector.
    pub(crate) width: u32,
}

/// How a text was answered; the label of `muse_embed_cache_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was there.
    Hit,
    /// Another call was computing it.
    Shared,
    /// Computed for this call.
    Miss,
}

/// Text, under the bundle that embeds it: another bundle's embeddings can never be taken for this one's. No `Debug`: texts
/// are prompts.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    bundle: Arc<str>,
    text: Box<str>,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct EmbeddingCache {
    bundle: Arc<str>,
    entries: Cache<Key, Stored>,
}

// === impl EmbeddingCache ===

impl EmbeddingCache {
    /// Keeps `max_bytes` of embeddings of the bundle with this digest.
    pub(crate) fn new(bundle_digest: &str, max_bytes: u64) -> Self {
        let entries = Cache::builder()
            .max_capacity(max_bytes)
            .weigher(|key: &Key, stored: &Stored| {
                u32::try_from(key.text.len() + stored.data.len() + ENTRY_BYTES).unwrap_or(u32::MAX)
            })
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self {
            bundle: bundle_digest.into(),
            entries,
        }
    }

    /// The embedding of `text`, if it is here.
    pub(crate) async fn get(&self, text: &str) -> Option<Stored> {
        let stored = self.entries.get(&self.key(text)).await;
        if stored.is_some() {
            count(Outcome::Hit);
        }
        stored
    }

    fn key(&self, text: &str) -> Key {
        Key {
            bundle: Arc::clone(&self.bundle),
            text: text.into(),
        }
    }

    /// The embedding of `text`, from here or from `compute`, which runs at most once for a text at any time. When the caller
    /// that runs it leaves, another that waits takes over with its own.
    pub(crate) async fn get_or_compute(
        &self,
        text: &str,
        compute: impl Future<Output = Result<Stored, EmbedError>>,
    ) -> Result<(Stored, Outcome), EmbedError> {
        let key = self.key(text);
        let (stored, outcome) = match self.entries.get(&key).await {
            Some(stored) => (stored, Outcome::Hit),
            None => {
                let entry = self
                    .entries
                    .entry(key)
                    .or_try_insert_with(compute)
                    .await
                    .map_err(|error| (*error).clone())?;
                let outcome = if entry.is_fresh() {
                    Outcome::Miss
                } else {
                    Outcome::Shared
                };
                (entry.into_value(), outcome)
            }
        };
        count(outcome);
        Ok((stored, outcome))
    }
}

fn count(outcome: Outcome) {
    metrics::counter!("muse_embed_cache_total", "result" => outcome.name()).increment(1);
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Shared => "shared",
            Self::Miss => "miss",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(bytes: usize) -> Stored {
        Stored {
            data: vec![7; bytes].into(),
            tokens: 1,
            width: 1,
        }
    }

    async fn ask(cache: &EmbeddingCache, text: &str, bytes: usize) -> Outcome {
        cache
            .get_or_compute(text, async { Ok(stored(bytes)) })
            .await
            .unwrap()
            .1
    }

    #[tokio::test]
    async fn the_second_call_for_a_text_is_a_hit_and_a_failure_is_not_kept() {
        let cache = EmbeddingCache::new("digest", 1 << 20);
        let failed = cache
            .get_or_compute("a", async { Err(EmbedError::Stopped) })
            .await;
        assert!(matches!(failed, Err(EmbedError::Stopped)), "{failed:?}");
        assert_eq!(ask(&cache, "a", 4).await, Outcome::Miss);
        assert_eq!(ask(&cache, "a", 4).await, Outcome::Hit);
    }

    #[tokio::test]
    async fn the_least_recently_used_leave_when_the_bytes_are_full() {
        let cache = EmbeddingCache::new("digest", 3 * (1000 + ENTRY_BYTES as u64 + 1));
        for text in ["a", "b", "c"] {
            ask(&cache, text, 1000).await;
        }
        cache.entries.run_pending_tasks().await;
        assert_eq!(ask(&cache, "a", 1000).await, Outcome::Hit);
        cache.entries.run_pending_tasks().await;
        ask(&cache, "d", 1000).await;
        cache.entries.run_pending_tasks().await;
        assert!(cache.entries.weighted_size() <= 3 * (1000 + ENTRY_BYTES as u64 + 1));
        assert_eq!(ask(&cache, "b", 1000).await, Outcome::Miss);
        assert_eq!(ask(&cache, "a", 1000).await, Outcome::Hit);
    }
}
