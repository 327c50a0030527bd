//! Pictures for those who watch their job over the gateway that their worker reported to: they need not be read back from
//! where they have just been written.

use bytes::Bytes;
use moka::{policy::EvictionPolicy, sync::Cache};

use crate::jobs::{JobId, Nonce};

/// Pictures from their report until a watcher takes them; cloning is cheap. Only what has been written and committed under
/// the nonce may be told to anybody, so who takes a picture has read that nonce in the job's record.
#[derive(Clone)]
pub struct Recent(Cache<(JobId, Nonce, u32), Bytes>);

/// About what a picture takes beside its bytes.
const ENTRY_BYTES: usize = 256;

impl Recent {
    /// Keeps `bytes` at most, of those that came last; 0: none.
    pub fn new(bytes: usize) -> Self {
        let cache = Cache::builder()
            .max_capacity(bytes as u64)
            // Those that nobody took must not keep newer ones out, as moka's own policy would have it.
            .eviction_policy(EvictionPolicy::lru())
            .weigher(|_, picture: &Bytes| u32::try_from(picture.len() + ENTRY_BYTES).unwrap_or(u32::MAX));
        Self(cache.build())
    }

    /// Pictures of a job, in order, that are about to be committed under a lease's nonce.
    pub fn keep(&self, id: JobId, nonce: Nonce, pictures: &[Bytes]) {
        for (index, picture) in (0..).zip(pictures) {
            self.0.insert((id, nonce, index), picture.clone());
        }
    }

    /// One of them, for one watcher; `None`: it has to be read.
    pub fn take(&self, id: JobId, nonce: Nonce, index: u32) -> Option<Bytes> {
        self.0.remove(&(id, nonce, index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_picture_is_taken_once_and_under_its_own_nonce() {
        let recent = Recent::new(1 << 20);
        let (id, nonce, other) = (JobId::new(0), Nonce::random(), Nonce::random());
        recent.keep(
            id,
            nonce,
            &[Bytes::from_static(b"one"), Bytes::from_static(b"two")],
        );
        assert_eq!(recent.take(id, other, 0), None);
        assert_eq!(recent.take(id, nonce, 1), Some(Bytes::from_static(b"two")));
        assert_eq!(recent.take(id, nonce, 1), None);
        assert_eq!(recent.take(id, nonce, 0), Some(Bytes::from_static(b"one")));
    }

    #[test]
    fn no_more_is_kept_than_was_said_and_the_last_stay() {
        for most in [0, 10] {
            let recent = Recent::new(most * (1000 + ENTRY_BYTES));
            let nonce = Nonce::random();
            let ids: Vec<JobId> = (0..100).map(|_| JobId::new(0)).collect();
            for id in &ids {
                recent.keep(*id, nonce, &[vec![0; 1000].into()]);
                recent.0.run_pending_tasks();
            }
            let kept: Vec<usize> = (0..ids.len())
                .filter(|n| recent.take(ids[*n], nonce, 0).is_some())
                .collect();
            let last: Vec<usize> = (ids.len() - most..ids.len()).collect();
            assert_eq!(kept, last);
        }
    }
}
