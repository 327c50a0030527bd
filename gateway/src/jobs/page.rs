//! Pages of jobs. A page token is the last job's name, so pages neither repeat nor skip while jobs come and go.

use muse_proto::v1::{JobState, ListJobsRequest, ListJobsResponse};
use muse_service::Tenant;

use super::{JobId, Record};
use crate::{Error, config::Limits, queue::Queue};

/// A page of `tenant`'s jobs, newest first. A filter that rejects almost everything ends a page early, with a token.
pub(super) async fn list(
    queue: &Queue,
    limits: &Limits,
    tenant: &Tenant,
    request: &ListJobsRequest,
) -> Result<ListJobsResponse, Error> {
    let size = match request.page_size {
        0 => limits.default_page_size.min(limits.page_size),
        size => size.min(limits.page_size),
    };
    let states = states(&request.states)?;
    let mut before = match request.page_token.as_str() {
        "" => None,
        token => {
            let invalid = |_| {
                Error::field(
                    "page_token",
                    "must be the next_page_token of an earlier answer, or empty",
                )
            };
            Some(JobId::parse(token).map_err(invalid)?)
        }
    };
    let mut jobs = Vec::new();
    let mut scanned = 0;
    loop {
        let ids = queue.list(tenant, before, size).await?;
        let last_batch = ids.len() < size as usize;
        scanned += size;
        let records = queue.get_many(&ids).await?;
        let wanted = |state: i32| states.is_empty() || states.iter().any(|wanted| *wanted as i32 == state);
        let mut full = false;
        for record in records {
            if jobs.len() == size as usize {
                full = true;
                break;
            }
            before = JobId::parse(&record.job.id).ok();
            if wanted(record.job.state) {
                jobs.push(record);
            }
        }
        if !full {
            before = ids.last().copied().or(before);
        }
        let done = jobs.len() == size as usize || scanned >= limits.page_scan;
        if last_batch && !full {
            return Ok(page(queue, jobs, String::new()).await);
        }
        if done {
            let next_page_token = before.map(|id| id.to_string()).unwrap_or_default();
            return Ok(page(queue, jobs, next_page_token).await);
        }
    }
}

async fn page(queue: &Queue, mut records: Vec<Record>, next_page_token: String) -> ListJobsResponse {
    queue.locate(&mut records).await;
    ListJobsResponse {
        jobs: records.into_iter().map(|record| record.job).collect(),
        next_page_token,
    }
}

fn states(given: &[i32]) -> Result<Vec<JobState>, Error> {
    let state = |(index, state): (usize, &i32)| match JobState::try_from(*state) {
        Ok(state) if state != JobState::Unspecified => Ok(state),
        _ => Err(Error::field(
            format!("states[{index}]"),
            format!("{state} is no state of a job"),
        )),
    };
    given.iter().enumerate().map(state).collect()
}
