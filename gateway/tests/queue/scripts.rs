//! What each script promises by itself: it can be repeated, and it checks whose job and lease it is.

use std::collections::BTreeMap;

use muse_gateway::{
    config,
    jobs::{JobId, Nonce},
    queue::{Beaten, Cancellation, Grant, Idempotency, NewJob, Reported, StageResult, Submission, Target},
};
use muse_proto::v1::JobState;

use crate::{
    harness::{
        BASE, ERROR, SUPERRES, beat, claim, claim_one, complete_base, job, queue, queue_with, state, submit,
    },
    recount::audit,
    support::redis_server::RedisServer,
};

#[tokio::test]
async fn every_script_can_be_repeated() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    let new = job();
    for _ in 0..2 {
        assert_eq!(queue.submit(&new).await.unwrap(), Submission::Created(new.id));
    }
    let nonces = [Nonce::random(), Nonce::random()];
    let first = queue.claim(0, BASE, "worker", 2, &nonces).await.unwrap();
    let again = queue.claim(0, BASE, "worker", 2, &nonces).await.unwrap();
    assert_eq!(
        (first.len(), again.len()),
        (1, 1),
        "a claim whose reply was lost gives the same lease"
    );
    assert_eq!((first[0].id, first[0].nonce), (again[0].id, again[0].nonce));
    assert!(claim(&queue, BASE, 1).await.is_empty(), "one job, one lease");
    for _ in 0..2 {
        assert_eq!(
            queue.beat("worker", &[beat(&first[0], 1)]).await.unwrap(),
            [Beaten::Held]
        );
    }
    assert_eq!(complete_base(&queue, &first[0]).await, Reported::Accepted);
    assert_eq!(complete_base(&queue, &first[0]).await, Reported::Duplicate);

    let grant = claim(&queue, SUPERRES, 1).await.pop().unwrap();
    assert_eq!(
        (grant.low_tokens.as_slice(), grant.traceparent.as_str()),
        (b"tokens".as_slice(), "00-trace")
    );
    assert_eq!(
        complete_base(&queue, &first[0]).await,
        Reported::Duplicate,
        "also when the next stage runs"
    );
    assert_eq!(
        queue.fail(grant.id, grant.nonce, ERROR, true).await.unwrap(),
        Reported::Accepted
    );
    assert_eq!(
        queue.fail(grant.id, grant.nonce, ERROR, true).await.unwrap(),
        Reported::Duplicate
    );
    let record = queue.get(new.id).await.unwrap().unwrap();
    assert_eq!((record.job.state(), record.job.attempts), (JobState::Delayed, 1));
    assert_eq!(
        queue.cancel(new.id, "default").await.unwrap(),
        Cancellation::Cancelled
    );
    assert_eq!(
        queue.cancel(new.id, "default").await.unwrap(),
        Cancellation::Ended
    );
    assert_eq!(
        audit(&server).await,
        BTreeMap::from([("cancelled".to_owned(), 1)])
    );
}

#[tokio::test]
async fn a_claim_that_is_repeated_too_late_gives_another_job_and_the_two_leases_stay_apart() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    let (first, second) = (submit(&queue, job()).await, submit(&queue, job()).await);
    let nonces = [Nonce::random()];
    let lost = queue.claim(0, BASE, "worker", 1, &nonces).await.unwrap();
    assert_eq!(lost[0].id, first);
    // As when a lease's time has passed, or the server's clock has jumped.
    assert_eq!(server.ask::<u64>(&["DEL", "muse:{s0}:claim:worker"]).await, 1);
    let heard = queue.claim(0, BASE, "worker", 1, &nonces).await.unwrap();
    assert_eq!((heard[0].id, heard[0].nonce), (second, lost[0].nonce));
    assert_eq!(complete_base(&queue, &heard[0]).await, Reported::Accepted);
    assert_eq!(
        (state(&queue, first).await, state(&queue, second).await),
        (JobState::Running, JobState::Queued),
        "the result is that of one job alone"
    );
    assert_eq!(
        audit(&server).await,
        BTreeMap::from([("queued".to_owned(), 1), ("running".to_owned(), 1)])
    );
}

