//! Whether a history is one that a queue may have: pure, and strict on what it can know. Times that cross processes decide
//! only where they are safe: a command was sent after another's reply had come.

mod ends;
mod leases;
mod measures;
mod recovery;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    time::Duration,
};

use super::history::{Event, JobKind, Record, View};

pub use recovery::Recoveries;

/// What has to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Invariant {
    /// Every accepted job is there and has ended.
    NothingIsLost,
    /// A job ends once, and a stage is finished by one lease.
    NothingIsDoneTwice,
    /// A job that has ended stays as it ended; versions tell one story.
    EndsAreFinal,
    /// A job ends as it should: a plain one with success.
    EndsAreRight,
    /// One idempotency key, one job; no job without a key that was submitted.
    OneKeyOneJob,
    /// No result counts of a lease that another had replaced.
    NoStaleCommit,
    /// Finishers that disagree are told.
    DisagreementsAreTold,
    /// A worker hears what Redis did with its report.
    AcksAreTrue,
    /// A refusal that passes says when to come again.
    RefusalsSayWhen,
    /// Audits find nothing: every job in one place, counters equal a recount.
    AuditsAreClean,
    /// No quantity is above its limit.
    LimitsHold,
    /// Tenants get their shares within a tenth.
    SharesAreFair,
    /// A lost worker's jobs are with others within a lease and 2 s.
    WorkersAreReplaced,
    /// All is well within 5 s of Redis' return.
    RedisIsTakenUp,
}

/// A breach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub invariant: Invariant,
    pub what: String,
}

/// What recovery is measured against.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub lease: Duration,
    /// Above the lease, after a worker's death.
    pub worker: Duration,
    /// After Redis' return.
    pub redis: Duration,
    /// Relative, of a tenant's share.
    pub share: f64,
}

/// A history's judgement.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub violations: Vec<Violation>,
    pub recoveries: Recoveries,
    /// Jobs by kind and last state.
    pub ends: BTreeMap<(JobKind, String), u64>,
    /// Results that were turned away because another's counted, and told to differ from it.
    pub disagreements: u64,
    /// Results that count and whose acceptance nobody lived to see: a picture proves them.
    pub unseen: u64,
    /// Accepted jobs that were lost with what was taken from the disk on purpose.
    pub forgiven: u64,
    /// For each saturated window: tenant, weight, jobs.
    pub shares: Vec<Vec<(String, f64, u64)>>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(2),
            worker: Duration::from_secs(2),
            redis: Duration::from_secs(5),
            share: 0.1,
        }
    }
}

impl Invariant {
    /// Whether a slow machine can break it, too.
    pub const fn is_a_time(self) -> bool {
        matches!(self, Self::WorkersAreReplaced | Self::RedisIsTakenUp)
    }
}

/// Every invariant there is.
pub const INVARIANTS: [Invariant; 14] = [
    Invariant::NothingIsLost,
    Invariant::NothingIsDoneTwice,
    Invariant::EndsAreFinal,
    Invariant::EndsAreRight,
    Invariant::OneKeyOneJob,
    Invariant::NoStaleCommit,
    Invariant::DisagreementsAreTold,
    Invariant::AcksAreTrue,
    Invariant::RefusalsSayWhen,
    Invariant::AuditsAreClean,
    Invariant::LimitsHold,
    Invariant::SharesAreFair,
    Invariant::WorkersAreReplaced,
    Invariant::RedisIsTakenUp,
];

/// Judges records that are ordered by time.
pub fn check(records: &[Record], bounds: &Bounds) -> Verdict {
    let jobs = Jobs::of(records);
    let mut verdict = Verdict::default();
    ends::check(records, &jobs, &mut verdict);
    leases::check(records, &jobs, bounds, &mut verdict);
    measures::check(records, bounds, &mut verdict);
    recovery::check(records, bounds, &mut verdict);
    verdict
}

/// A job as its clients know it.
struct Known {
    tenant: String,
    kind: JobKind,
    prompt: String,
    /// By whom, when; the last is the sweep's.
    views: Vec<(u64, View)>,
    swept: Option<(u64, View)>,
    missing: bool,
    revivals: usize,
    purged: bool,
    /// Some of it may have been in what was taken from the disk.
    unsynced: bool,
    /// Its acceptance may have been: only then may it be gone.
    acceptance_unsynced: bool,
}

/// Every job that was accepted.
struct Jobs {
    known: HashMap<String, Known>,
    /// Keys by (tenant, key) with what they were for.
    keys: HashMap<(String, String), (JobKind, String)>,
    by_key: HashMap<(String, String), HashSet<String>>,
    /// Jobs of other requests that a key was given to: the key, the job.
    taken_anew: Vec<((String, String), String)>,
    unsynced: Vec<(u64, u64)>,
}

