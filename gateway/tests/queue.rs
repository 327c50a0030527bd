//! Every script against a real Redis, without a gateway around it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use muse_gateway::{
    config::{self, Durability},
    connection::{Redis, RedisError, StartupError, Unfit},
    jobs::{JobId, Nonce},
    queue::{
        Beat, Beaten, Cancellation, Grant, Idempotency, NewJob, Queue, Reported, StageResult, Submission,
    },
};
use muse_proto::v1::{GenerationRequest, JobErrorReason, JobState, Stage};
use muse_service::Tenant;
use prost::Message as _;
use support::redis_server::RedisServer;

const BASE: (&str, &str) = ("tiny", "base");
const SUPERRES: (&str, &str) = ("tiny", "superres");
const ERROR: (JobErrorReason, &str) = (JobErrorReason::ModelFailed, "it was too red");

async fn connect(server: &RedisServer, durability: Durability) -> Result<Redis, StartupError> {
    let config = config::Redis {
        url: server.url(),
        retry_ms: 5_000,
        ..config::Redis::default()
    };
    Redis::connect(&config, durability).await
}

async fn queue_with(server: &RedisServer, config: config::Queue) -> Queue {
    Queue::new(connect(server, Durability::Always).await.unwrap(), "muse", config)
}

async fn queue(server: &RedisServer) -> Queue {
    queue_with(server, config::Queue::default()).await
}

fn job() -> NewJob {
    NewJob {
        id: JobId::new(0),
        tenant: Tenant::default(),
        model: "tiny".to_owned(),
        stages: vec![Stage::Base, Stage::Superres],
        rows: 1,
        boost_ms: 0,
        timeout_ms: 600_000,
        request: GenerationRequest::default().encode_to_vec(),
        traceparent: "00-trace".to_owned(),
        idempotency: None,
    }
}

async fn submit(queue: &Queue, job: NewJob) -> JobId {
    assert_eq!(queue.submit(&job).await.unwrap(), Submission::Created(job.id));
    job.id
}

async fn claim(queue: &Queue, pool: (&str, &str), rows: u32) -> Vec<Grant> {
    let nonces: Vec<Nonce> = (0..rows.clamp(1, 100)).map(|_| Nonce::random()).collect();
    queue.claim(0, pool, "worker", rows, &nonces).await.unwrap()
}

async fn claim_one(queue: &Queue) -> Grant {
    claim(queue, BASE, 1).await.pop().expect("a job waits")
}

fn beat(grant: &Grant, step: u32) -> Beat {
    Beat {
        id: grant.id,
        nonce: grant.nonce,
        step,
        of: 3,
        checkpoint: bytes::Bytes::from_static(b"checkpoint"),
    }
}

async fn state(queue: &Queue, id: JobId) -> JobState {
    queue
        .get(id)
        .await
        .unwrap()
        .expect("the job is there")
        .job
        .state()
}

async fn complete_base(queue: &Queue, grant: &Grant) -> Reported {
    let tokens = StageResult::Tokens(b"tokens".to_vec());
    queue
        .complete(grant.id, grant.nonce, "base", &tokens, 1, b"")
        .await
        .unwrap()
        .outcome
}

/// A lease that is out as soon as the clock ticks.
fn short_lease() -> config::Queue {
    config::Queue {
        lease_ms: 0,
        ..config::Queue::default()
    }
}

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
async fn tenants_share_by_weight_and_get_no_credit_for_being_away() {
    let server = RedisServer::start().await;
    let queue = queue(&server).await;
    let (one, three) = (Tenant::new("one").unwrap(), Tenant::new("three").unwrap());
    server
        .ask::<u64>(&["HSET", "muse:{s0}:weight", "three", "3"])
        .await;
    // `one` has had the queue to itself for a while.
    for _ in 0..20 {
        submit(
            &queue,
            NewJob {
                tenant: one.clone(),
                ..job()
            },
        )
        .await;
    }
    assert_eq!(claim(&queue, BASE, 20).await.len(), 20);
    for _ in 0..40 {
        submit(
            &queue,
            NewJob {
                tenant: one.clone(),
                ..job()
            },
        )
        .await;
        submit(
            &queue,
            NewJob {
                tenant: three.clone(),
                ..job()
            },
        )
        .await;
    }
    let grants = claim(&queue, BASE, 40).await;
    let threes = grants.iter().filter(|grant| grant.tenant == "three").count();
    assert!((29..=31).contains(&threes), "{threes} of 40 where 30 are fair");
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
        .complete(
            id,
            grant.nonce,
            "superres",
            &StageResult::Pictures(vec![]),
            1,
            b"",
        )
        .await
        .unwrap();
    assert_eq!(wrong_stage.outcome, Reported::Stale);
    let pictures_early = queue
        .complete(id, grant.nonce, "base", &StageResult::Pictures(vec![]), 1, b"")
        .await
        .unwrap();
    assert_eq!(pictures_early.outcome, Reported::Refused);
    let rows_wrong = queue
        .complete(id, grant.nonce, "base", &StageResult::Tokens(vec![]), 2, b"")
        .await
        .unwrap();
    assert_eq!(rows_wrong.outcome, Reported::Refused);
}

