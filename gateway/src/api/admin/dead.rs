//! Dead letters, and putting a job back.

use muse_proto::v1::{
    DeadFilter, DeadJob, Failure, GetDeadJobResponse, JobErrorReason, JobIds, JobState, ListDeadJobsRequest,
    ListDeadJobsResponse, PurgeDeadJobsRequest, PurgeDeadJobsResponse, RequeueJobResponse,
    RetryDeadJobsRequest, RetryDeadJobsResponse, Stage, purge_dead_jobs_request, retry_dead_jobs_request,
};
use muse_service::Tenant;

use super::AdminService;
use crate::{
    Error,
    connection::RedisError,
    jobs::{JobId, Record, stage_of_name, timestamp},
    queue::{self, DeadCursor, Raised, Requeued},
};

/// Dead jobs that are read at once.
const PAGE: usize = 100;

/// What is done to dead jobs.
#[derive(Clone, Copy, Debug)]
enum Act {
    Retry,
    Purge,
}

/// Which ones.
enum Which {
    Jobs(JobIds),
    Filter(DeadFilter),
}

impl From<retry_dead_jobs_request::Which> for Which {
    fn from(which: retry_dead_jobs_request::Which) -> Self {
        match which {
            retry_dead_jobs_request::Which::Jobs(ids) => Self::Jobs(ids),
            retry_dead_jobs_request::Which::Filter(filter) => Self::Filter(filter),
        }
    }
}

impl From<purge_dead_jobs_request::Which> for Which {
    fn from(which: purge_dead_jobs_request::Which) -> Self {
        match which {
            purge_dead_jobs_request::Which::Jobs(ids) => Self::Jobs(ids),
            purge_dead_jobs_request::Which::Filter(filter) => Self::Filter(filter),
        }
    }
}

/// How many it was done to.
#[derive(Default)]
struct Acted {
    count: u64,
    not_dead: Vec<String>,
    more: bool,
}

impl AdminService {
    pub(super) async fn dead_jobs(
        &self,
        request: ListDeadJobsRequest,
    ) -> Result<ListDeadJobsResponse, Error> {
        let size = self.page_size(request.page_size) as usize;
        let filter = request.filter.unwrap_or_default();
        let mut cursor = match request.page_token.as_str() {
            "" => None,
            token => Some(read_token(token).ok_or_else(|| {
                Error::field(
                    "page_token",
                    "must be the next_page_token of an earlier answer, or empty",
                )
            })?),
        };
        let mut jobs = Vec::new();
        let mut scanned = 0;
        loop {
            let (records, next) = self.dead_page(cursor.as_ref()).await?;
            scanned += PAGE;
            for (entry, record) in records {
                if jobs.len() == size {
                    return Ok(ListDeadJobsResponse {
                        jobs,
                        next_page_token: cursor.as_ref().map(token).unwrap_or_default(),
                    });
                }
                if passes(&filter, &record) {
                    jobs.push(dead_message(&record));
                }
                cursor = Some(entry);
            }
            let Some(next) = next else {
                return Ok(ListDeadJobsResponse {
                    jobs,
                    next_page_token: String::new(),
                });
            };
            if jobs.len() == size || scanned >= self.limits.page_scan as usize {
                let next_page_token = token(&next);
                return Ok(ListDeadJobsResponse {
                    jobs,
                    next_page_token,
                });
            }
            cursor = Some(next);
        }
    }

    pub(super) async fn dead_job(&self, job_id: &str) -> Result<GetDeadJobResponse, Error> {
        let id = parse(job_id)?;
        let record = self.queue.get(id).await?;
        let Some(record) = record.filter(|record| record.job.state() == JobState::Failed) else {
            return Err(Error::UnknownJob);
        };
        let history = self.queue.history(id).await?;
        Ok(GetDeadJobResponse {
            dead: Some(dead_message(&record)),
            history: history.into_iter().map(failure_message).collect(),
            job: Some(record.job),
        })
    }

