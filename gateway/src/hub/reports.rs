//! What workers report, and how each report is answered. A report that is right but cannot be stored is tried again until
//! it can: the worker keeps it and waits for the acknowledgement.

use std::{future::Future, time::Duration};

use bytes::Bytes;
use muse_proto::{
    internal::v1::{
        Ack, AckOutcome, Complete, Fail, LeaseReport, Picture, Pictures, Release, Revoke, RevokeReason,
        attach_response::Message, complete,
    },
    v1::{ImageInfo, JobErrorReason, StageTiming},
};
use muse_service::telemetry::trace_context;
use prost::Message as _;
use tonic::Status;
use tracing::Instrument as _;

use super::{Shared, check, session::Attached};
use crate::{
    connection::RedisError,
    jobs::{JobId, Nonce, std_duration},
    queue::{Beat, Beaten, Completed, Reported, StageResult},
};

/// Characters of an error's message that are kept.
const MESSAGE_CHARACTERS: usize = 500;

/// A stage is done.
pub(super) async fn complete(shared: &Shared, attached: &Attached, report: Complete) -> Ack {
    let ack = |outcome| Ack {
        job_id: report.job_id.clone(),
        nonce: report.nonce.clone(),
        outcome: outcome as i32,
    };
    let Some((id, nonce)) = lease(&report.job_id, &report.nonce) else {
        return ack(AckOutcome::Refused);
    };
    let refuse = |reason: &str| {
        tracing::error!(job = %id, worker = attached.worker.id, reason, "a worker's result is refused");
        ack(AckOutcome::Refused)
    };
    if report.stage() != attached.stage {
        return refuse("it is for another stage than the worker's");
    }
    let timing = StageTiming {
        stage: report.stage,
        worker_id: attached.worker.id.clone(),
        ..report.timing.clone().unwrap_or_default()
    };
    let encoded_timing = timing.encode_to_vec();
    let (result, rows, pictures) = match report.result.clone() {
        None => return refuse("it has no result"),
        Some(complete::Result::Tokens(tensor)) => {
            match check::tokens(&tensor, &attached.served, shared.max_count) {
                Ok(count) => (StageResult::Tokens(tensor.encode_to_vec()), count, Vec::new()),
                Err(reason) => return refuse(&reason),
            }
        }
        Some(complete::Result::Pictures(pictures)) => match check::pictures(pictures, shared.max_count) {
            // At most max_count.
            Ok((infos, data)) => (
                StageResult::Pictures(encode_infos(infos)),
                data.len() as u32,
                data,
            ),
            Err(reason) => return refuse(&reason),
        },
    };
    let span =
        tracing::info_span!("complete", job = %id, stage = attached.stage_name, worker = attached.worker.id);
    if let Ok(Some(traceparent)) = shared.queue.traceparent(id).await {
        trace_context::set_parent(&span, &traceparent);
    }
    let store = || async {
        if !pictures.is_empty() {
            shared.results.put(id, nonce, &pictures).await?;
        }
        shared
            .queue
            .complete(id, nonce, attached.stage_name, &result, rows, &encoded_timing)
            .await
    };
    let completed = match until_stored(shared, store).instrument(span).await {
        Ok(completed) => completed,
        Err(reason) => return refuse(&reason),
    };
    if completed.outcome == Reported::Refused {
        return refuse("it does not fit the job: its count of rows, or tokens where pictures belong");
    }
    if completed.outcome == Reported::Accepted {
        measure(attached, &timing, &completed);
    }
    ack(outcome(completed.outcome))
}

/// An attempt failed.
pub(super) async fn fail(shared: &Shared, attached: &Attached, report: Fail) -> Ack {
    let ack = |outcome| Ack {
        job_id: report.job_id.clone(),
        nonce: report.nonce.clone(),
        outcome: outcome as i32,
    };
    let Some((id, nonce)) = lease(&report.job_id, &report.nonce) else {
        return ack(AckOutcome::Refused);
    };
    let error = report.error.clone().unwrap_or_default();
    let reason = match error.reason() {
        JobErrorReason::Unspecified => JobErrorReason::Internal,
        reason => reason,
    };
    let message: String = error.message.chars().take(MESSAGE_CHARACTERS).collect();
    tracing::warn!(
        job = %id, worker = attached.worker.id, stage = attached.stage_name, reason = reason.as_str_name(),
        retriable = report.retriable, "an attempt failed"
    );
    let (stage, reason_name) = (attached.stage_name, reason.as_str_name());
    metrics::counter!("muse_failed_attempts_total", "stage" => stage, "reason" => reason_name).increment(1);
    let store = || shared.queue.fail(id, nonce, (reason, &message), report.retriable);
    match until_stored(shared, store).await {
        Ok(reported) => ack(outcome(reported)),
        Err(_) => ack(AckOutcome::Refused),
    }
}

