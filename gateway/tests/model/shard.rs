//! What a shard of the queue is, without Redis: jobs, and the little that is not said by them. Places, lists and counters
//! are not kept but follow from the jobs (`keys.rs`), so that they cannot be wrong here.

use std::collections::{BTreeMap, BTreeSet};

/// Milliseconds: a time, or how long.
pub type Ms = i64;

/// An audit that pauses for longer has ended.
pub const PATIENCE: Ms = 60_000;
/// The most that one look adds to the lease clock.
pub const LONGEST_TICK: Ms = 2_000;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shard {
    /// When the call in progress happens.
    pub now: Ms,
    /// What the call in progress has rung: channel and message.
    pub rung: Vec<String>,
    pub jobs: BTreeMap<String, Job>,
    /// Settings by tenant and name; no empty ones.
    pub settings: BTreeMap<String, BTreeMap<String, f64>>,
    /// `<ms> <reason>` by pool or tenant.
    pub paused: BTreeMap<String, String>,
    pub lines: BTreeMap<String, Line>,
    /// (tenant, pool) where the tenant was taken out of the pool's line.
    pub held: BTreeSet<(String, String)>,
    /// By tenant; the shard's own has no name.
    pub rates: BTreeMap<String, Rate>,
    /// By worker.
    pub claims: BTreeMap<String, Claimed>,
    /// By pool.
    pub took: BTreeMap<String, f64>,
    pub clock: Option<Clock>,
    pub audit: Option<Audit>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum State {
    Queued,
    /// Under a nonce, until the lease clock shows this.
    Running(String, Ms),
    /// Until.
    Delayed(Ms),
    Succeeded,
    Failed,
    Cancelled,
}

impl State {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running(..) => "running",
            Self::Delayed(_) => "delayed",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn is_live(&self) -> bool {
        matches!(self, Self::Queued | Self::Running(..) | Self::Delayed(_))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub id: String,
    pub state: State,
    pub tenant: String,
    pub model: String,
    pub stages: Vec<String>,
    pub stage: String,
    pub rows: i64,
    pub score: Ms,
    pub request: String,
    pub traceparent: String,
    pub bytes: i64,
    pub timeout: Ms,
    pub deadline: Ms,
    pub attempts: i64,
    pub crashes: i64,
    pub unacked: Option<i64>,
    pub created: Ms,
    pub updated: Ms,
    pub queued: Ms,
    pub claimed: Option<Ms>,
    pub finished: Option<Ms>,
    pub version: i64,
    pub owner: Option<String>,
    pub acked: Option<String>,
    pub prev: Option<String>,
    pub charged: Option<Budget>,
    /// Step and of how many.
    pub progress: Option<(String, String)>,
    pub checkpoint: Option<String>,
    /// By stage.
    pub finishes: BTreeMap<String, Finish>,
    /// The list, and the nonce they are stored under.
    pub pictures: Option<(String, String)>,
    /// Reason and message.
    pub error: Option<(String, String)>,
    pub reported: Option<String>,
    pub failed: Option<String>,
    pub released: Option<String>,
    pub retried: Option<String>,
    /// Hashes of the key and of the request.
    pub idempotency: Option<(String, String)>,
    pub seen: Option<String>,
    pub history: Vec<String>,
}

/// What a lost lease is charged to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    Crashes,
    Unacked,
}

/// A finished stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    pub nonce: String,
    pub digest: String,
    pub timing: String,
    /// For the stage after it.
    pub tokens: Option<String>,
}

/// A pool's line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Line {
    /// The pool's virtual time.
    pub time: Option<f64>,
    /// The tenants in it, by virtual time.
    pub tenants: BTreeMap<String, f64>,
    /// Virtual times of tenants that were ahead of the pool when they stepped out.
    pub ahead: BTreeMap<String, f64>,
}

impl Line {
    pub fn time(&self) -> f64 {
        self.time.unwrap_or(0.0)
    }

