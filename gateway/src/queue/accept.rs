//! Accepting a job: it is in the queue, and as safe as was promised.

use tokio::time::Instant;

use super::{NewJob, Queue, Submission};
use crate::connection::{Confirmed, RedisError};

impl Queue {
    /// Submits a job and waits until it is confirmed, also when it was there before: an earlier call may have been refused for
    /// want of a confirmation. A job that went with a failover before it was confirmed is submitted again.
    ///
    /// # Errors
    /// [`RedisError::NotConfirmed`]: the job is in the queue, but a failover may lose it. Repeating the submission under the
    /// same idempotency key asks again.
    pub async fn accept(&self, job: &NewJob) -> Result<(Submission, Option<Confirmed>), RedisError> {
        let limit = Instant::now() + self.redis.patience();
        loop {
            let submission = self.submit(job).await?;
            let (Submission::Created(id) | Submission::Existed(id)) = &submission else {
                return Ok((submission, None));
            };
            match self.redis.confirm(&self.job_key(*id)).await {
                Ok(confirmed) => return Ok((submission, Some(confirmed))),
                Err(RedisError::Unavailable(_)) if Instant::now() < limit => {}
                Err(error) => {
                    metrics::counter!("muse_jobs_unconfirmed_total").increment(1);
                    return Err(error);
                }
            }
        }
    }
}
