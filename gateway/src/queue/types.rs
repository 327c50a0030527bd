//! What goes into the scripts and what comes out.

use bytes::Bytes;
use muse_proto::v1::Stage;
use muse_service::Tenant;
use redis::Cmd;
use sha2::{Digest as _, Sha256};

use crate::jobs::{JobId, Nonce, stage_name};

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

impl NewJob {
    /// The names of its stages in order, comma-separated, as they are stored.
    pub fn stage_names(&self) -> String {
        let names: Vec<&str> = self
            .stages
            .iter()
            .filter_map(|stage| stage_name(*stage))
            .collect();
        names.join(",")
    }
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
    /// A limit of the whole queue.
    Full(Refusal),
    /// A limit of the tenant's own.
    Quota(Refusal),
}

/// A job that was created by the call that asked, and not by an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fresh {
    /// Unix time.
    pub created_ms: u64,
    /// Jobs of its tenant that are before it, where that was asked.
    pub rank: Option<u64>,
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
    /// What the pictures are; the pictures themselves are in the result store under the nonce.
    Pictures {
        /// Encoded.
        list: Vec<u8>,
        /// What stores the pictures together with the report, where the result store left that to do.
        writes: Vec<Cmd>,
    },
}

impl StageResult {
    /// Pictures that are stored already.
    pub fn pictures(list: Vec<u8>) -> Self {
        let writes = Vec::new();
        Self::Pictures { list, writes }
    }

    /// What it is, encoded.
    pub fn encoded(&self) -> &[u8] {
        match self {
            Self::Tokens(encoded) | Self::Pictures { list: encoded, .. } => encoded,
        }
    }

    /// SHA-256 of the tokens, or of the list of pictures with their digests: equal for equal results.
    pub fn digest(&self) -> String {
        hex::encode(Sha256::digest(self.encoded()))
    }
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completed {
    /// The report's fate.
    pub outcome: Reported,
    /// The whole job is done with it.
    pub job_ended: bool,
    /// From submission to now.
    pub age_ms: u64,
    /// The digest of the result that another finisher of this stage brought, when it is not this one's.
    pub other_digest: Option<String>,
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

/// Who may refer to pictures of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// No job of that name is known.
    Unknown,
    /// It has not ended: any of its leases may still be finished.
    Live,
    /// It has ended.
    Ended {
        /// The nonce of its pictures, where it has any.
        pictures: Option<Nonce>,
    },
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

/// Which limit refused a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `jobs`, `bytes` or `rate` of the queue; `max_queued`, `max_bytes` or `rate` of the tenant.
    pub limit: String,
    /// Its value.
    pub value: String,
    /// When it will let a submission pass; `None`: when others have ended.
    pub wait_ms: Option<u64>,
}

/// Settings of a tenant, those that were set.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Settings {
    /// Share of the work.
    pub weight: Option<f64>,
    /// Jobs running at once; 0: no limit, here and below.
    pub max_running: Option<u64>,
    /// Jobs queued or delayed at once.
    pub max_queued: Option<u64>,
    /// Bytes of its live jobs.
    pub max_bytes: Option<u64>,
    /// Submissions a second.
    pub rate: Option<f64>,
    /// Submissions at once.
    pub burst: Option<u64>,
}

impl Settings {
    /// From the fields of a tenant's hash.
    pub(super) fn parse(fields: &std::collections::HashMap<String, String>) -> Self {
        let float = |name: &str| fields.get(name).and_then(|value| value.parse::<f64>().ok());
        // Whole numbers are written by this program too, but a person may have written 1e6.
        let whole = |name: &str| float(name).map(|value| value as u64);
        Self {
            weight: float("weight"),
            max_running: whole("max_running"),
            max_queued: whole("max_queued"),
            max_bytes: whole("max_bytes"),
            rate: float("rate"),
            burst: whole("burst"),
        }
    }
}

/// A tenant as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct TenantStatus {
    /// Its name.
    pub name: String,
    /// What was set for it.
    pub settings: Settings,
    /// Since when and why it is paused.
    pub paused: Option<Paused>,
    /// Jobs that wait.
    pub queued: u64,
    /// Jobs that run.
    pub running: u64,
    /// Jobs that wait for another attempt.
    pub delayed: u64,
    /// Bytes of its live jobs.
    pub bytes: u64,
}

/// Since when something is paused, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paused {
    /// Unix time.
    pub since_ms: u64,
    /// The operator's words.
    pub reason: String,
}

impl Paused {
    /// From `<ms> <reason>`.
    pub(super) fn parse(text: &str) -> Self {
        let (since, reason) = text.split_once(' ').unwrap_or((text, ""));
        Self {
            since_ms: since.parse().unwrap_or(0),
            reason: reason.to_owned(),
        }
    }
}

/// A failure of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Unix time.
    pub at_ms: u64,
    /// The stage's name.
    pub stage: String,
    /// A `JobErrorReason`.
    pub reason: i32,
    /// In words.
    pub message: String,
    /// The shard that had it; empty: none.
    pub worker: String,
}

impl Failure {
    /// From `<ms> <stage> <reason> <worker or -> <message>`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.splitn(5, ' ');
        let (at, stage, reason, worker) = (words.next()?, words.next()?, words.next()?, words.next()?);
        Some(Self {
            at_ms: at.parse().ok()?,
            stage: stage.to_owned(),
            reason: reason.parse().ok()?,
            worker: if worker == "-" {
                String::new()
            } else {
                worker.to_owned()
            },
            message: words.next().unwrap_or_default().to_owned(),
        })
    }
}

/// Where a page of dead jobs goes on: after the job that failed then and has that name. In order of time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeadCursor {
    /// Unix time of its failure.
    pub failed_ms: u64,
    /// Its name.
    pub id: JobId,
}

/// What became of a dead job that was to be retried or forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raised {
    /// Done.
    Done,
    /// It is not dead.
    NotDead,
    /// There is no such job.
    Unknown,
}

/// What became of a job that was to go back to its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeued {
    /// It waits.
    Queued,
    /// It has succeeded or was cancelled.
    Ended,
    /// No such job.
    Unknown,
}
