//! musectl as an operator uses it, against a real cluster.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what it saw by panicking"
)]

use muse_proto::v1::JobState;
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

#[tokio::test]
async fn a_paused_pool_keeps_its_jobs_until_it_is_resumed() {
    let cluster = cluster(tiny_bundle()).await;
    let client = Client::new(&cluster.endpoint());
    let pool = ["--model", "muse-tiny", "--stage", "base"];
    let pause = [&["queue", "pause", "--reason", "an upgrade"], &pool[..]].concat();
    let first = told(&cluster, &pause).await;
    assert_eq!(first[0]["already"], false, "{first:?}");
    assert_eq!(first[0]["paused"]["reason"], "an upgrade", "{first:?}");
    assert_eq!(told(&cluster, &pause).await[0]["already"], true);

    let job = client.submit(requests::text_to_image("a red circle", 3)).await;
    let status = told(&cluster, &["queue", "status"]).await;
    let base = &status[0]["pools"][0];
    assert_eq!(base["paused"]["reason"], "an upgrade", "{status:?}");
    assert_eq!(
        (&base["waiting"], &base["running"]),
        (&1.into(), &0.into()),
        "{status:?}"
    );

    let resume = [&["queue", "resume"], &pool[..]].concat();
    assert_eq!(told(&cluster, &resume).await[0]["was_paused"], true);
    assert_eq!(client.pictures(&job.id).await.len(), 1, "{}", logs(&cluster));
    assert_eq!(told(&cluster, &resume).await[0]["was_paused"], false);
    cluster.stop().await;
}

#[tokio::test]
async fn a_drained_worker_leaves_and_its_successor_does_the_work() {
    let cluster = cluster(tiny_bundle()).await;
    let client = Client::new(&cluster.endpoint());
    let workers = async || {
        let listed = told(&cluster, &["worker", "list"]).await;
        let of = |stage: &str| {
            let workers = listed[0].as_array().expect("a list").iter();
            let ids = workers.filter(|worker| worker["stage"] == stage);
            ids.map(|worker| worker["id"].as_str().expect("an id").to_owned())
                .collect::<Vec<_>>()
        };
        (of("base"), of("superres"))
    };
    let (base, superres) = workers().await;
    let [drained] = &base[..] else {
        panic!("not one base worker but {base:?}")
    };

    let answer = told(&cluster, &["worker", "drain", drained]).await;
    assert_eq!(
        (&answer[0][0]["worker"], &answer[0][0]["gone"]),
        (&drained.as_str().into(), &true.into()),
        "{answer:?}"
    );
    assert_eq!(workers().await, (vec![], superres), "{}", logs(&cluster));
    let again = musectl(&cluster, &["worker", "drain", drained]).await;
    assert_eq!(again.code, Some(5), "it is not there any more: {again:?}");

    let job = client.submit(requests::text_to_image("a red circle", 3)).await;
    cluster.start_part("base-0").await.expect("a new worker");
    assert_eq!(client.pictures(&job.id).await.len(), 1, "{}", logs(&cluster));
    cluster.stop().await;
}

#[tokio::test]
async fn a_tenants_limits_are_set_listed_and_put_back() {
    let cluster = cluster(tiny_bundle()).await;
    let set = told(
        &cluster,
        &["tenant", "set", "lab", "--weight", "2.5", "--max-queued", "7"],
    )
    .await;
    assert_eq!(set[0][0]["settings"]["max_queued"], 7, "{set:?}");
    let listed = told(&cluster, &["tenant", "list"]).await;
    let tenants = listed[0].as_array().expect("a list");
    let lab = tenants
        .iter()
        .find(|tenant| tenant["name"] == "lab")
        .unwrap_or_else(|| panic!("lab is not in {listed:?}"));
    assert_eq!(lab["in_force"]["weight"], 2.5, "{lab}");
    assert!(
        lab["in_force"]["max_running"].is_u64(),
        "every setting has a value: {lab}"
    );

    let reset = told(&cluster, &["tenant", "set", "lab", "--reset", "max_queued"]).await;
    assert_eq!(reset[0][0]["settings"]["max_queued"], Value::Null, "{reset:?}");
    let refused = musectl(&cluster, &["tenant", "set", "lab", "--weight", "0"]).await;
    assert_eq!(refused.code, Some(2), "{refused:?}");
    cluster.stop().await;
}

#[tokio::test]
async fn a_dead_job_is_shown_with_its_history_retried_and_purged() {
    let cluster = cluster(tiny_bundle()).await;
    let client = Client::new(&cluster.endpoint());
    // More tokens than any test bundle takes: the worker refuses it for good.
    let job = client
        .submit(requests::text_to_image(&"red circle ".repeat(100), 3))
        .await;
    assert_eq!(
        client.end(&job.id).await.state(),
        JobState::Failed,
        "{}",
        logs(&cluster)
    );

    let listed = told(&cluster, &["dead", "list", "--reason", "invalid_request"]).await;
    assert_eq!(listed[0][0]["job_id"], job.id.as_str(), "{listed:?}");
    assert_eq!(listed[0][0]["error"]["reason"], "invalid_request", "{listed:?}");
    assert_eq!(
        told(&cluster, &["dead", "list", "--stage", "superres"]).await[0],
        Value::Array(vec![])
    );
    let shown = told(&cluster, &["dead", "show", &job.id]).await;
    assert_eq!(shown[0]["history"].as_array().map(Vec::len), Some(1), "{shown:?}");

    let retried = told(&cluster, &["dead", "retry", &job.id]).await;
    assert_eq!(retried[0]["jobs"], 1, "{retried:?}");
    assert_eq!(
        client.end(&job.id).await.state(),
        JobState::Failed,
        "it fails again"
    );
    let purged = told(&cluster, &["dead", "purge", "--all"]).await;
    assert_eq!(purged[0]["jobs"], 1, "{purged:?}");
    assert_eq!(told(&cluster, &["dead", "list"]).await[0], Value::Array(vec![]));
    for gone in [&["dead", "show"][..], &["dead", "retry"], &["job", "requeue"]] {
        let ended = musectl(&cluster, &[gone, &[job.id.as_str()]].concat()).await;
        assert_eq!(ended.code, Some(5), "{gone:?}: {ended:?}");
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_sound_queue_passes_the_audit() {
    let cluster = cluster(tiny_bundle()).await;
    Client::new(&cluster.endpoint())
        .make(requests::text_to_image("a red circle", 3))
        .await;
    let audit = told(&cluster, &["audit"]).await;
    assert_eq!(audit[0]["findings"], Value::Array(vec![]), "{audit:?}");
    assert_eq!(audit[0]["jobs"], 1, "{audit:?}");
    cluster.stop().await;
}
