//! A job as it lies in Redis, and as clients see it.

use std::collections::HashMap;

use muse_proto::{
    internal::v1::Pictures,
    v1::{GenerationRequest, Job, JobError, JobErrorReason, JobState, Progress, Stage, StageTiming},
};
use prost::Message as _;
use prost_types::Timestamp;

use super::{JobId, Nonce, sampling_of, stage_of_name};
use crate::queue::NewJob;

/// The visible fields of a job.
#[derive(Clone, Debug)]
pub struct Record {
    /// As clients see it.
    pub job: Job,
    /// Whose it is.
    pub tenant: String,
    /// Where its pictures are, when it has any.
    pub pictures: Option<Nonce>,
    /// The names of its stages in order, comma-separated.
    pub stages: String,
    /// The shard that had it last; empty: none yet.
    pub last_worker: String,
}

impl Record {
    /// The fields read, in this order.
    pub const FIELDS: &[&str] = &[
        "state",
        "stage",
        "tenant",
        "request",
        "pictures",
        "pictures_nonce",
        "err_reason",
        "err_message",
        "attempts",
        "crashes",
        "created",
        "updated",
        "finished",
        "deadline",
        "ver",
        "owner",
        "step",
        "of",
        "stages",
        "timing:base",
        "timing:superres",
    ];

    /// The answer of HMGET with [`Record::FIELDS`]; `None` when there is no such job.
    pub fn from_fields(id: JobId, values: Vec<Option<Vec<u8>>>) -> Option<Self> {
        let fields: HashMap<&str, Vec<u8>> = Self::FIELDS
            .iter()
            .copied()
            .zip(values)
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
        let text = |name: &str| {
            fields
                .get(name)
                .and_then(|bytes| std::str::from_utf8(bytes).ok())
                .unwrap_or("")
        };
        let number = |name: &str| text(name).parse::<u64>().unwrap_or(0);
        let time = |name: &str| (number(name) > 0).then(|| timestamp(number(name)));

        let state = state_of_name(text("state"))?;
        let stage = stage_of_name(text("stage")).unwrap_or(Stage::Unspecified);
        let request = GenerationRequest::decode(fields.get("request")?.as_slice()).ok()?;
        let images = fields
            .get("pictures")
            .and_then(|bytes| Pictures::decode(bytes.as_slice()).ok());
        let images = images
            .unwrap_or_default()
            .pictures
            .into_iter()
            .filter_map(|picture| picture.info)
            .collect();
        let timings = text("stages").split(',').filter_map(|name| {
            StageTiming::decode(fields.get(format!("timing:{name}").as_str())?.as_slice()).ok()
        });
        // A job that is being tried again still knows what went wrong last, but it has not failed.
        let error = (state == JobState::Failed).then(|| JobError {
            reason: text("err_reason")
                .parse()
                .unwrap_or(JobErrorReason::Internal as i32),
            message: text("err_message").to_owned(),
        });
        let worker_id = if state == JobState::Running {
            text("owner").to_owned()
        } else {
            String::new()
        };
        let job = Job {
            id: id.to_string(),
            state: state as i32,
            stage: stage as i32,
            progress: Some(progress(state, stage, (number("step"), number("of")), &request)),
            timings: timings.collect(),
            images,
            error,
            attempts: clamp(number("attempts")),
            crashes: clamp(number("crashes")),
            created_at: time("created"),
            updated_at: time("updated"),
            finished_at: time("finished"),
            deadline: time("deadline"),
            version: number("ver"),
            worker_id,
            request: Some(request),
            place: None,
            eta: None,
        };
        Some(Self {
            job,
            tenant: text("tenant").to_owned(),
            pictures: Nonce::from_hex(text("pictures_nonce")),
            stages: text("stages").to_owned(),
            last_worker: text("owner").to_owned(),
        })
    }

