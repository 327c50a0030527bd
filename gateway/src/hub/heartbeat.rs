//! A worker's heartbeat: leases are renewed and progress kept each time, the table of workers now and then.

use std::time::Duration;

use futures::future::OptionFuture;
use muse_proto::{
    internal::v1::{Drain, Heartbeat, attach_response::Message},
    v1::Worker,
};
use tokio::time::Instant;

use super::{
    Shared, reports,
    session::{Attached, Replies},
};
use crate::Error;

/// When the table of workers was last told of a worker, and what.
pub(super) struct Noted {
    at: Instant,
    draining: bool,
    often: Duration,
}

impl Noted {
    /// Notes a worker that has just attached.
    pub(super) async fn first(shared: &Shared, attached: &Attached) -> Result<Self, Error> {
        note(shared, attached, &attached.worker).await?;
        Ok(Self {
            at: Instant::now(),
            draining: false,
            // Half of the interval, as regular heartbeats may come somewhat sooner than it says.
            often: Duration::from_millis(shared.config.heartbeat_ms / 2),
        })
    }

    /// Whether this heartbeat is to be noted; if so, it is taken for noted. Those that come early for the sake of progress
    /// need not be: nothing in the table depends on them.
    pub(super) fn is_due(&mut self, beat: &Heartbeat) -> bool {
        let due = self.at.elapsed() >= self.often || self.draining != beat.draining;
        if due {
            self.at = Instant::now();
            self.draining = beat.draining;
        }
        due
    }
}

/// Renews leases, keeps progress, and where `noting`, notes the worker as alive. Leases to drop are revoked.
pub(super) async fn answer(shared: &Shared, attached: &Attached, beat: Heartbeat, noting: bool) -> Replies {
    let worker = Worker {
        rows: beat.rows,
        passes_per_second: beat.passes_per_second,
        draining: beat.draining,
        ..attached.worker.clone()
    };
    let mut drain = false;
    // Together: both are writes, and one wait for the disk is enough.
    let (noted, beaten) = tokio::join!(
        OptionFuture::from(noting.then(|| note(shared, attached, &worker))),
        reports::beat(shared, attached, beat.leases)
    );
    match noted {
        None => {}
        // It is told until it does it.
        Some(Ok(wanted)) => drain = wanted && !beat.draining,
        Some(Err(error @ Error::OtherBundle(_))) => return Err(error.into()),
        // The leases do not depend on the table.
        Some(Err(error)) => tracing::debug!(%error, "a heartbeat did not reach the table of workers"),
    }
    let mut answers = beaten?;
    if drain {
        answers.push(Message::Drain(Drain {}));
    }
    Ok(answers)
}

/// Notes the worker as alive; gives whether an operator wants it drained.
async fn note(shared: &Shared, attached: &Attached, worker: &Worker) -> Result<bool, Error> {
    let seen = shared
        .models
        .seen(worker, &attached.session, &attached.model)
        .await?;
    seen.map_err(|other| {
        Error::OtherBundle(format!(
            "model {} is served from another bundle (digest {}) by {} live workers, this worker has {}: stop those first, \
             or give this bundle another model.name",
            attached.model.name, other.served, other.workers, attached.model.bundle_digest
        ))
    })
}
