//! One limit that means one thing: padded tokens that wait or run. What is over it is refused at once, with a time to come
//! back that follows the encoder's own speed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A caller is never sent away for less or longer than this.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(5));

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    limit: usize,
    free: Arc<Semaphore>,
    speed: Arc<Speed>,
}

/// A prompt's share of the limit, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    tokens: usize,
    permit: Option<OwnedSemaphorePermit>,
}

/// The limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Padded tokens that wait or run.
    pub(crate) queued: usize,
    /// The most that may.
    pub(crate) limit: usize,
    /// About when they will have run.
    pub(crate) retry_after: Duration,
}

/// Time per token of the last passes, in nanoseconds; 0: none yet.
#[derive(Debug, Default)]
struct Speed(AtomicU64);

// === impl Admission ===

impl Admission {
    /// At most `limit` padded tokens.
    pub(crate) fn new(limit: usize) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        Self {
            limit,
            free: Arc::new(Semaphore::new(limit)),
            speed: Arc::default(),
        }
    }

    /// A share of `tokens`, or the reason why not.
    pub(crate) fn admit(&self, tokens: usize) -> Result<Permit, Refused> {
        let queued = self.queued();
        let permit = u32::try_from(tokens)
            .ok()
            .and_then(|tokens| Arc::clone(&self.free).try_acquire_many_owned(tokens).ok())
            .ok_or_else(|| Refused {
                queued,
                limit: self.limit,
                retry_after: self.speed.time_for(queued),
            })?;
        gauge().increment(tokens as f64);
        Ok(Permit {
            tokens,
            permit: Some(permit),
        })
    }

    /// Padded tokens that wait or run now.
    pub(crate) fn queued(&self) -> usize {
        self.limit - self.free.available_permits().min(self.limit)
    }

    /// A pass of `tokens` took `time`.
    pub(crate) fn observe(&self, tokens: usize, time: Duration) {
        self.speed.observe(tokens, time);
    }
}

fn gauge() -> metrics::Gauge {
    metrics::gauge!("muse_embed_queue_tokens")
}

impl Drop for Permit {
    fn drop(&mut self) {
        drop(self.permit.take());
        gauge().decrement(self.tokens as f64);
    }
}

// === impl Speed ===

impl Speed {
    /// Moves an eighth of the way, so that one slow pass does not decide.
    fn observe(&self, tokens: usize, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let now = (nanos / (tokens as u64).max(1)).max(1);
        let before = self.0.load(Ordering::Relaxed);
        let smoothed = if before == 0 {
            now
        } else {
            before - before / 8 + now / 8
        };
        // Only the one thread that runs passes writes.
        self.0.store(smoothed.max(1), Ordering::Relaxed);
    }

    fn time_for(&self, tokens: usize) -> Duration {
        let nanos = self.0.load(Ordering::Relaxed).saturating_mul(tokens as u64);
        Duration::from_nanos(nanos).clamp(RETRY_AFTER.0, RETRY_AFTER.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_over_the_limit_are_refused_and_come_free_again() {
        let admission = Admission::new(40);
        let first = admission.admit(32).unwrap();
        let refused = admission.admit(16).unwrap_err();
        assert_eq!((refused.queued, refused.limit), (32, 40));
        let _small = admission.admit(8).unwrap();
        drop(first);
        assert_eq!(admission.queued(), 8);
        assert!(admission.admit(32).is_ok());
    }

    #[test]
    fn a_refused_caller_is_told_about_how_long_the_queue_takes() {
        let admission = Admission::new(100);
        let _all = admission.admit(100).unwrap();
        assert_eq!(
            admission.admit(1).unwrap_err().retry_after,
            Duration::from_millis(10),
            "no pass seen yet"
        );
        admission.observe(10, Duration::from_millis(20));
        assert_eq!(
            admission.admit(1).unwrap_err().retry_after,
            Duration::from_millis(200)
        );
        admission.observe(1, Duration::from_secs(3600));
        assert_eq!(
            admission.admit(1).unwrap_err().retry_after,
            Duration::from_secs(5)
        );
    }
}
