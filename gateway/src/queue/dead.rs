//! Dead letters: jobs that gave up, kept for an operator.

use super::{
    Queue,
    call::foreign,
    scripts,
    types::{DeadCursor, Failure, Raised, Requeued},
};
use crate::{
    connection::RedisError,
    jobs::{JobId, Nonce},
};

/// Dead jobs that one script takes; its own limit.
const BATCH: usize = 100;

impl Queue {
    /// Names of dead jobs, those that failed last first, after `cursor`.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn dead(
        &self,
        cursor: Option<&DeadCursor>,
        limit: usize,
    ) -> Result<Vec<DeadCursor>, RedisError> {
        let mut found = Vec::new();
        for shard in 0..self.keys.shards() {
            found.extend(self.dead_of(shard, cursor, limit).await?);
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.truncate(limit);
        Ok(found)
    }

    async fn dead_of(
        &self,
        shard: u16,
        cursor: Option<&DeadCursor>,
        limit: usize,
    ) -> Result<Vec<DeadCursor>, RedisError> {
        let key = self.keys.shard(shard) + "dead";
        let from = cursor.map_or_else(|| "+inf".to_owned(), |cursor| cursor.failed_ms.to_string());
        let is_after = |entry: &DeadCursor| cursor.is_none_or(|cursor| entry < cursor);
        let mut found = Vec::new();
        let mut offset = 0;
        // Jobs that failed in the cursor's millisecond come again and are passed over.
        loop {
            let mut command = redis::cmd("ZRANGE");
            command.arg(&key).arg(&from).arg("-inf").arg("BYSCORE").arg("REV");
            command.arg("LIMIT").arg(offset).arg(limit).arg("WITHSCORES");
            let page: Vec<(String, f64)> = self.redis.query(&command).await?;
            let full = page.len() == limit;
            offset += page.len();
            let entries = page.into_iter().filter_map(|(id, failed_ms)| {
                let id = JobId::parse(&id).ok()?;
                Some(DeadCursor {
                    failed_ms: failed_ms as u64,
                    id,
                })
            });
            found.extend(entries.filter(|entry| is_after(entry)));
            if !full || found.len() >= limit {
                found.truncate(limit);
                return Ok(found);
            }
        }
    }

    /// What went wrong with a job, oldest first.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn history(&self, id: JobId) -> Result<Vec<Failure>, RedisError> {
        let mut command = redis::cmd("LRANGE");
        command
            .arg(format!("{}hist:{id}", self.keys.shard(id.shard())))
            .arg(0)
            .arg(-1);
        let entries: Vec<String> = self.redis.query(&command).await?;
        Ok(entries.iter().filter_map(|entry| Failure::parse(entry)).collect())
    }

    /// Gives dead jobs another life. One answer for each, in order.
    ///
    /// # Errors
    /// [`RedisError`]; some may have been retried.
    pub async fn retry_dead(&self, ids: &[JobId]) -> Result<Vec<Raised>, RedisError> {
        let token = Nonce::random().to_string();
        self.raise(&scripts::RETRY_DEAD, Some(&token), ids).await
    }

    /// Forgets dead jobs. One answer for each, in order.
    ///
    /// # Errors
    /// [`RedisError`]; some may have been forgotten.
    pub async fn purge_dead(&self, ids: &[JobId]) -> Result<Vec<Raised>, RedisError> {
        self.raise(&scripts::PURGE_DEAD, None, ids).await
    }

    async fn raise(
        &self,
        script: &'static redis::Script,
        token: Option<&str>,
        ids: &[JobId],
    ) -> Result<Vec<Raised>, RedisError> {
        let mut answers = vec![Raised::Unknown; ids.len()];
        for shard in 0..self.keys.shards() {
            let here: Vec<(usize, &JobId)> = ids
                .iter()
                .enumerate()
                .filter(|(_, id)| id.shard() == shard)
                .collect();
            for chunk in here.chunks(BATCH) {
                let mut call = self.on(script, shard);
                if let Some(token) = token {
                    call.arg(token);
                }
                for (_, id) in chunk {
                    call.arg(id.to_string());
                }
                let replies: Vec<String> = self.redis.eval(&call).await?;
                for ((index, _), reply) in chunk.iter().zip(replies) {
                    let answer = match reply.as_str() {
                        "retried" | "purged" => Raised::Done,
                        "not_dead" => Raised::NotDead,
                        _ => Raised::Unknown,
                    };
                    if let Some(slot) = answers.get_mut(*index) {
                        *slot = answer;
                    }
                }
            }
        }
        Ok(answers)
    }

    /// Puts a job back into its queue now, from wherever it is.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn requeue(&self, id: JobId) -> Result<Requeued, RedisError> {
        if id.shard() >= self.keys.shards() {
            return Ok(Requeued::Unknown);
        }
        let mut call = self.on(&scripts::REQUEUE, id.shard());
        call.arg(id.to_string());
        match self.redis.eval::<String>(&call).await?.as_str() {
            "queued" => Ok(Requeued::Queued),
            "ended" => Ok(Requeued::Ended),
            "unknown" => Ok(Requeued::Unknown),
            other => Err(foreign("requeue", other)),
        }
    }
}
