//! A worker's heartbeat: leases are renewed and progress kept each time, the table of workers now and then.

use std::{sync::atomic::Ordering, time::Duration};

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

/// What the table of workers was last told of a worker by a heartbeat, and when.
#[derive(Default)]
pub(super) struct Noted(Option<(Instant, bool)>);

impl Noted {
    /// Whether this heartbeat is to be noted; if so, it is taken for noted. Those that come early for the sake of progress
    /// need not be: nothing in the table depends on them. Half of the `interval`, as regular ones may come somewhat sooner.
    pub(super) fn is_due(&mut self, beat: &Heartbeat, interval: Duration) -> bool {
        let due = self
            .0
            .is_none_or(|(at, draining)| at.elapsed() >= interval / 2 || draining != beat.draining);
        if due {
            self.0 = Some((Instant::now(), beat.draining));
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
    // Together: both are writes, and one wait for the disk is enough.
    let (noted, beaten) = tokio::join!(
        OptionFuture::from(noting.then(|| note(shared, attached, &worker))),
        reports::beat(shared, attached, beat.leases)
    );
    match noted {
        None => {}
        Some(Ok(wanted)) => attached.drains.store(wanted, Ordering::Relaxed),
        Some(Err(error @ Error::OtherBundle(_))) => return Err(error.into()),
        // The leases do not depend on the table.
        Some(Err(error)) => tracing::debug!(%error, "a heartbeat did not reach the table of workers"),
    }
    let mut answers = beaten?;
    // It is told until it does it.
    if attached.drains.load(Ordering::Relaxed) && !beat.draining {
        answers.push(Message::Drain(Drain {}));
    }
    Ok(answers)
}

/// Notes the worker as alive; gives whether an operator wants it drained.
pub(super) async fn note(shared: &Shared, attached: &Attached, worker: &Worker) -> Result<bool, Error> {
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
