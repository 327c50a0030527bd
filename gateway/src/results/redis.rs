//! Pictures in Redis, each job's in a hash beside it.

use bytes::Bytes;
use futures::future::BoxFuture;
use redis::Cmd;

use super::{ResultStore, ResultsError};
use crate::{
    connection::Redis,
    jobs::{JobId, Nonce},
    queue::Keys,
};

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
    ) -> BoxFuture<'a, Result<Vec<Cmd>, ResultsError>> {
        let key = self.key(id, nonce);
        let mut set = redis::cmd("HSET");
        set.arg(&key);
        for (index, picture) in pictures.iter().enumerate() {
            set.arg(index).arg(&picture[..]);
        }
        let mut expire = redis::cmd("PEXPIRE");
        expire.arg(&key).arg(self.keep_ms);
        Box::pin(std::future::ready(Ok(vec![set, expire])))
    }

    fn get(&self, id: JobId, nonce: Nonce, index: u32) -> BoxFuture<'_, Result<Option<Bytes>, ResultsError>> {
        Box::pin(async move {
            let mut command = redis::cmd("HGET");
            command.arg(self.key(id, nonce)).arg(index);
            let picture: Option<Vec<u8>> = self.redis.query(&command).await?;
            Ok(picture.map(Bytes::from))
        })
    }

    fn delete(&self, id: JobId, nonce: Nonce) -> BoxFuture<'_, Result<(), ResultsError>> {
        Box::pin(async move {
            let mut command = redis::cmd("UNLINK");
            command.arg(self.key(id, nonce));
            self.redis.query::<u64>(&command).await?;
            Ok(())
        })
    }
}
