//! The shard's side of `muse.internal.v1.WorkerHub.Attach`.
//!
//! [`protocol`] is the pure part: what is held, what is owed, what is to be said next. [`client`] drives it over gRPC.
//! What is done with a lease is behind [`Jobs`], so both are tested without a model.

mod attach;
mod client;
mod protocol;

pub use client::{Client, ClientError, Ended, Standing};
pub use protocol::{Ack, Limits, Protocol, Report, Snapshot, Taken, Ticket};

use muse_proto::internal::v1::{AckOutcome, Expect, Lease};

/// What runs the leases. Its methods return at once; what comes of a job arrives as a [`Report`].
pub trait Jobs: Send {
    /// Starts a job. Exactly one report follows, unless it is dropped before.
    fn start(&mut self, ticket: Ticket, lease: Lease);
    /// A job may come that needs these texts' embeddings; nothing is promised, and nothing has to be done.
    fn expect(&mut self, _expect: Expect) {}
    /// Stops a job without a report: nobody waits for it any more.
    fn drop_job(&mut self, ticket: Ticket);
    /// A job's report has served its purpose: nothing about it will be asked any more. Until then its snapshot stays, so that
    /// a gateway that knows nothing of the job can be told how far it came.
    fn forget(&mut self, ticket: Ticket);
    /// The hub has answered a job's report; [`Jobs::forget`] follows. For those who keep a record of it.
    fn acknowledged(&mut self, _ticket: Ticket, _outcome: AckOutcome) {}
    /// Stops every job at its next step boundary, each with a report; jobs that only lack pixels finish.
    fn release_all(&mut self);
    /// How far a job is; `None` when it has not begun.
    fn snapshot(&self, ticket: Ticket) -> Option<Snapshot>;
    /// Sum of the versions of all snapshots: grows with every visible progress.
    fn progress_version(&self) -> u64;
    /// Passes since the process started.
    fn passes(&self) -> u64;
}
