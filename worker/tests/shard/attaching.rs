//! The connection to the hub, and what survives it.

use muse_engine::Stage;
use muse_proto::{
    internal::v1::{Drain, attach_request::Message, attach_response},
    v1::Sampling,
};
use tonic::Status;

use crate::{
    encoder::FakeEncoder,
    gateway::{FakeGateway, PATIENCE},
    worker::{Running, Wish, config, wish},
};

#[tokio::test]
async fn a_lost_gateway_is_replaced_by_another_and_its_leases_are_finished_there() {
    let encoder = FakeEncoder::start().await;
    let (mut first, mut second) = (FakeGateway::start().await, FakeGateway::start().await);
    let mut config = config(
        Stage::Superres,
        &[first.endpoint(), second.endpoint()],
        &[&encoder],
    );
    config.batcher.row_budget = Some(2);
    let worker = Running::start(config).await;
    // The worker starts at either.
    let (mut session, lost, other) = tokio::select! {
        session = first.session() => (session, first, &mut second),
        session = second.session() => (session, second, &mut first),
    };
    session.welcome().await;
    let sampling = Sampling {
        steps: Some(40),
        ..Sampling::default()
    };
    let lease = Wish {
        count: 6,
        sampling,
        ..wish(1, Stage::Superres)
    }
    .lease();
    session.lease(&lease).await;
    session
        .heartbeat("the lease", |heartbeat| {
            heartbeat.leases.iter().any(|it| it.checkpoint.is_some())
        })
        .await;
    let worker_id = session.hello.worker_id.clone();
    drop(session);
    lost.stop();

    let mut session = other.welcome().await;
    assert_eq!(session.hello.worker_id, worker_id);
    let heartbeat = session.heartbeat("the first heartbeat", |_| true).await;
    assert_eq!(heartbeat.leases.len(), 1, "{heartbeat:?}");
    assert!(
        heartbeat.leases[0].checkpoint.is_some(),
        "a new gateway may not know it: {heartbeat:?}"
    );
    assert!(matches!(session.report(&lease).await, Message::Complete(_)));
    session.ack(&lease).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_result_that_was_not_acknowledged_is_sent_again_until_it_is() {
    let (mut gateway, encoder) = (FakeGateway::start().await, FakeEncoder::start().await);
    let mut config = config(Stage::Base, &[gateway.endpoint()], &[&encoder]);
    config.hub.resend_after_ms = 50;
    let worker = Running::start(config).await;
    let mut session = gateway.welcome().await;
    let credit = session.credit(1).await;
    let lease = wish(1, Stage::Base).lease();
    session.lease(&lease).await;
    let first = session.report(&lease).await;
    assert_eq!(
        session.report(&lease).await,
        first,
        "again on the same connection"
    );
    drop(session);

    let mut session = gateway.welcome().await;
    let heartbeat = session.heartbeat("the first heartbeat", |_| true).await;
    assert_eq!(heartbeat.leases.len(), 1, "{heartbeat:?}");
    assert!(
        heartbeat.leases[0].checkpoint.is_some(),
        "the checkpoint stays until the report is acknowledged: {heartbeat:?}"
    );
    assert_eq!(session.report(&lease).await, first, "again on the next");
    session.ack(&lease).await;
    session
        .heartbeat("an end", |heartbeat| heartbeat.leases.is_empty())
        .await;
    assert!(credit > 0);
    worker.stop().await;
}

#[tokio::test]
async fn a_revoked_job_is_dropped_without_a_report() {
    let (mut gateway, encoder) = (FakeGateway::start().await, FakeEncoder::start().await);
    let mut config = config(Stage::Superres, &[gateway.endpoint()], &[&encoder]);
    config.batcher.row_budget = Some(2);
    let worker = Running::start(config).await;
    let mut session = gateway.welcome().await;
    let sampling = Sampling {
        steps: Some(90),
        ..Sampling::default()
    };
    let long = Wish {
        count: 16,
        sampling,
        ..wish(1, Stage::Superres)
    }
    .lease();
    session.lease(&long).await;
    session.heartbeat("rows", |heartbeat| heartbeat.rows == 16).await;
    session.revoke(&long).await;
    session
        .heartbeat("no rows", |heartbeat| {
            heartbeat.rows == 0 && heartbeat.leases.is_empty()
        })
        .await;
    // What is leased next is not held up by it.
    let next = wish(2, Stage::Superres).lease();
    session.lease(&next).await;
    assert!(matches!(session.report(&next).await, Message::Complete(_)));
    session.ack(&next).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_worker_is_ready_while_it_is_attached() {
    let (mut gateway, encoder) = (FakeGateway::start().await, FakeEncoder::start().await);
    let worker = Running::start(config(Stage::Base, &[gateway.endpoint()], &[&encoder])).await;
    let session = gateway.session().await;
    assert!(!worker.readiness.is_ready(), "not welcomed yet");
    session.welcome().await;
    tokio::time::timeout(PATIENCE, worker.readiness.ready())
        .await
        .expect("never ready");
    worker.shut_down();
    let readiness = worker.readiness.clone();
    worker.ended().await.unwrap();
    assert_eq!(readiness.describe(), "draining");
}

#[tokio::test]
async fn a_gateway_can_drain_a_worker() {
    let (mut gateway, encoder) = (FakeGateway::start().await, FakeEncoder::start().await);
    let worker = Running::start(config(Stage::Base, &[gateway.endpoint()], &[&encoder])).await;
    let session = gateway.welcome().await;
    session.send(attach_response::Message::Drain(Drain {})).await;
    worker.ended().await.unwrap();
}

fn other_bundle() -> Status {
    Status::failed_precondition("served from another bundle: give this one another name")
}

#[tokio::test]
async fn a_worker_that_no_gateway_takes_ends_with_the_reason() {
    let (mut gateway, encoder) = (FakeGateway::start().await, FakeEncoder::start().await);
    let mut config = config(Stage::Base, &[gateway.endpoint()], &[&encoder]);
    config.hub.refusal_patience_ms = 0;
    let worker = Running::start(config).await;
    gateway.session().await.refuse(other_bundle()).await;
    let line = format!("{:#}", worker.ended().await.unwrap_err());
    assert!(
        line.contains("another name") && line.contains(&gateway.endpoint()) && !line.contains('\n'),
        "{line}"
    );
}

#[tokio::test]
async fn a_refused_worker_is_taken_when_what_was_in_its_way_has_left() {
    let (mut gateway, encoder) = (FakeGateway::start().await, FakeEncoder::start().await);
    let worker = Running::start(config(Stage::Base, &[gateway.endpoint()], &[&encoder])).await;
    for _ in 0..3 {
        gateway.session().await.refuse(other_bundle()).await;
    }
    let mut session = gateway.welcome().await;
    // Refused later on, it has all of its patience again.
    session.heartbeat("the first heartbeat", |_| true).await;
    session.refuse(other_bundle()).await;
    gateway.welcome().await.credit(1).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_gateway_that_is_away_for_now_ends_no_worker() {
    let (mut gateway, encoder) = (FakeGateway::start().await, FakeEncoder::start().await);
    let mut config = config(Stage::Base, &[gateway.endpoint()], &[&encoder]);
    config.hub.refusal_patience_ms = 0;
    let worker = Running::start(config).await;
    gateway
        .session()
        .await
        .refuse(Status::unavailable("not now"))
        .await;
    gateway.welcome().await.credit(1).await;
    worker.stop().await;
}
