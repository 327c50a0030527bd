//! `musectl dead …`: jobs that gave up.

use muse_proto::v1::{
    DeadFilter, DeadJob, GetDeadJobRequest, JobIds, ListDeadJobsRequest, PurgeDeadJobsRequest,
    RetryDeadJobsRequest, purge_dead_jobs_request, retry_dead_jobs_request,
};
use serde::Serialize;
use tonic::Status;

use crate::{
    arguments::{DeadCommand, FilterArguments, Output, WhichArguments},
    client::{Gateways, call},
    failure::Failure,
    output,
    view::dead::{DeadDetails, DeadView, list},
};

/// Ids in one call; a script in Redis touches no more at once.
const BATCH: usize = 100;
/// Jobs asked for at once.
const PAGE: u32 = 100;

/// What a retry or a purge did.
#[derive(Debug, Default, Serialize)]
struct Done {
    jobs: u64,
    /// Ids that are no dead job's.
    not_dead: Vec<String>,
}

pub(crate) async fn run(command: DeadCommand, mut gateways: Gateways, output: Output) -> Result<(), Failure> {
    match command {
        DeadCommand::List { filter, limit } => {
            let jobs = listed(&mut gateways, &filter, limit).await?;
            let views: Vec<DeadView> = jobs.iter().map(DeadView::from).collect();
            output::print(output, &views, || list(&views))
        }
        DeadCommand::Show { id } => {
            let response = gateways
                .admin()
                .await?
                .get_dead_job(call(GetDeadJobRequest { job_id: id }))
                .await?
                .into_inner();
            let view =
                DeadDetails::new(&response).ok_or_else(|| Status::internal("the gateway sent no job"))?;
            output::print(output, &view, || view.table())
        }
        DeadCommand::Retry(which) => {
            report(&retry(&mut gateways, &which).await?, "back in the queue", output)
        }
        DeadCommand::Purge(which) => report(&purge(&mut gateways, &which).await?, "removed", output),
    }
}

async fn listed(
    gateways: &mut Gateways,
    filter: &FilterArguments,
    limit: usize,
) -> Result<Vec<DeadJob>, Failure> {
    let mut admin = gateways.admin().await?;
    let mut jobs = Vec::new();
    let mut page_token = String::new();
    while jobs.len() < limit {
        let request = ListDeadJobsRequest {
            filter: Some(filter.filter()),
            page_size: u32::try_from(limit - jobs.len()).unwrap_or(PAGE).min(PAGE),
            page_token,
        };
        let page = admin.list_dead_jobs(call(request)).await?.into_inner();
        jobs.extend(page.jobs);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    jobs.truncate(limit);
    Ok(jobs)
}

/// What one call is about.
enum Part {
    Jobs(JobIds),
    Filter(DeadFilter),
}

/// What one call did.
struct Answer {
    jobs: u64,
    not_dead: Vec<String>,
    /// The call stopped at its limit.
    more: bool,
}

/// Asks as often as it takes: a call touches a bounded number of jobs.
async fn each(
    which: &WhichArguments,
    mut ask: impl AsyncFnMut(Part) -> Result<Answer, Failure>,
) -> Result<Done, Failure> {
    let mut done = Done::default();
    let mut take = |answer: Answer| {
        done.jobs += answer.jobs;
        done.not_dead.extend(answer.not_dead);
        answer.more
    };
    if which.ids.is_empty() {
        while take(ask(Part::Filter(which.filter.filter())).await?) {}
    }
    for ids in which.ids.chunks(BATCH) {
        let job_ids = ids.to_vec();
        take(ask(Part::Jobs(JobIds { job_ids })).await?);
    }
    Ok(done)
}

async fn retry(gateways: &mut Gateways, which: &WhichArguments) -> Result<Done, Failure> {
    use retry_dead_jobs_request::Which;

    let mut admin = gateways.admin().await?;
    each(which, async |part| {
        let which = Some(match part {
            Part::Jobs(jobs) => Which::Jobs(jobs),
            Part::Filter(filter) => Which::Filter(filter),
        });
        let response = admin
            .retry_dead_jobs(call(RetryDeadJobsRequest { which }))
            .await?
            .into_inner();
        Ok(Answer {
            jobs: response.retried,
            not_dead: response.not_dead,
            more: response.more,
        })
    })
    .await
}

async fn purge(gateways: &mut Gateways, which: &WhichArguments) -> Result<Done, Failure> {
    use purge_dead_jobs_request::Which;

    let mut admin = gateways.admin().await?;
    each(which, async |part| {
        let which = Some(match part {
            Part::Jobs(jobs) => Which::Jobs(jobs),
            Part::Filter(filter) => Which::Filter(filter),
        });
        let response = admin
            .purge_dead_jobs(call(PurgeDeadJobsRequest { which }))
            .await?
            .into_inner();
        Ok(Answer {
            jobs: response.purged,
            not_dead: response.not_dead,
            more: response.more,
        })
    })
    .await
}

/// An id that was named and is no dead job's is an error, once the others are done.
fn report(done: &Done, what: &str, output: Output) -> Result<(), Failure> {
    output::print(output, done, || format!("{} dead jobs {what}", done.jobs))?;
    if done.not_dead.is_empty() {
        return Ok(());
    }
    let ids = done.not_dead.join(", ");
    Err(Status::not_found(format!("not among the dead jobs: {ids}")).into())
}
