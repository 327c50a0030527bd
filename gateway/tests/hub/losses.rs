//! Gateways and Redis come and go.

use muse_proto::{
    internal::v1::AckOutcome,
    v1::{JobState, Stage, watch_job_response::Event},
};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::{
    cluster::RunningGateway,
    model,
    redis_server::RedisServer,
    scene::{BOTH, Scene, get, next, submission, submit, watch},
    soon,
    worker::{FakeWorker, report},
};

#[tokio::test]
async fn a_worker_brings_its_leases_to_another_gateway() {
    let redis = RedisServer::start().await;
    let first = RunningGateway::start(&redis).await;
    let second = RunningGateway::start(&redis).await;
    let small = model("small", &[Stage::Base]);
    let mut worker = FakeWorker::attach(first.address, "w", Stage::Base, &small).await;
    let mut client = first.generation().await;
    let job = submit(&mut client, "a cat").await;
    worker.credit(1).await;
    let lease = worker.lease().await;
    first.kill().await;

    let mut client = second.generation().await;
    let mut events = watch(&mut client, &job.id, job.version).await;
    let mut worker = FakeWorker::attach(second.address, "w", Stage::Base, &small).await;
    worker.heartbeat(vec![report(&lease, 2, 3)]).await;
    worker.complete(&lease).await;
    assert_eq!(worker.ack().await.outcome(), AckOutcome::Accepted);
    let mut versions = vec![job.version];
    while let Some(response) = next(&mut events).await {
        if let Some(Event::Job(job)) = response.event {
            versions.push(job.version);
        }
    }
    assert!(
        versions.len() > 1 && versions.windows(2).all(|pair| pair[0] < pair[1]),
        "{versions:?}"
    );
    assert_eq!(get(&mut client, &job.id).await.state(), JobState::Succeeded);
}

#[tokio::test]
async fn a_draining_gateway_ends_its_streams_so_that_others_take_over() {
    let mut scene = Scene::of(&BOTH).await;
    let job = submit(&mut scene.client, "a cat").await;
    let mut events = watch(&mut scene.client, &job.id, 0).await;
    soon("the present state", events.message()).await.unwrap();
    let stopped = tokio::spawn(scene.gateway.stop());
    assert_eq!(scene.worker.next().await, None);
    let ended = loop {
        match soon("the stream's end", events.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a watch must not end as if the job had"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unavailable);
    assert!(ended.get_details_retry_info().is_some(), "{ended:?}");
    drop((scene.client, scene.worker, events));
    stopped.await.unwrap();
}

#[tokio::test]
async fn while_redis_is_away_clients_are_told_and_reports_wait() {
    let mut scene = Scene::of(&[Stage::Base]).await;
    let (job, lease) = scene.lease().await;
    let Scene {
        mut redis,
        mut worker,
        mut client,
        ..
    } = scene;
    let mut events = watch(&mut client, &job.id, 0).await;
    redis.kill();

    let refused = client.submit_job(submission("a dog")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.get_details_retry_info().is_some(), "{refused:?}");
    worker.complete(&lease).await;
    redis.restart().await;
    assert_eq!(
        worker.ack().await.outcome(),
        AckOutcome::Accepted,
        "nothing expired, nothing is lost"
    );
    let mut last = None;
    while let Some(response) = next(&mut events).await {
        last = response.event;
    }
    let Some(Event::Job(done)) = last else {
        panic!("no job at the end but {last:?}")
    };
    assert_eq!((done.state(), done.crashes), (JobState::Succeeded, 0));
}
