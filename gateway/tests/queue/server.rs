//! Redis goes, comes back, and is not always fit.

use std::collections::BTreeSet;

use muse_gateway::{
    config::{self, Durability},
    connection::{Redis, RedisError, StartupError, Unfit},
    queue::{Queue, Reported},
};

use crate::{
    harness::{BASE, claim, claim_one, complete_base, connect, job, queue, submit},
    support::{self, redis_server::RedisServer},
};

#[tokio::test]
async fn what_was_accepted_survives_kill_9_of_redis_and_calls_wait_for_its_return() {
    let mut server = RedisServer::start().await;
    let queue = queue(&server).await;
    let mut accepted = BTreeSet::new();
    for _ in 0..50 {
        accepted.insert(submit(&queue, job()).await);
    }
    server.kill();
    let (restarted, claimed) = tokio::join!(server.restart(), claim(&queue, BASE, 50));
    let () = restarted;
    assert_eq!(
        claimed.iter().map(|grant| grant.id).collect::<BTreeSet<_>>(),
        accepted
    );
}

#[tokio::test]
async fn without_redis_calls_fail_as_unavailable_in_bounded_time() {
    let mut server = RedisServer::start().await;
    let config = config::Redis {
        url: server.url(),
        retry_ms: 100,
        ..config::Redis::default()
    };
    let redis = Redis::connect(&config, Durability::Always).await.unwrap();
    let queue = Queue::new(redis, "muse", config::Queue::default());
    server.kill();
    let refused = support::soon("an answer", queue.submit(&job())).await;
    assert!(matches!(refused, Err(RedisError::Unavailable(_))), "{refused:?}");
}

#[tokio::test]
async fn a_server_that_does_not_keep_what_is_promised_is_refused() {
    let everysec = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "everysec"]).await;
    let refused = connect(&everysec, Durability::Always).await.err().unwrap();
    assert!(
        matches!(refused, StartupError::Unfit(Unfit::Durability { .. })),
        "{refused}"
    );
    assert!(connect(&everysec, Durability::Everysec).await.is_ok());
    let evicting = RedisServer::start_with(&["--maxmemory-policy", "allkeys-lru"]).await;
    let refused = connect(&evicting, Durability::None).await.err().unwrap();
    assert!(refused.to_string().contains("noeviction"), "{refused}");
}

#[tokio::test]
async fn when_memory_is_full_new_work_is_refused_and_running_work_completes() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    submit(&queue, job()).await;
    let grant = claim_one(&queue).await;
    server.ask::<String>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let refused = queue.submit(&job()).await;
    assert!(matches!(refused, Err(RedisError::OutOfMemory)), "{refused:?}");
    support::until("the memory to be seen as full", async || {
        (queue.redis().memory_share() > 1.0).then_some(())
    })
    .await;
    assert_eq!(complete_base(&queue, &grant).await, Reported::Accepted);
}

#[tokio::test]
async fn a_transaction_for_which_memory_is_short_is_not_taken_for_wrong() {
    let server = RedisServer::start().await;
    let redis = connect(&server, Durability::Always).await.unwrap();
    server.ask::<String>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    // As pictures are stored: a report that is refused for good would be thrown away by its worker.
    let mut pictures = redis::pipe();
    pictures.atomic().cmd("HSET").arg("img").arg(0).arg("picture");
    pictures.cmd("PEXPIRE").arg("img").arg(1000);
    let refused = redis.pipe::<(u64, u64)>(&pictures).await;
    assert!(matches!(refused, Err(RedisError::OutOfMemory)), "{refused:?}");
    server.ask::<String>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    assert_eq!(redis.pipe::<(u64, u64)>(&pictures).await.unwrap(), (1, 1));
}
