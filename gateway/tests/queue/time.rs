//! What time overtakes: leases, delays, deadlines.

use std::collections::BTreeMap;

use muse_gateway::{
    config,
    queue::{Beaten, NewJob, Reported},
};
use muse_proto::v1::{JobErrorReason, JobState};

use crate::{
    harness::{
        BASE, ERROR, beat, claim, claim_one, complete_base, job, queue, queue_with, short_lease, state,
        submit,
    },
    recount::audit,
    support::redis_server::RedisServer,
};

#[tokio::test]
async fn a_lease_that_runs_out_counts_a_crash_and_the_third_is_poison() {
    let server = RedisServer::start().await;
    let queue = queue_with(&server, short_lease()).await;
    let id = submit(&queue, job()).await;
    for crashes in 1..=3 {
        let grant = claim_one(&queue).await;
        // The worker has it: it is no lease that got lost on its way.
        queue.beat("worker", &[beat(&grant, 0)]).await.unwrap();
        let reaped = queue.reap(0).await.unwrap();
        assert_eq!((reaped.lost, reaped.dead), (1, u64::from(crashes == 3)));
        let record = queue.get(id).await.unwrap().unwrap();
        assert_eq!(record.job.crashes, crashes);
        if crashes == 3 {
            assert_eq!(record.job.error.unwrap().reason(), JobErrorReason::CrashedWorkers);
            assert_eq!(complete_base(&queue, &grant).await, Reported::Stale);
        }
    }
    assert_eq!(audit(&server).await, BTreeMap::from([("failed".to_owned(), 1)]));
}

#[tokio::test]
async fn leases_that_nobody_acknowledged_are_no_crashes_at_first_but_end_a_job_in_time() {
    let server = RedisServer::start().await;
    let queue = queue_with(&server, short_lease()).await;
    let id = submit(&queue, job()).await;
    let mut crashes = Vec::new();
    while state(&queue, id).await == JobState::Queued {
        claim_one(&queue).await;
        queue.reap(0).await.unwrap();
        crashes.push(queue.get(id).await.unwrap().unwrap().job.crashes);
    }
    assert_eq!(crashes, [0, 0, 0, 1, 2, 3]);
    assert_eq!(state(&queue, id).await, JobState::Failed);
}

#[tokio::test]
async fn a_worker_that_was_only_slow_pays_back_the_budget_that_was_charged() {
    let server = RedisServer::start().await;
    let queue = queue_with(&server, short_lease()).await;
    let id = submit(&queue, job()).await;
    for acknowledged in [false, true] {
        let grant = claim_one(&queue).await;
        if acknowledged {
            queue.beat("worker", &[beat(&grant, 1)]).await.unwrap();
        }
        queue.reap(0).await.unwrap();
        let crashes = queue.get(id).await.unwrap().unwrap().job.crashes;
        assert_eq!(crashes, u32::from(acknowledged));
        assert_eq!(
            queue.beat("worker", &[beat(&grant, 2)]).await.unwrap(),
            [Beaten::Held]
        );
        assert_eq!(queue.get(id).await.unwrap().unwrap().job.crashes, 0);
        queue.release(id, grant.nonce, b"").await.unwrap();
    }
    let unacked: Option<u32> = server
        .ask(&["HGET", &format!("muse:{{s0}}:j:{id}"), "unacked"])
        .await;
    assert_eq!(unacked, Some(0));
}

#[tokio::test]
async fn a_slow_worker_keeps_its_job_while_nobody_took_it_over() {
    let server = RedisServer::start().await;
    let queue = queue_with(&server, short_lease()).await;
    let id = submit(&queue, job()).await;
    let grant = claim_one(&queue).await;
    queue.reap(0).await.unwrap();
    assert_eq!(state(&queue, id).await, JobState::Queued);
    assert_eq!(
        queue.beat("worker", &[beat(&grant, 2)]).await.unwrap(),
        [Beaten::Held]
    );
    let record = queue.get(id).await.unwrap().unwrap();
    assert_eq!(
        (
            record.job.state(),
            record.job.crashes,
            record.job.progress.unwrap().step
        ),
        (JobState::Running, 0, 2)
    );
    queue.reap(0).await.unwrap();
    assert_eq!(
        complete_base(&queue, &grant).await,
        Reported::Accepted,
        "a late result too"
    );
    assert_eq!(audit(&server).await, BTreeMap::from([("queued".to_owned(), 1)]));
}

#[tokio::test]
async fn an_outage_and_a_jump_of_the_clock_expire_nothing() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    let id = submit(&queue, job()).await;
    claim_one(&queue).await;
    // As if the last tick had been an hour ago, and then as if the clock had been set back by a day.
    for last in ["1000", "99999999999999"] {
        server.ask::<u64>(&["HSET", "muse:{s0}:clk", "last", last]).await;
        assert_eq!(queue.reap(0).await.unwrap().lost, 0);
        assert_eq!(state(&queue, id).await, JobState::Running);
    }
}

#[tokio::test]
async fn errors_wait_for_their_next_attempt_and_end_with_their_budget() {
    let server = RedisServer::start().await;
    let config = config::Queue {
        attempts: 2,
        backoff_base_ms: 0,
        ..config::Queue::default()
    };
    let queue = queue_with(&server, config).await;
    let id = submit(&queue, job()).await;
    let grant = claim_one(&queue).await;
    queue.fail(id, grant.nonce, ERROR, true).await.unwrap();
    assert_eq!(state(&queue, id).await, JobState::Delayed);
    assert_eq!(queue.reap(0).await.unwrap().delayed, 1);
    assert_eq!(state(&queue, id).await, JobState::Queued);
    let grant = claim_one(&queue).await;
    assert_eq!(grant.attempts, 1);
    queue.fail(id, grant.nonce, ERROR, true).await.unwrap();
    let job = queue.get(id).await.unwrap().unwrap().job;
    assert_eq!((job.state(), job.attempts), (JobState::Failed, 2));
    assert!(job.finished_at.is_some());
}

#[tokio::test]
async fn a_deadline_ends_a_job_wherever_it_is() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    let overdue = || NewJob {
        timeout_ms: 0,
        ..job()
    };
    // Queued, and found so by a claim.
    let waiting = submit(&queue, overdue()).await;
    assert!(claim(&queue, BASE, 1).await.is_empty());
    assert_eq!(state(&queue, waiting).await, JobState::Failed);
    // Running and delayed: the deadline is moved there by hand, since time cannot be.
    let running = submit(&queue, job()).await;
    let grant = claim_one(&queue).await;
    let delayed = submit(&queue, job()).await;
    let other = claim_one(&queue).await;
    queue.fail(delayed, other.nonce, ERROR, true).await.unwrap();
    for id in [running, delayed] {
        server
            .ask::<u64>(&["ZADD", "muse:{s0}:deadline", "1", &id.to_string()])
            .await;
    }
    assert_eq!(queue.reap(0).await.unwrap().overdue, 2);
    for id in [running, delayed] {
        let job = queue.get(id).await.unwrap().unwrap().job;
        assert_eq!(
            (job.state(), job.error.unwrap().reason()),
            (JobState::Failed, JobErrorReason::DeadlineExceeded)
        );
    }
    assert_eq!(
        queue.beat("worker", &[beat(&grant, 1)]).await.unwrap(),
        [Beaten::Deadline]
    );
    assert_eq!(audit(&server).await, BTreeMap::from([("failed".to_owned(), 3)]));
}
