//! `musectl job …`.

use std::{path::Path, time::Duration};

use clap::ValueEnum as _;
use muse_proto::v1::{
    CancelJobRequest, GetJobRequest, ImageFormat, Job, JobState, ListJobsRequest, RequeueJobRequest,
};
use tonic::Status;

use crate::{
    arguments::{Format, JobCommand, Output, Show},
    client::{Gateways, call},
    failure::Failure,
    generation::{self, Follower},
    output,
    pictures::Destination,
    progress::Display,
    terminal,
    view::{
        job::{self as view, JobView},
        words,
    },
};

/// A watch bears an outage of this length.
const PATIENCE: Duration = Duration::from_secs(60);
/// Jobs asked for at once.
const PAGE: u32 = 100;

pub(crate) async fn run(command: JobCommand, mut gateways: Gateways, output: Output) -> Result<(), Failure> {
    match command {
        JobCommand::Get { id } => print(&get(&mut gateways, id).await?, output),
        JobCommand::List { states, limit } => {
            let states = states
                .into_iter()
                .map(|state| JobState::from(state).into())
                .collect();
            let jobs = list(&mut gateways, states, limit).await?;
            let views: Vec<JobView> = jobs.iter().map(JobView::from).collect();
            output::print(output, &views, || view::list(&jobs))
        }
        JobCommand::Watch { id } => watch(&mut gateways, &id, output).await,
        JobCommand::Cancel { id } => {
            let response = gateways
                .generation()
                .await?
                .cancel_job(call(CancelJobRequest { job_id: id }))
                .await?;
            print(&present(response.into_inner().job)?, output)
        }
        JobCommand::Requeue { id } => {
            let response = gateways
                .admin()
                .await?
                .requeue_job(call(RequeueJobRequest { job_id: id }))
                .await?;
            print(&present(response.into_inner().job)?, output)
        }
        JobCommand::Image { id, index, out, show } => {
            images(&mut gateways, id, index, out.as_deref(), show, output).await
        }
    }
}

async fn get(gateways: &mut Gateways, job_id: String) -> Result<Job, Failure> {
    let response = gateways
        .generation()
        .await?
        .get_job(call(GetJobRequest { job_id }))
        .await?;
    present(response.into_inner().job)
}

async fn list(gateways: &mut Gateways, states: Vec<i32>, limit: usize) -> Result<Vec<Job>, Failure> {
    let mut client = gateways.generation().await?;
    let mut jobs: Vec<Job> = Vec::new();
    let mut page_token = String::new();
    while jobs.len() < limit {
        let wanted = u32::try_from(limit - jobs.len()).unwrap_or(PAGE).min(PAGE);
        let request = ListJobsRequest {
            page_size: wanted,
            page_token,
            states: states.clone(),
        };
        let page = client.list_jobs(call(request)).await?.into_inner();
        jobs.extend(page.jobs);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    jobs.truncate(limit);
    Ok(jobs)
}

async fn watch(gateways: &mut Gateways, id: &str, output: Output) -> Result<(), Failure> {
    let mut display = Display::new(false);
    let mut follower = Follower::new(gateways, &mut display, PATIENCE);
    let watched = tokio::select! {
        watched = follower.watch(id) => watched,
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted("; the job goes on".to_owned())),
    };
    let job = follower.followed.job.take();
    display.finish();
    watched?;
    print(&present(job)?, output)
}

async fn images(
    gateways: &mut Gateways,
    id: String,
    index: Option<u32>,
    out: Option<&Path>,
    show: Show,
    output: Output,
) -> Result<(), Failure> {
    let job = get(gateways, id).await?;
    let wanted: Vec<_> = job
        .images
        .iter()
        .filter(|info| index.is_none_or(|index| index == info.index))
        .collect();
    let Some(first) = wanted.first() else {
        let what = index.map_or_else(|| "no pictures".to_owned(), |index| format!("no picture {index}"));
        return Err(Status::not_found(format!("job {} has {what}", job.id)).into());
    };
    refuse_other_format(out, first.format())?;
    let destination = Destination::new(out, &job.id, first.format(), wanted.len())?;
    let mut files = Vec::new();
    for info in &wanted {
        let image = generation::fetch(gateways, &job.id, info.index).await?;
        files.extend(destination.write(info.index, wanted.len(), &image.data)?);
        if destination != Destination::Stdout && output == Output::Table {
            terminal::show(&image.data, show)?;
        }
    }
    if destination == Destination::Stdout {
        return Ok(());
    }
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    output::print(output, &names, || names.join("\n"))
}

/// A picture is written as it was made.
fn refuse_other_format(out: Option<&Path>, made: ImageFormat) -> Result<(), Failure> {
    match out
        .and_then(Path::extension)
        .and_then(|ending| Format::from_str(&ending.to_string_lossy(), true).ok())
    {
        Some(named) if ImageFormat::from(named) != made => Err(Failure::Usage(format!(
            "the pictures are {}: name the file accordingly",
            words::format(made)
        ))),
        _ => Ok(()),
    }
}

fn print(job: &Job, output: Output) -> Result<(), Failure> {
    output::print(output, &JobView::from(job), || view::details(job))
}

fn present(job: Option<Job>) -> Result<Job, Failure> {
    job.ok_or_else(|| Status::internal("the gateway sent no job").into())
}
