//! Accepting a job: it is in the queue, and as safe as was promised.

use tokio::time::Instant;

use super::{Fresh, NewJob, Queue, Submission};
use crate::connection::{Confirmed, RedisError};

/// What came of a submission.
#[derive(Debug)]
pub struct Acceptance {
    /// What the queue said.
    pub submission: Submission,
    /// What a job in the queue survives; `None` for one that was refused.
    pub confirmed: Option<Confirmed>,
    /// Of a job that was created by the last call.
    pub fresh: Option<Fresh>,
}

impl Queue {
    /// Submits a job and waits until it is confirmed, also when it was there before: an earlier call may have been refused for
    /// want of a confirmation. A job that went with a failover before it was confirmed is submitted again.
    ///
    /// # Errors
    /// [`RedisError::NotConfirmed`]: the job is in the queue, but a failover may lose it. Repeating the submission under the
    /// same idempotency key asks again.
    pub async fn accept(&self, job: &NewJob) -> Result<Acceptance, RedisError> {
        self.accept_as(job, false).await
    }

    /// The same; a fresh job is told its rank, which costs the server a look.
    ///
    /// # Errors
    /// As of [`Queue::accept`].
    pub async fn accept_ranked(&self, job: &NewJob) -> Result<Acceptance, RedisError> {
        self.accept_as(job, true).await
    }

    async fn accept_as(&self, job: &NewJob, ranked: bool) -> Result<Acceptance, RedisError> {
        let limit = Instant::now() + self.redis.patience();
        loop {
            let (submission, fresh) = self.submit_anew(job, ranked).await?;
            let (Submission::Created(id) | Submission::Existed(id)) = &submission else {
                return Ok(Acceptance {
                    submission,
                    confirmed: None,
                    fresh,
                });
            };
            match self.redis.confirm(&self.job_key(*id)).await {
                Ok(confirmed) => {
                    return Ok(Acceptance {
                        submission,
                        confirmed: Some(confirmed),
                        fresh,
                    });
                }
                Err(RedisError::Unavailable(_)) if Instant::now() < limit => {
                    // A server that takes commands and no further connection must not be asked as fast as it answers.
                    tokio::time::sleep(self.redis.reconnect_delay()).await;
                }
                Err(error) => {
                    metrics::counter!("muse_jobs_unconfirmed_total").increment(1);
                    return Err(error);
                }
            }
        }
    }
}
