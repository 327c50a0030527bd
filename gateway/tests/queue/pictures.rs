//! Pictures that are kept beside their job are written in one transaction with its completion: both or neither.

use bytes::Bytes;
use muse_gateway::{
    connection::RedisError,
    jobs::Nonce,
    queue::{Grant, Queue, Reported, StageResult},
    results::{RedisResults, ResultStore as _},
};
use muse_proto::v1::JobState;

use crate::{
    harness::{SUPERRES, claim, claim_one, complete_base, job, queue, state, submit},
    support::redis_server::RedisServer,
};

/// A queue with a job in its last stage, the lease, and where its picture goes.
async fn scene(server: &RedisServer) -> (Queue, Grant, RedisResults) {
    let queue = queue(server).await;
    submit(&queue, job()).await;
    let base = claim_one(&queue).await;
    assert_eq!(complete_base(&queue, &base).await, Reported::Accepted);
    let grant = claim(&queue, SUPERRES, 1)
        .await
        .pop()
        .expect("the next stage waits");
    let results = RedisResults::new(queue.redis().clone(), queue.keys().clone(), 60_000);
    (queue, grant, results)
}

async fn finish(
    queue: &Queue,
    grant: &Grant,
    nonce: Nonce,
    results: &RedisResults,
) -> Result<Reported, RedisError> {
    let picture = [Bytes::from_static(b"picture")];
    let writes = results
        .put(grant.id, nonce, &picture)
        .await
        .expect("nothing is written yet");
    let list = b"list".to_vec();
    let result = StageResult::Pictures { list, writes };
    let completed = queue.complete(grant.id, nonce, SUPERRES, &result, 1, b"");
    Ok(completed.await?.outcome)
}

async fn stored(grant: &Grant, results: &RedisResults) -> Option<Bytes> {
    results
        .get(grant.id, grant.nonce, 0)
        .await
        .expect("Redis answers")
}

#[tokio::test]
async fn they_come_with_the_completion_and_it_can_be_repeated() {
    let server = RedisServer::start().await;
    let (queue, grant, results) = scene(&server).await;
    let outcome = finish(&queue, &grant, grant.nonce, &results).await.unwrap();
    assert_eq!(outcome, Reported::Accepted);
    assert_eq!(state(&queue, grant.id).await, JobState::Succeeded);
    assert_eq!(stored(&grant, &results).await.as_deref(), Some(&b"picture"[..]));
    let key = format!("muse:{{s0}}:img:{}:{}", grant.id, grant.nonce);
    let left: i64 = server.ask(&["PTTL", &key]).await;
    assert!((1..=60_000).contains(&left), "{left} ms to live");
    let outcome = finish(&queue, &grant, grant.nonce, &results).await.unwrap();
    assert_eq!(outcome, Reported::Duplicate);
}

#[tokio::test]
async fn a_script_that_was_forgotten_is_loaded_again() {
    let server = RedisServer::start().await;
    let (queue, grant, results) = scene(&server).await;
    server.ask::<String>(&["SCRIPT", "FLUSH"]).await;
    let outcome = finish(&queue, &grant, grant.nonce, &results).await.unwrap();
    assert_eq!(outcome, Reported::Accepted);
    assert_eq!(stored(&grant, &results).await.as_deref(), Some(&b"picture"[..]));
}

#[tokio::test]
async fn without_memory_neither_is_written_and_later_both_are() {
    let server = RedisServer::start().await;
    let (queue, grant, results) = scene(&server).await;
    server.ask::<String>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let refused = finish(&queue, &grant, grant.nonce, &results).await;
    assert!(matches!(refused, Err(RedisError::OutOfMemory)), "{refused:?}");
    assert_eq!(state(&queue, grant.id).await, JobState::Running);
    assert_eq!(stored(&grant, &results).await, None);
    server.ask::<String>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let outcome = finish(&queue, &grant, grant.nonce, &results).await.unwrap();
    assert_eq!(outcome, Reported::Accepted);
    assert_eq!(stored(&grant, &results).await.as_deref(), Some(&b"picture"[..]));
}

#[tokio::test]
async fn what_comes_too_late_is_not_the_job_s() {
    let server = RedisServer::start().await;
    let (queue, grant, results) = scene(&server).await;
    let stale = finish(&queue, &grant, Nonce::random(), &results).await.unwrap();
    assert_eq!(stale, Reported::Stale);
    assert_eq!(state(&queue, grant.id).await, JobState::Running);
    assert_eq!(
        stored(&grant, &results).await,
        None,
        "not under the lease's nonce"
    );
}

#[tokio::test]
async fn several_that_end_together_are_stored_together() {
    let server = RedisServer::start().await;
    let (queue, first, results) = scene(&server).await;
    let mut grants = vec![first];
    for _ in 0..20 {
        submit(&queue, job()).await;
        let base = claim_one(&queue).await;
        complete_base(&queue, &base).await;
        grants.extend(claim(&queue, SUPERRES, 1).await);
    }
    let all = grants
        .iter()
        .map(|grant| finish(&queue, grant, grant.nonce, &results));
    for outcome in futures::future::join_all(all).await {
        assert_eq!(outcome.unwrap(), Reported::Accepted);
    }
    for grant in &grants {
        assert_eq!(state(&queue, grant.id).await, JobState::Succeeded);
        assert_eq!(stored(grant, &results).await.as_deref(), Some(&b"picture"[..]));
    }
}
