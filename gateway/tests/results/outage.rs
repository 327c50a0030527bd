//! The bucket is away and Redis is not.

use axum::http::StatusCode;
use muse_proto::{
    internal::v1::AckOutcome,
    v1::{JobState, Stage},
};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::{
    bucket::Bucket,
    travel::{finished, picture, pictures_of},
};
use crate::support::{
    scene::{Scene, get, until_state},
    worker::{picture_bytes, report},
};

#[tokio::test]
async fn while_the_bucket_is_away_results_stay_with_the_worker_and_readers_are_told_to_come_again() {
    let bucket = Bucket::start().await;
    let mut scene = Scene::with(&[Stage::Base], |config| bucket.configure(config)).await;
    let done = finished(&mut scene).await;
    let (job, lease) = scene.lease().await;
    bucket.set_broken(Some(StatusCode::SERVICE_UNAVAILABLE));

    let unread = picture(&mut scene.client, &done).await.unwrap_err();
    assert_eq!(unread.code(), Code::Unavailable, "{unread:?}");
    assert!(unread.get_details_retry_info().is_some(), "{unread:?}");
    assert!(
        !unread.message().contains("127.0.0.1"),
        "no word of how it is built: {unread:?}"
    );

    // Again and again, for longer than a lease: it is not lost while its worker says that it holds it.
    let begun = tokio::time::Instant::now();
    let mut postponed = 0;
    while begun.elapsed().as_millis() < 2_000 {
        scene.worker.heartbeat(vec![report(&lease, 3, 3)]).await;
        scene.worker.complete(&lease).await;
        let ack = scene.worker.ack().await;
        assert_eq!(ack.outcome(), AckOutcome::Unavailable, "{ack:?}");
        assert!(ack.retry_after.is_some(), "{ack:?}");
        postponed += 1;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let kept = get(&mut scene.client, &job.id).await;
    assert_eq!((kept.state(), kept.crashes), (JobState::Running, 0), "{kept:?}");
    // Most are refused at once instead of being tried.
    let tried = bucket
        .requests()
        .iter()
        .filter(|request| request.starts_with("PUT") && request.ends_with("503"))
        .count();
    assert!(tried > 0 && postponed > 5, "{tried} tried, {postponed} postponed");

    bucket.set_broken(None);
    let outcome = loop {
        scene.worker.complete(&lease).await;
        match scene.worker.ack().await.outcome() {
            AckOutcome::Unavailable => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            outcome => break outcome,
        }
    };
    assert_eq!(outcome, AckOutcome::Accepted);
    let job = until_state(&scene.client, &job.id, JobState::Succeeded).await;
    assert_eq!(job.crashes, 0);
    for job in [&done, &job] {
        assert_eq!(picture(&mut scene.client, job).await.unwrap(), picture_bytes(0));
    }
}

#[tokio::test]
async fn a_result_that_comes_too_late_leaves_no_pictures() {
    let bucket = Bucket::start().await;
    let mut scene = Scene::with(&[Stage::Base], |config| bucket.configure(config)).await;
    let (job, lease) = scene.lease().await;
    crate::support::scene::cancel(&mut scene.client, &job.id).await;
    scene.worker.revoke().await;
    scene.worker.complete(&lease).await;
    assert_eq!(scene.worker.ack().await.outcome(), AckOutcome::Stale);
    assert!(pictures_of(&bucket, &job).is_empty(), "{:?}", bucket.names());
    let put = bucket
        .requests()
        .iter()
        .any(|request| request.starts_with("PUT") && request.contains(&job.id));
    assert!(put, "they had been written before the job was asked for");
}
