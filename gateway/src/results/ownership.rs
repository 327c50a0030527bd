//! Whose a store is. A sweep deletes what no job of this cluster refers to: what another cluster's jobs refer to must not be
//! there. So the store carries a mark, the name that this cluster's Redis has given itself; it is put there at the first start
//! and read again at each start and before each sweep.

use std::{future::Future, time::Duration};

use object_store::{ObjectStoreExt as _, PutMode, PutOptions, PutPayload, path::Path};

use super::{
    ObjectResults,
    objects::{OWNER, one_line},
    startup::StoreError,
};
use crate::{connection::RedisError, jobs::Nonce, queue::Queue};

/// Characters of a foreign mark that are shown: one of ours is 32.
const SHOWN: usize = 64;

/// Makes the store this cluster's, unless it is already. Of two clusters that try at once, one gets it.
///
/// # Errors
/// [`StoreError`]: it is another cluster's, or was ours and lost its mark, as a volume does that is not mounted.
pub(super) async fn take(objects: &ObjectResults, queue: &Queue, limit: Duration) -> Result<(), StoreError> {
    let bucket = objects.bucket();
    let marker = bucket.prefix.clone().join(OWNER);
    let ours = identity(queue).await?;
    if read(objects, &marker, limit).await?.is_none() {
        if has_marked(queue, &bucket.name).await? {
            return Err(StoreError::Unmarked {
                store: bucket.name.clone(),
                ours,
                marker,
            });
        }
        let put = within(limit, async {
            let mark = PutPayload::from(format!("{ours}\n"));
            let create = PutOptions::from(PutMode::Create);
            match bucket.store.put_opts(&marker, mark.clone(), create).await {
                Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
                // Few stores know no conditions; there, of two clusters in the same moment both would take it.
                Err(
                    object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. },
                ) => {
                    tracing::warn!(
                        store = bucket.name,
                        "the store cannot tell whether it is taken just now"
                    );
                    bucket.store.put(&marker, mark).await.map(drop)
                }
                other => other.map(drop),
            }
        });
        put.await
            .map_err(|reason| unusable(objects, format!("cannot write {marker}: {reason}")))?;
    }
    match read(objects, &marker, limit).await? {
        Some(found) if found == ours => note_marked(queue, &bucket.name).await.map_err(StoreError::from),
        found => Err(StoreError::Foreign {
            store: bucket.name.clone(),
            // From outside.
            found: found.unwrap_or_default().chars().take(SHOWN).collect(),
            ours,
            marker,
        }),
    }
}

/// Whether the store is still this cluster's.
///
/// # Errors
/// [`StoreError`]: the store or Redis does not answer.
pub(super) async fn holds(
    objects: &ObjectResults,
    queue: &Queue,
    limit: Duration,
) -> Result<bool, StoreError> {
    let marker = objects.bucket().prefix.clone().join(OWNER);
    let found = read(objects, &marker, limit).await?;
    Ok(found == Some(identity(queue).await?))
}

async fn read(objects: &ObjectResults, marker: &Path, limit: Duration) -> Result<Option<String>, StoreError> {
    let store = &objects.bucket().store;
    let found = within(limit, async {
        match store.get(marker).await {
            Ok(found) => found.bytes().await.map(Some),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    });
    let found = found
        .await
        .map_err(|reason| unusable(objects, format!("cannot read {marker}: {reason}")))?;
    Ok(found.map(|found| String::from_utf8_lossy(&found).trim().to_owned()))
}

fn unusable(objects: &ObjectResults, reason: String) -> StoreError {
    StoreError::Unusable {
        store: objects.bucket().name.clone(),
        reason,
    }
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = object_store::Result<T>>,
) -> Result<T, String> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome.map_err(|error| one_line(&error)),
        Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
    }
}

/// The name that this cluster's Redis has given itself, by its first gateway with a store.
async fn identity(queue: &Queue) -> Result<String, RedisError> {
    let key = queue.keys().registry() + "store";
    let mut pipeline = redis::pipe();
    pipeline
        .cmd("SET")
        .arg(&key)
        .arg(Nonce::random().to_string())
        .arg("NX")
        .ignore();
    pipeline.cmd("GET").arg(&key);
    let (identity,): (String,) = queue.redis().pipe(&pipeline).await?;
    Ok(identity)
}

async fn has_marked(queue: &Queue, store: &str) -> Result<bool, RedisError> {
    let mut command = redis::cmd("SISMEMBER");
    command.arg(queue.keys().registry() + "stores").arg(store);
    queue.redis().query(&command).await
}

async fn note_marked(queue: &Queue, store: &str) -> Result<(), RedisError> {
    let mut command = redis::cmd("SADD");
    command.arg(queue.keys().registry() + "stores").arg(store);
    queue.redis().query::<u64>(&command).await.map(drop)
}
