//! What watchers are told by doorbells alone: nothing here reads by its own clock within a test's time, and the queue does
//! not tell ahead.

use std::time::Duration;

use futures::{Stream, StreamExt as _};
use muse_gateway::{
    Error, config,
    connection::Bells,
    jobs::{JobId, Record},
    queue::{Cancellation, NewJob, Queue, Reported, StageResult},
    watch::{Ends, News, Watcher},
};
use muse_proto::v1::{Job, JobState};
use muse_service::{Shutdown, Tenant};

use crate::{
    harness::{BASE, ERROR, SUPERRES, beat, claim, claim_one, complete_base, hear, job, queue, submit},
    support::{redis_server::RedisServer, soon, until},
};

/// Longer than any test.
const NEVER_MS: u64 = 600_000;

type Told = Result<(News, Option<Record>), Error>;

/// With bells that have their connection: everything rings once when they get it.
async fn watcher(server: &RedisServer, queue: &Queue, settle_ms: u64) -> Watcher {
    let bells = Bells::listen(queue.redis(), queue.keys().channels());
    hear(server, &bells, "muse:{s0}:").await;
    let config = config::Watch {
        reread_ms: NEVER_MS,
        settle_ms,
        ..config::Watch::default()
    };
    let (_, shutdown) = Shutdown::manual_with_drain(Duration::ZERO);
    Watcher::new(queue.clone(), bells, config, shutdown)
}

async fn next_job(news: &mut (impl Stream<Item = Told> + Unpin)) -> Job {
    match soon("news", news.next()).await {
        Some(Ok((News::Job(job), _))) => *job,
        other => panic!("no job but {other:?}"),
    }
}

async fn finish(queue: &Queue, id: JobId) {
    let grant = claim_one(queue).await;
    assert_eq!(grant.id, id);
    queue.beat("worker", &[beat(&grant, 1)]).await.unwrap();
    assert_eq!(complete_base(queue, &grant).await, Reported::Accepted);
    let grant = claim(queue, SUPERRES, 1).await.remove(0);
    let pictures = StageResult::pictures(b"pictures".to_vec());
    let completed = queue
        .complete(grant.id, grant.nonce, SUPERRES, &pictures, 1, b"")
        .await
        .unwrap();
    assert!(completed.job_ended);
}

#[tokio::test]
async fn changes_that_are_still_settling_are_one_and_the_end_is_told_at_once() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    let watcher = watcher(&server, &queue, NEVER_MS).await;
    let id = submit(&queue, job()).await;
    let mut news = Box::pin(watcher.watch(id, 0));
    assert_eq!(next_job(&mut news).await.state(), JobState::Queued);
    finish(&queue, id).await;
    assert_eq!(next_job(&mut news).await.state(), JobState::Succeeded);
    assert!(soon("the end of the news", news.next()).await.is_none());
}

#[tokio::test]
async fn changes_that_have_settled_are_told() {
    for settle_ms in [0, 5] {
        let server = RedisServer::start().await;
        let queue = queue(&server).await;
        let watcher = watcher(&server, &queue, settle_ms).await;
        let id = submit(&queue, job()).await;
        let mut news = Box::pin(watcher.watch(id, 0));
        assert_eq!(next_job(&mut news).await.state(), JobState::Queued);
        let grant = claim(&queue, BASE, 1).await.remove(0);
        assert_eq!(next_job(&mut news).await.state(), JobState::Running);
        queue.beat("worker", &[beat(&grant, 2)]).await.unwrap();
        match soon("news", news.next()).await {
            Some(Ok((News::Progress(progress), _))) => assert_eq!((progress.step, progress.of), (2, 3)),
            other => panic!("no progress but {other:?}"),
        }
    }
}

async fn next_end(ends: &mut Ends, id: JobId) -> JobState {
    let (ended, record) = soon("the end", ends.next()).await.expect("the watching goes on");
    assert_eq!(ended, id);
    record.unwrap().job.state()
}

#[tokio::test]
async fn every_kind_of_end_is_told_to_who_waits_for_many() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    let mut ends = watcher(&server, &queue, NEVER_MS).await.ends(10);

    let id = submit(&queue, job()).await;
    ends.add(id);
    finish(&queue, id).await;
    assert_eq!(next_end(&mut ends, id).await, JobState::Succeeded);

    let id = submit(&queue, job()).await;
    ends.add(id);
    let tenant = Tenant::default();
    assert_eq!(
        queue.cancel(id, tenant.as_str()).await.unwrap(),
        Cancellation::Cancelled
    );
    assert_eq!(next_end(&mut ends, id).await, JobState::Cancelled);

    let id = submit(&queue, job()).await;
    ends.add(id);
    let grant = claim_one(&queue).await;
    queue.fail(id, grant.nonce, ERROR, false).await.unwrap();
    assert_eq!(next_end(&mut ends, id).await, JobState::Failed);

    let id = submit(
        &queue,
        NewJob {
            timeout_ms: 0,
            ..job()
        },
    )
    .await;
    ends.add(id);
    until("the deadline", async || {
        let reaped = queue.reap(0).await.unwrap();
        (reaped.overdue > 0).then_some(())
    })
    .await;
    assert_eq!(next_end(&mut ends, id).await, JobState::Failed);
}
