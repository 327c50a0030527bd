//! What becomes of a lease.

use muse_proto::{
    internal::v1::{AckOutcome, RevokeReason, complete},
    v1::{JobErrorReason, JobState, Stage},
};

use crate::support::{
    scene::{BOTH, Scene, cancel, get, submit, until_state},
    worker::{report, result_of, tokens},
};

#[tokio::test]
async fn a_cancelled_job_is_taken_from_its_worker() {
    let mut scene = Scene::of(&BOTH).await;
    let (job, lease) = scene.lease().await;
    let cancelled = cancel(&mut scene.client, &job.id).await;
    assert_eq!(cancelled.state(), JobState::Cancelled);
    let revoke = scene.worker.revoke().await;
    assert_eq!((&revoke.job_id, &revoke.nonce), (&job.id, &lease.nonce));
    assert_eq!(RevokeReason::try_from(revoke.reason), Ok(RevokeReason::Cancelled));
    // The doorbell may be lost; the next heartbeat says the same.
    scene.worker.heartbeat(vec![report(&lease, 1, 3)]).await;
    assert_eq!(
        RevokeReason::try_from(scene.worker.revoke().await.reason),
        Ok(RevokeReason::Cancelled)
    );
    scene.worker.complete(&lease).await;
    assert_eq!(scene.worker.ack().await.outcome(), AckOutcome::Stale);
    let again = cancel(&mut scene.client, &job.id).await;
    assert_eq!(
        again.version, cancelled.version,
        "a finished job is left as it is"
    );
}

#[tokio::test]
async fn a_job_goes_on_at_another_worker_when_the_first_one_dies() {
    let mut scene = Scene::of(&BOTH).await;
    let (job, lost) = scene.lease().await;
    scene.acknowledge(&lost).await;
    let mut second = scene.another("second").await;
    drop(scene.worker);

    second.credit(1).await;
    let lease = second.lease().await;
    assert_eq!(lease.job_id, job.id);
    assert_ne!(lease.nonce, lost.nonce);
    let running = until_state(&scene.client, &job.id, JobState::Running).await;
    assert_eq!((running.crashes, running.worker_id.as_str()), (1, "second"));

    // The first one was only slow. Its result comes too late, the second's counts, and counts once.
    second.send_complete(result_of(&lost)).await;
    assert_eq!(second.ack().await.outcome(), AckOutcome::Stale);
    second.complete(&lease).await;
    assert_eq!(second.ack().await.outcome(), AckOutcome::Accepted);
    second.complete(&lease).await;
    assert_eq!(second.ack().await.outcome(), AckOutcome::Duplicate);
}

#[tokio::test]
async fn a_late_result_counts_while_nobody_took_the_job_over() {
    let mut scene = Scene::of(&[Stage::Base]).await;
    let (job, lease) = scene.lease().await;
    scene.acknowledge(&lease).await;
    // No more heartbeats: the lease runs out.
    assert_eq!(
        until_state(&scene.client, &job.id, JobState::Queued)
            .await
            .crashes,
        1
    );
    scene.worker.complete(&lease).await;
    assert_eq!(scene.worker.ack().await.outcome(), AckOutcome::Accepted);
    let done = until_state(&scene.client, &job.id, JobState::Succeeded).await;
    assert_eq!(done.crashes, 0, "it was no crash after all");
}

#[tokio::test]
async fn errors_are_retried_within_their_budget_and_then_the_job_fails() {
    let scene = Scene::with(&BOTH, |config| config.queue.attempts = 2).await;
    let Scene {
        mut worker,
        mut client,
        ..
    } = scene;
    let job = submit(&mut client, "a cat").await;
    for _ in 0..2 {
        worker.credit(1).await;
        let lease = worker.lease().await;
        worker.fail(&lease, true).await;
        assert_eq!(worker.ack().await.outcome(), AckOutcome::Accepted);
    }
    let failed = until_state(&client, &job.id, JobState::Failed).await;
    let error = failed.error.clone().unwrap();
    assert_eq!(
        (failed.attempts, error.reason(), error.message.as_str()),
        (2, JobErrorReason::ModelFailed, "it was too red")
    );

    let hopeless = submit(&mut client, "a dog").await;
    worker.credit(1).await;
    let lease = worker.lease().await;
    worker.fail(&lease, false).await;
    assert_eq!(worker.ack().await.outcome(), AckOutcome::Accepted);
    assert_eq!(
        until_state(&client, &hopeless.id, JobState::Failed)
            .await
            .attempts,
        1
    );
}

#[tokio::test]
async fn a_result_that_does_not_fit_is_refused_and_the_job_stays_with_its_worker() {
    let mut scene = Scene::of(&BOTH).await;
    let (_, lease) = scene.lease().await;
    let mut wrong = result_of(&lease);
    wrong.result = Some(complete::Result::Tokens(tokens(2)));
    scene.worker.send_complete(wrong).await;
    assert_eq!(
        scene.worker.ack().await.outcome(),
        AckOutcome::Refused,
        "two rows for a job of one"
    );
    let mut wrong = result_of(&lease);
    wrong.nonce = vec![7; 16];
    scene.worker.send_complete(wrong).await;
    assert_eq!(
        scene.worker.ack().await.outcome(),
        AckOutcome::Stale,
        "another's nonce"
    );
    scene.worker.complete(&lease).await;
    assert_eq!(scene.worker.ack().await.outcome(), AckOutcome::Accepted);
}

#[tokio::test]
async fn a_released_job_goes_to_another_worker_and_costs_nothing() {
    let mut scene = Scene::of(&BOTH).await;
    let (_, lease) = scene.lease().await;
    scene.worker.credit(0).await;
    scene.worker.release(&lease).await;
    assert_eq!(scene.worker.ack().await.outcome(), AckOutcome::Accepted);
    let mut second = scene.another("second").await;
    second.credit(1).await;
    let again = second.lease().await;
    assert_eq!(again.job_id, lease.job_id);
    let job = get(&mut scene.client, &lease.job_id).await;
    assert_eq!((job.attempts, job.crashes), (0, 0));
    assert_eq!(Stage::try_from(job.stage), Ok(Stage::Base));
}