    /// Whose turn it is, and its virtual time.
    pub fn head(&self) -> Option<(String, f64)> {
        let order = |a: &(&String, &f64), b: &(&String, &f64)| a.1.total_cmp(b.1).then(a.0.cmp(b.0));
        let (tenant, time) = self.tenants.iter().min_by(order)?;
        Some((tenant.clone(), *time))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rate {
    /// When the next submission would be on time.
    pub due: f64,
    pub expires: Ms,
}

/// The last claim of a worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Claimed {
    pub first_nonce: String,
    pub ids: Vec<String>,
    pub expires: Ms,
}

/// The lease clock.
#[derive(Clone, Debug, PartialEq)]
pub struct Clock {
    pub last: Ms,
    pub clock: Ms,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Audit {
    pub token: String,
    pub expires: Ms,
}

/// A script's answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Int(i64),
    Text(String),
    List(Vec<Reply>),
    /// An error, in the words of the script.
    Error(String),
}

impl From<&str> for Reply {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<&String> for Reply {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<i64> for Reply {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl<T: Into<Reply>> From<Vec<T>> for Reply {
    fn from(list: Vec<T>) -> Self {
        Self::List(list.into_iter().map(Into::into).collect())
    }
}

/// A list of unlike parts.
macro_rules! reply {
    ($($part:expr),* $(,)?) => {
        $crate::shard::Reply::List(vec![$($crate::shard::Reply::from($part)),*])
    };
}
pub(crate) use reply;

impl Job {
    pub fn pool(&self) -> String {
        format!("{}:{}", self.model, self.stage)
    }

    pub fn waits_in(&self, pool: &str) -> bool {
        self.state == State::Queued && self.pool() == pool
    }

    /// It runs under this nonce.
    pub fn runs_under(&self, nonce: &str) -> bool {
        matches!(&self.state, State::Running(own, _) if own == nonce)
    }

    /// Its lease under this nonce ran out, and nobody has taken it over.
    pub fn was_lost_by(&self, nonce: &str) -> bool {
        self.state == State::Queued && self.prev.as_deref() == Some(nonce)
    }

    fn place(&self) -> usize {
        self.stages
            .iter()
            .position(|stage| *stage == self.stage)
            .unwrap_or(0)
    }

    pub fn stage_before(&self) -> Option<&String> {
        self.stages.get(self.place().checked_sub(1)?)
    }

    pub fn stage_after(&self) -> Option<&String> {
        self.stages.get(self.place() + 1)
    }
}

impl Shard {
    pub fn is_paused(&self, name: &str) -> bool {
        self.paused.contains_key(name)
    }

    pub fn setting(&self, tenant: &str, name: &str) -> Option<f64> {
        self.settings.get(tenant)?.get(name).copied()
    }

    /// A tenant's jobs in some of the live states.
    pub fn count(&self, tenant: &str, states: &[&str]) -> i64 {
        let is_one = |job: &&Job| job.tenant == tenant && states.contains(&job.state.name());
        self.jobs.values().filter(is_one).count() as i64
    }

    /// Bytes of live jobs: a tenant's, or all.
    pub fn bytes(&self, tenant: Option<&str>) -> i64 {
        let is_one = |job: &&Job| job.state.is_live() && tenant.is_none_or(|tenant| job.tenant == tenant);
        self.jobs.values().filter(is_one).map(|job| job.bytes).sum()
    }

    /// The job that is next in a tenant's queue.
    pub fn first_waiting(&self, pool: &str, tenant: &str) -> Option<&Job> {
        let waiting = self
            .jobs
            .values()
            .filter(|job| job.tenant == tenant && job.waits_in(pool));
        waiting.min_by_key(|job| (job.score, job.id.clone()))
    }

    /// Ids of jobs in the order of a time, those that have it at or before `until`; `most` of them.
    pub fn due(&self, time: impl Fn(&Job) -> Option<Ms>, until: Ms, most: i64) -> Vec<String> {
        let mut due: Vec<(Ms, &String)> = self
            .jobs
            .values()
            .filter_map(|job| Some((time(job)?, &job.id)))
            .filter(|(time, _)| *time <= until)
            .collect();
        due.sort_unstable();
        due.into_iter()
            .take(most as usize)
            .map(|(_, id)| id.clone())
            .collect()
    }

    /// What Redis lets go of by itself.
    pub fn expire(&mut self, now: Ms) {
        self.rates.retain(|_, rate| now <= rate.expires);
        self.claims.retain(|_, claim| now <= claim.expires);
        self.audit = self.audit.take().filter(|audit| now <= audit.expires);
    }
}
