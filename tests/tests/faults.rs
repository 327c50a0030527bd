//! Parts are killed with SIGKILL in mid-job: each job ends once, with the same pictures.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what it saw by panicking"
)]

use muse_proto::v1::{JobState, Stage};
use muse_tests::{client::Client, cluster, demo_bundle, logs, options, requests, restart, start};

#[tokio::test]
async fn a_job_outlives_the_worker_that_runs_it() {
    let cluster = cluster(demo_bundle()).await;
    let client = Client::new(&cluster.endpoint());
    let request = requests::long("a yellow star on a black background", 11);
    let undisturbed = client.make(request.clone()).await;

    for (stage, part, step) in [(Stage::Base, "base-0", 5), (Stage::Superres, "superres-0", 2)] {
        let job = client.submit(request.clone()).await;
        client.reach(&job.id, stage, step).await;
        restart(&cluster, part).await;
        assert_eq!(
            client.pictures(&job.id).await,
            undisturbed,
            "{part} killed\n{}",
            logs(&cluster)
        );
        let job = client.job(&job.id).await.expect("it is there");
        assert_eq!((job.state(), job.images.len()), (JobState::Succeeded, 8));
    }
    assert_eq!(client.jobs().await.len(), 3, "no job was made twice");
    cluster.stop().await;
}

#[tokio::test]
async fn a_job_and_its_watch_outlive_the_gateway() {
    let cluster = cluster(demo_bundle()).await;
    let client = Client::new(&cluster.endpoint());
    let request = requests::long("a fox", 12);
    let undisturbed = client.make(request.clone()).await;

    for stage in [Stage::Base, Stage::Superres] {
        let job = client.submit(request.clone()).await;
        client.reach(&job.id, stage, 2).await;
        let watch = {
            let (client, id) = (client.clone(), job.id.clone());
            tokio::spawn(async move { client.pictures(&id).await })
        };
        restart(&cluster, "gateway-0").await;
        let pictures = watch.await.expect("the watch resumes");
        assert_eq!(
            pictures,
            undisturbed,
            "gateway killed in {stage:?}\n{}",
            logs(&cluster)
        );
    }
    assert_eq!(client.jobs().await.len(), 3, "no job was made twice");
    cluster.stop().await;
}

#[tokio::test]
async fn workers_deliver_through_the_other_gateway_when_theirs_is_gone_for_good() {
    let mut options = options(demo_bundle());
    options.sizes.gateways = 2;
    let cluster = start(options).await;
    let endpoints = cluster.endpoints();
    let clients: Vec<Client> = endpoints.iter().map(|endpoint| Client::new(endpoint)).collect();
    let job = clients[1].submit(requests::long("a cat", 13)).await;
    clients[1].reach(&job.id, Stage::Base, 2).await;
    cluster.kill("gateway-0").await.expect("it was alive");
    let pictures = clients[1].pictures(&job.id).await;
    assert_eq!(pictures.len(), 8, "{}", logs(&cluster));
    cluster.stop().await;
}

#[tokio::test]
async fn a_job_outlives_the_queue_server() {
    let cluster = cluster(demo_bundle()).await;
    let client = Client::new(&cluster.endpoint());
    let request = requests::long("a blue heart", 14);
    let undisturbed = client.make(request.clone()).await;

    let job = client.submit(request).await;
    client.reach(&job.id, Stage::Base, 2).await;
    restart(&cluster, "valkey").await;
    assert_eq!(client.pictures(&job.id).await, undisturbed, "{}", logs(&cluster));
    cluster.stop().await;
}

#[tokio::test]
async fn a_cancelled_job_stops_and_leaves_its_worker_to_others() {
    let cluster = cluster(demo_bundle()).await;
    let client = Client::new(&cluster.endpoint());
    let job = client.submit(requests::long("a dog", 15)).await;
    client.reach(&job.id, Stage::Base, 1).await;
    assert_eq!(client.cancel(&job.id).await.state(), JobState::Cancelled);
    assert_eq!(client.end(&job.id).await.state(), JobState::Cancelled);
    let next = client.make(requests::text_to_image("a dog", 15)).await;
    assert_eq!(next.len(), 1, "{}", logs(&cluster));
    cluster.stop().await;
}
