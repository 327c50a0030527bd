//! The primary is killed while jobs stream in, and Sentinel makes a replica the primary.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use muse_gateway::config::Durability;
use muse_proto::{
    internal::v1::attach_response::Message,
    v1::{GenerationRequest, JobState, Stage, SubmitJobRequest},
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::Code;

use crate::{
    nodes::{Group, Passwords, SERVICE, Sentinel},
    support::{
        cluster::{self, RunningGateway},
        model, request,
        scene::{Client, get, next, watch},
        soon, until,
        worker::FakeWorker,
    },
};

/// Clients that submit one job after the other.
const CLIENTS: u64 = 8;
/// What the issue asks for, from the kill to the next acceptance.
const FAILOVER_LIMIT: Duration = Duration::from_secs(15);

/// What the clients were told.
#[derive(Default)]
struct Told {
    /// Job by key.
    accepted: Mutex<BTreeMap<String, String>>,
    /// When a submission that began after the kill was accepted first.
    after: Mutex<Option<Instant>>,
    killed: Mutex<Option<Instant>>,
    refused: AtomicU64,
    stop: AtomicBool,
}

impl Told {
    fn accepted(&self) -> usize {
        self.accepted.lock().unwrap().len()
    }
}

/// Submits until told to stop. A refused submission is sent again under its key, as the refusal says.
async fn submit_all(mut client: Client, number: u64, told: Arc<Told>) {
    for count in 0_u64.. {
        let key = format!("client {number} job {count}");
        let submission = SubmitJobRequest {
            request: Some(GenerationRequest {
                idempotency_key: key.clone(),
                ..request("a cat")
            }),
        };
        loop {
            if told.stop.load(Ordering::Relaxed) {
                return;
            }
            let begun = Instant::now();
            match client.submit_job(submission.clone()).await {
                Ok(response) => {
                    let response = response.into_inner();
                    let durability = response.durability.expect("it is told");
                    assert!(durability.replicas >= 1, "{durability:?}");
                    let job = response.job.expect("a job").id;
                    told.accepted.lock().unwrap().insert(key, job);
                    let killed = *told.killed.lock().unwrap();
                    if killed.is_some_and(|killed| begun > killed) {
                        told.after.lock().unwrap().get_or_insert_with(Instant::now);
                    }
                    break;
                }
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                    told.refused.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

/// Completes every lease at once.
pub(crate) fn work(mut worker: FakeWorker) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut beats = tokio::time::interval(Duration::from_millis(200));
        worker.credit(64).await;
        loop {
            tokio::select! {
                message = worker.next() => match message {
                    Some(Message::Lease(lease)) => {
                        worker.complete(&lease).await;
                        worker.credit(64).await;
                    }
                    Some(_) => {}
                    None => return,
                },
                _ = beats.tick() => worker.heartbeat(Vec::new()).await,
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_accepted_job_is_lost_when_the_primary_is_killed() {
    kill_the_primary(None, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_where_servers_and_sentinels_have_passwords() {
    let passwords = Passwords {
        servers: "hush-servers",
        sentinels: "hush-sentinels",
    };
    kill_the_primary(Some(passwords), 50).await;
}

/// Jobs stream in, at least `jobs` before the kill and after the failover.
async fn kill_the_primary(passwords: Option<Passwords>, jobs: usize) {
    let mut group = Group::start_with(2, passwords).await;
    let primary = group.nodes[0].port;
    let mut sentinels = Vec::new();
    for _ in 0..3 {
        sentinels.push(Sentinel::start_with(primary, 2, passwords).await);
    }
    for sentinel in &sentinels {
        sentinel.knows(2, 2).await;
    }
    let mut config = cluster::config(&group.nodes[0].server);
    config.redis.url = "redis://ignored:1".to_owned();
    config.redis.sentinels = sentinels.iter().map(Sentinel::url).collect();
    config.redis.service_name = SERVICE.to_owned();
    let secrets = TempDir::new().unwrap();
    if let Some(passwords) = passwords {
        let file = |name: &str, password: &str| {
            let path = secrets.path().join(name);
            std::fs::write(&path, format!("{password}\n")).unwrap();
            Some(path)
        };
        config.redis.password_file = file("servers", passwords.servers);
        config.redis.sentinel_password_file = file("sentinels", passwords.sentinels);
    }
    config.queue.durability = Durability::Everysec;
    config.queue.replicas = 1;
    config.queue.confirm_timeout_ms = 1_000;
    config.queue.lease_ms = 10_000;
    // Whoever relies on bells that did not follow would wait in vain.
    config.watch.reread_ms = 600_000;
    let gateway = RunningGateway::start_with(config).await;
    let tiny = model("tiny", &[Stage::Base]);
    let worker = FakeWorker::attach(gateway.address, "w", Stage::Base, &tiny).await;
    let working = work(worker);

    let told = Arc::new(Told::default());
    let clients: Vec<_> = (0..CLIENTS).map(|number| (number, told.clone())).collect();
    let mut submitting = Vec::new();
    for (number, told) in clients {
        let client = gateway.generation().await;
        submitting.push(tokio::spawn(submit_all(client, number, told)));
    }
    until("jobs before the kill", async || {
        (told.accepted() >= jobs).then_some(())
    })
    .await;

    let before = told.accepted();
    group.nodes[0].server.kill();
    let killed = Instant::now();
    *told.killed.lock().unwrap() = Some(killed);
    let after = until("a job accepted by the new primary", async || {
        *told.after.lock().unwrap()
    })
    .await;
    let enough = told.accepted() + jobs;
    until("jobs after the failover", async || {
        (told.accepted() >= enough).then_some(())
    })
    .await;
    told.stop.store(true, Ordering::Relaxed);
    for clients in submitting {
        soon("the clients' end", clients)
            .await
            .expect("no client panicked");
    }

    let accepted = told.accepted.lock().unwrap().clone();
    let failover = after - killed;
    println!(
        "failover: {:.1} s from kill -9 to the next acceptance; {before} jobs accepted before, {} in all, {} refusals",
        failover.as_secs_f64(),
        accepted.len(),
        told.refused.load(Ordering::Relaxed)
    );
    let client = gateway.generation().await;
    for (key, id) in &accepted {
        let state = until(&format!("the end of {id}, {key}"), || {
            let mut client = client.clone();
            async move {
                let job = get(&mut client, id).await;
                let ended = !matches!(
                    job.state(),
                    JobState::Queued | JobState::Running | JobState::Delayed
                );
                ended.then_some(job.state())
            }
        })
        .await;
        assert_eq!(state, JobState::Succeeded, "{key}\n{}", sentinels[0].log());
    }
    assert!(failover <= FAILOVER_LIMIT, "{failover:?}\n{}", sentinels[0].log());

    // Bells ring on the new primary: this watch does not look by itself.
    let mut client = gateway.generation().await;
    // A busy machine may not confirm the first attempt in time; then it is sent again under its key, as clients do.
    let job = until("another job", || {
        let mut client = client.clone();
        async move {
            let submission = SubmitJobRequest {
                request: Some(GenerationRequest {
                    idempotency_key: "the last".to_owned(),
                    ..request("a dog")
                }),
            };
            client.submit_job(submission).await.ok()?.into_inner().job
        }
    })
    .await;
    let mut events = watch(&mut client, &job.id, 0).await;
    while next(&mut events).await.is_some() {}
    working.abort();
}
