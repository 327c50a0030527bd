//! One job, from its lease to its report: check, embed, decode, and in the last stage make pictures while it still decodes.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use muse_engine::Embedding;
use muse_proto::{
    internal::v1::{Checkpoint, Complete, Fail, Lease, Pictures, Release, complete},
    v1::{JobError, JobErrorReason, StageTiming},
};
use muse_service::telemetry::trace_context;
use tracing::{Instrument as _, debug, info, info_span, warn};

use super::jobs::{Control, Parts};
use crate::{
    batcher::JobFault,
    checkpoint,
    device::JobEvent,
    encoder::EmbedError,
    grid,
    hub::{Report, Ticket},
    lease::{Accepted, Refusal},
    pixels::{PixelFault, Waiting},
    settings,
};

/// How a job ends that does not complete.
#[derive(Debug)]
enum Stop {
    /// It fails with a reason; another attempt may help or not.
    Fail(JobErrorReason, String, bool),
    /// It is given back.
    Release(Option<Checkpoint>),
    /// Nobody waits for it.
    Dropped,
}

/// Where the time went.
#[derive(Default)]
struct Timing {
    wait: Duration,
    /// Of `wait`: on this shard.
    device_wait: Duration,
    embed: Duration,
    decode: Duration,
    pixels: Duration,
}

/// Runs a job and returns its report; `None` when it was dropped.
pub(super) async fn run(parts: &Parts, ticket: Ticket, lease: Lease, control: Control) -> Option<Report> {
    let stage = parts.acceptance.stage();
    let span = info_span!(
        "job",
        job_id = lease.job_id,
        stage = stage.as_str(),
        worker_id = parts.worker_id
    );
    trace_context::set_parent(&span, &lease.traceparent);
    let (job_id, nonce) = (lease.job_id.clone(), lease.nonce.clone());
    let begun = Instant::now();
    let outcome = complete_stage(parts, ticket, lease, &control)
        .instrument(span.clone())
        .await;
    let _entered = span.entered();
    let (outcome, report) = match outcome {
        Ok((result, timing)) => {
            // The wait in the queue is the gateway's to record.
            for (phase, time) in [
                ("embed", timing.embed),
                ("decode", timing.decode),
                ("pixels", timing.pixels),
            ] {
                metrics::histogram!("muse_job_seconds", "stage" => stage.as_str(), "phase" => phase)
                    .record(time.as_secs_f64());
            }
            let timing = StageTiming {
                stage: settings::stage_to_wire(stage) as i32,
                wait: prost_types::Duration::try_from(timing.wait).ok(),
                embed: prost_types::Duration::try_from(timing.embed).ok(),
                decode: prost_types::Duration::try_from(timing.decode).ok(),
                pixels: prost_types::Duration::try_from(timing.pixels).ok(),
                worker_id: parts.worker_id.clone(),
                device_wait: prost_types::Duration::try_from(timing.device_wait).ok(),
            };
            let report = Complete {
                job_id,
                nonce,
                stage: settings::stage_to_wire(stage) as i32,
                result: Some(result),
                timing: Some(timing),
            };
            info!(milliseconds = begun.elapsed().as_millis(), "done");
            ("completed", Some(Report::Complete(report)))
        }
        Err(Stop::Fail(reason, message, retriable)) => {
            warn!(reason = reason.as_str_name(), retriable, message, "failed");
            let error = Some(JobError {
                reason: reason as i32,
                message,
            });
            (
                "failed",
                Some(Report::Fail(Fail {
                    job_id,
                    nonce,
                    error,
                    retriable,
                })),
            )
        }
        Err(Stop::Release(checkpoint)) => {
            info!(checkpoint = checkpoint.is_some(), "given back");
            (
                "released",
                Some(Report::Release(Release {
                    job_id,
                    nonce,
                    checkpoint,
                })),
            )
        }
        Err(Stop::Dropped) => {
            debug!("dropped");
            ("dropped", None)
        }
    };
    metrics::counter!("muse_worker_jobs_total", "stage" => stage.as_str(), "outcome" => outcome).increment(1);
    report
}

async fn complete_stage(
    parts: &Parts,
    ticket: Ticket,
    lease: Lease,
    control: &Control,
) -> Result<(complete::Result, Timing), Stop> {
    let leased_at = Instant::now();
    let accepted = parts.acceptance.check(&lease).map_err(Stop::from)?;
    parts.board.write(ticket, accepted.step(), accepted.steps(), None);
    let mut timing = Timing {
        wait: accepted.waited,
        ..Timing::default()
    };

    let embeddings = tokio::select! {
        embeddings = embed(parts, &accepted).instrument(info_span!("embed")) => embeddings?,
        () = overdue(accepted.deadline) => return Err(Stop::overdue()),
        () = control.dropped.cancelled() => return Err(Stop::Dropped),
        () = control.released.cancelled() => return Err(Stop::Release(lease.checkpoint)),
    };
    timing.embed = leased_at.elapsed();

    let admitted_at = Instant::now();
    let resumed_from = lease.checkpoint;
    let decode = decode(parts, ticket, &accepted, embeddings, resumed_from, control);
    let span = info_span!("decode", rows = accepted.rows(), steps = accepted.steps());
    let decoded = decode.instrument(span).await?;
    timing.device_wait = decoded.begun_at.saturating_duration_since(admitted_at);
    timing.wait += timing.device_wait;
    timing.decode = decoded.ended_at.saturating_duration_since(decoded.begun_at);

    if parts.pixels.is_none() {
        return Ok((complete::Result::Tokens(grid::to_tensor(&decoded.grids)), timing));
    }
    let pictures = tokio::select! {
        pictures = try_join_all(decoded.pictures).instrument(info_span!("pixels")) => pictures?,
        () = control.dropped.cancelled() => return Err(Stop::Dropped),
    };
    timing.pixels = decoded.ended_at.elapsed();
    Ok((complete::Result::Pictures(Pictures { pictures }), timing))
}

