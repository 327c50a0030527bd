//! Dead letters: how jobs get there, what is known of them, and how they come back.

use std::collections::BTreeMap;

use muse_gateway::{
    config,
    jobs::JobId,
    queue::{Beaten, DeadCursor, NewJob, Queue, Raised, Reported, Requeued},
};
use muse_proto::v1::{JobErrorReason, JobState};

use crate::{
    harness::{BASE, ERROR, beat, claim, claim_one, complete_base, job, queue, queue_with, state, submit},
    recount::audit,
    support::redis_server::RedisServer,
};

/// A job that failed for good.
async fn dead_job(queue: &Queue) -> JobId {
    let id = submit(queue, job()).await;
    let grant = claim_one(queue).await;
    assert_eq!(grant.id, id);
    queue.fail(id, grant.nonce, ERROR, false).await.unwrap();
    id
}

#[tokio::test]
async fn a_dead_job_knows_everything_that_went_wrong_and_its_last_worker() {
    let server = RedisServer::start().await;
    let config = config::Queue {
        attempts: 2,
        backoff_base_ms: 0,
        lease_ms: 0,
        ..config::Queue::default()
    };
    let queue = queue_with(&server, config).await;
    let id = submit(&queue, job()).await;
    claim_one(&queue).await;
    queue.reap(0).await.unwrap();
    for message in ["too red", "too blue"] {
        let grant = claim_one(&queue).await;
        let error = (JobErrorReason::ModelFailed, message);
        queue.fail(id, grant.nonce, error, true).await.unwrap();
        queue.reap(0).await.unwrap();
    }
    let history = queue.history(id).await.unwrap();
    let told: Vec<_> = history
        .iter()
        .map(|failure| (failure.reason, failure.message.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (JobErrorReason::CrashedWorkers as i32, "the shard was lost"),
            (JobErrorReason::ModelFailed as i32, "too red"),
            (JobErrorReason::ModelFailed as i32, "too blue")
        ]
    );
    assert!(
        history
            .iter()
            .all(|failure| failure.worker == "worker" && failure.stage == "base"),
        "{history:?}"
    );
    assert!(
        history.windows(2).all(|pair| pair[0].at_ms <= pair[1].at_ms),
        "{history:?}"
    );
    let record = queue.get(id).await.unwrap().unwrap();
    assert_eq!(
        (record.job.state(), record.last_worker.as_str()),
        (JobState::Failed, "worker")
    );
}

#[tokio::test]
async fn the_history_is_bounded_and_goes_when_the_job_succeeds() {
    let server = RedisServer::start().await;
    let config = config::Queue {
        attempts: 40,
        backoff_base_ms: 0,
        ..config::Queue::default()
    };
    let queue = queue_with(&server, config).await;
    let new = NewJob {
        stages: vec![muse_proto::v1::Stage::Base],
        ..job()
    };
    let id = submit(&queue, new).await;
    for _ in 0..25 {
        let grant = claim_one(&queue).await;
        queue.fail(id, grant.nonce, ERROR, true).await.unwrap();
        queue.reap(0).await.unwrap();
    }
    assert_eq!(queue.history(id).await.unwrap().len(), 20);
    let grant = claim_one(&queue).await;
    let pictures = muse_gateway::queue::StageResult::pictures(Vec::new());
    let done = queue
        .complete(id, grant.nonce, BASE, &pictures, 1, b"")
        .await
        .unwrap();
    assert!(done.job_ended, "{done:?}");
    assert_eq!(queue.history(id).await.unwrap(), []);
}