impl Jobs {
    fn of(records: &[Record]) -> Self {
        let unsynced: Vec<(u64, u64)> = records
            .iter()
            .filter_map(|record| match record.event {
                Event::Unsynced { from, to } => Some((from, to)),
                _ => None,
            })
            .collect();
        let mut jobs = Self {
            known: HashMap::new(),
            keys: HashMap::new(),
            by_key: HashMap::new(),
            taken_anew: Vec::new(),
            unsynced,
        };
        for record in records {
            jobs.take(record);
        }
        jobs
    }

    fn take(&mut self, record: &Record) {
        let at = record.at;
        match &record.event {
            Event::Submitting {
                tenant,
                key,
                kind,
                prompt,
            } => {
                self.keys
                    .insert((tenant.clone(), key.clone()), (*kind, prompt.clone()));
            }
            Event::Accepted { tenant, key, job } => {
                let by = (tenant.clone(), key.clone());
                self.accept(&by, job, at);
                self.by_key.entry(by).or_default().insert(job.clone());
            }
            Event::TakenAnew { tenant, key, job } => {
                let by = (tenant.clone(), key.clone());
                self.accept(&by, job, at);
                self.taken_anew.push((by, job.clone()));
            }
            Event::Seen { job, view } => {
                if let Some(known) = self.touch(job, at) {
                    known.views.push((at, view.clone()));
                }
            }
            Event::Swept { job, seed, view, .. } => {
                if let Some(known) = self.known.get_mut(job) {
                    known.views.push((at, view.clone()));
                    known.swept = Some((*seed, view.clone()));
                }
            }
            Event::Missing { job } => {
                if let Some(known) = self.known.get_mut(job) {
                    known.missing = true;
                }
            }
            Event::Reviving { job } => {
                if let Some(known) = self.known.get_mut(job) {
                    known.revivals += 1;
                }
            }
            Event::Purging { job } => {
                if let Some(known) = self.touch(job, at) {
                    known.purged = true;
                }
            }
            // What Redis did for a job may be undone, and be done again, where it was taken from the disk.
            Event::Granted { sent, job, .. }
            | Event::Completed { sent, job, .. }
            | Event::GivenUp { sent, job, .. }
            | Event::TakenBack { sent, job, .. } => {
                self.touch(job, *sent);
                self.touch(job, at);
            }
            _ => {}
        }
    }

    /// A client was told of a job, of the kind that its key was for.
    fn accept(&mut self, by: &(String, String), job: &str, at: u64) {
        let kept = self.keys.get(by).cloned();
        let (kind, prompt) = kept.unwrap_or((JobKind::Plain, String::new()));
        self.known.entry(job.to_owned()).or_insert_with(|| Known {
            tenant: by.0.clone(),
            kind,
            prompt,
            views: vec![],
            swept: None,
            missing: false,
            revivals: 0,
            purged: false,
            unsynced: false,
            acceptance_unsynced: false,
        });
        let taken = self.is_unsynced(at);
        if let Some(known) = self.touch(job, at) {
            known.acceptance_unsynced |= taken;
        }
    }

    fn is_unsynced(&self, at: u64) -> bool {
        self.unsynced.iter().any(|(from, to)| (*from..=*to).contains(&at))
    }

    /// Something about a job was written, or read, at this time.
    fn touch(&mut self, job: &str, at: u64) -> Option<&mut Known> {
        let unsynced = self.is_unsynced(at);
        let known = self.known.get_mut(job)?;
        known.unsynced |= unsynced;
        Some(known)
    }
}

// === impl Verdict ===

impl Verdict {
    fn breach(&mut self, invariant: Invariant, what: impl Into<String>) {
        self.violations.push(Violation {
            invariant,
            what: what.into(),
        });
    }

    /// Breaches of one invariant.
    pub fn count(&self, invariant: Invariant) -> usize {
        let breaches = self.violations.iter();
        breaches.filter(|breach| breach.invariant == invariant).count()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for invariant in INVARIANTS {
            let breaches: Vec<_> = self
                .violations
                .iter()
                .filter(|breach| breach.invariant == invariant)
                .collect();
            if breaches.is_empty() {
                continue;
            }
            writeln!(f, "{invariant:?}: {} breaches", breaches.len())?;
            for breach in breaches.iter().take(10) {
                writeln!(f, "    {}", breach.what)?;
            }
        }
        Ok(())
    }
}

/// Whether a state is an end.
fn is_terminal(state: &str) -> bool {
    matches!(
        state,
        "JOB_STATE_SUCCEEDED" | "JOB_STATE_FAILED" | "JOB_STATE_CANCELLED"
    )
}
