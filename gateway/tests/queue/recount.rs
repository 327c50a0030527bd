//! Every job is in exactly one place, and counted there.

use std::collections::{BTreeMap, BTreeSet};

use muse_gateway::{
    config::{self, Durability},
    jobs::JobId,
    queue::{AuditEvent, Finding, Grant, NewJob, Queue, StageResult, Target},
};
use muse_service::Tenant;
use tokio::sync::mpsc;

use crate::{
    harness::{BASE, ERROR, SUPERRES, beat, claim, connect, job, submit},
    support::redis_server::RedisServer,
};

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
    let mut grants: Vec<(Grant, (&str, &str))> = Vec::new();
    for _ in 0..1500 {
        let old = |grants: &Vec<(Grant, (&'static str, &'static str))>, n: usize| {
            grants.get(n % grants.len().max(1)).cloned()
        };
        match dice(13) {
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
                        .map(|grant| (grant, pool)),
                );
            }
            5..=6 => {
                if let Some((grant, pool)) = old(&grants, dice(1000)) {
                    let result = match pool {
                        BASE => StageResult::Tokens(b"t".to_vec()),
                        _ => StageResult::pictures(b"".to_vec()),
                    };
                    queue
                        .complete(grant.id, grant.nonce, pool, &result, 1, b"")
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
            9 => {
                if let Some((id, tenant)) = jobs.get(dice(1000) % jobs.len().max(1)) {
                    queue.cancel(*id, tenants[*tenant].as_str()).await.unwrap();
                }
            }
            10 => {
                let cap = [None, Some(0.0), Some(2.0)][dice(3)];
                let weight = [None, Some(0.5), Some(3.0)][dice(3)];
                let settings = [("max_running", cap), ("weight", weight)];
                queue.set_tenant(&tenants[dice(3)], &settings).await.unwrap();
            }
            11 => {
                let (model, stage) = if dice(2) == 0 { BASE } else { SUPERRES };
                let target = match dice(2) {
                    0 => Target::Tenant(tenants[dice(3)].clone()),
                    _ => Target::Pool {
                        model: model.to_owned(),
                        stage: stage.to_owned(),
                    },
                };
                match dice(3) {
                    0 => drop(queue.pause(&target, "a test").await.unwrap()),
                    _ => drop(queue.resume(&target).await.unwrap()),
                }
            }
            _ => {
                if let Some((id, _)) = jobs.get(dice(1000) % jobs.len().max(1)) {
                    match dice(2) {
                        0 => drop(queue.requeue(*id).await.unwrap()),
                        _ => drop(queue.retry_dead(&[*id]).await.unwrap()),
                    }
                }
            }
        }
    }
    assert_eq!(findings(&queue, false).await, [], "seed {seed}");
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

/// What the queue's own audit finds.
pub async fn findings(queue: &Queue, repair: bool) -> Vec<Finding> {
    let (events, mut found) = mpsc::channel(16);
    let collect = async {
        let mut findings = Vec::new();
        while let Some(event) = found.recv().await {
            if let AuditEvent::Found(finding) = event {
                findings.push(finding);
            }
        }
        findings
    };
    let audit = async {
        let audited = queue.audit(repair, &events).await.unwrap();
        drop(events);
        audited
    };
    let (audited, findings) = tokio::join!(audit, collect);
    assert_eq!(audited.findings, findings.len() as u64);
    findings
}

/// Recounts everything from the jobs themselves and compares with sets and counters. Gives the jobs by state.
pub async fn audit(server: &RedisServer) -> BTreeMap<String, usize> {
    let keys: Vec<String> = server.ask(&["KEYS", "muse:{s0}:*"]).await;
    let mut expected: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut counters: BTreeMap<String, i64> = BTreeMap::new();
    let mut states = BTreeMap::new();
    // Who should stand in which line, or be held out of it.
    let mut lines: BTreeSet<(String, String)> = BTreeSet::new();
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
        expected
            .entry("tenants".to_owned())
            .or_default()
            .insert(field("tenant"));
        let mut put = |set: String| expected.entry(set).or_default().insert(id.clone());
        match state.as_str() {
            "queued" => {
                put(format!("q:{pool}:{}", field("tenant")));
                put(format!("wait:{pool}"));
                lines.insert((pool.clone(), field("tenant")));
            }
            "running" => drop(put("lease".to_owned())),
            "delayed" => drop(put("delay".to_owned())),
            "failed" => drop(put("dead".to_owned())),
            _ => drop(put("done".to_owned())),
        }
        put(format!("jobs:{}", field("tenant")));
        if ["queued", "running", "delayed"].contains(&state.as_str()) {
            put("deadline".to_owned());
            let (tenant, bytes) = (field("tenant"), field("bytes").parse::<i64>().unwrap());
            *counters
                .entry(format!("cnt:{state}:{pool}:{tenant}"))
                .or_default() += 1;
            *counters.entry(format!("use:{tenant}:{state}")).or_default() += 1;
            for account in [tenant.as_str(), ""] {
                *counters.entry(format!("use:{account}:bytes")).or_default() += bytes;
            }
        }
        assert_eq!(job.contains_key("nonce"), state == "running", "{id} is {state}");
        *states.entry(state).or_default() += 1;
    }
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for key in &keys {
        let name = key.trim_start_matches("muse:{s0}:");
        let set = ["q:", "wait:", "jobs:"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
            || ["lease", "delay", "deadline", "done", "dead", "tenants"].contains(&name);
        if let Some(pool) = name.strip_prefix("act:") {
            let tenants: Vec<String> = server.ask(&["ZRANGE", key, "0", "-1"]).await;
            for tenant in tenants {
                assert!(
                    lines.remove(&(pool.to_owned(), tenant.clone())),
                    "{tenant} waits for nothing in {pool}"
                );
            }
        } else if let Some(tenant) = name.strip_prefix("held:") {
            let pools: Vec<String> = server.ask(&["SMEMBERS", key]).await;
            for pool in pools {
                assert!(
                    lines.remove(&(pool.clone(), tenant.to_owned())),
                    "{tenant} is held out of {pool} for nothing"
                );
            }
        } else if let Some(tenant) = name.strip_prefix("tenant:") {
            expected
                .entry("tenants".to_owned())
                .or_default()
                .insert(tenant.to_owned());
        }
        if set {
            found.insert(name.to_owned(), server.ask(&["ZRANGE", key, "0", "-1"]).await);
        }
    }
    assert_eq!(found, expected);
    assert_eq!(lines, BTreeSet::new(), "these tenants are in no line");
    let mut counted: BTreeMap<String, i64> = BTreeMap::new();
    for key in &keys {
        let name = key.trim_start_matches("muse:{s0}:");
        if name == "cnt" || name.starts_with("use:") {
            let fields: BTreeMap<String, i64> = server.ask(&["HGETALL", key]).await;
            counted.extend(
                fields
                    .into_iter()
                    .map(|(field, count)| (format!("{name}:{field}"), count)),
            );
        }
    }
    counters.retain(|_, count| *count != 0);
    assert_eq!(counted, counters);
    states
}
