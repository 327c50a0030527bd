//! A queue over a Redis of its own, and the moves that most tests make.

use muse_gateway::{
    config::{self, Durability},
    connection::{Bells, Redis, StartupError},
    jobs::{JobId, Nonce},
    queue::{Beat, Grant, NewJob, Queue, Reported, StageResult, Submission},
};
use muse_proto::v1::{GenerationRequest, JobErrorReason, JobState, Stage};
use muse_service::Tenant;
use prost::Message as _;

use crate::support::{redis_server::RedisServer, soon, until};

pub const BASE: (&str, &str) = ("tiny", "base");
pub const SUPERRES: (&str, &str) = ("tiny", "superres");
pub const ERROR: (JobErrorReason, &str) = (JobErrorReason::ModelFailed, "it was too red");

pub async fn connect(server: &RedisServer, durability: Durability) -> Result<Redis, StartupError> {
    let config = config::Redis {
        url: server.url(),
        retry_ms: 5_000,
        ..config::Redis::default()
    };
    Redis::connect(&config, durability).await
}

pub async fn queue_with(server: &RedisServer, config: config::Queue) -> Queue {
    Queue::new(connect(server, Durability::Always).await.unwrap(), "muse", config)
}

pub async fn queue(server: &RedisServer) -> Queue {
    queue_with(server, config::Queue::default()).await
}

/// Returns when `bells` hear what is rung under `prefix`: everything rings once when they get their connection.
pub async fn hear(server: &RedisServer, bells: &Bells, prefix: &str) {
    let mut revocations = bells.revocations("worker");
    let channel = format!("{prefix}rev");
    until("a listener", async || {
        let heard: u64 = server
            .ask(&["PUBLISH", &channel, "worker job nonce cancelled"])
            .await;
        (heard > 0).then_some(())
    })
    .await;
    soon("the revocation", revocations.next()).await;
}

pub fn job() -> NewJob {
    NewJob {
        id: JobId::new(0),
        tenant: Tenant::default(),
        model: "tiny".to_owned(),
        stages: vec![Stage::Base, Stage::Superres],
        rows: 1,
        boost_ms: 0,
        timeout_ms: 600_000,
        request: GenerationRequest::default().encode_to_vec(),
        traceparent: "00-trace".to_owned(),
        idempotency: None,
    }
}

pub async fn submit(queue: &Queue, job: NewJob) -> JobId {
    assert_eq!(queue.submit(&job).await.unwrap(), Submission::Created(job.id));
    job.id
}

pub async fn claim(queue: &Queue, pool: (&str, &str), rows: u32) -> Vec<Grant> {
    let nonces: Vec<Nonce> = (0..rows.clamp(1, 100)).map(|_| Nonce::random()).collect();
    queue.claim(0, pool, "worker", rows, &nonces).await.unwrap()
}

pub async fn claim_one(queue: &Queue) -> Grant {
    claim(queue, BASE, 1).await.pop().expect("a job waits")
}

pub fn beat(grant: &Grant, step: u32) -> Beat {
    Beat {
        id: grant.id,
        nonce: grant.nonce,
        step,
        of: 3,
        checkpoint: bytes::Bytes::from_static(b"checkpoint"),
    }
}

pub async fn state(queue: &Queue, id: JobId) -> JobState {
    queue
        .get(id)
        .await
        .unwrap()
        .expect("the job is there")
        .job
        .state()
}

pub async fn complete_base(queue: &Queue, grant: &Grant) -> Reported {
    let tokens = StageResult::Tokens(b"tokens".to_vec());
    queue
        .complete(grant.id, grant.nonce, BASE, &tokens, 1, b"")
        .await
        .unwrap()
        .outcome
}

/// A lease that is out as soon as the clock ticks.
pub fn short_lease() -> config::Queue {
    config::Queue {
        lease_ms: 0,
        ..config::Queue::default()
    }
}
