//! Accepted means: on as many replicas, and disks, as the configuration says.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use muse_gateway::{
    config::{self, Durability},
    connection::{Guarantee, Redis, RedisError, StartupError, Unfit},
    jobs::JobId,
    queue::{Idempotency, NewJob, Queue, Submission},
};
use muse_proto::v1::{GenerationRequest, PrimaryDurability, Stage, SubmitJobRequest};
use muse_service::Tenant;
use prost::Message as _;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    nodes::{Group, Node},
    support::{
        cluster::{self, RunningGateway},
        model, request, until,
        worker::FakeWorker,
    },
};

fn job(key: &str) -> NewJob {
    NewJob {
        id: JobId::new(0),
        tenant: Tenant::default(),
        model: "tiny".to_owned(),
        stages: vec![Stage::Base],
        rows: 1,
        boost_ms: 0,
        timeout_ms: 600_000,
        request: GenerationRequest::default().encode_to_vec(),
        traceparent: String::new(),
        idempotency: Some(Idempotency {
            key: key.replace(' ', "-"),
            request: "the-same-for-all".to_owned(),
        }),
    }
}

fn config(url: String) -> config::Redis {
    config::Redis {
        url,
        retry_ms: 500,
        startup_timeout_ms: 500,
        ..config::Redis::default()
    }
}

fn replicas(replicas: u32) -> Guarantee {
    Guarantee {
        replicas,
        timeout_ms: 300,
        ..Durability::Everysec.into()
    }
}

async fn queue(url: String, guarantee: Guarantee) -> Queue {
    let redis = Redis::connect(&config(url), guarantee).await.unwrap();
    Queue::new(redis, "muse", config::Queue::default())
}

#[tokio::test]
async fn a_job_is_accepted_when_its_replicas_have_it_and_not_before() {
    let mut group = Group::start(1).await;
    let queue = queue(group.url(), replicas(1)).await;
    let first = job("first");
    let accepted = queue.accept(&first).await.unwrap();
    assert_eq!(accepted.submission, Submission::Created(first.id));
    assert_eq!(accepted.confirmed.map(|confirmed| confirmed.replicas), Some(1));

    group.nodes[1].server.kill();
    let second = job("second");
    let refused = queue.accept(&second).await.unwrap_err();
    assert!(
        matches!(refused, RedisError::NotConfirmed { wanted: 1, got: 0 }),
        "{refused}"
    );
    assert!(
        queue.get(second.id).await.unwrap().is_some(),
        "it is queued all the same"
    );

    group.nodes[1].server.restart().await;
    group.nodes[1].follows().await;
    let again = NewJob {
        id: JobId::new(0),
        ..second.clone()
    };
    let accepted = until("the replica to confirm", async || queue.accept(&again).await.ok()).await;
    assert_eq!(
        accepted.submission,
        Submission::Existed(second.id),
        "one key, one job"
    );
    assert_eq!(accepted.confirmed.map(|confirmed| confirmed.replicas), Some(1));
}

#[tokio::test]
async fn a_job_that_another_gateway_wrote_is_not_taken_for_confirmed() {
    let mut group = Group::start(1).await;
    let (writer, reader) = (
        queue(group.url(), replicas(1)).await,
        queue(group.url(), replicas(1)).await,
    );
    group.nodes[1].server.kill();
    let new = job("a key");
    assert!(writer.accept(&new).await.is_err());
    // This gateway's connections have written nothing, so that WAIT alone would have nothing to wait for.
    let again = NewJob {
        id: JobId::new(0),
        ..new
    };
    let refused = reader.accept(&again).await.unwrap_err();
    assert!(matches!(refused, RedisError::NotConfirmed { .. }), "{refused}");
}

