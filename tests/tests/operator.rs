//! musectl as an operator uses it, against a real cluster.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what it saw by panicking"
)]

use muse_tests::{
    client::Client,
    cluster, logs,
    programs::{Ended, run_to_end},
    requests, tiny_bundle,
};
use musectl::cluster::LocalCluster;
use serde_json::Value;

/// Runs musectl against the cluster; its output is JSON.
async fn musectl(cluster: &LocalCluster, arguments: &[&str]) -> Ended {
    let endpoint = cluster.endpoint();
    let arguments: Vec<&str> = [&["--endpoint", &endpoint, "--output", "json"], arguments].concat();
    run_to_end("musectl", &arguments, &[]).await
}

/// What it printed; a panic when it failed.
async fn told(cluster: &LocalCluster, arguments: &[&str]) -> Vec<Value> {
    let ended = musectl(cluster, arguments).await;
    assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}\n{}", logs(cluster));
    serde_json::Deserializer::from_str(&ended.stdout)
        .into_iter()
        .map(|value| value.unwrap_or_else(|error| panic!("{arguments:?}: {error}: {ended:?}")))
        .collect()
}

#[tokio::test]
async fn a_watched_queue_shows_each_look_on_a_line() {
    let cluster = cluster(tiny_bundle()).await;
    Client::new(&cluster.endpoint())
        .make(requests::text_to_image("a red circle", 3))
        .await;
    let looks = told(
        &cluster,
        &["queue", "watch", "--interval", "0.01", "--times", "3"],
    )
    .await;
    assert_eq!(looks.len(), 3, "{looks:?}");
    for look in &looks {
        let stages: Vec<&str> = look["pools"]
            .as_array()
            .expect("pools")
            .iter()
            .filter_map(|pool| pool["stage"].as_str())
            .collect();
        assert_eq!(stages, ["base", "superres"], "{look}");
        assert_eq!(look["workers"].as_array().map(Vec::len), Some(2), "{look}");
    }
    cluster.stop().await;
}
