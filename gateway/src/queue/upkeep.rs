//! What keeps the queue in order when nobody asks: its layout, what time overtakes, and what is forgotten.

use super::{
    Queue, scripts,
    types::{Purged, Reaped},
};
use crate::{
    connection::RedisError,
    jobs::{JobId, Nonce},
};

/// How keys are laid out. A gateway that finds a later number must not touch them.
const SCHEMA: u32 = 2;

impl Queue {
    /// Notes the layout of the keys, or refuses a server that holds another one.
    ///
    /// # Errors
    /// [`RedisError::Refused`] names both layouts.
    pub async fn check_schema(&self) -> Result<(), RedisError> {
        for shard in 0..self.keys.shards() {
            let key = self.keys.shard(shard) + "meta";
            let mut pipeline = redis::pipe();
            pipeline
                .cmd("HSETNX")
                .arg(&key)
                .arg("schema")
                .arg(SCHEMA)
                .ignore();
            pipeline.cmd("HGET").arg(&key).arg("schema");
            let (schema,): (u32,) = self.redis.pipe(&pipeline).await?;
            if schema != SCHEMA {
                return Err(RedisError::Refused(format!(
                    "the keys under {key} have layout {schema}, this version knows {SCHEMA}: run the version that wrote \
                     them, or set another redis.prefix"
                )));
            }
        }
        Ok(())
    }

    /// Moves on what time has overtaken in a shard, a batch at a time.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn reap(&self, shard: u16) -> Result<Reaped, RedisError> {
        let mut call = self.on(&scripts::REAP, shard);
        call.arg(self.config.reap_batch)
            .arg(self.config.crashes)
            .arg(self.config.history);
        let (lost, dead, delayed, overdue) = self.redis.eval(&call).await?;
        Ok(Reaped {
            lost,
            dead,
            delayed,
            overdue,
        })
    }

    /// Forgets jobs of a shard that ended long ago, a batch at a time.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn purge(&self, shard: u16) -> Result<Vec<Purged>, RedisError> {
        let mut call = self.on(&scripts::PURGE, shard);
        call.arg(self.config.reap_batch);
        call.arg(self.config.keep_done_seconds.saturating_mul(1000));
        call.arg(self.config.keep_dead_seconds.saturating_mul(1000));
        let replies: Vec<(String, String)> = self.redis.eval(&call).await?;
        let purged = replies.into_iter().filter_map(|(id, nonce)| {
            let id = JobId::parse(&id).ok()?;
            Some(Purged {
                id,
                pictures: Nonce::from_hex(&nonce),
            })
        });
        Ok(purged.collect())
    }
}
