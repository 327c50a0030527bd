//! Those who come at the same time share a call, and notice nothing of it.

use futures::future::join_all;
use muse_gateway::{
    jobs::{JobId, Record},
    queue::{Grant, Idempotency, NewJob, Queue, Reported, StageResult, Submission},
};
use muse_proto::v1::{GenerationRequest, JobState};
use prost::Message as _;

use crate::{
    harness::{BASE, SUPERRES, claim, complete_base, job, queue, state, submit},
    support::{redis_server::RedisServer, until},
};

/// Scripts run so far.
async fn calls(server: &RedisServer) -> u64 {
    let stats: String = server.ask(&["INFO", "commandstats"]).await;
    let line = stats
        .lines()
        .find(|line| line.starts_with("cmdstat_evalsha:"))
        .unwrap_or_default();
    let calls = line
        .split_once("calls=")
        .and_then(|(_, rest)| rest.split(',').next());
    calls.map_or(0, |calls| calls.parse().unwrap())
}

async fn complete(queue: &Queue, grant: &Grant, pool: (&str, &str)) -> Result<Reported, String> {
    let result = match pool {
        BASE => StageResult::Tokens(b"tokens".to_vec()),
        _ => StageResult::pictures(b"pictures".to_vec()),
    };
    let completed = queue.complete(grant.id, grant.nonce, pool, &result, 1, b"").await;
    completed
        .map(|completed| completed.outcome)
        .map_err(|error| error.to_string())
}

#[tokio::test]
async fn submissions_and_results_that_wait_at_the_same_time_share_calls() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    let keyed = |n: usize| NewJob {
        idempotency: n.is_multiple_of(2).then(|| Idempotency {
            // Each key twice, in the same breath.
            key: format!("key {}", n / 4),
            request: "request".to_owned(),
        }),
        ..job()
    };
    let jobs: Vec<NewJob> = (0..100).map(keyed).collect();
    let before = calls(&server).await;
    let submitted = join_all(jobs.iter().map(|job| queue.submit(job))).await;
    let made = calls(&server).await - before;
    assert!((1..=20).contains(&made), "100 submissions made {made} calls");
    for (n, (job, submitted)) in jobs.iter().zip(submitted).enumerate() {
        let wanted = match n % 4 {
            2 => Submission::Existed(jobs[n - 2].id),
            _ => Submission::Created(job.id),
        };
        assert_eq!(submitted.unwrap(), wanted, "job {n}");
    }
    for (pool, after) in [(BASE, JobState::Queued), (SUPERRES, JobState::Succeeded)] {
        let grants = claim(&queue, pool, 100).await;
        assert_eq!(grants.len(), 75);
        let before = calls(&server).await;
        let completed = join_all(grants.iter().map(|grant| complete(&queue, grant, pool))).await;
        let made = calls(&server).await - before;
        assert!((1..=20).contains(&made), "75 results made {made} calls");
        assert_eq!(completed, vec![Ok(Reported::Accepted); 75]);
        for grant in &grants {
            assert_eq!(state(&queue, grant.id).await, after);
        }
    }
}

#[tokio::test]
async fn a_new_job_is_told_as_it_is_stored() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    submit(&queue, job()).await;
    let new = job();
    let accepted = queue.accept_ranked(&new).await.unwrap();
    let fresh = accepted.fresh.expect("it was created by this call");
    assert_eq!(fresh.rank, Some(1));
    let told = Record::fresh(
        &new,
        GenerationRequest::decode(&new.request[..]).unwrap(),
        fresh.created_ms,
    );
    let stored = queue.get(new.id).await.unwrap().unwrap();
    assert_eq!(format!("{told:?}"), format!("{stored:?}"));
    // The same once more: nothing new came of it.
    assert!(queue.accept_ranked(&new).await.unwrap().fresh.is_none());
}

#[tokio::test]
async fn who_leaves_takes_nothing_from_the_others() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    let jobs: Vec<NewJob> = (0..60).map(|_| job()).collect();
    let tasks: Vec<_> = jobs
        .iter()
        .cloned()
        .map(|job| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.submit(&job).await.map_err(|error| error.to_string()) })
        })
        .collect();
    tokio::task::yield_now().await;
    for task in tasks.iter().step_by(3) {
        task.abort();
    }
    for (n, (job, task)) in jobs.iter().zip(tasks).enumerate() {
        match task.await {
            Ok(submitted) => assert_eq!(submitted, Ok(Submission::Created(job.id))),
            Err(left) => assert!(left.is_cancelled() && n.is_multiple_of(3), "job {n}: {left}"),
        }
    }
    // Nothing is stuck behind them.
    until("another submission", async || {
        queue
            .submit(&job())
            .await
            .ok()
            .filter(|one| matches!(one, Submission::Created(_)))
    })
    .await;
}

#[tokio::test]
async fn what_something_else_has_written_over_fails_alone_and_leaves_nothing_half_done() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    for _ in 0..20 {
        submit(&queue, job()).await;
    }
    let grants = claim(&queue, BASE, 20).await;
    let keys: Vec<String> = server.ask(&["KEYS", &format!("*j:{}", grants[7].id)]).await;
    server.ask::<()>(&["SET", &keys[0], "a string"]).await;
    let completed = join_all(grants.iter().map(|grant| complete(&queue, grant, BASE))).await;
    for (n, completed) in completed.iter().enumerate() {
        match completed {
            Ok(outcome) => assert!(*outcome == Reported::Accepted && n != 7, "{n}: {outcome:?}"),
            Err(error) => assert!(n == 7 && error.contains("WRONGTYPE"), "{n}: {error}"),
        }
    }
    let leases: Vec<String> = server.ask(&["KEYS", "*:lease"]).await;
    let leased: Vec<String> = server.ask(&["ZRANGE", &leases[0], "0", "-1"]).await;
    assert_eq!(
        leased,
        [grants[7].id.to_string()],
        "the others are out of their leases"
    );
    assert_eq!(claim(&queue, SUPERRES, 20).await.len(), 19);

    // A key of a submission that is no string.
    let poisoned = NewJob {
        idempotency: Some(Idempotency {
            key: "poison".to_owned(),
            request: "request".to_owned(),
        }),
        ..job()
    };
    submit(&queue, poisoned.clone()).await;
    let keys: Vec<String> = server.ask(&["KEYS", "*idem:*"]).await;
    server.ask::<()>(&["DEL", &keys[0]]).await;
    server.ask::<u64>(&["RPUSH", &keys[0], "a list"]).await;
    let jobs: Vec<NewJob> = (0..20)
        .map(|n| match n {
            5 => NewJob {
                id: JobId::new(0),
                ..poisoned.clone()
            },
            _ => job(),
        })
        .collect();
    let submitted = join_all(jobs.iter().map(|job| queue.submit(job))).await;
    for (n, (job, submitted)) in jobs.iter().zip(submitted).enumerate() {
        match submitted {
            Ok(submission) => assert_eq!(submission, Submission::Created(job.id)),
            Err(error) => assert!(n == 5 && error.to_string().contains("WRONGTYPE"), "{n}: {error}"),
        }
    }
    let claimed = claim(&queue, BASE, 100).await;
    assert_eq!(claimed.len(), 20, "19 of them, and the one before");
    for grant in &claimed {
        assert_eq!(complete_base(&queue, grant).await, Reported::Accepted);
    }
}