/// The embedding of every text that the job needs.
async fn embed(parts: &Parts, accepted: &Accepted) -> Result<HashMap<String, Embedding>, Stop> {
    let texts = accepted.texts();
    let calls = texts.iter().map(|text| async {
        parts
            .encoder
            .embed(text)
            .await
            .map(|embedding| ((*text).to_owned(), embedding))
    });
    let embeddings = try_join_all(calls).await.map_err(Stop::from)?;
    Ok(embeddings.into_iter().collect())
}

/// A job all of whose rows are done.
struct Decoded {
    begun_at: Instant,
    ended_at: Instant,
    /// In the order of the pictures.
    grids: Vec<Vec<u32>>,
    /// Pictures on their way, in order; empty before the last stage.
    pictures: Vec<Waiting>,
}

async fn decode(
    parts: &Parts,
    ticket: Ticket,
    accepted: &Accepted,
    embeddings: HashMap<String, Embedding>,
    resumed_from: Option<Checkpoint>,
    control: &Control,
) -> Result<Decoded, Stop> {
    let job = accepted.admit(ticket, &embeddings).map_err(Stop::from)?;
    let stage = parts.acceptance.stage();
    let Ok(mut events) = parts.device.admit(job).await else {
        return Err(stranded(parts, ticket, resumed_from, control).await);
    };
    let mut grids: Vec<Option<Vec<u32>>> = vec![None; accepted.rows()];
    let mut pictures: Vec<Option<Waiting>> = Vec::new();
    pictures.resize_with(accepted.rows(), || None);
    let mut release_ordered = false;
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = control.dropped.cancelled() => {
                // Gone is as good as dropped.
                let _ = parts.device.drop_job(ticket).await;
                return Err(Stop::Dropped);
            }
            () = control.released.cancelled(), if !release_ordered => {
                release_ordered = true;
                // If the device is gone, no event comes either.
                let _ = parts.device.release(ticket).await;
                continue;
            }
        };
        match event {
            Some(JobEvent::Row { index, tokens }) => {
                if let Some(pixels) = &parts.pixels {
                    let waiting = tokio::select! {
                        waiting = pixels.submit(accepted.picture(index, tokens.clone())) => waiting,
                        () = control.dropped.cancelled() => {
                            let _ = parts.device.drop_job(ticket).await;
                            return Err(Stop::Dropped);
                        }
                    };
                    pictures[index] = Some(waiting.map_err(Stop::from)?);
                }
                grids[index] = Some(tokens);
            }
            Some(JobEvent::Done { begun_at, ended_at }) => {
                return Ok(Decoded {
                    begun_at,
                    ended_at,
                    grids: grids.into_iter().flatten().collect(),
                    pictures: pictures.into_iter().flatten().collect(),
                });
            }
            Some(JobEvent::Failed(fault)) => return Err(fault.into()),
            Some(JobEvent::Overdue) => return Err(Stop::overdue()),
            Some(JobEvent::Released(rows)) => {
                // Before its first step it is as far as it came.
                let checkpoint = rows
                    .iter()
                    .any(|row| row.step > 0)
                    .then(|| checkpoint::to_wire(stage, &rows));
                return Err(Stop::Release(checkpoint.or(resumed_from)));
            }
            None => return Err(stranded(parts, ticket, resumed_from, control).await),
        }
    }
}

/// The device has gone under a job. If its model is broken, the shard drains, and the job goes to another with what the board
/// last saw. If the thread crashed, the process ends without a word, so that the crash counts against the jobs it held:
/// one of them may be the cause.
async fn stranded(
    parts: &Parts,
    ticket: Ticket,
    resumed_from: Option<Checkpoint>,
    control: &Control,
) -> Stop {
    tokio::select! {
        () = control.dropped.cancelled() => Stop::Dropped,
        () = control.released.cancelled() => Stop::Release(parts.board.checkpoint(ticket).or(resumed_from)),
    }
}

async fn overdue(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

impl Stop {
    fn overdue() -> Self {
        Stop::Fail(
            JobErrorReason::DeadlineExceeded,
            "its deadline passed before it was done".to_owned(),
            false,
        )
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Request(message) => Stop::Fail(JobErrorReason::InvalidRequest, message, false),
            Refusal::Lease(message) => Stop::Fail(JobErrorReason::Internal, message, false),
            Refusal::Misrouted(message) => Stop::Fail(JobErrorReason::Internal, message, true),
        }
    }
}

impl From<EmbedError> for Stop {
    fn from(error: EmbedError) -> Self {
        match error {
            EmbedError::Invalid(message) => Stop::Fail(JobErrorReason::InvalidRequest, message, false),
            error @ EmbedError::Unavailable { .. } => {
                Stop::Fail(JobErrorReason::EncoderUnavailable, error.to_string(), true)
            }
        }
    }
}

impl From<JobFault> for Stop {
    fn from(fault: JobFault) -> Self {
        match fault {
            JobFault::Lease(message) => Stop::Fail(JobErrorReason::Internal, message, false),
            fault @ JobFault::Model(_) => Stop::Fail(JobErrorReason::ModelFailed, fault.to_string(), true),
        }
    }
}

impl From<PixelFault> for Stop {
    fn from(fault: PixelFault) -> Self {
        Stop::Fail(JobErrorReason::ModelFailed, fault.to_string(), true)
    }
}