#[tokio::test]
async fn a_job_is_only_its_tenants() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    let id = submit(&queue, job()).await;
    assert_eq!(queue.cancel(id, "another").await.unwrap(), Cancellation::Unknown);
    assert_eq!(
        queue.cancel(JobId::new(0), "default").await.unwrap(),
        Cancellation::Unknown
    );
    assert_eq!(state(&queue, id).await, JobState::Queued);
}

#[tokio::test]
async fn a_stale_nonce_changes_nothing() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    let id = submit(&queue, job()).await;
    let grant = claim_one(&queue).await;
    let before = queue.get(id).await.unwrap().unwrap().job;
    let forged = Grant {
        nonce: Nonce::random(),
        ..grant.clone()
    };
    assert_eq!(complete_base(&queue, &forged).await, Reported::Stale);
    assert_eq!(
        queue.fail(id, forged.nonce, ERROR, true).await.unwrap(),
        Reported::Stale
    );
    assert_eq!(
        queue.release(id, forged.nonce, b"").await.unwrap(),
        Reported::Stale
    );
    assert_eq!(
        queue.beat("worker", &[beat(&forged, 2)]).await.unwrap(),
        [Beaten::Lost]
    );
    assert_eq!(queue.get(id).await.unwrap().unwrap().job, before);
    let wrong_stage = queue
        .complete(id, grant.nonce, SUPERRES, &StageResult::pictures(vec![]), 1, b"")
        .await
        .unwrap();
    assert_eq!(wrong_stage.outcome, Reported::Stale);
    let pictures_early = queue
        .complete(id, grant.nonce, BASE, &StageResult::pictures(vec![]), 1, b"")
        .await
        .unwrap();
    assert_eq!(pictures_early.outcome, Reported::Refused);
    let rows_wrong = queue
        .complete(id, grant.nonce, BASE, &StageResult::Tokens(vec![]), 2, b"")
        .await
        .unwrap();
    assert_eq!(rows_wrong.outcome, Reported::Refused);
}

#[tokio::test]
async fn an_idempotency_key_lives_as_long_as_its_job() {
    let server = RedisServer::start().await;
    let config = config::Queue {
        keep_done_seconds: 0,
        keep_dead_seconds: 0,
        ..config::Queue::default()
    };
    let queue = queue_with(&server, config).await;
    let key = |request: &str| {
        Some(Idempotency {
            key: "k".to_owned(),
            request: request.to_owned(),
        })
    };
    let id = submit(
        &queue,
        NewJob {
            idempotency: key("r"),
            ..job()
        },
    )
    .await;
    let again = NewJob {
        idempotency: key("r"),
        ..job()
    };
    assert_eq!(queue.submit(&again).await.unwrap(), Submission::Existed(id));
    let other = NewJob {
        idempotency: key("other"),
        ..job()
    };
    assert_eq!(queue.submit(&other).await.unwrap(), Submission::Conflict);
    assert_eq!(queue.purge(0).await.unwrap(), [], "a live job is not forgotten");
    queue.cancel(id, "default").await.unwrap();
    assert_eq!(queue.purge(0).await.unwrap().len(), 1);
    assert!(queue.get(id).await.unwrap().is_none());
    let left: Vec<String> = server.ask(&["KEYS", "*"]).await;
    assert!(
        left.iter()
            .all(|key| !key.contains(&id.to_string()) && !key.contains("idem") && !key.contains("jobs")),
        "{left:?}"
    );
    submit(&queue, again).await;
}

#[tokio::test]
async fn scripts_come_back_after_they_were_flushed() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    submit(&queue, job()).await;
    server.ask::<String>(&["SCRIPT", "FLUSH"]).await;
    submit(&queue, job()).await;
    assert_eq!(claim(&queue, BASE, 2).await.len(), 2);
}

