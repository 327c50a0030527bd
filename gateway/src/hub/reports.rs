//! What workers report, and how each report is answered. A report that is right but cannot be stored is tried again until
//! it can: the worker keeps it and waits for the acknowledgement.

use std::{future::Future, time::Duration};

use bytes::Bytes;
use muse_proto::{
    internal::v1::{
        Ack, AckOutcome, Checkpoint, Complete, Fail, LeaseReport, Picture, Pictures, Release, Revoke,
        RevokeReason, attach_response::Message, complete,
    },
    v1::{ImageInfo, JobErrorReason, StageTiming},
};
use muse_service::telemetry::trace_context;
use prost::Message as _;
use redis::Cmd;
use tonic::Status;
use tracing::Instrument as _;

use super::{Shared, check, session::Attached};
use crate::{
    connection::RedisError,
    jobs::{JobId, Nonce, stage_after},
    queue::{Beat, Beaten, Completed, Reported, StageResult},
    results::ResultsError,
};

/// Characters of an error's message that are kept.
const MESSAGE_CHARACTERS: usize = 500;

/// What a worker says of one of its leases, wanting an answer.
pub(super) enum Report {
    /// A stage is done.
    Complete(Complete),
    /// An attempt failed.
    Fail(Fail),
    /// A job is given back.
    Release(Release),
}

/// What becomes of a report that is not wrong.
enum Answer {
    /// It has been decided upon.
    Reported(Reported),
    /// Its pictures cannot be stored for now: the worker shall keep it for this long.
    Later(Duration),
}

impl Report {
    fn lease(&self) -> (&str, &[u8]) {
        match self {
            Self::Complete(report) => (&report.job_id, &report.nonce),
            Self::Fail(report) => (&report.job_id, &report.nonce),
            Self::Release(report) => (&report.job_id, &report.nonce),
        }
    }
}

/// Stores a report and gives its answer.
pub(super) async fn answer(shared: &Shared, attached: &Attached, report: Report) -> Ack {
    let (job_id, nonce) = report.lease();
    let mut ack = Ack {
        job_id: job_id.to_owned(),
        nonce: nonce.to_vec(),
        outcome: AckOutcome::Refused as i32,
        retry_after: None,
    };
    let Some((id, nonce)) = lease(job_id, nonce) else {
        return ack;
    };
    let stored = match report {
        Report::Complete(report) => complete(shared, attached, id, nonce, report).await,
        Report::Fail(report) => fail(shared, attached, id, nonce, report)
            .await
            .map(Answer::Reported),
        Report::Release(report) => release(shared, id, nonce, report).await.map(Answer::Reported),
    };
    match stored {
        Ok(Answer::Reported(reported)) => ack.outcome = outcome(reported) as i32,
        Ok(Answer::Later(retry)) => {
            ack.outcome = AckOutcome::Unavailable as i32;
            ack.retry_after = prost_types::Duration::try_from(retry).ok();
        }
        Err(reason) => {
            tracing::error!(job = %id, worker = attached.worker.id, reason, "a worker's report is refused");
        }
    }
    ack
}

