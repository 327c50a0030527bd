//! Starts, drops and releases job tasks as the hub client says.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::FutureExt as _;
use muse_proto::{
    internal::v1::{Expect, Fail, Lease},
    v1::{JobError, JobErrorReason},
};
use muse_service::telemetry::trace_context;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, error, info_span};

use super::rest;
use crate::{
    board::Board,
    device::Device,
    encoder,
    hub::{Jobs, Report, Snapshot, Ticket},
    lease::Acceptance,
    pixels::PixelThread,
};

/// What job tasks work with.
pub struct Parts {
    /// This process, for timings.
    pub worker_id: String,
    /// What this shard accepts.
    pub acceptance: Acceptance,
    /// Text to embeddings.
    pub encoder: encoder::Client,
    /// Rows to tokens.
    pub device: Device,
    /// Tokens to pictures; only in the last stage.
    pub pixels: Option<PixelThread>,
    /// How far jobs are.
    pub board: Arc<Board>,
}

/// How a running job is told to stop.
#[derive(Clone, Default)]
pub(super) struct Control {
    /// Nobody waits for it any more.
    pub(super) dropped: CancellationToken,
    /// To be given back at the next step boundary.
    pub(super) released: CancellationToken,
}

/// The jobs that the shard has in hand.
#[derive(Default)]
struct Held {
    controls: Mutex<HashMap<Ticket, Control>>,
    count: watch::Sender<usize>,
}

/// See the module.
pub struct Shard {
    parts: Arc<Parts>,
    reports: mpsc::Sender<(Ticket, Report)>,
    held: Arc<Held>,
    /// For texts that are asked for ahead of their job.
    ahead: Arc<Semaphore>,
}

/// Takes a job's control away when its task ends, however it ends.
struct Entry {
    ticket: Ticket,
    held: Arc<Held>,
}

impl Shard {
    /// Jobs report to `reports`. After `rest_after` without a job the device rests; `None`: never. `ahead` texts at once are asked
    /// for before the job that needs them is here.
    pub fn new(
        parts: Parts,
        reports: mpsc::Sender<(Ticket, Report)>,
        rest_after: Option<Duration>,
        ahead: usize,
    ) -> Self {
        let held = Arc::new(Held::default());
        if let Some(after) = rest_after {
            let (count, device) = (held.count.subscribe(), parts.device.clone());
            let rest = move || {
                let device = device.clone();
                async move { device.rest().await }
            };
            tokio::spawn(rest::when_idle(count, move || tokio::time::sleep(after), rest));
        }
        Shard {
            parts: Arc::new(parts),
            reports,
            held,
            ahead: Arc::new(Semaphore::new(ahead.min(Semaphore::MAX_PERMITS))),
        }
    }
}

impl Jobs for Shard {
    fn start(&mut self, ticket: Ticket, lease: Lease) {
        let control = Control::default();
        self.held
            .change(|controls| controls.insert(ticket, control.clone()));
        let entry = Entry {
            ticket,
            held: self.held.clone(),
        };
        let (parts, reports) = (self.parts.clone(), self.reports.clone());
        let (job_id, nonce) = (lease.job_id.clone(), lease.nonce.clone());
        tokio::spawn(async move {
            // A job whose task crashed must not be held for ever by heartbeats.
            let work = AssertUnwindSafe(super::run_job::run(&parts, ticket, lease, control));
            let report = work.catch_unwind().await.unwrap_or_else(|_| {
                error!(job_id, "the job's task crashed");
                let error = Some(JobError {
                    reason: JobErrorReason::Internal as i32,
                    message: "the worker failed on it".to_owned(),
                });
                Some(Report::Fail(Fail {
                    job_id,
                    nonce,
                    error,
                    retriable: true,
                }))
            });
            match report {
                // The hub client ends only when nobody waits for reports any more.
                Some(report) => drop(reports.send((ticket, report)).await),
                None => parts.board.remove(ticket),
            }
            drop(entry);
        });
    }

    fn expect(&mut self, expect: Expect) {
        let span = info_span!("embed ahead", worker_id = self.parts.worker_id);
        trace_context::set_parent(&span, &expect.traceparent);
        for text in expect.texts {
            let Ok(permit) = self.ahead.clone().try_acquire_owned() else {
                return;
            };
            let parts = self.parts.clone();
            let ask = async move {
                let _permit = permit;
                // Whoever needs it meanwhile waits for this very call, and hears of a failure itself.
                if let Err(error) = parts.encoder.embed(&text).await {
                    debug!(%error, "a text of a job that may come has no embedding");
                }
            };
            tokio::spawn(ask.instrument(span.clone()));
        }
    }

    fn drop_job(&mut self, ticket: Ticket) {
        if let Some(control) = self.held.lock().get(&ticket) {
            control.dropped.cancel();
        }
    }

    fn forget(&mut self, ticket: Ticket) {
        self.parts.board.remove(ticket);
    }

    fn release_all(&mut self) {
        for control in self.held.lock().values() {
            control.released.cancel();
        }
    }

    fn snapshot(&self, ticket: Ticket) -> Option<Snapshot> {
        self.parts.board.read(ticket)
    }

    fn progress_version(&self) -> u64 {
        self.parts.board.version()
    }

    fn passes(&self) -> u64 {
        self.parts.board.passes()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.held.change(|controls| controls.remove(&self.ticket));
    }
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, HashMap<Ticket, Control>> {
        self.controls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<Ticket, Control>) -> Option<Control>) {
        let mut controls = self.lock();
        change(&mut controls);
        // Under the lock, so that the last one to tell knows the latest number.
        self.count.send_replace(controls.len());
    }
}
