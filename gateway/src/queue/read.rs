//! What is read of the queue. Reads are single commands, so a job's fields always belong together.

use std::collections::{BTreeMap, HashMap};

use super::{
    Queue,
    types::{Holder, PoolCounts},
};
use crate::{
    connection::RedisError,
    jobs::{JobId, Nonce, Record},
};

impl Queue {
    /// A job, or `None`.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn get(&self, id: JobId) -> Result<Option<Record>, RedisError> {
        if id.shard() >= self.keys.shards() {
            return Ok(None);
        }
        let mut command = redis::cmd("HMGET");
        command.arg(self.job_key(id)).arg(Record::FIELDS);
        Ok(Record::from_fields(id, self.redis.query(&command).await?))
    }

    /// The trace that a job belongs to.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn traceparent(&self, id: JobId) -> Result<Option<String>, RedisError> {
        let mut command = redis::cmd("HGET");
        command.arg(self.job_key(id)).arg("traceparent");
        self.redis.query(&command).await
    }

    /// Jobs by name, in order, without those that are gone.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn get_many(&self, ids: &[JobId]) -> Result<Vec<Record>, RedisError> {
        let mut found: Vec<Option<Record>> = vec![None; ids.len()];
        // A pipeline keeps to one shard.
        for shard in 0..self.keys.shards() {
            let here = |(_, id): &(usize, &JobId)| id.shard() == shard;
            let mut pipeline = redis::pipe();
            for (_, id) in ids.iter().enumerate().filter(here) {
                pipeline.cmd("HMGET").arg(self.job_key(*id)).arg(Record::FIELDS);
            }
            if pipeline.is_empty() {
                continue;
            }
            let rows: Vec<Vec<Option<Vec<u8>>>> = self.redis.pipe(&pipeline).await?;
            for ((index, id), fields) in ids.iter().enumerate().filter(here).zip(rows) {
                found[index] = Record::from_fields(*id, fields);
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// Who may refer to pictures of these jobs, in their order. Of a shard that this gateway does not serve nothing is known
    /// but that its jobs may be alive.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn holders(&self, ids: &[JobId]) -> Result<Vec<Holder>, RedisError> {
        let mut holders = vec![Holder::Live; ids.len()];
        // A pipeline keeps to one shard.
        for shard in 0..self.keys.shards() {
            let here = |(_, id): &(usize, &JobId)| id.shard() == shard;
            let mut pipeline = redis::pipe();
            for (_, id) in ids.iter().enumerate().filter(here) {
                pipeline
                    .cmd("HMGET")
                    .arg(self.job_key(*id))
                    .arg("state")
                    .arg("pictures_nonce");
            }
            if pipeline.is_empty() {
                continue;
            }
            let rows: Vec<(Option<String>, Option<String>)> = self.redis.pipe(&pipeline).await?;
            for ((index, _), row) in ids.iter().enumerate().filter(here).zip(rows) {
                holders[index] = match row {
                    (None, _) => Holder::Unknown,
                    (Some(state), pictures) if has_ended(&state) => Holder::Ended {
                        pictures: pictures.and_then(|nonce| Nonce::from_hex(&nonce)),
                    },
                    _ => Holder::Live,
                };
            }
        }
        Ok(holders)
    }

    /// Names of a tenant's jobs, newest first, those older than `before`.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn list(
        &self,
        tenant: &muse_service::Tenant,
        before: Option<JobId>,
        limit: u32,
    ) -> Result<Vec<JobId>, RedisError> {
        let shard = self.keys.shard_of(tenant);
        let from = before.map_or_else(|| "+".to_owned(), |id| format!("({id}"));
        let mut command = redis::cmd("ZRANGE");
        command.arg(format!("{}jobs:{tenant}", self.keys.shard(shard)));
        command
            .arg(from)
            .arg("-")
            .arg("BYLEX")
            .arg("REV")
            .arg("LIMIT")
            .arg(0)
            .arg(limit);
        let names: Vec<String> = self.redis.query(&command).await?;
        Ok(names.iter().filter_map(|name| JobId::parse(name).ok()).collect())
    }

    /// How full each pool is, by (model, stage), over all shards and tenants; and how many jobs are dead.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn counts(&self) -> Result<(BTreeMap<(String, String), PoolCounts>, u64), RedisError> {
        let mut pools: BTreeMap<(String, String), PoolCounts> = BTreeMap::new();
        let mut dead = 0;
        for shard in 0..self.keys.shards() {
            let prefix = self.keys.shard(shard);
            let mut pipeline = redis::pipe();
            pipeline.cmd("HGETALL").arg(format!("{prefix}cnt"));
            pipeline.cmd("ZCARD").arg(format!("{prefix}dead"));
            pipeline.cmd("TIME");
            let (counts, dead_here, (seconds, micros)): (HashMap<String, i64>, u64, (u64, u64)) =
                self.redis.pipe(&pipeline).await?;
            dead += dead_here;
            let now_ms = seconds * 1000 + micros / 1000;
            let mut waiting = Vec::new();
            for (field, count) in counts {
                let mut words = field.split(':');
                let (Some(state), Some(model), Some(stage)) = (words.next(), words.next(), words.next())
                else {
                    continue;
                };
                let count = u64::try_from(count).unwrap_or(0);
                let pool = pools.entry((model.to_owned(), stage.to_owned())).or_default();
                match state {
                    "queued" => {
                        pool.queued += count;
                        waiting.push((model.to_owned(), stage.to_owned()));
                    }
                    "running" => pool.running += count,
                    "delayed" => pool.delayed += count,
                    _ => {}
                }
            }
            waiting.sort_unstable();
            waiting.dedup();
            self.oldest(&prefix, waiting, now_ms, &mut pools).await?;
        }
        Ok((pools, dead))
    }

    async fn oldest(
        &self,
        prefix: &str,
        waiting: Vec<(String, String)>,
        now_ms: u64,
        pools: &mut BTreeMap<(String, String), PoolCounts>,
    ) -> Result<(), RedisError> {
        if waiting.is_empty() {
            return Ok(());
        }
        let mut pipeline = redis::pipe();
        for (model, stage) in &waiting {
            pipeline
                .cmd("ZRANGE")
                .arg(format!("{prefix}wait:{model}:{stage}"))
                .arg(0)
                .arg(0)
                .arg("WITHSCORES");
        }
        let heads: Vec<Vec<(String, f64)>> = self.redis.pipe(&pipeline).await?;
        for (pool, head) in waiting.into_iter().zip(heads) {
            if let Some((_, since_ms)) = head.first() {
                let age = now_ms.saturating_sub(*since_ms as u64);
                let counts = pools.entry(pool).or_default();
                counts.oldest_ms = Some(counts.oldest_ms.map_or(age, |oldest| oldest.max(age)));
            }
        }
        Ok(())
    }

    pub(super) fn job_key(&self, id: JobId) -> String {
        format!("{}j:{id}", self.keys.shard(id.shard()))
    }

    /// A tenant's jobs that wait in a pool, in the shard of one of them.
    pub(super) fn queue_key(&self, id: JobId, pool: &str, tenant: &str) -> String {
        format!("{}q:{pool}:{tenant}", self.keys.shard(id.shard()))
    }
}

fn has_ended(state: &str) -> bool {
    matches!(state, "succeeded" | "failed" | "cancelled")
}
