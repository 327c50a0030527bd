//! Pictures in a folder, with the whole cluster around it.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what it saw by panicking"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use muse_proto::v1::JobState;
use muse_tests::{PATIENCE, client::Client, logs, options, requests, restart, start, tiny_bundle};
use musectl::cluster::{LocalCluster, Override};
use tempfile::TempDir;

/// A cluster that keeps its pictures in `folder`.
async fn with_folder(folder: &Path) -> LocalCluster {
    let mut options = options(tiny_bundle());
    for text in [
        format!("gateway.results.store=\"file://{}\"", folder.display()),
        // At most half of the tests' short lease.
        "gateway.results.timeout_ms=1000".to_owned(),
        "gateway.results.retry_ms=200".to_owned(),
    ] {
        options
            .overrides
            .push(text.parse::<Override>().expect("an override"));
    }
    start(options).await
}

/// The pictures' files of a job, in order.
fn files(folder: &Path, job: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder");
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| {
            let entry = entry.expect("an entry");
            let ours = entry.file_name().to_string_lossy().starts_with(job);
            ours.then(|| fs::read_dir(entry.path()).expect("a folder"))
        })
        .flatten()
        .map(|file| file.expect("a file").path())
        .collect();
    files.sort_unstable();
    files
}

#[tokio::test]
async fn a_picture_in_a_folder_outlives_the_gateway() {
    let root = TempDir::new().expect("a folder");
    let cluster = with_folder(root.path()).await;
    let client = Client::new(&cluster.endpoint());
    let job = client.submit(requests::text_to_image("a red circle", 3)).await;
    let job = client.end(&job.id).await;
    assert_eq!(job.state(), JobState::Succeeded, "{job:?}\n{}", logs(&cluster));
    let picture = client.image(&job.id, 0).await;
    let found = files(root.path(), &job.id);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(fs::read(&found[0]).expect("a file"), picture);
    assert!(picture.starts_with(b"\x89PNG"));

    restart(&cluster, "gateway-0").await;
    assert_eq!(client.image(&job.id, 0).await, picture);
    cluster.stop().await;
}

#[tokio::test]
async fn a_result_waits_with_its_worker_while_the_folder_is_away() {
    let root = TempDir::new().expect("a folder");
    let (folder, away) = (root.path().join("pictures"), root.path().join("away"));
    fs::create_dir(&folder).expect("a folder");
    let cluster = with_folder(&folder).await;
    let client = Client::new(&cluster.endpoint());
    fs::rename(&folder, &away).expect("renamed");
    let job = client.submit(requests::text_to_image("a red circle", 3)).await;
    // The result is there and cannot be stored, for longer than a lease.
    let begun = tokio::time::Instant::now();
    let told = |part: &str| cluster.log_tail(part, 200).unwrap_or_default();
    while !told("gateway-0").contains("pictures cannot be stored") {
        assert!(begun.elapsed() < PATIENCE, "no word of it\n{}", logs(&cluster));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let kept = client.job(&job.id).await.expect("known");
    assert_eq!(
        (kept.state(), kept.crashes, kept.attempts),
        (JobState::Running, 0, 0),
        "{kept:?}"
    );
    assert!(!folder.exists(), "nothing was written to where no volume is");

    fs::rename(&away, &folder).expect("renamed");
    let job = client.end(&job.id).await;
    assert_eq!(
        (job.state(), job.crashes),
        (JobState::Succeeded, 0),
        "{job:?}\n{}",
        logs(&cluster)
    );
    assert_eq!(
        fs::read(&files(&folder, &job.id)[0]).expect("a file"),
        client.image(&job.id, 0).await
    );
    cluster.stop().await;
}
