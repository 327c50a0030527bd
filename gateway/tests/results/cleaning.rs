//! Pictures go with their jobs, and without them.

use std::time::Duration;

use axum::http::StatusCode;
use muse_gateway::jobs::{JobId, Nonce};
use muse_proto::v1::Stage;

use super::{
    bucket::Bucket,
    travel::{finished, picture, pictures_of},
};
use crate::support::{
    scene::{Scene, cancel, submit},
    until,
    worker::picture_bytes,
};

#[tokio::test]
async fn a_forgotten_jobs_pictures_go_even_if_the_bucket_was_away_then() {
    let bucket = Bucket::start().await;
    let mut scene = Scene::with(&[Stage::Base], |config| {
        bucket.configure(config);
        config.queue.keep_done_seconds = 1;
        config.queue.housekeeping_ms = 50;
        config.results.sweep_seconds = 0;
    })
    .await;
    let job = finished(&mut scene).await;
    assert_eq!(pictures_of(&bucket, &job).len(), 1);
    bucket.set_broken(Some(StatusCode::SERVICE_UNAVAILABLE));
    until(
        "the job to be forgotten, and its pictures not to be deletable",
        || async {
            let known: Vec<String> = scene.redis.ask(&["KEYS", "*j:*"]).await;
            let tried = bucket
                .requests()
                .iter()
                .any(|request| request.contains("list-type") && request.ends_with("503"));
            (known.is_empty() && tried).then_some(())
        },
    )
    .await;
    assert_eq!(pictures_of(&bucket, &job).len(), 1);
    bucket.set_broken(None);
    until("its pictures to go", || async {
        pictures_of(&bucket, &job).is_empty().then_some(())
    })
    .await;
    assert_eq!(bucket.names(), ["pictures/muse-owner"]);
}

#[tokio::test]
async fn a_sweep_deletes_what_no_job_refers_to_and_nothing_else() {
    let bucket = Bucket::start().await;
    let mut scene = Scene::with(&[Stage::Base], |config| {
        bucket.configure(config);
        config.queue.keep_done_seconds = 3_600;
        config.queue.housekeeping_ms = 50;
        config.results.grace_seconds = 600;
        config.results.sweep_seconds = 1;
        config.results.sweep_batch = 3;
    })
    .await;
    let done = finished(&mut scene).await;
    let live = submit(&mut scene.client, "a dog").await;
    let cancelled = submit(&mut scene.client, "a bird").await;
    cancel(&mut scene.client, &cancelled.id).await;
    let name = |id: &str| format!("pictures/{id}.{}/0", Nonce::random());
    let unknown = || name(&JobId::new(0).to_string());
    let (day, hour) = (Duration::from_secs(24 * 3600), Duration::from_secs(3600));
    let orphans = [
        unknown(),
        unknown(),
        unknown(),
        name(&done.id),
        name(&cancelled.id),
        // Of a gateway that died as it started.
        format!("pictures/muse-probe-{}/0", Nonce::random()),
    ];
    let young = name(&cancelled.id);
    let kept = [
        unknown(),
        name(&live.id),
        young.clone(),
        format!("pictures/muse-probe-{}/0", Nonce::random()),
        // A job of a shard that this gateway does not serve.
        name(&JobId::new(7).to_string()),
        "pictures/notes.txt".to_owned(),
        "pictures/a/b/c".to_owned(),
        "elsewhere/0".to_owned(),
    ];
    for (index, orphan) in orphans.iter().enumerate() {
        // Those of an ended job need only be older than the grace.
        let of_ended = index == 3 || index == 4;
        bucket.put(orphan, if of_ended { Duration::from_secs(700) } else { day });
    }
    bucket.put(&kept[0], hour);
    for kept in &kept[1..] {
        bucket.put(kept, day);
    }
    for young in &kept[2..4] {
        bucket.put(young, Duration::from_secs(60));
    }
    until("the orphans to go", || async {
        let names = bucket.names();
        (!orphans.iter().any(|orphan| names.contains(orphan))).then_some(())
    })
    .await;
    // Another sweep, whole, changes nothing more.
    let lists = || {
        bucket
            .requests()
            .iter()
            .filter(|request| request.contains("list-type"))
            .count()
    };
    let before = lists();
    until("another sweep", || async { (lists() > before + 8).then_some(()) }).await;
    let names = bucket.names();
    for kept in &kept {
        assert!(names.contains(kept), "{kept} is gone: {names:#?}");
    }
    assert_eq!(picture(&mut scene.client, &done).await.unwrap(), picture_bytes(0));
    assert_eq!(names.len(), kept.len() + 2, "{names:#?}");

    // The store goes to another cluster: this one deletes nothing there any more.
    bucket.put_content("pictures/muse-owner", b"another", day);
    let orphan = unknown();
    bucket.put(&orphan, day);
    let reads = || {
        let requests = bucket.requests();
        requests
            .iter()
            .filter(|request| request.starts_with("GET") && request.contains("muse-owner"))
            .count()
    };
    let before = reads();
    until("two sweeps that were not made", || async {
        (reads() > before + 2).then_some(())
    })
    .await;
    assert!(bucket.names().contains(&orphan));
}
