//! Keeps an outage of the store short for everybody: after a failure nothing is tried for a while but by one at a time, so
//! that callers are refused at once instead of waiting for the same time-out one after the other. Pure.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Open, or closed by a failure.
#[derive(Debug)]
pub(super) struct Gate {
    retry: Duration,
    closed: Mutex<Option<Closed>>,
}

#[derive(Debug)]
struct Closed {
    until: Instant,
    reason: String,
}

/// Not now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// The failure that closed the gate.
    pub(super) reason: String,
    /// When to come again.
    pub(super) retry: Duration,
}

impl Gate {
    /// An open gate; a failure closes it for `retry`.
    pub(super) fn new(retry: Duration) -> Self {
        Self {
            retry,
            closed: Mutex::new(None),
        }
    }

    /// Whether to try now. When the time is over, one caller is let through, and the others wait for what comes of it.
    pub(super) fn enter(&self, now: Instant) -> Result<(), Refused> {
        match self.lock().as_mut() {
            Some(closed) if now < closed.until => Err(Refused {
                reason: closed.reason.clone(),
                retry: closed.until - now,
            }),
            Some(closed) => {
                closed.until = now + self.retry;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// It worked. True: an outage has ended.
    pub(super) fn succeeded(&self) -> bool {
        self.lock().take().is_some()
    }

    /// It failed. True: an outage has begun.
    pub(super) fn failed(&self, now: Instant, reason: &str) -> bool {
        let closed = Closed {
            until: now + self.retry,
            reason: reason.to_owned(),
        };
        self.lock().replace(closed).is_none()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Closed>> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_tried_by_one_at_a_time_and_ends_for_all() {
        let retry = Duration::from_secs(2);
        let gate = Gate::new(retry);
        let start = Instant::now();
        assert_eq!(gate.enter(start), Ok(()));
        assert!(gate.failed(start, "gone"));
        assert!(!gate.failed(start, "gone"), "it begins once");
        let early = gate.enter(start + retry / 2).unwrap_err();
        assert_eq!((early.reason.as_str(), early.retry), ("gone", retry / 2));
        let later = start + retry;
        assert_eq!(gate.enter(later), Ok(()));
        assert!(gate.enter(later).is_err(), "one is trying");
        assert_eq!(
            gate.enter(later + retry),
            Ok(()),
            "whoever tried may never come back"
        );
        assert!(gate.succeeded());
        assert!(!gate.succeeded(), "it ends once");
        assert_eq!(gate.enter(later), Ok(()));
    }
}
