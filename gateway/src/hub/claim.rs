//! A look for work: leases from all of the queue's shards, as far as a worker's credit goes.

use std::sync::Arc;

use muse_proto::{internal::v1::Lease, v1::JobErrorReason};

use super::{Shared, lease, session::Attached};
use crate::{connection::RedisError, jobs::Nonce, queue::Grant, validate};

/// What a look brought.
pub(super) struct Claimed {
    pub(super) leases: Vec<(Grant, Lease)>,
    /// There may be more where these came from: it ended with the credit, or with the batch.
    pub(super) more: bool,
    /// Why it ended early; what it had until then counts.
    pub(super) error: Option<RedisError>,
}

/// Looks in each shard once, in `first` before the others. `credit`: rows that the worker has room for.
pub(super) async fn claim(
    shared: Arc<Shared>,
    attached: Arc<Attached>,
    mut credit: u32,
    first: u16,
) -> Claimed {
    let shards = shared.queue.keys().shards();
    let pool = (attached.model.name.as_str(), attached.stage_name);
    let mut claimed = Claimed {
        leases: Vec::new(),
        more: false,
        error: None,
    };
    for shard in (0..shards).map(|n| (first + n) % shards) {
        let most = shared.config.claim_batch.min(credit);
        if most == 0 {
            claimed.more = true;
            break;
        }
        let nonces: Vec<Nonce> = (0..most).map(|_| Nonce::random()).collect();
        let grants = match shared
            .queue
            .claim(shard, pool, &attached.worker.id, credit, &nonces)
            .await
        {
            Ok(grants) => grants,
            Err(error) => {
                claimed.error = Some(error);
                return claimed;
            }
        };
        claimed.more |= grants.len() >= most as usize;
        for grant in grants {
            match lease::message(&grant, attached.stage) {
                Ok(lease) => {
                    credit = credit.saturating_sub(lease.request.as_ref().map_or(1, validate::count_of));
                    claimed.leases.push((grant, lease));
                }
                Err(error) => unreadable(&shared, &grant, &error).await,
            }
        }
    }
    // A job is taken whole: the last one may have used up more than there was.
    claimed.more |= credit == 0;
    claimed
}

/// What lies in Redis is not what this version wrote; another attempt would read the same.
async fn unreadable(shared: &Shared, grant: &Grant, error: &prost::DecodeError) {
    tracing::error!(job = %grant.id, %error, "a job's record cannot be read");
    let error = (JobErrorReason::Internal, "the job's record cannot be read");
    if let Err(error) = shared.queue.fail(grant.id, grant.nonce, error, false).await {
        tracing::debug!(%error, job = %grant.id, "its lease has to run out");
    }
}
