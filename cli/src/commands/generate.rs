//! `musectl generate`, by the cluster.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use muse_proto::v1::{GenerationRequest, Job, SubmitJobRequest, generation_request::Task};
use serde::Serialize;
use tonic::Status;

use crate::{
    arguments::{GenerateArguments, Output},
    client::{Gateways, call, traced},
    failure::Failure,
    generation::{Followed, Follower},
    output,
    pictures::{Destination, name_of},
    progress::Display,
    terminal,
    view::{self, job::JobView, span},
};

/// A cancel on the way out has this long.
const CANCEL_LIMIT: Duration = Duration::from_secs(3);

/// What `--output json` prints.
#[derive(Serialize)]
struct Report {
    job: JobView,
    files: Vec<PathBuf>,
    total_seconds: f64,
}

pub(crate) async fn run(
    arguments: &GenerateArguments,
    mut gateways: Gateways,
    output: Output,
) -> Result<(), Failure> {
    let mut request = arguments.request()?;
    if request.idempotency_key.is_empty() {
        // So that a stream that breaks at its very start can be taken up again.
        request.idempotency_key = uuid::Uuid::now_v7().to_string();
    }
    if arguments.detach {
        return submit(&mut gateways, request, output).await;
    }
    // What can be refused here is refused before any work is done.
    destination(arguments, &request, "x")?;

    let begun = Instant::now();
    let mut display = Display::new(output == Output::Json);
    let mut follower = Follower::new(&mut gateways, &mut display, arguments.patience);
    let ended = tokio::select! {
        ended = follower.generate(&request) => ended,
        _ = tokio::signal::ctrl_c() => Err(interrupted(&mut follower).await),
    };
    let Followed { job, images } = std::mem::take(&mut follower.followed);
    display.finish();
    ended?;

    let total = begun.elapsed();
    let job = job.ok_or_else(|| Status::internal("the gateway told of no job"))?;
    let seed = job
        .request
        .as_ref()
        .and_then(|request| request.seed)
        .unwrap_or_default();
    let destination = destination(
        arguments,
        &request,
        &format!("{}-{seed}", name_of(&arguments.prompt)),
    )?;
    let mut files = Vec::new();
    for (index, image) in &images {
        files.extend(destination.write(*index, images.len(), &image.data)?);
        if destination != Destination::Stdout && output == Output::Table {
            terminal::show(&image.data, arguments.show)?;
        }
    }
    if destination == Destination::Stdout {
        eprint!("{}", phases(&job, total));
        return Ok(());
    }
    let report = Report {
        job: JobView::from(&job),
        files,
        total_seconds: total.as_secs_f64(),
    };
    output::print(output, &report, || {
        let names = report
            .files
            .iter()
            .map(|file| format!("\nwrote {}", file.display()));
        format!(
            "seed {seed}\n{}{}",
            phases(&job, total),
            names.collect::<String>().trim_start_matches('\n')
        )
    })
}

/// Where the pictures go, whatever their number turns out to be.
fn destination(
    arguments: &GenerateArguments,
    request: &GenerationRequest,
    name: &str,
) -> Result<Destination, Failure> {
    let count = match &request.task {
        Some(Task::TextToImage(text)) => text.count.unwrap_or(1),
        None => 1,
    };
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    Destination::new(arguments.out.as_deref(), name, request.format(), count)
}

async fn submit(gateways: &mut Gateways, request: GenerationRequest, output: Output) -> Result<(), Failure> {
    let message = SubmitJobRequest {
        request: Some(request),
    };
    let response = gateways
        .generation()
        .await?
        .submit_job(traced(call(message)))
        .await?
        .into_inner();
    let job = response
        .job
        .ok_or_else(|| Status::internal("the gateway told of no job"))?;
    output::print(output, &JobView::from(&job), || job.id.clone())
}

/// Who interrupts does not want the pictures any more.
async fn interrupted(follower: &mut Follower<'_>) -> Failure {
    let Some(id) = follower.job_id() else {
        return Failure::Interrupted(String::new());
    };
    let what = match tokio::time::timeout(CANCEL_LIMIT, follower.cancel()).await {
        Ok(Ok(())) => format!("; job {id} is cancelled"),
        _ => format!("; job {id} goes on, as no gateway could be asked to cancel it"),
    };
    Failure::Interrupted(what)
}

/// Where the time went, a phase a row.
fn phases(job: &Job, total: Duration) -> String {
    let view = JobView::from(job);
    let mut rows = view::table(&["STAGE", "PHASE", "TIME"]);
    let mut known = 0.0;
    for timing in &view.timings {
        for (phase, seconds) in timing.phases() {
            known += seconds;
            rows.add_row([timing.stage.to_owned(), phase.to_owned(), span(seconds)]);
        }
    }
    let rest = (total.as_secs_f64() - known).max(0.0);
    rows.add_row(["all".to_owned(), "queue and transfer".to_owned(), span(rest)]);
    rows.add_row(["all".to_owned(), "total".to_owned(), span(total.as_secs_f64())]);
    format!("{}\n", view::render(&rows))
}

#[cfg(test)]
mod tests {
    use muse_proto::v1::{Stage, StageTiming};

    use super::*;

    #[test]
    fn every_phase_that_took_place_has_its_row_and_the_rest_is_named() {
        let half = prost_types::Duration {
            seconds: 0,
            nanos: 500_000_000,
        };
        let timing = |stage: Stage| StageTiming {
            stage: stage.into(),
            decode: Some(half),
            ..StageTiming::default()
        };
        let job = Job {
            timings: vec![timing(Stage::Base), timing(Stage::Superres)],
            ..Job::default()
        };
        let text = phases(&job, Duration::from_millis(1250));
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(rows[1], ["base", "decode", "0.50", "s"]);
        assert_eq!(rows[3], ["all", "queue", "and", "transfer", "0.25", "s"]);
        assert_eq!(rows[4], ["all", "total", "1.25", "s"]);
        assert_eq!(rows.len(), 5, "{text}");
    }
}
