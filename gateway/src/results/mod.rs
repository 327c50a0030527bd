//! Where finished pictures are. They are written under the lease's nonce before the job is completed, or in one transaction with
//! that, and the script that completes it makes that nonce the one that counts, so a picture is either committed whole or never seen.
//!
//! - [`RedisResults`]: beside their job, with a time to live. The default.
//! - [`ObjectResults`]: in a folder or a bucket, as `results.store` says ([`Location`]). Who may write there is
//!   checked at start ([`open`]), and what nobody refers to is deleted ([`Cleaner`]).
//!
//! Whoever watches a job over the gateway that its pictures came to gets them from memory ([`Recent`]).

mod bucket;
mod cleaner;
mod credentials;
mod gate;
mod http;
pub(crate) mod location;
mod objects;
mod ownership;
mod recent;
mod redis;
mod startup;
mod sweep;

use std::{sync::Arc, time::Duration};

use ::redis::Cmd;
use bytes::Bytes;
use futures::future::BoxFuture;

pub use self::{
    cleaner::{Cleaner, Discarded},
    location::{Cloud, Location},
    objects::ObjectResults,
    recent::Recent,
    redis::RedisResults,
    startup::StoreError,
};
use crate::{
    config::Config,
    connection::RedisError,
    jobs::{JobId, Nonce},
    queue::Queue,
};

/// Keeps pictures. Every method can be repeated.
pub trait ResultStore: Send + Sync {
    /// Writes a job's pictures, in order, under a lease's nonce. Gives what is left to do: commands that write them in one
    /// transaction with the job's completion, where they are kept beside it.
    fn put<'a>(
        &'a self,
        id: JobId,
        nonce: Nonce,
        pictures: &'a [Bytes],
    ) -> BoxFuture<'a, Result<Vec<Cmd>, ResultsError>>;

    /// Reads a picture; `None` when it is gone.
    fn get(&self, id: JobId, nonce: Nonce, index: u32) -> BoxFuture<'_, Result<Option<Bytes>, ResultsError>>;

    /// Deletes a job's pictures under a nonce.
    fn delete(&self, id: JobId, nonce: Nonce) -> BoxFuture<'_, Result<(), ResultsError>>;
}

/// Why pictures were not written, read or deleted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResultsError {
    /// They are in Redis; see [`RedisError`].
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// The folder or bucket does not take or give them for now. Whatever the reason (an outage, rights that were taken away,
    /// a full disk), nothing is given up because of it.
    #[error("the store of pictures is not available: {reason}")]
    Unavailable {
        /// For operators.
        reason: String,
        /// When to try again.
        retry: Duration,
    },
}

/// The store that `results.store` names, ready to be used, and what keeps it clean.
///
/// # Errors
/// [`StoreError`], in one line: the store cannot be used as configured.
pub async fn open(config: &Config, queue: &Queue) -> Result<(Arc<dyn ResultStore>, Cleaner), StoreError> {
    let keep = Duration::from_secs(
        config
            .queue
            .keep_done_seconds
            .saturating_add(config.results.grace_seconds),
    );
    let location = Location::parse(&config.results.store).map_err(|reason| StoreError::Configuration {
        key: "results.store",
        reason,
    })?;
    let (store, sweeper): (Arc<dyn ResultStore>, _) = match location {
        Location::Redis => {
            let keep_ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
            let results = RedisResults::new(queue.redis().clone(), queue.keys().clone(), keep_ms);
            (Arc::new(results), None)
        }
        location => {
            let bucket = bucket::open(&location, &config.results)?;
            let objects = Arc::new(ObjectResults::new(bucket, &config.results));
            startup::check(&objects, queue, &config.results).await?;
            let sweeper = sweep::Sweeper::new(Arc::clone(&objects), queue.clone(), keep, &config.results);
            (objects, Some(sweeper))
        }
    };
    let cleaner = Cleaner::new(Arc::clone(&store), sweeper, config);
    Ok((store, cleaner))
}
