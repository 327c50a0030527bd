//! What one connection to the hub has carried, and when its next heartbeat is due.

use std::time::{Duration, Instant};

/// The present connection.
#[derive(Debug)]
pub(super) struct Link {
    heartbeat: Duration,
    last_heartbeat: Option<Instant>,
    /// The last heartbeat that carried checkpoints. Those that go out early for progress's sake do not: grids are large
    /// beside it, and each is stored.
    last_full: Option<Instant>,
    progress_told: u64,
    rate: Rate,
    /// The credit that the gateway still has from us: what was sent, less the leases since. `None`: nothing sent yet.
    pub(super) credit: Option<u32>,
}

/// Passes a second, over at least [`Rate::WINDOW`], so that early heartbeats do not make it jump.
#[derive(Debug, Default)]
struct Rate {
    since: Option<(Instant, u64)>,
    per_second: f64,
}

// === impl Link ===

impl Link {
    /// A connection that has carried nothing. The gateway wants a heartbeat every `heartbeat`.
    pub(super) fn new(heartbeat: Duration) -> Self {
        Link {
            heartbeat,
            last_heartbeat: None,
            last_full: None,
            progress_told: 0,
            rate: Rate::default(),
            credit: None,
        }
    }

    /// Whether a heartbeat should go out: the gateway's interval has passed, or there is progress and the last is older than
    /// `early`.
    pub(super) fn is_heartbeat_due(
        &self,
        now: Instant,
        progress_version: u64,
        early: Option<Duration>,
    ) -> bool {
        let progress = progress_version != self.progress_told;
        self.is_full_due(now)
            || early.is_some_and(|early| progress && is_past(self.last_heartbeat, early, now))
    }

    /// When the next one is due without progress.
    pub(super) fn next_heartbeat(&self, now: Instant) -> Option<Instant> {
        match self.last_full {
            None => Some(now),
            // The interval comes from the gateway: one that overflows is never.
            Some(last) => last.checked_add(self.heartbeat),
        }
    }

    /// A heartbeat goes out. True when it carries checkpoints.
    pub(super) fn beat(&mut self, now: Instant, progress_version: u64) -> bool {
        let full = self.is_full_due(now);
        self.last_heartbeat = Some(now);
        self.progress_told = progress_version;
        if full {
            self.last_full = Some(now);
        }
        full
    }

    /// Passes a second, when so many have run by now.
    pub(super) fn rate(&mut self, now: Instant, passes: u64) -> f64 {
        self.rate.update(now, passes)
    }

    fn is_full_due(&self, now: Instant) -> bool {
        is_past(self.last_full, self.heartbeat, now)
    }
}

/// `interval` has passed since `last`, which may never have been.
fn is_past(last: Option<Instant>, interval: Duration, now: Instant) -> bool {
    last.is_none_or(|last| now.saturating_duration_since(last) >= interval)
}

// === impl Rate ===

impl Rate {
    const WINDOW: Duration = Duration::from_secs(2);

    fn update(&mut self, now: Instant, passes: u64) -> f64 {
        let (start, before) = *self.since.get_or_insert((now, passes));
        let elapsed = now.duration_since(start);
        if elapsed >= Self::WINDOW {
            self.per_second = passes.saturating_sub(before) as f64 / elapsed.as_secs_f64();
            self.since = Some((now, passes));
        }
        self.per_second
    }
}
