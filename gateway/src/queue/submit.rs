//! Submissions and cancellations: the scripts that clients set off, typed.

use redis::Cmd;

use super::{
    Queue,
    call::{ITEM_BYTES, broken, foreign},
    coalesce::{Coming, Item},
    pool_name, scripts,
    types::{Cancellation, Fresh, NewJob, Refusal, Submission},
};
use crate::{
    config,
    connection::RedisError,
    jobs::{JobId, stage_name},
};

/// Outcome, id, limit, its value, ms to wait, when it was created, rank.
pub(super) type Submitted = (String, String, String, String, u64, u64, i64);

/// What the script is told before the jobs: the limits.
pub(super) fn limits(config: &config::Queue) -> Cmd {
    let tenant = &config.tenant;
    let mut limits = Cmd::new();
    limits
        .arg(config.max_waiting)
        .arg(config.max_bytes)
        .arg(config.rate)
        .arg(config.burst);
    limits
        .arg(tenant.max_queued)
        .arg(tenant.max_bytes)
        .arg(tenant.rate)
        .arg(tenant.burst);
    limits
}

impl Queue {
    /// Accepts a job. Repeating it with the same id changes nothing.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn submit(&self, job: &NewJob) -> Result<Submission, RedisError> {
        Ok(self.submit_anew(job, false).await?.0)
    }

    /// The same; tells also of a job that was created by this very call. `ranked`: with its rank.
    ///
    /// # Errors
    /// [`RedisError`].
    pub(super) async fn submit_anew(
        &self,
        job: &NewJob,
        ranked: bool,
    ) -> Result<(Submission, Option<Fresh>), RedisError> {
        let (key, request) = match &job.idempotency {
            Some(idempotency) => (idempotency.key.as_str(), idempotency.request.as_str()),
            None => ("", ""),
        };
        let mut item = Cmd::with_capacity(12, job.request.len() + ITEM_BYTES);
        item.arg(job.id.to_string())
            .arg(job.tenant.as_str())
            .arg(&job.model)
            .arg(job.stage_names());
        item.arg(job.rows)
            .arg(job.boost_ms)
            .arg(job.timeout_ms)
            .arg(&job.request[..])
            .arg(&job.traceparent);
        item.arg(key).arg(request).arg(u8::from(ranked));
        let work = job.stages.first().copied().and_then(stage_name);
        let ahead = work.and_then(|stage| self.ahead(|| Coming::Work(pool_name(&job.model, stage))));
        let item = Item::from(item).telling(ahead);
        let (outcome, id, limit, value, wait_ms, created_ms, rank) =
            self.submissions.call(job.id.shard(), item).await?;
        let refusal = Refusal {
            limit,
            value,
            wait_ms: Some(wait_ms).filter(|wait| *wait > 0),
        };
        let fresh = (created_ms > 0).then(|| Fresh {
            created_ms,
            rank: u64::try_from(rank).ok(),
        });
        let id = || JobId::parse(&id).map_err(|_| foreign("submit", &id));
        let submission = match outcome.as_str() {
            "created" => Submission::Created(id()?),
            "existed" => Submission::Existed(id()?),
            "conflict" => Submission::Conflict,
            "full" => Submission::Full(refusal),
            "quota" => Submission::Quota(refusal),
            "broken" => return Err(broken("submit", &refusal.limit)),
            other => return Err(foreign("submit", other)),
        };
        Ok((submission, fresh))
    }

    /// Cancels a job in any live state.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn cancel(&self, id: JobId, tenant: &str) -> Result<Cancellation, RedisError> {
        let mut call = self.on(&scripts::CANCEL, id.shard());
        call.arg(id.to_string()).arg(tenant);
        match self.redis.eval::<String>(&call).await?.as_str() {
            "cancelled" => Ok(Cancellation::Cancelled),
            "ended" => Ok(Cancellation::Ended),
            "unknown" => Ok(Cancellation::Unknown),
            other => Err(foreign("cancel", other)),
        }
    }
}
