//! The queue's scripts against a model of them: docs/queue.md as plain Rust, without Redis, played the same random
//! sequences of calls. Every reply, every doorbell and every key must agree after each.
//!
//! `MUSE_MODEL_SEED` replays a run, `MUSE_MODEL_CALLS` makes it longer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]
#![allow(unreachable_pub, reason = "modules of a test binary, not a crate")]

mod calls;
mod comparison;
mod keys;
mod moves;
mod mutations;
mod operators;
mod redis_side;
mod regressions;
mod reports;
mod scripts;
mod sequence;
mod shard;
mod steps;
#[path = "../support/mod.rs"]
mod support;

use muse_gateway::{
    config::{self, Durability},
    connection::Redis,
    jobs::{JobId, Nonce},
    queue::{NewJob, Queue, Target},
};
use muse_proto::v1::Stage;
use muse_service::Tenant;

use crate::{
    comparison::{Comparison, compare},
    redis_side::SOURCES,
    support::redis_server::RedisServer,
};

/// From the environment, or this.
fn setting(name: &str, default: impl FnOnce() -> u64) -> u64 {
    std::env::var(name).map_or_else(
        |_| default(),
        |value| {
            value
                .parse()
                .unwrap_or_else(|_| panic!("{name} must be a number, not {value}"))
        },
    )
}

fn run(calls: usize) {
    let seed = setting("MUSE_MODEL_SEED", rand::random);
    let calls = setting("MUSE_MODEL_CALLS", || calls as u64) as usize;
    println!("MUSE_MODEL_SEED={seed} MUSE_MODEL_CALLS={calls}");
    let comparison = Comparison {
        seed,
        calls,
        change: None,
        shrinks: 4_000,
    };
    let played = compare(&comparison).unwrap_or_else(|difference| panic!("{difference}"));
    println!("{} calls in {} sequences agree", played.calls, played.sequences);
    for (answer, times) in &played.answers {
        println!("{times:>8} {answer}");
    }
    assert!(played.calls >= calls);
    let usual = if calls < 10_000 { &[] } else { USUAL };
    for answer in usual {
        assert!(
            played.answers.contains_key(*answer),
            "no call was answered with {answer}: {:#?}",
            played.answers
        );
    }
}

/// Answers that every run of some length must have seen, or it has tested less than it should.
const USUAL: &[&str] = &[
    "submit created",
    "submit existed",
    "submit conflict",
    "submit full",
    "submit quota",
    "submit refused",
    "claim some",
    "claim none",
    "claim refused",
    "beat held",
    "beat lost",
    "beat reported",
    "complete accepted",
    "complete duplicate",
    "complete stale",
    "complete refused",
    "fail accepted",
    "fail duplicate",
    "fail stale",
    "release accepted",
    "release duplicate",
    "release stale",
    "cancel cancelled",
    "cancel ended",
    "cancel unknown",
    "retry_dead retried",
    "retry_dead not_dead",
    "purge_dead purged",
    "purge_dead not_dead",
    "requeue queued",
    "requeue ended",
    "purge some",
    "pause was",
    "tenant_set ok",
    "audit superseded",
];

#[test]
fn the_scripts_do_what_the_model_says() {
    run(10_000);
}

/// `make soak` runs it.
#[test]
#[ignore = "minutes"]
fn the_scripts_do_what_the_model_says_all_night() {
    run(150_000);
}

/// The text that the model is compared with is the one that the gateway loads.
#[tokio::test]
async fn the_scripts_compared_are_those_that_the_gateway_runs() {
    let server = RedisServer::start_with(&["--appendonly", "no"]).await;
    let config = config::Redis {
        url: server.url(),
        ..config::Redis::default()
    };
    let redis = Redis::connect(&config, Durability::None).await.unwrap();
    let queue = Queue::new(redis, "muse", config::Queue::default());
    let tenant = Tenant::default();
    let job = NewJob {
        id: JobId::new(0),
        tenant: tenant.clone(),
        model: "tiny".to_owned(),
        stages: vec![Stage::Base],
        rows: 1,
        boost_ms: 0,
        timeout_ms: 60_000,
        request: Vec::new(),
        traceparent: String::new(),
        idempotency: None,
    };
    queue.submit(&job).await.unwrap();
    let nonce = Nonce::random();
    queue
        .claim(0, ("tiny", "base"), "worker", 1, &[nonce])
        .await
        .unwrap();
    let beat = muse_gateway::queue::Beat {
        id: job.id,
        nonce,
        step: 1,
        of: 2,
        checkpoint: bytes::Bytes::new(),
    };
    queue.beat("worker", &[beat]).await.unwrap();
    let result = muse_gateway::queue::StageResult::pictures(Vec::new());
    queue
        .complete(job.id, nonce, ("tiny", "base"), &result, 1, b"")
        .await
        .unwrap();
    let error = (muse_proto::v1::JobErrorReason::ModelFailed, "no");
    queue.fail(job.id, nonce, error, true).await.unwrap();
    queue.release(job.id, nonce, b"").await.unwrap();
    queue.reap(0).await.unwrap();
    queue.cancel(job.id, "default").await.unwrap();
    queue.purge(0).await.unwrap();
    queue.set_tenant(&tenant, &[("weight", Some(1.0))]).await.unwrap();
    queue.pause(&Target::Tenant(tenant), "a test").await.unwrap();
    queue.retry_dead(&[job.id]).await.unwrap();
    queue.purge_dead(&[job.id]).await.unwrap();
    queue.requeue(job.id).await.unwrap();
    let (events, mut told) = tokio::sync::mpsc::channel(100);
    let (audited, ()) = tokio::join!(queue.audit(false, &events), async {
        told.recv().await.expect("progress");
    });
    audited.unwrap();
    for (name, _) in SOURCES {
        let hash = redis_side::original(name).get_hash().to_owned();
        let known: Vec<bool> = server.ask(&["SCRIPT", "EXISTS", &hash]).await;
        assert_eq!(
            known,
            [true],
            "the gateway runs another {name} than the model is compared with"
        );
    }
}
