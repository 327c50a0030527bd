//! The queue in Redis: a HASH for each job, sorted sets for where it is, and Lua scripts that move it. Every change is one
//! script; nothing here keeps state of its own.
//!
//! The scripts are in `scripts/`; `common.lua` holds the rules that they share.

mod backoff;
mod keys;
mod priority;
mod read;
pub(crate) mod scripts;
mod types;
mod write;

pub use self::{
    keys::Keys,
    priority::boost_ms,
    types::{
        Beat, Beaten, Cancellation, Completed, Grant, Idempotency, NewJob, PoolCounts, Purged, Reaped,
        Reported, StageResult, Submission,
    },
};
use crate::{config, connection::Redis};

/// The queue; cloning is cheap.
#[derive(Clone)]
pub struct Queue {
    redis: Redis,
    keys: Keys,
    config: config::Queue,
}

impl Queue {
    /// The queue under `prefix`.
    pub fn new(redis: Redis, prefix: &str, config: config::Queue) -> Self {
        let keys = Keys::new(prefix, config.shards);
        Self { redis, keys, config }
    }

    /// The names of its keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
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