    /// A job that was created then, as it is stored; `request` is what [`NewJob::request`] encodes.
    pub fn fresh(new: &NewJob, request: GenerationRequest, created_ms: u64) -> Self {
        let stage = new.stages.first().copied().unwrap_or(Stage::Unspecified);
        let created = Some(timestamp(created_ms)).filter(|_| created_ms > 0);
        let job = Job {
            id: new.id.to_string(),
            state: JobState::Queued as i32,
            stage: stage as i32,
            progress: Some(progress(JobState::Queued, stage, (0, 0), &request)),
            created_at: created,
            updated_at: created,
            deadline: Some(timestamp(created_ms.saturating_add(new.timeout_ms))),
            version: 1,
            request: Some(request),
            ..Job::default()
        };
        Self {
            job,
            tenant: new.tenant.as_str().to_owned(),
            pictures: None,
            stages: new.stage_names(),
            last_worker: String::new(),
        }
    }

    /// Whether nothing will happen to the job any more.
    pub fn has_ended(&self) -> bool {
        matches!(
            self.job.state(),
            JobState::Succeeded | JobState::Failed | JobState::Cancelled
        )
    }
}

fn progress(state: JobState, stage: Stage, (step, of): (u64, u64), request: &GenerationRequest) -> Progress {
    // Before a shard reports, the request says how many steps there will be.
    let asked = sampling_of(request, stage)
        .and_then(|sampling| sampling.steps)
        .unwrap_or(0);
    let of = if of > 0 { clamp(of) } else { asked };
    let step = if state == JobState::Succeeded {
        of
    } else {
        clamp(step).min(of)
    };
    Progress {
        stage: stage as i32,
        step,
        of,
    }
}

fn clamp(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn state_of_name(name: &str) -> Option<JobState> {
    match name {
        "queued" => Some(JobState::Queued),
        "running" => Some(JobState::Running),
        "delayed" => Some(JobState::Delayed),
        "succeeded" => Some(JobState::Succeeded),
        "failed" => Some(JobState::Failed),
        "cancelled" => Some(JobState::Cancelled),
        _ => None,
    }
}

/// Milliseconds of Unix time as a protobuf timestamp.
pub fn timestamp(unix_ms: u64) -> Timestamp {
    // Both fit: the division leaves far less than i64 and i32 hold.
    Timestamp {
        seconds: (unix_ms / 1000) as i64,
        nanos: (unix_ms % 1000) as i32 * 1_000_000,
    }
}

/// Milliseconds as a protobuf duration.
pub fn duration(ms: u64) -> prost_types::Duration {
    prost_types::Duration {
        seconds: (ms / 1000) as i64,
        nanos: (ms % 1000) as i32 * 1_000_000,
    }
}

#[cfg(test)]
mod tests {
    use muse_proto::v1::Sampling;

    use super::*;

    fn values(set: &[(&str, &[u8])]) -> Vec<Option<Vec<u8>>> {
        let find = |name: &&str| {
            set.iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.to_vec())
        };
        Record::FIELDS.iter().map(find).collect()
    }

    #[test]
    fn a_queued_job_tells_how_many_steps_there_will_be() {
        let base = Some(Sampling {
            steps: Some(12),
            ..Sampling::default()
        });
        let request = GenerationRequest {
            base,
            ..GenerationRequest::default()
        }
        .encode_to_vec();
        let fields = values(&[
            ("state", b"queued"),
            ("stage", b"base"),
            ("tenant", b"default"),
            ("request", &request),
            ("ver", b"1"),
            ("created", b"1700000000123"),
        ]);
        let record = Record::from_fields(JobId::new(0), fields).unwrap();
        assert_eq!(
            record.job.progress,
            Some(Progress {
                stage: Stage::Base as i32,
                step: 0,
                of: 12
            })
        );
        assert_eq!(
            record.job.created_at,
            Some(Timestamp {
                seconds: 1_700_000_000,
                nanos: 123_000_000
            })
        );
        assert!(!record.has_ended());
    }

    #[test]
    fn a_job_that_is_gone_or_garbage_is_no_record() {
        assert!(Record::from_fields(JobId::new(0), values(&[])).is_none());
        let garbage = values(&[("state", b"queued"), ("request", b"\xff\xff\xff")]);
        assert!(Record::from_fields(JobId::new(0), garbage).is_none());
    }
}