#[tokio::test]
async fn a_lease_that_runs_out_counts_a_crash_and_the_third_is_poison() {
    let server = RedisServer::start().await;
    let queue = queue_with(&server, short_lease()).await;
    let id = submit(&queue, job()).await;
    for crashes in 1..=3 {
        let grant = claim_one(&queue).await;
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
    assert_eq!(queue.submit(&job()).await.unwrap(), Submission::Full);
    submit(&queue, first).await;
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

/// Random operations, replayable by their seed; afterwards every job must be in exactly one place and counted there.
#[tokio::test]
async fn whatever_happens_every_job_is_in_one_place_and_the_counters_agree() {
    let server = RedisServer::start_with(&["--appendonly", "no"]).await;
    let redis = connect(&server, Durability::None).await.unwrap();
    let config = config::Queue {
        lease_ms: 0,
        backoff_base_ms: 0,
        ..config::Queue::default()
    };
    let queue = Queue::new(redis, "muse", config);
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = seed | 1;
    let mut dice = |sides: usize| {
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % sides as u64) as usize
    };
    let tenants = ["a", "b", "c"].map(|name| Tenant::new(name).unwrap());
    let mut jobs: Vec<(JobId, usize)> = Vec::new();
    let mut grants: Vec<(Grant, &str)> = Vec::new();
    for _ in 0..1500 {
        let old =
            |grants: &Vec<(Grant, &'static str)>, n: usize| grants.get(n % grants.len().max(1)).cloned();
        match dice(10) {
            0..=2 => {
                let tenant = dice(3);
                let timeout_ms = if dice(20) == 0 { 0 } else { 600_000 };
                let new = NewJob {
                    tenant: tenants[tenant].clone(),
                    timeout_ms,
                    ..job()
                };
                jobs.push((submit(&queue, new).await, tenant));
            }
            3..=4 => {
                let pool = if dice(2) == 0 { BASE } else { SUPERRES };
                grants.extend(
                    claim(&queue, pool, 1 + dice(3) as u32)
                        .await
                        .into_iter()
                        .map(|grant| (grant, pool.1)),
                );
            }
            5..=6 => {
                if let Some((grant, stage)) = old(&grants, dice(1000)) {
                    let result = match stage {
                        "base" => StageResult::Tokens(b"t".to_vec()),
                        _ => StageResult::Pictures(b"".to_vec()),
                    };
                    queue
                        .complete(grant.id, grant.nonce, stage, &result, 1, b"")
                        .await
                        .unwrap();
                }
            }
            7 => {
                if let Some((grant, _)) = old(&grants, dice(1000)) {
                    match dice(3) {
                        0 => drop(
                            queue
                                .fail(grant.id, grant.nonce, ERROR, dice(4) != 0)
                                .await
                                .unwrap(),
                        ),
                        1 => drop(queue.release(grant.id, grant.nonce, b"").await.unwrap()),
                        _ => drop(
                            queue
                                .beat("worker", &[beat(&grant, dice(4) as u32)])
                                .await
                                .unwrap(),
                        ),
                    }
                }
            }
            8 => drop(queue.reap(0).await.unwrap()),
            _ => {
                if let Some((id, tenant)) = jobs.get(dice(1000) % jobs.len().max(1)) {
                    queue.cancel(*id, tenants[*tenant].as_str()).await.unwrap();
                }
            }
        }
    }
    let states = audit(&server).await;
    assert_eq!(
        states.values().sum::<usize>(),
        jobs.len(),
        "seed {seed}: {states:?}"
    );
    assert!(
        states.len() >= 3,
        "seed {seed} reached too few states: {states:?}"
    );
}

/// Recounts everything from the jobs themselves and compares with sets and counters. Gives the jobs by state.
async fn audit(server: &RedisServer) -> BTreeMap<String, usize> {
    let keys: Vec<String> = server.ask(&["KEYS", "muse:{s0}:*"]).await;
    let mut expected: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut counters: BTreeMap<String, i64> = BTreeMap::new();
    let mut states = BTreeMap::new();
    for key in keys.iter().filter(|key| key.starts_with("muse:{s0}:j:")) {
        let id = key.trim_start_matches("muse:{s0}:j:").to_owned();
        let job: BTreeMap<String, Vec<u8>> = server.ask(&["HGETALL", key]).await;
        let field = |name: &str| {
            job.get(name)
                .map(|value| String::from_utf8_lossy(value).into_owned())
                .unwrap_or_default()
        };
        let state = field("state");
        let pool = format!("{}:{}", field("model"), field("stage"));
        let mut put = |set: String| expected.entry(set).or_default().insert(id.clone());
        match state.as_str() {
            "queued" => {
                put(format!("q:{pool}:{}", field("tenant")));
                put(format!("wait:{pool}"));
            }
            "running" => drop(put("lease".to_owned())),
            "delayed" => drop(put("delay".to_owned())),
            "failed" => drop(put("dead".to_owned())),
            _ => drop(put("done".to_owned())),
        }
        put(format!("jobs:{}", field("tenant")));
        if ["queued", "running", "delayed"].contains(&state.as_str()) {
            put("deadline".to_owned());
            *counters
                .entry(format!("{state}:{pool}:{}", field("tenant")))
                .or_default() += 1;
        }
        if state == "queued" {
            expected
                .entry(format!("act:{pool}"))
                .or_default()
                .insert(field("tenant"));
        }
        assert_eq!(job.contains_key("nonce"), state == "running", "{id} is {state}");
        *states.entry(state).or_default() += 1;
    }
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for key in &keys {
        let name = key.trim_start_matches("muse:{s0}:");
        let set = ["q:", "wait:", "act:", "jobs:"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
            || ["lease", "delay", "deadline", "done", "dead"].contains(&name);
        if set {
            found.insert(name.to_owned(), server.ask(&["ZRANGE", key, "0", "-1"]).await);
        }
    }
    assert_eq!(found, expected);
    let counted: BTreeMap<String, i64> = server.ask(&["HGETALL", "muse:{s0}:cnt"]).await;
    assert_eq!(counted, counters);
    states
}
