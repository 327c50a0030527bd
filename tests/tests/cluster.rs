//! The whole cluster, as its users and operators see it.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what it saw by panicking"
)]

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use muse_proto::v1::{
    GetQueueStatusRequest, JobState, ListModelsRequest, ListWorkersRequest, Stage, admin_client::AdminClient,
    models_client::ModelsClient,
};
use muse_tests::{
    PATIENCE,
    client::{Client, channel},
    cluster, demo_bundle, logs, metrics, options, requests, start, tiny_bundle,
};

#[tokio::test]
async fn a_prompt_becomes_a_picture_of_the_manifests_size_and_its_progress_is_told() {
    let cluster = cluster(demo_bundle()).await;
    let client = Client::new(&cluster.endpoint());
    let told = client
        .generate(requests::long("two red apples on a blue background", 7))
        .await;

    let (first, last) = (&told.jobs[0], told.jobs.last().expect("a last event"));
    assert_eq!(last.state(), JobState::Succeeded, "{last:?}\n{}", logs(&cluster));
    assert_eq!(first.id, last.id);
    let stages: BTreeSet<i32> = told.progress.iter().map(|progress| progress.stage).collect();
    assert_eq!(
        stages,
        BTreeSet::from([Stage::Base.into(), Stage::Superres.into()]),
        "{:?}",
        told.progress
    );
    assert!(
        told.progress
            .iter()
            .all(|progress| progress.step <= progress.of && progress.of > 0)
    );

    let mut models = ModelsClient::new(channel(&cluster.endpoint()));
    let models = models
        .list_models(ListModelsRequest {})
        .await
        .expect("a list")
        .into_inner()
        .models;
    assert_eq!(models.len(), 1);
    assert_eq!(told.images.len(), 8);
    for (index, bytes) in told.images.iter().enumerate() {
        assert_eq!(&bytes[..8], b"\x89PNG\r\n\x1a\n");
        // The first chunk of a PNG is its header: width and height, big-endian.
        let size = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        assert_eq!((size(16), size(20)), (models[0].width, models[0].height));
        assert_eq!(
            &client.image(&last.id, u32::try_from(index).expect("small")).await,
            bytes
        );
    }
    let distinct: BTreeSet<&Vec<u8>> = told.images.iter().collect();
    assert_eq!(distinct.len(), 8, "pictures of one job differ");
    cluster.stop().await;
}

#[tokio::test]
async fn nothing_about_the_model_is_in_the_code() {
    let cluster = cluster(tiny_bundle()).await;
    let client = Client::new(&cluster.endpoint());
    let job = client.submit(requests::text_to_image("a red circle", 3)).await;
    let job = client.end(&job.id).await;
    assert_eq!(job.state(), JobState::Succeeded, "{job:?}\n{}", logs(&cluster));
    assert_eq!(
        (job.images[0].width, job.images[0].height),
        (48, 32),
        "an odd size, from the manifest"
    );
    let request = job.request.expect("as accepted");
    assert!(
        request
            .base
            .is_some_and(|base| base.steps.is_some_and(|steps| steps > 0)),
        "defaults are filled in"
    );
    assert_eq!(request.seed, Some(3));
    cluster.stop().await;
}

#[tokio::test]
async fn a_provider_list_that_ends_in_cpu_runs_on_the_cpu_and_says_so() {
    let mut options = options(tiny_bundle());
    options.overrides.push(
        "worker.runtime.providers=[\"cuda\", \"cpu\"]"
            .parse()
            .expect("an override"),
    );
    let cluster = start(options).await;
    let mut admin = AdminClient::new(channel(&cluster.endpoint()));
    let workers = admin
        .list_workers(ListWorkersRequest {})
        .await
        .expect("a list")
        .into_inner()
        .workers;
    assert_eq!(workers.len(), 2, "{workers:?}");
    assert!(
        workers.iter().all(|worker| worker.provider == "cpu"),
        "{workers:?}"
    );
    assert!(workers.iter().all(|worker| worker.row_budget >= 2), "{workers:?}");
    cluster.stop().await;
}