#[tokio::test]
async fn two_finishers_with_different_results_are_noticed() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    let id = submit(&queue, job()).await;
    let first = claim_one(&queue).await;
    // The lease runs out in silence, another shard takes over and finishes first.
    server
        .ask::<u64>(&["ZADD", "muse:{s0}:lease", "0", &id.to_string()])
        .await;
    queue.reap(0).await.unwrap();
    let second = claim_one(&queue).await;
    let finish = async |grant: &Grant, tokens: &[u8]| {
        let tokens = StageResult::Tokens(tokens.to_vec());
        queue
            .complete(grant.id, grant.nonce, BASE, &tokens, 1, b"")
            .await
            .unwrap()
    };
    let accepted = finish(&second, b"one").await;
    assert_eq!(
        (accepted.outcome, accepted.other_digest),
        (Reported::Accepted, None)
    );
    let agreeing = finish(&first, b"one").await;
    assert_eq!((agreeing.outcome, agreeing.other_digest), (Reported::Stale, None));
    let digest = StageResult::Tokens(b"one".to_vec()).digest();
    let differing = finish(&first, b"two").await;
    assert_eq!(
        (differing.outcome, differing.other_digest.as_ref()),
        (Reported::Stale, Some(&digest))
    );
    let repeated = finish(&second, b"two").await;
    assert_eq!(
        (repeated.outcome, repeated.other_digest),
        (Reported::Duplicate, Some(digest))
    );
}

#[tokio::test]
async fn a_job_is_cancelled_in_every_state_and_nothing_is_left_of_it() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    let cancel = async |id| queue.cancel(id, "default").await.unwrap();
    // Running.
    let running = submit(&queue, job()).await;
    let grant = claim_one(&queue).await;
    assert_eq!(cancel(running).await, Cancellation::Cancelled);
    assert_eq!(
        queue.beat("worker", &[beat(&grant, 1)]).await.unwrap(),
        [Beaten::Cancelled]
    );
    assert_eq!(complete_base(&queue, &grant).await, Reported::Stale);
    assert_eq!(
        queue.fail(running, grant.nonce, ERROR, true).await.unwrap(),
        Reported::Stale
    );
    assert_eq!(
        queue.release(running, grant.nonce, b"").await.unwrap(),
        Reported::Stale
    );
    // Delayed.
    let delayed = submit(&queue, job()).await;
    let grant = claim_one(&queue).await;
    queue.fail(delayed, grant.nonce, ERROR, true).await.unwrap();
    assert_eq!(state(&queue, delayed).await, JobState::Delayed);
    assert_eq!(cancel(delayed).await, Cancellation::Cancelled);
    // Between its stages.
    let between = submit(&queue, job()).await;
    complete_base(&queue, &claim_one(&queue).await).await;
    assert_eq!(cancel(between).await, Cancellation::Cancelled);
    // Queued, its tenant paused, and its lease lost.
    let tenant = Target::Tenant(muse_service::Tenant::default());
    let held = submit(&queue, job()).await;
    queue.pause(&tenant, "a test").await.unwrap();
    assert!(claim(&queue, BASE, 1).await.is_empty());
    assert_eq!(cancel(held).await, Cancellation::Cancelled);
    queue.resume(&tenant).await.unwrap();
    let lost = submit(&queue, job()).await;
    let grant = claim_one(&queue).await;
    server
        .ask::<u64>(&["ZADD", "muse:{s0}:lease", "0", &lost.to_string()])
        .await;
    queue.reap(0).await.unwrap();
    assert_eq!(cancel(lost).await, Cancellation::Cancelled);
    assert_eq!(
        queue.beat("worker", &[beat(&grant, 1)]).await.unwrap(),
        [Beaten::Cancelled]
    );
    // Ended.
    let dead = submit(&queue, job()).await;
    let grant = claim_one(&queue).await;
    queue.fail(dead, grant.nonce, ERROR, false).await.unwrap();
    assert_eq!(cancel(dead).await, Cancellation::Ended);
    assert_eq!(state(&queue, dead).await, JobState::Failed);
    assert!(claim(&queue, BASE, 9).await.is_empty() && claim(&queue, SUPERRES, 9).await.is_empty());
    assert_eq!(
        audit(&server).await,
        BTreeMap::from([("cancelled".to_owned(), 5), ("failed".to_owned(), 1)])
    );
}
