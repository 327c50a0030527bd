//! Tenants: shares, caps and limits of their own; pauses.

use std::time::Duration;

use muse_gateway::{
    config,
    queue::{NewJob, Queue, Refusal, Reported, Submission, Target},
};
use muse_service::Tenant;

use crate::{
    harness::{BASE, beat, claim, complete_base, job, queue, queue_with, submit},
    recount::audit,
    support::redis_server::RedisServer,
};

fn tenant(name: &str) -> Tenant {
    Tenant::new(name).unwrap()
}

fn job_of(name: &str) -> NewJob {
    NewJob {
        tenant: tenant(name),
        ..job()
    }
}

fn pool() -> Target {
    Target::Pool {
        model: "tiny".to_owned(),
        stage: "base".to_owned(),
    }
}

async fn set(queue: &Queue, name: &str, settings: &[(&'static str, Option<f64>)]) {
    queue.set_tenant(&tenant(name), settings).await.unwrap();
}

async fn quota(queue: &Queue, job: NewJob) -> Refusal {
    match queue.submit(&job).await.unwrap() {
        Submission::Quota(refusal) => refusal,
        other => panic!("no quota but {other:?}"),
    }
}

#[tokio::test]
async fn tenants_share_by_weight_and_get_no_credit_for_being_away() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    set(&queue, "three", &[("weight", Some(3.0))]).await;
    // `one` has had the queue to itself for a while.
    for _ in 0..20 {
        submit(&queue, job_of("one")).await;
    }
    assert_eq!(claim(&queue, BASE, 20).await.len(), 20);
    for _ in 0..40 {
        submit(&queue, job_of("one")).await;
        submit(&queue, job_of("three")).await;
    }
    let grants = claim(&queue, BASE, 40).await;
    let threes = grants.iter().filter(|grant| grant.tenant == "three").count();
    assert!((29..=31).contains(&threes), "{threes} of 40 where 30 are fair");
}

#[tokio::test]
async fn a_tenant_at_its_cap_is_passed_over_until_one_of_its_jobs_ends() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    set(&queue, "capped", &[("max_running", Some(2.0))]).await;
    for _ in 0..4 {
        submit(&queue, job_of("capped")).await;
    }
    submit(&queue, job_of("free")).await;
    let grants = claim(&queue, BASE, 9).await;
    let of = |name: &str| grants.iter().filter(|grant| grant.tenant == name).count();
    assert_eq!((of("capped"), of("free")), (2, 1), "{grants:?}");
    assert!(claim(&queue, BASE, 9).await.is_empty());
    audit(&server).await;

    let running = grants.iter().find(|grant| grant.tenant == "capped").unwrap();
    assert_eq!(complete_base(&queue, running).await, Reported::Accepted);
    let next = claim(&queue, BASE, 9).await;
    assert_eq!(next.len(), 1, "one ended, one more may run: {next:?}");

    set(&queue, "capped", &[("max_running", None)]).await;
    assert_eq!(claim(&queue, BASE, 9).await.len(), 1, "the rest, without a cap");
    audit(&server).await;
}

#[tokio::test]
async fn a_hundred_capped_tenants_in_front_starve_nobody() {
    let server = RedisServer::start().await;
    let config = config::Queue {
        tenant: config::Tenant {
            max_running: 1,
            ..config::Tenant::default()
        },
        ..config::Queue::default()
    };
    let queue = queue_with(&server, config).await;
    for n in 0..150 {
        for _ in 0..2 {
            submit(&queue, job_of(&format!("t{n}"))).await;
        }
    }
    let mut taken = Vec::new();
    for _ in 0..4 {
        taken.extend(claim(&queue, BASE, 100).await);
    }
    assert_eq!(taken.len(), 150, "each tenant has one running");
    submit(&queue, job_of("late")).await;
    assert_eq!(claim(&queue, BASE, 1).await.len(), 1);
    audit(&server).await;
}

#[tokio::test]
async fn a_tenants_own_limits_refuse_with_what_was_reached() {
    let server = RedisServer::start().await;
    let config = config::Queue {
        tenant: config::Tenant {
            max_queued: 2,
            ..config::Tenant::default()
        },
        ..config::Queue::default()
    };
    let queue = queue_with(&server, config).await;
    let first = job_of("a");
    submit(&queue, first.clone()).await;
    submit(&queue, job_of("a")).await;
    let refusal = quota(&queue, job_of("a")).await;
    assert_eq!(
        (refusal.limit.as_str(), refusal.value.as_str()),
        ("max_queued", "2")
    );
    submit(&queue, first).await;
    submit(&queue, job_of("b")).await;

    // Its own setting goes before the default, and 0 is no limit.
    set(
        &queue,
        "a",
        &[("max_queued", Some(0.0)), ("max_bytes", Some(1.0))],
    )
    .await;
    assert_eq!(quota(&queue, job_of("a")).await.limit, "max_bytes");
    set(&queue, "a", &[("max_bytes", None)]).await;
    submit(&queue, job_of("a")).await;
}