/// What Linux says of each thread of a process under `key`.
#[cfg(target_os = "linux")]
fn of_threads(pid: u32, key: &str) -> BTreeSet<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    let statuses = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok());
    let value = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.map(|rest| rest.trim_start_matches(':').trim().to_owned())
    };
    statuses.filter_map(value).collect()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_worker_stays_on_its_cpus_with_all_its_threads_and_counts_no_others() {
    let allowed = of_threads(std::process::id(), "Cpus_allowed_list");
    let first = allowed.first().and_then(|list| list.split(['-', ',']).next());
    let first = first.expect("a CPU").to_owned();
    let mut options = options(tiny_bundle());
    let set = format!("worker.process.cpus={first}");
    options.overrides.push(set.parse().expect("an override"));
    let cluster = start(options).await;
    let client = Client::new(&cluster.endpoint());
    let job = client.submit(requests::text_to_image("a red circle", 3)).await;
    let job = client.end(&job.id).await;
    assert_eq!(job.state(), JobState::Succeeded, "{job:?}\n{}", logs(&cluster));
    for part in ["base-0", "superres-0"] {
        let pid = cluster.pid(part).expect("it runs");
        assert_eq!(
            of_threads(pid, "Cpus_allowed_list"),
            BTreeSet::from([first.clone()]),
            "{part}"
        );
        // One core is one lane, the device's own thread.
        let names = of_threads(pid, "Name");
        assert!(
            names.contains("device") && !names.contains("lane-1"),
            "{part}: {names:?}"
        );
    }
    cluster.stop().await;
}

#[tokio::test]
async fn workers_without_a_job_give_memory_back_and_make_the_same_picture_afterwards() {
    let mut options = options(tiny_bundle());
    options
        .overrides
        .push("worker.batcher.rest_after_ms=20".parse().expect("an override"));
    let cluster = start(options).await;
    let client = Client::new(&cluster.endpoint());
    let request = requests::text_to_image("a red circle", 3);
    let before = client.make(request.clone()).await;
    let begun = Instant::now();
    for part in ["base-0", "superres-0"] {
        while metrics::sum(&cluster, part, "muse_memory_releases_total").await < 1.0 {
            assert!(
                begun.elapsed() < PATIENCE,
                "{part} does not rest\n{}",
                logs(&cluster)
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert_eq!(client.make(request).await, before, "{}", logs(&cluster));
    cluster.stop().await;
}

#[tokio::test]
async fn a_job_waits_for_a_worker_and_runs_when_one_attaches() {
    let cluster = cluster(tiny_bundle()).await;
    let client = Client::new(&cluster.endpoint());
    cluster.stop_part("base-0").await.expect("drains");
    let job = client.submit(requests::text_to_image("a blue square", 4)).await;
    let mut admin = AdminClient::new(channel(&cluster.endpoint()));
    let status = admin
        .get_queue_status(GetQueueStatusRequest {})
        .await
        .expect("a status")
        .into_inner();
    let base = status
        .pools
        .iter()
        .find(|pool| pool.stage() == Stage::Base)
        .expect("the base pool");
    assert_eq!(
        (base.waiting, base.running, base.workers),
        (1, 0, 0),
        "{status:?}"
    );
    cluster.start_part("base-0").await.expect("starts again");
    assert_eq!(client.pictures(&job.id).await.len(), 1, "{}", logs(&cluster));
    cluster.stop().await;
}

#[tokio::test]
async fn logs_that_go_to_a_file_have_no_colours() {
    let cluster = cluster(tiny_bundle()).await;
    let client = Client::new(&cluster.endpoint());
    client.make(requests::text_to_image("a red circle", 5)).await;
    for part in ["gateway-0", "encoder-0", "base-0", "superres-0"] {
        let log = cluster.log_tail(part, 1000).expect("its log");
        assert!(log.contains(" INFO "), "{part} says what it does: {log}");
        assert!(!log.contains('\u{1b}'), "{part}: {log:?}");
    }
    cluster.stop().await;
}
