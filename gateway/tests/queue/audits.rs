//! The audit finds what is wrong, mends it, and is not fooled by a queue that moves.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use muse_gateway::queue::{AuditError, Fault, NewJob};
use muse_service::Tenant;
use tokio::sync::mpsc;

use crate::{
    harness::{BASE, ERROR, claim, complete_base, job, queue, submit},
    recount::{audit, findings},
    support::redis_server::RedisServer,
};

#[tokio::test]
async fn a_healthy_queue_has_no_faults() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    assert_eq!(findings(&queue, true).await, [], "an empty one too");
    for _ in 0..250 {
        submit(&queue, job()).await;
    }
    for (n, grant) in claim(&queue, BASE, 30).await.into_iter().enumerate() {
        match n % 3 {
            0 => drop(complete_base(&queue, &grant).await),
            1 => drop(
                queue
                    .fail(grant.id, grant.nonce, ERROR, n % 2 == 0)
                    .await
                    .unwrap(),
            ),
            _ => {}
        }
    }
    assert_eq!(findings(&queue, false).await, []);
}

#[tokio::test]
async fn every_kind_of_damage_is_found_and_mended() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(submit(&queue, job()).await.to_string());
    }
    let running = claim(&queue, BASE, 1).await.pop().unwrap().id.to_string();
    let key = |name: &str| format!("muse:{{s0}}:{name}");
    let queued = &ids[1..];
    // A job in no queue, one in two places, one without its deadline and out of its tenant's list.
    server
        .ask::<u64>(&["ZREM", &key("q:tiny:base:default"), &queued[0]])
        .await;
    server.ask::<u64>(&["ZADD", &key("lease"), "1", &queued[1]]).await;
    server.ask::<u64>(&["ZREM", &key("deadline"), &queued[2]]).await;
    server
        .ask::<u64>(&["ZREM", &key("jobs:default"), &queued[2]])
        .await;
    // A running job that no lease would ever give up.
    server.ask::<u64>(&["ZREM", &key("lease"), &running]).await;
    // Entries and keys of no job, half a record, a counter that is off, one of nothing.
    server.ask::<u64>(&["ZADD", &key("delay"), "1", "ghost"]).await;
    server
        .ask::<u64>(&["ZADD", &key("q:tiny:base:nobody"), "1", "ghost"])
        .await;
    server
        .ask::<String>(&["SET", &key("idem:default:abc"), "ghost hash"])
        .await;
    server.ask::<u64>(&["RPUSH", &key("hist:ghost"), "x"]).await;
    server.ask::<u64>(&["HSET", &key("j:half"), "step", "1"]).await;
    server
        .ask::<i64>(&["HINCRBY", &key("cnt"), "queued:tiny:base:default", "5"])
        .await;
    server
        .ask::<u64>(&["HSET", &key("use:nobody"), "running", "7"])
        .await;

    let found = findings(&queue, false).await;
    let of = |fault: Fault| found.iter().filter(|finding| finding.fault == fault).count();
    assert_eq!(
        (of(Fault::Misplaced), of(Fault::Broken), of(Fault::Counter)),
        (4, 1, 2),
        "{found:#?}"
    );
    // Two of them are the ghost's, one each the key's and the history's; those of the misplaced job are its entry in the
    // leases, and what else is told twice.
    assert!(of(Fault::Orphan) >= 4, "{found:#?}");
    assert_eq!(
        findings(&queue, false).await.len(),
        found.len(),
        "a report changes nothing"
    );
    findings(&queue, true).await;
    assert_eq!(findings(&queue, true).await, [], "once is enough");
    audit(&server).await;
    assert_eq!(claim(&queue, BASE, 9).await.len(), 3);
}

#[tokio::test]
async fn a_queue_that_moves_all_the_time_is_counted_exactly() {
    let server = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let queue = queue(&server).await;
    for _ in 0..300 {
        submit(&queue, job()).await;
    }
    server
        .ask::<i64>(&["HINCRBY", "muse:{s0}:cnt", "queued:tiny:base:default", "3"])
        .await;
    let stop = Arc::new(AtomicBool::new(false));
    let (mover, stopped) = (queue.clone(), Arc::clone(&stop));
    let moving = tokio::spawn(async move {
        let mut moves = 0;
        while !stopped.load(Ordering::Relaxed) {
            let tenant = Tenant::new(["a", "b"][moves % 2]).unwrap();
            submit(&mover, NewJob { tenant, ..job() }).await;
            for grant in claim(&mover, BASE, 2).await {
                complete_base(&mover, &grant).await;
            }
            moves += 1;
        }
        moves
    });
    let mut found = findings(&queue, true).await;
    for _ in 0..3 {
        found.extend(findings(&queue, true).await);
    }
    stop.store(true, Ordering::Relaxed);
    let moves = moving.await.unwrap();
    assert!(moves > 0);
    assert_eq!(
        found.len(),
        1,
        "only the real drift, though {moves} jobs moved meanwhile: {found:?}"
    );
    assert_eq!(found[0].fault, Fault::Counter, "{found:?}");
    audit(&server).await;
}

#[tokio::test]
async fn of_two_audits_at_once_the_later_one_goes_on() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    submit(&queue, job()).await;
    let (events, mut told) = mpsc::channel(1);
    let first = queue.clone();
    let first = tokio::spawn(async move { first.audit(false, &events).await });
    // The first is held up by its listener while the second runs.
    told.recv().await.expect("progress");
    assert_eq!(findings(&queue, false).await, []);
    while told.recv().await.is_some() {}
    let ended = first.await.unwrap();
    assert!(matches!(ended, Ok(_) | Err(AuditError::Superseded)), "{ended:?}");
}