#[tokio::test]
async fn those_who_wait_at_the_same_time_share_the_question() {
    let group = Group::start(1).await;
    let queue = Arc::new(queue(group.url(), replicas(1)).await);
    let before = group.nodes[0].calls("wait").await;
    let jobs: Vec<NewJob> = (0..400).map(|n| job(&format!("job {n}"))).collect();
    let accepted = join_all(jobs.iter().map(|job| queue.accept(job))).await;
    for outcome in accepted {
        assert_eq!(
            outcome.unwrap().confirmed.map(|confirmed| confirmed.replicas),
            Some(1)
        );
    }
    let asked = group.nodes[0].calls("wait").await - before;
    assert!((1..=100).contains(&asked), "400 submissions waited {asked} times");
}

#[tokio::test]
async fn on_disk_means_that_the_servers_said_so() {
    let group = Group::start(1).await;
    let synced = queue(group.url(), Durability::Synced.into()).await;
    let accepted = synced.accept(&job("a")).await.unwrap();
    assert_eq!(
        accepted.confirmed.map(|confirmed| confirmed.primary),
        Some(Durability::Synced)
    );
    assert_eq!(group.nodes[0].calls("waitaof").await, 1);

    let both = Guarantee {
        replicas: 1,
        replicas_on_disk: true,
        timeout_ms: 5_000,
        ..Durability::Synced.into()
    };
    let accepted = queue(group.url(), both).await.accept(&job("b")).await.unwrap();
    let confirmed = accepted.confirmed.unwrap();
    assert_eq!((confirmed.replicas, confirmed.replicas_on_disk), (1, true));
    assert_eq!(group.nodes[0].calls("waitaof").await, 2);
    assert_eq!(group.nodes[0].calls("wait").await, 0);
}

#[tokio::test]
async fn a_gateway_does_not_start_without_the_replicas_that_it_would_wait_for() {
    let group = Group::start(1).await;
    let refused = Redis::connect(&config(group.url()), replicas(2))
        .await
        .err()
        .unwrap();
    assert!(
        matches!(
            refused,
            StartupError::Unfit(Unfit::Replicas { needed: 2, found: 1 })
        ),
        "{refused}"
    );
    // They may be started later than the gateway.
    let patient = config::Redis {
        startup_timeout_ms: 20_000,
        ..config(group.url())
    };
    let primary = group.nodes[0].port;
    let (connected, _late) = tokio::join!(
        Redis::connect(&patient, replicas(2)),
        Node::start(Some(primary), &[])
    );
    connected.unwrap();
}

#[tokio::test]
async fn a_client_hears_what_its_job_survives_and_when_that_is_too_little() {
    let mut group = Group::start(1).await;
    let mut config = cluster::config(&group.nodes[0].server);
    config.queue.durability = Durability::Everysec;
    config.queue.replicas = 1;
    config.queue.confirm_timeout_ms = 300;
    let gateway = RunningGateway::start_with(config).await;
    let tiny = model("tiny", &[Stage::Base]);
    let _worker = FakeWorker::attach(gateway.address, "w", Stage::Base, &tiny).await;
    let mut client = gateway.generation().await;
    let submission = |key: &str| SubmitJobRequest {
        request: Some(GenerationRequest {
            idempotency_key: key.to_owned(),
            ..request("a cat")
        }),
    };
    let accepted = client.submit_job(submission("one")).await.unwrap().into_inner();
    let durability = accepted.durability.expect("it is told");
    assert_eq!(
        (
            durability.primary(),
            durability.replicas,
            durability.replicas_on_disk
        ),
        (PrimaryDurability::EverySecond, 1, false)
    );

    group.nodes[1].server.kill();
    let refused = client.submit_job(submission("two")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("idempotency key"), "{refused:?}");
    let delay = refused.get_details_retry_info().and_then(|info| info.retry_delay);
    assert!(delay.is_some_and(|delay| delay > Duration::ZERO), "{refused:?}");

    group.nodes[1].server.restart().await;
    group.nodes[1].follows().await;
    let accepted = until("the replica to confirm", || {
        let mut client = client.clone();
        async move { client.submit_job(submission("two")).await.ok() }
    })
    .await
    .into_inner();
    assert!(accepted.already_existed, "the job of the first attempt");
    assert_eq!(accepted.durability.map(|durability| durability.replicas), Some(1));
}
