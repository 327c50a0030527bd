//! Where finished pictures are. They are written under the lease's nonce before the job is completed, and the script that
//! completes it makes that nonce the one that counts, so a picture is either committed whole or never seen.

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::{
    connection::{Redis, RedisError},
    jobs::{JobId, Nonce},
    queue::Keys,
};

/// Keeps pictures. Every method can be repeated.
pub trait ResultStore: Send + Sync {
    /// Writes a job's pictures, in order, under a lease's nonce.
    fn put<'a>(
        &'a self,
        id: JobId,
        nonce: Nonce,
        pictures: &'a [Bytes],
    ) -> BoxFuture<'a, Result<(), RedisError>>;

    /// Reads a picture; `None` when it is gone.
    fn get(&self, id: JobId, nonce: Nonce, index: u32) -> BoxFuture<'_, Result<Option<Bytes>, RedisError>>;

    /// Deletes a job's pictures under a nonce.
    fn delete(&self, id: JobId, nonce: Nonce) -> BoxFuture<'_, Result<(), RedisError>>;
}

/// Pictures in Redis, beside their job, with a time to live: what was never committed goes by itself.
pub struct RedisResults {
    redis: Redis,
    keys: Keys,
    keep_ms: u64,
}

impl RedisResults {
    /// Keeps pictures for `keep_ms` after they were written.
    pub fn new(redis: Redis, keys: Keys, keep_ms: u64) -> Self {
        Self { redis, keys, keep_ms }
    }

    fn key(&self, id: JobId, nonce: Nonce) -> String {
        format!("{}img:{id}:{nonce}", self.keys.shard(id.shard()))
    }
}

impl ResultStore for RedisResults {
    fn put<'a>(
        &'a self,
        id: JobId,
        nonce: Nonce,
        pictures: &'a [Bytes],
    ) -> BoxFuture<'a, Result<(), RedisError>> {
        Box::pin(async move {
            let key = self.key(id, nonce);
            let mut pipeline = redis::pipe();
            pipeline.atomic();
            let set = pipeline.cmd("HSET").arg(&key);
            for (index, picture) in pictures.iter().enumerate() {
                set.arg(index).arg(&picture[..]);
            }
            pipeline.cmd("PEXPIRE").arg(&key).arg(self.keep_ms);
            self.redis.pipe::<(u64, u64)>(&pipeline).await?;
            Ok(())
        })
    }

    fn get(&self, id: JobId, nonce: Nonce, index: u32) -> BoxFuture<'_, Result<Option<Bytes>, RedisError>> {
        Box::pin(async move {
            let mut command = redis::cmd("HGET");
            command.arg(self.key(id, nonce)).arg(index);
            let picture: Option<Vec<u8>> = self.redis.query(&command).await?;
            Ok(picture.map(Bytes::from))
        })
    }

    fn delete(&self, id: JobId, nonce: Nonce) -> BoxFuture<'_, Result<(), RedisError>> {
        Box::pin(async move {
            let mut command = redis::cmd("UNLINK");
            command.arg(self.key(id, nonce));
            self.redis.query::<u64>(&command).await?;
            Ok(())
        })
    }
}
