//! What the measurements share.

use std::time::{Duration, Instant};

/// Milliseconds.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Runs `work` and tells how long it took, in seconds.
pub(crate) fn timed<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<(T, f64), E> {
    let begun = Instant::now();
    let made = work()?;
    Ok((made, begun.elapsed().as_secs_f64()))
}

/// Tells a person who waits what is going on.
pub(crate) fn say(what: &str) {
    eprintln!("muse-bench: {what}");
}
