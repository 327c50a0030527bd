//! Which job goes next, and when no more are taken.

use muse_gateway::{
    config,
    queue::{Grant, NewJob, Reported, Submission},
};

use crate::{
    harness::{BASE, claim, claim_one, job, queue, queue_with, submit},
    support::redis_server::RedisServer,
};

#[tokio::test]
async fn jobs_go_by_priority_and_then_by_age_and_a_returned_one_keeps_its_place() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    let low = submit(
        &queue,
        NewJob {
            boost_ms: -60_000,
            ..job()
        },
    )
    .await;
    let first = submit(&queue, job()).await;
    let high = submit(
        &queue,
        NewJob {
            boost_ms: 60_000,
            ..job()
        },
    )
    .await;
    tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    let second = submit(&queue, job()).await;
    let grant = claim_one(&queue).await;
    assert_eq!(grant.id, high);
    let grant = claim_one(&queue).await;
    assert_eq!(grant.id, first);
    assert_eq!(
        queue.release(grant.id, grant.nonce, b"mid-way").await.unwrap(),
        Reported::Accepted
    );
    assert_eq!(
        queue.release(grant.id, grant.nonce, b"mid-way").await.unwrap(),
        Reported::Duplicate
    );
    let rest: Vec<Grant> = claim(&queue, BASE, 3).await;
    assert_eq!(
        rest.iter().map(|grant| grant.id).collect::<Vec<_>>(),
        [first, second, low]
    );
    assert_eq!(rest[0].checkpoint, b"mid-way");
}

#[tokio::test]
async fn credit_is_in_rows_and_a_job_is_taken_whole() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    for rows in [3, 3, 3] {
        submit(&queue, NewJob { rows, ..job() }).await;
    }
    assert_eq!(claim(&queue, BASE, 4).await.len(), 2);
    assert_eq!(
        claim(&queue, BASE, 1).await.len(),
        1,
        "a job larger than the credit is not stuck"
    );
}

#[tokio::test]
async fn a_full_queue_takes_no_more_but_a_repeated_submission_still_counts() {
    let server = RedisServer::start().await;
    let queue = queue_with(
        &server,
        config::Queue {
            max_waiting: 1,
            ..config::Queue::default()
        },
    )
    .await;
    let first = job();
    submit(&queue, first.clone()).await;
    let refused = queue.submit(&job()).await.unwrap();
    assert!(matches!(refused, Submission::Full(_)), "{refused:?}");
    submit(&queue, first).await;
}
