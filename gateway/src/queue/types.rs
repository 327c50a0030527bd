//! What goes into the scripts and what comes out.

use bytes::Bytes;
use muse_proto::v1::Stage;
use muse_service::Tenant;

use crate::jobs::{JobId, Nonce};

/// A job on its way into the queue.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Its name, which also says its shard.
    pub id: JobId,
    /// Whose it is.
    pub tenant: Tenant,
    /// The model's name.
    pub model: String,
    /// The stages it passes, in order; at least one.
    pub stages: Vec<Stage>,
    /// Pictures, each a row in every stage.
    pub rows: u32,
    /// See [`super::priority::boost_ms`].
    pub boost_ms: i64,
    /// From acceptance to the deadline.
    pub timeout_ms: u64,
    /// The resolved request, encoded.
    pub request: Vec<u8>,
    /// W3C trace context, or empty.
    pub traceparent: String,
    /// The client's key, hashed, and the hash of the request as the client sent it.
    pub idempotency: Option<Idempotency>,
}

/// An idempotency key and what it stands for, both as hexadecimal SHA-256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// Of the key.
    pub key: String,
    /// Of the request.
    pub request: String,
}

/// What became of a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submission {
    /// Accepted.
    Created(JobId),
    /// The key stood for the same request already.
    Existed(JobId),
    /// The key stands for another request.
    Conflict,
    /// As many jobs as allowed are waiting.
    Full,
}

/// What became of a cancellation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancellation {
    /// It was live and is cancelled.
    Cancelled,
    /// It had ended.
    Ended,
    /// No such job, or another tenant's.
    Unknown,
}

/// A lease.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The job.
    pub id: JobId,
    /// Who reports must show it.
    pub nonce: Nonce,
    /// The resolved request, encoded.
    pub request: Vec<u8>,
    /// The tokens of the stage before, encoded; empty in the first stage.
    pub low_tokens: Vec<u8>,
    /// Where an earlier shard left off, encoded; empty: at the beginning.
    pub checkpoint: Vec<u8>,
    /// Unix time.
    pub deadline_ms: u64,
    /// W3C trace context, or empty.
    pub traceparent: String,
    /// Time in the queue.
    pub waited_ms: u64,
    /// Failed attempts of this stage so far.
    pub attempts: u32,
    /// Whose it is.
    pub tenant: String,
}

/// A sign of life for a lease.
#[derive(Clone, Debug)]
pub struct Beat {
    /// The job.
    pub id: JobId,
    /// The lease.
    pub nonce: Nonce,
    /// Steps done.
    pub step: u32,
    /// Of so many.
    pub of: u32,
    /// Encoded; empty: no news.
    pub checkpoint: Bytes,
}

/// What became of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beaten {
    /// Renewed.
    Held,
    /// The job was cancelled: drop it.
    Cancelled,
    /// The job's deadline passed: drop it.
    Deadline,
    /// This lease was reported already; nothing to drop.
    Reported,
    /// The job is another's, or has ended: drop it.
    Lost,
}

/// A stage's result.
#[derive(Clone, Debug)]
pub enum StageResult {
    /// Token grids, encoded, for the next stage.
    Tokens(Vec<u8>),
    /// What the pictures are, encoded; the pictures themselves are in the result store under the nonce.
    Pictures(Vec<u8>),
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reported {
    /// It is on disk.
    Accepted,
    /// It was before.
    Duplicate,
    /// The job is another's, or has ended.
    Stale,
    /// It does not fit the job.
    Refused,
}

/// What became of a finished stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completed {
    /// The report's fate.
    pub outcome: Reported,
    /// The whole job is done with it.
    pub job_ended: bool,
    /// From submission to now.
    pub age_ms: u64,
}

/// What the reaper moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Leases that ran out.
    pub lost: u64,
    /// Of those, jobs that are dead as poison.
    pub dead: u64,
    /// Delays that are over.
    pub delayed: u64,
    /// Deadlines that passed.
    pub overdue: u64,
}

/// A job that was forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purged {
    /// The job.
    pub id: JobId,
    /// Its pictures' nonce, if it had pictures.
    pub pictures: Option<Nonce>,
}

/// How full a pool's queue is, over all shards and tenants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// Jobs that wait.
    pub queued: u64,
    /// Jobs that run.
    pub running: u64,
    /// Jobs that wait for another attempt.
    pub delayed: u64,
    /// Age of the one that has waited longest.
    pub oldest_ms: Option<u64>,
}