/// A stage is done. `Err`: why the result is refused.
async fn complete(
    shared: &Shared,
    attached: &Attached,
    id: JobId,
    nonce: Nonce,
    report: Complete,
) -> Result<Answer, String> {
    if report.stage() != attached.stage {
        return Err("it is for another stage than the worker's".to_owned());
    }
    let timing = StageTiming {
        stage: report.stage,
        worker_id: attached.worker.id.clone(),
        ..report.timing.unwrap_or_default()
    };
    let (mut result, rows, pictures) = match report.result {
        None => return Err("it has no result".to_owned()),
        Some(complete::Result::Tokens(tensor)) => {
            let count = check::tokens(&tensor, &attached.served, shared.max_count)?;
            (StageResult::Tokens(tensor.encode_to_vec()), count, Vec::new())
        }
        Some(complete::Result::Pictures(pictures)) => {
            let (infos, data) = check::pictures(pictures, shared.max_count)?;
            if let Some(large) = data.iter().find(|picture| picture.len() > shared.picture_bytes) {
                return too_large(shared, attached, id, nonce, large.len()).await;
            }
            // At most max_count.
            let count = data.len() as u32;
            (StageResult::pictures(encode_infos(infos)), count, data)
        }
    };
    let encoded_timing = timing.encode_to_vec();
    let span =
        tracing::info_span!("complete", job = %id, stage = attached.stage_name, worker = attached.worker.id);
    let traceparent = match attached.told(id, nonce) {
        Some(told) => {
            let traceparent = told.traceparent.clone();
            if let Some(next) = stage_after(attached.stage_name) {
                shared.queue.expect((&attached.model.name, next), || told);
            }
            traceparent
        }
        None => shared
            .queue
            .traceparent(id)
            .await
            .ok()
            .flatten()
            .unwrap_or_default(),
    };
    trace_context::set_parent(&span, &traceparent);
    let store = async {
        if let StageResult::Pictures { writes, .. } = &mut result {
            match put(shared, id, nonce, &pictures).await? {
                Ok(left) => *writes = left,
                Err(retry) => return Ok(Err(retry)),
            }
        }
        if shared.bells.has_listener(&id.to_string()) {
            // Whoever listens may read of the completion before it has been answered here.
            shared.recent.keep(id, nonce, &pictures);
        }
        let result = &result;
        let pool = (attached.model.name.as_str(), attached.stage_name);
        let complete = || {
            shared
                .queue
                .complete(id, nonce, pool, result, rows, &encoded_timing)
        };
        until_stored(shared, complete).await.map(Ok)
    };
    let completed = match store.instrument(span).await? {
        Ok(completed) => completed,
        Err(retry) => return Ok(Answer::Later(retry)),
    };
    if matches!(completed.outcome, Reported::Stale | Reported::Refused) && !pictures.is_empty() {
        // Under a nonce that will never count. What is left here, a sweep finds.
        if let Err(error) = shared.results.delete(id, nonce).await {
            tracing::debug!(%error, job = %id, "pictures that came too late stay for now");
        }
    }
    if let Some(other) = &completed.other_digest {
        metrics::counter!("muse_digest_disagreements_total", "stage" => attached.stage_name).increment(1);
        tracing::error!(
            job = %id, stage = attached.stage_name, worker = attached.worker.id, digest = result.digest(), other,
            "two shards finished the same stage of a job with different results: they do not run the same model, or one \
             of them computes wrongly"
        );
    }
    match completed.outcome {
        Reported::Refused => {
            return Err(
                "it does not fit the job: its count of rows, or tokens where pictures belong".to_owned(),
            );
        }
        Reported::Accepted if completed.job_ended => measure(attached, &completed),
        Reported::Accepted | Reported::Duplicate | Reported::Stale => {}
    }
    Ok(Answer::Reported(completed.outcome))
}

/// Stores pictures, before the job refers to them; what is given is to be written together with that. `Err` inside: not now, and when to
/// try again. While Redis is away nothing expires, so it is waited for; another store can be away alone, and then the worker keeps
/// the pictures instead of this gateway.
async fn put(
    shared: &Shared,
    id: JobId,
    nonce: Nonce,
    pictures: &[Bytes],
) -> Result<Result<Vec<Cmd>, Duration>, String> {
    let put = || async {
        match shared.results.put(id, nonce, pictures).await {
            Ok(left) => Ok(Ok(left)),
            Err(ResultsError::Unavailable { retry, .. }) => Ok(Err(retry)),
            Err(ResultsError::Redis(error)) => Err(error),
        }
    };
    until_stored(shared, put).await
}

/// A picture that may not be stored: another attempt would make the same.
async fn too_large(
    shared: &Shared,
    attached: &Attached,
    id: JobId,
    nonce: Nonce,
    bytes: usize,
) -> Result<Answer, String> {
    let limit = shared.picture_bytes;
    let message = format!("a picture of {bytes} bytes is more than the {limit} of results.picture_bytes");
    tracing::error!(job = %id, worker = attached.worker.id, message, "a job fails");
    let store = || {
        shared
            .queue
            .fail(id, nonce, (JobErrorReason::Internal, &message), false)
    };
    until_stored(shared, store).await.map(Answer::Reported)
}

/// An attempt failed.
async fn fail(
    shared: &Shared,
    attached: &Attached,
    id: JobId,
    nonce: Nonce,
    report: Fail,
) -> Result<Reported, String> {
    let error = report.error.unwrap_or_default();
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
    until_stored(shared, store).await
}

/// A job is given back.
async fn release(shared: &Shared, id: JobId, nonce: Nonce, report: Release) -> Result<Reported, String> {
    let checkpoint = encoded(report.checkpoint.as_ref());
    until_stored(shared, || shared.queue.release(id, nonce, &checkpoint)).await
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
        let checkpoint = encoded(report.checkpoint.as_ref());
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

fn encoded(checkpoint: Option<&Checkpoint>) -> Vec<u8> {
    checkpoint.map(prost::Message::encode_to_vec).unwrap_or_default()
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

/// The whole job, which only the gateway sees; a worker tells the times of its own stage.
fn measure(attached: &Attached, completed: &Completed) {
    let seconds = completed.age_ms as f64 / 1000.0;
    metrics::histogram!("muse_job_seconds", "stage" => "all", "phase" => "total").record(seconds);
    metrics::counter!("muse_jobs_succeeded_total", "model" => attached.model.name.clone()).increment(1);
}
