//! The queue in Redis: a HASH for each job, sorted sets for where it is, and Lua scripts that move it. Every change is one
//! script; nothing here keeps state of its own.
//!
//! The scripts are in `scripts/`; `common.lua` holds the rules that they share, of which each gets what it needs.

mod accept;
mod audit;
mod backoff;
mod call;
mod coalesce;
mod compose;
mod dead;
mod estimate;
mod gathering;
mod keys;
mod lane;
mod leases;
mod place;
mod priority;
mod read;
pub(crate) mod scripts;
mod submit;
mod tenants;
mod types;
mod upkeep;

use self::coalesce::{Ahead, Coalesced, Coming};
pub use self::{
    accept::Acceptance,
    audit::{AuditError, AuditEvent, Audited, Fault, Finding},
    compose::compose,
    keys::Keys,
    priority::boost_ms,
    tenants::{AllPaused, SETTINGS, Target},
    types::{
        Beat, Beaten, Cancellation, Completed, DeadCursor, Failure, Fresh, Grant, Holder, Idempotency,
        NewJob, Paused, PoolCounts, Purged, Raised, Reaped, Refusal, Reported, Requeued, Settings,
        StageResult, Submission, TenantStatus,
    },
};
use crate::{
    config,
    connection::{Bells, Expected, Redis},
    jobs::stage_name,
};

/// The queue; cloning is cheap.
#[derive(Clone)]
pub struct Queue {
    redis: Redis,
    keys: Keys,
    config: config::Queue,
    snapshot: place::Snapshot,
    submissions: Coalesced<submit::Submitted>,
    completions: Coalesced<leases::Finished>,
    bells: Option<Bells>,
}

impl Queue {
    /// The queue under `prefix`.
    pub fn new(redis: Redis, prefix: &str, config: config::Queue) -> Self {
        let keys = Keys::new(prefix, config.shards);
        let limits = gathering::Limits {
            items: config.call_items,
            bytes: config.call_bytes,
            calls: config.calls_in_flight,
        };
        let submit = ("submit", &*scripts::SUBMIT);
        let complete = ("complete", &*scripts::COMPLETE);
        let submissions = Coalesced::new((&redis, &keys), submit, submit::limits(&config), limits);
        let completions = Coalesced::new((&redis, &keys), complete, redis::Cmd::new(), limits);
        Self {
            redis,
            keys,
            config,
            snapshot: place::Snapshot::default(),
            submissions,
            completions,
            bells: None,
        }
    }

    /// The same, and who listens to `bells` hears of what is changed through this value before Redis tells.
    #[must_use]
    pub fn telling(self, bells: &Bells) -> Self {
        let bells = Some(bells.clone());
        Self { bells, ..self }
    }

    /// The job's first stage hears of it before it is submitted, where a worker of this gateway's is idle.
    pub fn expect_first(&self, job: &NewJob, texts: impl FnOnce() -> Vec<String>) {
        if let Some(first) = job.stages.first().copied().and_then(stage_name) {
            self.expect((&job.model, first), || Expected {
                texts: texts(),
                traceparent: job.traceparent.clone(),
            });
        }
    }

    /// A stage of a model hears of a job that comes to it, where a worker of this gateway's is idle.
    pub fn expect(&self, (model, stage): (&str, &str), expected: impl FnOnce() -> Expected) {
        if let Some(bells) = &self.bells {
            bells.expect(&pool_name(model, stage), expected);
        }
    }

    fn ahead(&self, what: impl FnOnce() -> Coming) -> Option<Ahead> {
        let bells = self.bells.clone()?;
        Some(Ahead { bells, what: what() })
    }

    /// The names of its keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// How it was set up.
    pub fn config(&self) -> &config::Queue {
        &self.config
    }

    /// The connection under it.
    pub fn redis(&self) -> &Redis {
        &self.redis
    }
}

/// The pool that serves a stage of a model, as in keys and doorbells.
pub fn pool_name(model: &str, stage: &str) -> String {
    format!("{model}:{stage}")
}
