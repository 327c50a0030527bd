//! What the end-to-end tests share: a cluster of real processes, a client, and waits on conditions.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    missing_docs,
    reason = "a test says what it saw by panicking"
)]

pub mod batch;
pub mod client;
pub mod harness;
pub mod metrics;
pub mod noop;
pub mod noop_worker;
pub mod programs;
pub mod requests;

use std::{path::PathBuf, time::Duration};

use musectl::cluster::{ClusterOptions, LocalCluster, Override, Programs, RestartPolicy};

/// How long a test waits for something that should happen at once. Not a verdict on speed: only the end of a hopeless wait.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The folder of the repository.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .expect("the repository's folder")
}

/// The bundle of random weights and odd shapes: quick, and nothing about it can be guessed.
pub fn tiny_bundle() -> PathBuf {
    repository().join("tests/bundles/tiny")
}

/// The bundle that `make demo` uses: slow enough to be caught in mid-job.
pub fn demo_bundle() -> PathBuf {
    repository().join("bundles/demo")
}

/// Options of a cluster in which a killed part stays down until the test starts it, leases are short, and progress and
/// checkpoints come often.
pub fn options(bundle: PathBuf) -> ClusterOptions {
    let programs =
        Programs::beside(&programs::folder()).expect("the services are built: cargo build --workspace");
    let mut options = ClusterOptions::new(bundle, programs);
    options.restart = RestartPolicy::Never;
    options.overrides = [
        "gateway.queue.lease_ms=2000",
        "gateway.queue.reap_ms=100",
        "gateway.hub.heartbeat_ms=100",
        "gateway.hub.worker_expiry_ms=1500",
        "gateway.watch.settle_ms=0",
        "worker.hub.progress_interval_ms=50",
        "worker.batcher.warm_up_max_rows=16",
        "worker.batcher.warm_up_passes=1",
    ]
    .iter()
    .map(|text| text.parse::<Override>().expect("an override"))
    .collect();
    options
}

/// A running cluster with [`options`].
pub async fn cluster(bundle: PathBuf) -> LocalCluster {
    start(options(bundle)).await
}

/// A running cluster, or a panic that shows the log of what failed.
pub async fn start(options: ClusterOptions) -> LocalCluster {
    match LocalCluster::start(options).await {
        Ok(cluster) => cluster,
        Err(error) => panic!("the cluster did not start: {error}"),
    }
}

/// SIGKILL, and a fresh start at the same addresses.
pub async fn restart(cluster: &LocalCluster, part: &str) {
    cluster.kill(part).await.expect("it was alive");
    cluster.start_part(part).await.expect("starts again");
}

/// The last lines of every part's log, for a failing test to print.
pub fn logs(cluster: &LocalCluster) -> String {
    let mut text = String::new();
    for part in cluster.parts() {
        let tail = cluster
            .log_tail(part, 15)
            .unwrap_or_else(|error| error.to_string());
        text.push_str(&format!("--- {part}\n{tail}\n"));
    }
    text
}