    pub(super) async fn retry_dead(
        &self,
        actor: &Tenant,
        request: RetryDeadJobsRequest,
    ) -> Result<RetryDeadJobsResponse, Error> {
        let which = request.which.map(Which::from);
        let Acted {
            count,
            not_dead,
            more,
        } = self.act(actor, Act::Retry, which).await?;
        Ok(RetryDeadJobsResponse {
            retried: count,
            not_dead,
            more,
        })
    }

    pub(super) async fn purge_dead(
        &self,
        actor: &Tenant,
        request: PurgeDeadJobsRequest,
    ) -> Result<PurgeDeadJobsResponse, Error> {
        let which = request.which.map(Which::from);
        let Acted {
            count,
            not_dead,
            more,
        } = self.act(actor, Act::Purge, which).await?;
        Ok(PurgeDeadJobsResponse {
            purged: count,
            not_dead,
            more,
        })
    }

    pub(super) async fn requeue(&self, actor: &Tenant, job_id: &str) -> Result<RequeueJobResponse, Error> {
        let id = parse(job_id)?;
        match self.queue.requeue(id).await? {
            Requeued::Unknown => return Err(Error::UnknownJob),
            Requeued::Ended => return Err(Error::HasEnded),
            Requeued::Queued => tracing::info!(%actor, job = %id, "a job was put back into its queue"),
        }
        let record = self.queue.get(id).await?.ok_or(Error::UnknownJob)?;
        Ok(RequeueJobResponse {
            job: Some(self.queue.located(record).await),
        })
    }

    async fn act(&self, actor: &Tenant, act: Act, which: Option<Which>) -> Result<Acted, Error> {
        let acted = match which {
            None => {
                return Err(Error::field(
                    "which",
                    "is required: jobs, or a filter ({} for all)",
                ));
            }
            Some(Which::Jobs(ids)) => self.act_on(act, &ids.job_ids).await?,
            Some(Which::Filter(filter)) => self.act_where(act, &filter).await?,
        };
        tracing::info!(%actor, ?act, count = acted.count, "dead jobs were acted on");
        Ok(acted)
    }

    async fn act_on(&self, act: Act, names: &[String]) -> Result<Acted, Error> {
        let most = self.limits.dead_batch as usize;
        if names.is_empty() || names.len() > most {
            let description = format!("must name 1 to {most} jobs, not {}", names.len());
            return Err(Error::field("jobs.job_ids", description));
        }
        let parse = |(index, name): (usize, &String)| {
            JobId::parse(name)
                .map_err(|invalid| Error::field(format!("jobs.job_ids[{index}]"), invalid.to_string()))
        };
        let ids = names
            .iter()
            .enumerate()
            .map(parse)
            .collect::<Result<Vec<_>, _>>()?;
        let answers = self.raise(act, &ids).await?;
        let mut acted = Acted::default();
        for (name, answer) in names.iter().zip(answers) {
            match answer {
                Raised::Done => acted.count += 1,
                Raised::NotDead | Raised::Unknown => acted.not_dead.push(name.clone()),
            }
        }
        Ok(acted)
    }

    async fn act_where(&self, act: Act, filter: &DeadFilter) -> Result<Acted, Error> {
        let most = u64::from(self.limits.dead_batch);
        let mut acted = Acted::default();
        let mut cursor = None;
        loop {
            let (records, next) = self.dead_page(cursor.as_ref()).await?;
            let wanted = records.into_iter().filter(|(_, record)| passes(filter, record));
            let mut ids: Vec<JobId> = wanted.map(|(entry, _)| entry.id).collect();
            let left = usize::try_from(most - acted.count).unwrap_or(usize::MAX);
            acted.more = ids.len() > left;
            ids.truncate(left);
            let answers = self.raise(act, &ids).await?;
            // Those that are not dead any more were another's to act on.
            acted.count += answers.iter().filter(|answer| **answer == Raised::Done).count() as u64;
            match next {
                Some(_) if acted.more || acted.count >= most => {
                    acted.more = true;
                    return Ok(acted);
                }
                Some(next) => cursor = Some(next),
                None => return Ok(acted),
            }
        }
    }

