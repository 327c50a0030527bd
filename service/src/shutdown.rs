//! The end of a process, as a design: a request (SIGTERM, SIGINT, or a test), a drain with a limit, then an end.

use std::{future::Future, io, time::Duration};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Told to every part of a service; cloning is cheap.
#[derive(Clone, Debug)]
pub struct Shutdown {
    requested: CancellationToken,
    drain: Duration,
}

/// Requests the shutdown of what holds the matching [`Shutdown`]; for tests, and for a service that ends itself.
#[derive(Clone, Debug)]
pub struct ShutdownTrigger(CancellationToken);

// === impl Shutdown ===

impl Shutdown {
    /// How long a drain may take where nothing is configured.
    pub const DEFAULT_DRAIN: Duration = Duration::from_secs(30);

    /// Requested by hand. Dropping the trigger requests nothing.
    pub fn manual() -> (ShutdownTrigger, Self) {
        Self::manual_with_drain(Self::DEFAULT_DRAIN)
    }

    /// As [`Shutdown::manual`], with the longest time a drain may take.
    pub fn manual_with_drain(drain: Duration) -> (ShutdownTrigger, Self) {
        let requested = CancellationToken::new();
        (ShutdownTrigger(requested.clone()), Self { requested, drain })
    }

    /// Requested by the first SIGTERM or SIGINT. A second signal ends the process at once: whoever presses Ctrl-C twice
    /// means it. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the signal handlers cannot be installed.
    pub fn from_signals(drain: Duration) -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (trigger, shutdown) = Self::manual_with_drain(drain);
        tokio::spawn(async move {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            tracing::info!(
                signal = name,
                drain_seconds = drain.as_secs_f64(),
                "shutting down"
            );
            trigger.shut_down();
            let code = tokio::select! {
                _ = terminate.recv() => 143,
                _ = interrupt.recv() => 130,
            };
            tracing::warn!("a second signal: ending without a drain");
            std::process::exit(code);
        });
        Ok(shutdown)
    }

    /// Returns when the shutdown has been requested; at once if it was before.
    pub async fn requested(&self) {
        self.requested.cancelled().await;
    }

    /// Whether the shutdown has been requested.
    pub fn is_requested(&self) -> bool {
        self.requested.is_cancelled()
    }

    /// The longest time that a drain may take.
    pub const fn drain(&self) -> Duration {
        self.drain
    }

    /// Runs `work`. Once the shutdown is requested, `work` has [`Shutdown::drain`] to end; then it is dropped with a warning
    /// that names it, and `None` comes back. `work` itself must begin to end when asked.
    pub async fn limit<F: Future>(&self, what: &str, work: F) -> Option<F::Output> {
        tokio::select! {
            output = work => Some(output),
            () = self.expired() => {
                let limit = self.drain.as_secs_f64();
                tracing::warn!(what, limit_seconds = limit, "drain took too long; cutting what is left");
                None
            }
        }
    }

    async fn expired(&self) {
        self.requested().await;
        tokio::time::sleep(self.drain).await;
    }
}

// === impl ShutdownTrigger ===

impl ShutdownTrigger {
    /// Requests the shutdown; again does nothing.
    pub fn shut_down(&self) {
        self.0.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn work_that_does_not_end_is_cut_after_the_drain_limit() {
        let (trigger, shutdown) = Shutdown::manual_with_drain(Duration::from_millis(20));
        trigger.shut_down();
        let begun = std::time::Instant::now();
        assert_eq!(shutdown.limit("test", pending::<()>()).await, None);
        assert!(
            begun.elapsed() >= Duration::from_millis(20),
            "cut early: {:?}",
            begun.elapsed()
        );
    }

    #[tokio::test]
    async fn work_is_never_cut_before_the_request() {
        let (_trigger, shutdown) = Shutdown::manual_with_drain(Duration::ZERO);
        let slow = async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            5
        };
        assert_eq!(shutdown.limit("test", slow).await, Some(5));
    }
}
