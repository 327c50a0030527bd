//! What operators see.

use muse_proto::{
    internal::v1::attach_response::Message,
    v1::{
        DrainWorkerRequest, GetQueueStatusRequest, ListModelsRequest, ListWorkersRequest, Model, Stage,
        Worker,
    },
};
use tonic::Code;

use crate::support::{
    cluster::RunningGateway,
    model,
    redis_server::RedisServer,
    scene::{BOTH, submit},
    until,
    worker::FakeWorker,
};

async fn two_gateways() -> (RedisServer, RunningGateway, RunningGateway) {
    let redis = RedisServer::start().await;
    let first = RunningGateway::start(&redis).await;
    let second = RunningGateway::start(&redis).await;
    (redis, first, second)
}

async fn workers_of(gateway: &RunningGateway) -> Vec<Worker> {
    let listed = gateway.admin().await.list_workers(ListWorkersRequest {}).await;
    listed.unwrap().into_inner().workers
}

#[tokio::test]
async fn a_worker_with_another_bundle_of_the_same_name_is_refused_while_the_first_is_served() {
    let redis = RedisServer::start().await;
    let gateway = RunningGateway::start(&redis).await;
    let old = model("tiny", &BOTH);
    let new = Model {
        bundle_digest: "cd".repeat(32),
        ..old.clone()
    };
    let worker = FakeWorker::attach(gateway.address, "old", Stage::Base, &old).await;
    let refused = FakeWorker::try_attach(gateway.address, "new", Stage::Superres, &new)
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("tiny"), "{refused:?}");
    drop(worker);
    until("the old one to leave", async || {
        FakeWorker::try_attach(gateway.address, "new", Stage::Superres, &new)
            .await
            .ok()
    })
    .await;
    let models = gateway
        .models()
        .await
        .list_models(ListModelsRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(models.models[0].bundle_digest, new.bundle_digest);
}

#[tokio::test]
async fn a_worker_is_told_to_drain_until_it_does_whichever_gateway_it_is_attached_to() {
    let (_redis, first, second) = two_gateways().await;
    let mut worker = FakeWorker::attach(first.address, "w", Stage::Base, &model("tiny", &BOTH)).await;
    let mut admin = second.admin().await;
    let drain = |worker: &str| DrainWorkerRequest {
        worker_id: worker.to_owned(),
    };
    let refused = admin.drain_worker(drain("nobody")).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    admin.drain_worker(drain("w")).await.unwrap();
    for _ in 0..2 {
        worker.heartbeat(Vec::new()).await;
        let told = worker.next().await;
        assert!(matches!(told, Some(Message::Drain(_))), "{told:?}");
    }
    // The next of that name is another process.
    drop(worker);
    until("the worker to be gone", async || {
        workers_of(&second).await.is_empty().then_some(())
    })
    .await;
    let mut worker = FakeWorker::attach(first.address, "w", Stage::Base, &model("tiny", &BOTH)).await;
    let mut client = first.generation().await;
    submit(&mut client, "a cat").await;
    worker.heartbeat(Vec::new()).await;
    worker.credit(1).await;
    worker.lease().await;
}

#[tokio::test]
async fn an_operator_sees_pools_and_workers_over_all_gateways() {
    let (_redis, first, second) = two_gateways().await;
    let tiny = model("tiny", &BOTH);
    let mut base = FakeWorker::attach(first.address, "base-1", Stage::Base, &tiny).await;
    let superres = FakeWorker::attach(second.address, "superres-1", Stage::Superres, &tiny).await;
    superres.heartbeat(Vec::new()).await;
    let mut client = second.generation().await;
    for n in 0..3 {
        submit(&mut client, &format!("cat {n}")).await;
    }
    base.credit(1).await;
    base.lease().await;
    let status = until("two waiting, one running", async || {
        let status = second
            .admin()
            .await
            .get_queue_status(GetQueueStatusRequest {})
            .await
            .unwrap()
            .into_inner();
        (status.pools.len() == 2 && status.pools[0].running == 1).then_some(status)
    })
    .await;
    assert_eq!(
        (
            status.pools[0].waiting,
            status.pools[0].workers,
            status.pools[1].workers
        ),
        (2, 1, 1),
        "{status:?}"
    );
    assert!(
        status.pools[0].oldest.is_some() && status.pools[1].oldest.is_none(),
        "{status:?}"
    );
    let workers = until("the heartbeat in the table", async || {
        let workers = workers_of(&first).await;
        workers.iter().any(|worker| worker.rows == 1).then_some(workers)
    })
    .await;
    assert_eq!(
        workers
            .iter()
            .map(|worker| worker.id.as_str())
            .collect::<Vec<_>>(),
        ["base-1", "superres-1"]
    );
    assert_ne!(workers[0].gateway_id, workers[1].gateway_id);
    // A worker that leaves is gone at once.
    drop(base);
    until("one worker", async || {
        let workers = workers_of(&first).await;
        (workers.len() == 1).then_some(())
    })
    .await;
}