    async fn raise(&self, act: Act, ids: &[JobId]) -> Result<Vec<Raised>, RedisError> {
        match act {
            Act::Retry => self.queue.retry_dead(ids).await,
            Act::Purge => self.queue.purge_dead(ids).await,
        }
    }

    /// A page of dead jobs after `cursor`, and where the next one begins, if there may be one.
    async fn dead_page(
        &self,
        cursor: Option<&DeadCursor>,
    ) -> Result<(Vec<(DeadCursor, Record)>, Option<DeadCursor>), Error> {
        let entries = self.queue.dead(cursor, PAGE).await?;
        let ids: Vec<JobId> = entries.iter().map(|entry| entry.id).collect();
        let next = entries.last().filter(|_| entries.len() == PAGE).cloned();
        let mut records = self.queue.get_many(&ids).await?.into_iter().peekable();
        let mut page = Vec::with_capacity(entries.len());
        for entry in entries {
            // Records come in the order of their names, without those that are gone.
            if let Some(record) = records.next_if(|record| record.job.id == entry.id.to_string())
                && record.job.state() == JobState::Failed
            {
                page.push((entry, record));
            }
        }
        Ok((page, next))
    }
}

fn parse(job_id: &str) -> Result<JobId, Error> {
    JobId::parse(job_id).map_err(|invalid| Error::field("job_id", invalid.to_string()))
}

fn token(cursor: &DeadCursor) -> String {
    format!("{}:{}", cursor.failed_ms, cursor.id)
}

fn read_token(token: &str) -> Option<DeadCursor> {
    let (failed_ms, id) = token.split_once(':')?;
    Some(DeadCursor {
        failed_ms: failed_ms.parse().ok()?,
        id: JobId::parse(id).ok()?,
    })
}

fn model_of(record: &Record) -> &str {
    record
        .job
        .request
        .as_ref()
        .map_or("", |request| request.model.as_str())
}

fn passes(filter: &DeadFilter, record: &Record) -> bool {
    let reason = record.job.error.as_ref().map(|error| error.reason);
    (filter.tenant.is_empty() || filter.tenant == record.tenant)
        && (filter.model.is_empty() || filter.model == model_of(record))
        && (filter.stage == Stage::Unspecified as i32 || filter.stage == record.job.stage)
        && (filter.reason == JobErrorReason::Unspecified as i32 || Some(filter.reason) == reason)
}

fn dead_message(record: &Record) -> DeadJob {
    let job = &record.job;
    DeadJob {
        job_id: job.id.clone(),
        tenant: record.tenant.clone(),
        model: model_of(record).to_owned(),
        stage: job.stage,
        error: job.error.clone(),
        attempts: job.attempts,
        crashes: job.crashes,
        worker_id: record.last_worker.clone(),
        created_at: job.created_at,
        failed_at: job.finished_at,
    }
}

fn failure_message(failure: queue::Failure) -> Failure {
    Failure {
        at: Some(timestamp(failure.at_ms)),
        stage: stage_of_name(&failure.stage).unwrap_or_default() as i32,
        reason: failure.reason,
        message: failure.message,
        worker_id: failure.worker,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_page_token_comes_back_as_it_was(failed_ms: u64, shard: u16) {
            let cursor = DeadCursor { failed_ms, id: JobId::new(shard) };
            prop_assert_eq!(read_token(&token(&cursor)), Some(cursor));
        }

        #[test]
        fn no_page_token_makes_the_parser_fail(text in ".*") {
            let _ = read_token(&text);
        }
    }
}
