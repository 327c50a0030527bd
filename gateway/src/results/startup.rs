//! What a store must show before pictures are entrusted to it: that they can be written, read, listed and deleted there, and
//! that it is this cluster's alone.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::{ObjectStore as _, ObjectStoreExt as _, PutPayload, path::Path};

use super::{
    ObjectResults,
    objects::{PROBE, one_line},
    ownership,
};
use crate::{config, connection::RedisError, jobs::Nonce, queue::Queue};

/// Between attempts while the store does not answer.
const PAUSE: Duration = Duration::from_millis(250);

/// Why the gateway cannot start with this store of pictures.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A key is wrong.
    #[error("{key}: {reason}")]
    Configuration {
        /// The key at fault.
        key: &'static str,
        /// What is wrong and what to do.
        reason: String,
    },
    /// It cannot be used.
    #[error("results.store {store}: {reason}")]
    Unusable {
        /// As configured.
        store: String,
        /// What failed, and what the store says.
        reason: String,
    },
    /// Pictures of another cluster are there, which this one would sweep away.
    #[error(
        "results.store {store}: belongs to another cluster ({found}, this one is {ours}): a cluster needs a folder or prefix \
         of its own. If that cluster is gone for good, delete {marker} there: its pictures are deleted in time"
    )]
    Foreign {
        /// As configured.
        store: String,
        /// Whose mark is there.
        found: String,
        /// Who we are.
        ours: String,
        /// The object with the mark.
        marker: Path,
    },
    /// What this cluster wrote to say that the store is its own is gone.
    #[error(
        "results.store {store}: its {marker} is gone, which this cluster had put there: is the volume mounted? If the store was \
         emptied on purpose, write {ours} there again"
    )]
    Unmarked {
        /// As configured.
        store: String,
        /// Who we are.
        ours: String,
        /// The object that had the mark.
        marker: Path,
    },
    /// See [`RedisError`].
    #[error(transparent)]
    Redis(#[from] RedisError),
}

/// A step that failed.
struct Failure {
    what: &'static str,
    error: object_store::Error,
}

/// Writes, reads, lists and deletes a probe, and takes possession. A store that does not answer yet is waited for.
pub(super) async fn check(
    objects: &Arc<ObjectResults>,
    queue: &Queue,
    config: &config::Results,
) -> Result<(), StoreError> {
    let store = objects.bucket().name.clone();
    let begun = Instant::now();
    let patience = Duration::from_millis(config.startup_timeout_ms);
    let limit = Duration::from_millis(config.timeout_ms);
    let unusable = |reason: String| StoreError::Unusable {
        store: store.clone(),
        reason,
    };
    loop {
        let reason = match tokio::time::timeout(limit, probe(objects)).await {
            Ok(Ok(())) => break,
            Ok(Err(Failure { what, error })) => {
                let reason = format!("{what}: {}", one_line(&error));
                // A folder answers at once, and for good.
                if objects.bucket().folder.is_some() || !may_pass(&error) {
                    return Err(unusable(reason));
                }
                reason
            }
            Err(_) => format!("no answer within {} ms", limit.as_millis()),
        };
        if begun.elapsed() >= patience {
            return Err(unusable(reason));
        }
        tracing::debug!(store, reason, "waiting for the store of pictures");
        tokio::time::sleep(PAUSE).await;
    }
    ownership::take(objects, queue, limit).await?;
    metrics::gauge!("muse_results_up").set(1.0);
    tracing::info!(store, "pictures are kept here");
    Ok(())
}

/// Whether waiting may help.
fn may_pass(error: &object_store::Error) -> bool {
    matches!(
        error,
        object_store::Error::Generic { .. } | object_store::Error::JoinError { .. }
    )
}

async fn probe(objects: &ObjectResults) -> Result<(), Failure> {
    let bucket = objects.bucket();
    // Gateways start side by side.
    let folder = bucket.prefix.clone().join(format!("{PROBE}{}", Nonce::random()));
    let object = folder.clone().join("0");
    let content = Bytes::from_static(b"muse");
    let step = |what| move |error| Failure { what, error };
    bucket
        .store
        .put(&object, PutPayload::from(content.clone()))
        .await
        .map_err(step("cannot write"))?;
    let found = async { bucket.store.get(&object).await?.bytes().await };
    let found = found.await.map_err(step("cannot read"))?;
    let listed = bucket.store.list(Some(&folder)).map_ok(|found| found.location);
    let listed: Vec<Path> = listed.try_collect().await.map_err(step("cannot list"))?;
    bucket
        .store
        .delete(&object)
        .await
        .map_err(step("cannot delete"))?;
    if found != content || listed != [object] {
        let error = object_store::Error::NotSupported {
            source: format!("{} bytes came back, and a list of {}", found.len(), listed.len()).into(),
        };
        return Err(Failure {
            what: "does not give back what was written",
            error,
        });
    }
    Ok(())
}