#[tokio::test]
async fn submissions_are_spaced_by_the_rate_and_a_repeated_one_costs_nothing() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    set(&queue, "a", &[("rate", Some(0.001)), ("burst", Some(2.0))]).await;
    let first = job_of("a");
    submit(&queue, first.clone()).await;
    submit(&queue, job_of("a")).await;
    let refusal = quota(&queue, job_of("a")).await;
    assert_eq!(refusal.limit, "rate");
    let wait = refusal.wait_ms.unwrap();
    assert!(
        (900_000..=1_000_000).contains(&wait),
        "{wait} ms for one in 1,000 s"
    );
    submit(&queue, first).await;
    submit(&queue, job_of("b")).await;
    // As if its last submission lay in a future that a clock was set back from.
    server
        .ask::<String>(&["SET", "muse:{s0}:rate:a", "99999999999999"])
        .await;
    let wait = quota(&queue, job_of("a")).await.wait_ms.unwrap();
    assert!(wait <= 1_000_000, "{wait} ms");
    set(&queue, "a", &[("rate", Some(0.0))]).await;
    submit(&queue, job_of("a")).await;
}

#[tokio::test]
async fn limits_of_the_whole_queue_refuse_everybody() {
    let server = RedisServer::start().await;
    let limited = |change: fn(&mut config::Queue)| {
        let mut config = config::Queue::default();
        change(&mut config);
        config
    };
    let full = async |queue: &Queue, limit: &str| match queue.submit(&job_of("z")).await.unwrap() {
        Submission::Full(refusal) => {
            assert_eq!(refusal.limit, limit, "{refusal:?}");
            refusal
        }
        other => panic!("not full but {other:?}"),
    };
    submit(&queue(&server).await, job_of("a")).await;
    full(
        &queue_with(&server, limited(|config| config.max_waiting = 1)).await,
        "jobs",
    )
    .await;
    full(
        &queue_with(&server, limited(|config| config.max_bytes = 10)).await,
        "bytes",
    )
    .await;
    let slow = queue_with(
        &server,
        limited(|config| (config.rate, config.burst) = (0.001, 1)),
    )
    .await;
    submit(&slow, job_of("b")).await;
    assert!(full(&slow, "rate").await.wait_ms.is_some());
}

#[tokio::test]
async fn a_paused_stage_gives_nothing_takes_submissions_and_goes_on_when_resumed() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    submit(&queue, job_of("a")).await;
    let grant = claim(&queue, BASE, 1).await.pop().unwrap();
    assert_eq!(queue.pause(&pool(), "a bad bundle").await.unwrap(), None);
    let first = queue.pause(&pool(), "again").await.unwrap().unwrap();
    assert_eq!(first.reason, "a bad bundle", "the first pause stands");
    assert_eq!(queue.paused().await.unwrap().pools.len(), 1);
    submit(&queue, job_of("a")).await;
    assert!(claim(&queue, BASE, 9).await.is_empty());
    // What runs goes on.
    queue.beat("worker", &[beat(&grant, 1)]).await.unwrap();
    assert_eq!(complete_base(&queue, &grant).await, Reported::Accepted);
    assert!(queue.resume(&pool()).await.unwrap().is_some());
    assert_eq!(queue.resume(&pool()).await.unwrap(), None);
    assert_eq!(claim(&queue, BASE, 9).await.len(), 1);
}

#[tokio::test]
async fn a_paused_tenant_waits_while_the_others_go_on() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    let target = Target::Tenant(tenant("a"));
    for name in ["a", "b"] {
        submit(&queue, job_of(name)).await;
    }
    queue.pause(&target, "too loud").await.unwrap();
    let taken = claim(&queue, BASE, 9).await;
    assert_eq!(
        taken
            .iter()
            .map(|grant| grant.tenant.as_str())
            .collect::<Vec<_>>(),
        ["b"]
    );
    submit(&queue, job_of("a")).await;
    assert!(claim(&queue, BASE, 9).await.is_empty());
    let status = queue.tenant(&tenant("a")).await.unwrap();
    assert_eq!(
        (status.queued, status.paused.unwrap().reason.as_str()),
        (2, "too loud")
    );
    audit(&server).await;
    queue.resume(&target).await.unwrap();
    assert_eq!(claim(&queue, BASE, 9).await.len(), 2);
    audit(&server).await;
}

#[tokio::test]
async fn tenants_are_listed_by_name_while_they_have_settings_or_jobs() {
    let server = RedisServer::start().await;
    let config = config::Queue {
        keep_done_seconds: 0,
        ..config::Queue::default()
    };
    let queue = queue_with(&server, config).await;
    let names = async |after: &str, limit| {
        let found = queue.tenants(after, limit).await.unwrap();
        found.into_iter().map(|status| status.name).collect::<Vec<_>>()
    };
    set(&queue, "c", &[("weight", Some(2.0))]).await;
    let id = submit(&queue, job_of("b")).await;
    submit(&queue, job_of("a")).await;
    assert_eq!(names("", 2).await, ["a", "b"]);
    assert_eq!(names("b", 2).await, ["c"]);
    queue.cancel(id, "b").await.unwrap();
    // Its end is in the past as soon as the clock has ticked.
    tokio::time::sleep(Duration::from_millis(2)).await;
    queue.purge(0).await.unwrap();
    set(&queue, "c", &[("weight", None)]).await;
    assert_eq!(names("", 9).await, ["a"]);
}
