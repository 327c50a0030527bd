//! What all calls of scripts have in common: where they run, and answers that cannot be.

use redis::Script;

use super::Queue;
use crate::connection::{Call, RedisError};

/// About what an item of a shared call has besides its request or result.
pub(super) const ITEM_BYTES: usize = 256;

impl Queue {
    pub(super) fn on(&self, script: &'static Script, shard: u16) -> Call {
        Call::new(script, self.keys.shard(shard) + "meta")
    }
}

/// Something else has written over a key of this item alone.
pub(super) fn broken(script: &str, fault: &str) -> RedisError {
    RedisError::Refused(format!("script {script}: {fault}"))
}

pub(super) fn foreign(script: &str, reply: &str) -> RedisError {
    RedisError::Refused(format!(
        "script {script} gave an answer that this version does not know: {reply}"
    ))
}