#[tokio::test]
async fn a_retried_job_has_fresh_budgets_and_its_full_time_again() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    let id = dead_job(&queue).await;
    let before = queue.get(id).await.unwrap().unwrap().job;
    let live = submit(&queue, job()).await;
    let answers = queue.retry_dead(&[id, live, JobId::new(0)]).await.unwrap();
    assert_eq!(answers, [Raised::Done, Raised::NotDead, Raised::Unknown]);
    let after = queue.get(id).await.unwrap().unwrap().job;
    assert_eq!(
        (after.state(), after.attempts, after.crashes),
        (JobState::Queued, 0, 0)
    );
    assert!(
        after.error.is_none() && after.finished_at.is_none() && after.version > before.version,
        "{after:?}"
    );
    assert!(
        after.deadline.unwrap().seconds >= before.deadline.unwrap().seconds,
        "{after:?} {before:?}"
    );
    audit(&server).await;
    // The older one goes first: it has its old place.
    let grant = claim_one(&queue).await;
    assert_eq!(grant.id, id);
    assert_eq!(complete_base(&queue, &grant).await, Reported::Accepted);
    assert_eq!(queue.dead(None, 9).await.unwrap(), []);
}

#[tokio::test]
async fn a_purged_dead_job_is_gone_and_a_live_one_stays() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    let dead = dead_job(&queue).await;
    let live = submit(&queue, job()).await;
    assert_eq!(
        queue.purge_dead(&[dead, live]).await.unwrap(),
        [Raised::Done, Raised::NotDead]
    );
    assert_eq!(queue.purge_dead(&[dead]).await.unwrap(), [Raised::Done], "again");
    assert!(queue.get(dead).await.unwrap().is_none());
    assert_eq!(audit(&server).await, BTreeMap::from([("queued".to_owned(), 1)]));
    let left: Vec<String> = server.ask(&["KEYS", &format!("*{dead}*")]).await;
    assert_eq!(left, Vec::<String>::new());
}

#[tokio::test]
async fn dead_jobs_are_paged_newest_first_even_when_they_died_in_the_same_millisecond() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    for n in 0..7 {
        let id = dead_job(&queue).await;
        let failed = if n < 5 { "1000" } else { "2000" };
        server
            .ask::<u64>(&["ZADD", "muse:{s0}:dead", failed, &id.to_string()])
            .await;
    }
    let all = queue.dead(None, 100).await.unwrap();
    assert_eq!(all.len(), 7);
    assert!(
        all.windows(2).all(|pair| pair[0].failed_ms >= pair[1].failed_ms),
        "{all:?}"
    );
    let mut paged: Vec<DeadCursor> = Vec::new();
    loop {
        let page = queue.dead(paged.last(), 2).await.unwrap();
        if page.is_empty() {
            break;
        }
        paged.extend(page);
    }
    assert_eq!(paged, all);
}

#[tokio::test]
async fn an_operator_puts_a_job_back_from_wherever_it_is() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    // Running: its shard loses it, at no cost.
    let id = submit(&queue, job()).await;
    let grant = claim_one(&queue).await;
    queue.beat("worker", &[beat(&grant, 2)]).await.unwrap();
    assert_eq!(queue.requeue(id).await.unwrap(), Requeued::Queued);
    assert_eq!(
        queue.beat("worker", &[beat(&grant, 3)]).await.unwrap(),
        [Beaten::Lost]
    );
    assert_eq!(complete_base(&queue, &grant).await, Reported::Stale);
    let grant = claim_one(&queue).await;
    assert_eq!(
        (grant.id, grant.checkpoint.as_slice()),
        (id, b"checkpoint".as_slice())
    );
    // Delayed: it waits no longer.
    queue.fail(id, grant.nonce, ERROR, true).await.unwrap();
    assert_eq!(queue.requeue(id).await.unwrap(), Requeued::Queued);
    assert_eq!(
        queue.requeue(id).await.unwrap(),
        Requeued::Queued,
        "it is there already"
    );
    // Dead: it lives.
    let grant = claim_one(&queue).await;
    queue.fail(id, grant.nonce, ERROR, false).await.unwrap();
    assert_eq!(queue.requeue(id).await.unwrap(), Requeued::Queued);
    assert_eq!(claim(&queue, BASE, 9).await.len(), 1);
    // Ended: no.
    queue.cancel(id, "default").await.unwrap();
    assert_eq!(queue.requeue(id).await.unwrap(), Requeued::Ended);
    assert_eq!(queue.requeue(JobId::new(0)).await.unwrap(), Requeued::Unknown);
    assert_eq!(state(&queue, id).await, JobState::Cancelled);
    audit(&server).await;
}
