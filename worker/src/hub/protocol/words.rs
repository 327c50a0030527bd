//! What is said about leases between the hub client, the protocol and what runs the jobs.

use std::time::Duration;

use muse_proto::{
    internal::v1::{AckOutcome, AttachRequest, Checkpoint, Complete, Fail, Release, attach_request},
    v1::Progress,
};

/// A lease's number inside this process. Job ids are not enough: a job that was lost may come back under a new nonce while
/// the report on the old one is still owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// How much is held, and when is spoken.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rows that credit is given for.
    pub capacity: u32,
    /// Rows above which a lease is given back at once. More than `capacity`, because credit and leases cross on the wire and
    /// a job is not divided.
    pub max_rows: u32,
    /// A report that is not acknowledged for this long is sent again on the same connection.
    pub resend_after: Duration,
    /// A heartbeat goes out early when progress was made and the last is older than this; `None`: never early.
    pub progress_interval: Option<Duration>,
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Grows with every change.
    pub version: u64,
    /// For people.
    pub progress: Progress,
    /// For the next shard; `None` before the first step.
    pub checkpoint: Option<Checkpoint>,
}

/// What came of a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// Its stage is done.
    Complete(Complete),
    /// It failed.
    Fail(Fail),
    /// It is given back.
    Release(Release),
}

impl Report {
    pub(super) fn message(&self) -> AttachRequest {
        let message = match self {
            Report::Complete(complete) => attach_request::Message::Complete(complete.clone()),
            Report::Fail(fail) => attach_request::Message::Fail(fail.clone()),
            Report::Release(release) => attach_request::Message::Release(release.clone()),
        };
        AttachRequest {
            message: Some(message),
        }
    }

    /// Name for logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Report::Complete(_) => "complete",
            Report::Fail(_) => "fail",
            Report::Release(_) => "release",
        }
    }
}

/// What becomes of a lease that arrives.
#[derive(Debug, PartialEq)]
pub enum Taken {
    /// Start it; if it took the place of an older lease of the same job, drop that one.
    Start {
        /// The new lease.
        ticket: Ticket,
        /// The older lease of the same job, whose nonce no longer counts.
        replaces: Option<Ticket>,
    },
    /// The same lease is held already.
    Known,
    /// It is given back: the shard drains or is full.
    GivenBack,
}

/// An acknowledgement, matched.
#[derive(Debug, PartialEq, Eq)]
pub struct Ack {
    /// Which lease has ended.
    pub ticket: Ticket,
    /// What kind of report was acknowledged.
    pub report: &'static str,
    /// What became of it.
    pub outcome: AckOutcome,
}