/// A job is given back.
pub(super) async fn release(shared: &Shared, report: Release) -> Ack {
    let ack = |outcome| Ack {
        job_id: report.job_id.clone(),
        nonce: report.nonce.clone(),
        outcome: outcome as i32,
    };
    let Some((id, nonce)) = lease(&report.job_id, &report.nonce) else {
        return ack(AckOutcome::Refused);
    };
    let checkpoint = report
        .checkpoint
        .as_ref()
        .map(prost::Message::encode_to_vec)
        .unwrap_or_default();
    match until_stored(shared, || shared.queue.release(id, nonce, &checkpoint)).await {
        Ok(reported) => ack(outcome(reported)),
        Err(_) => ack(AckOutcome::Refused),
    }
}

/// Leases still held. Those that are not the worker's any more are revoked. Without Redis nothing is said: nothing expires
/// there either, and the next heartbeat asks again.
pub(super) async fn beat(
    shared: &Shared,
    attached: &Attached,
    reports: Vec<LeaseReport>,
) -> Result<Vec<Message>, Status> {
    let mut beats = Vec::with_capacity(reports.len());
    let mut answers = Vec::new();
    for report in &reports {
        let Some((id, nonce)) = lease(&report.job_id, &report.nonce) else {
            answers.push(revoke(report, RevokeReason::LeaseLost));
            continue;
        };
        let progress = report.progress.unwrap_or_default();
        let checkpoint = report
            .checkpoint
            .as_ref()
            .map(prost::Message::encode_to_vec)
            .unwrap_or_default();
        beats.push((
            report,
            Beat {
                id,
                nonce,
                step: progress.step,
                of: progress.of,
                checkpoint: Bytes::from(checkpoint),
            },
        ));
    }
    let calls: Vec<Beat> = beats.iter().map(|(_, beat)| beat.clone()).collect();
    if calls.is_empty() {
        return Ok(answers);
    }
    match shared.queue.beat(&attached.worker.id, &calls).await {
        Ok(beaten) => {
            for ((report, _), beaten) in beats.iter().zip(beaten) {
                match beaten {
                    Beaten::Held | Beaten::Reported => {}
                    Beaten::Cancelled => answers.push(revoke(report, RevokeReason::Cancelled)),
                    Beaten::Deadline => answers.push(revoke(report, RevokeReason::Deadline)),
                    Beaten::Lost => answers.push(revoke(report, RevokeReason::LeaseLost)),
                }
            }
        }
        Err(error) => tracing::debug!(%error, "a heartbeat's leases were not renewed"),
    }
    Ok(answers)
}

/// Repeats `store` while Redis is away. `Err`: Redis refused it, and will again.
async fn until_stored<T, F, Fut>(shared: &Shared, store: F) -> Result<T, String>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T, RedisError>>,
{
    loop {
        match store().await {
            Ok(stored) => return Ok(stored),
            Err(RedisError::Refused(reason)) => return Err(reason),
            // A report outlives an outage, and a shortage of memory, here or with the worker.
            Err(error) => {
                tracing::debug!(%error, "a report waits for Redis");
                tokio::time::sleep(Duration::from_millis(shared.config.report_retry_ms)).await;
            }
        }
    }
}

fn lease(job_id: &str, nonce: &[u8]) -> Option<(JobId, Nonce)> {
    let lease = JobId::parse(job_id).ok().zip(Nonce::from_bytes(nonce));
    if lease.is_none() {
        tracing::error!("a worker's report names no lease");
    }
    lease
}

fn outcome(reported: Reported) -> AckOutcome {
    match reported {
        Reported::Accepted => AckOutcome::Accepted,
        Reported::Duplicate => AckOutcome::Duplicate,
        Reported::Stale => AckOutcome::Stale,
        Reported::Refused => AckOutcome::Refused,
    }
}

fn revoke(report: &LeaseReport, reason: RevokeReason) -> Message {
    Message::Revoke(Revoke {
        job_id: report.job_id.clone(),
        nonce: report.nonce.clone(),
        reason: reason as i32,
    })
}

/// What lies in the job's record: everything about the pictures but their bytes.
fn encode_infos(infos: Vec<ImageInfo>) -> Vec<u8> {
    let pictures = infos
        .into_iter()
        .map(|info| Picture {
            info: Some(info),
            data: Bytes::new(),
        })
        .collect();
    Pictures { pictures }.encode_to_vec()
}

fn measure(attached: &Attached, timing: &StageTiming, completed: &Completed) {
    let stage = attached.stage_name;
    for (phase, took) in [
        ("embed", timing.embed),
        ("decode", timing.decode),
        ("pixels", timing.pixels),
    ] {
        if let Some(took) = took.as_ref().and_then(std_duration) {
            metrics::histogram!("muse_job_seconds", "stage" => stage, "phase" => phase)
                .record(took.as_secs_f64());
        }
    }
    if completed.job_ended {
        let seconds = completed.age_ms as f64 / 1000.0;
        metrics::histogram!("muse_job_seconds", "stage" => "all", "phase" => "total").record(seconds);
        metrics::counter!("muse_jobs_succeeded_total", "model" => attached.model.name.clone()).increment(1);
    }
}
