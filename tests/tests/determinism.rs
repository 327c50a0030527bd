//! A picture depends on its request alone.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what it saw by panicking"
)]

use muse_proto::v1::{GenerationRequest, MaskSchedule, Sampling, Scheduler, Stage, generation_request::Task};
use muse_tests::{client::Client, cluster, demo_bundle, logs, requests};

/// Seven requests that differ in all that can differ in a pass.
fn others() -> Vec<GenerationRequest> {
    (0..7_u32)
        .map(|index| {
            let mut request = requests::text_to_image(
                &format!("{} stars", ["two", "three", "four"][index as usize % 3]),
                100,
            );
            request.seed = Some(u64::from(index) + 40);
            if let Some(Task::TextToImage(task)) = &mut request.task {
                task.count = Some(1 + index % 3);
                task.negative_prompt = if index % 2 == 0 {
                    String::new()
                } else {
                    "a dog".to_owned()
                };
            }
            request.base = Some(Sampling {
                steps: Some(5 + 7 * index),
                guidance: Some(index as f32),
                temperature: Some(0.7 + 0.1 * index as f32),
                top_k: Some(if index == 3 { 5 } else { 0 }),
                mask_schedule: MaskSchedule::Linear.into(),
                scheduler: if index == 5 {
                    Scheduler::Halton.into()
                } else {
                    Scheduler::Confidence.into()
                },
                ..Sampling::default()
            });
            request.superres = Some(Sampling {
                steps: Some(3 + 2 * index),
                ..Sampling::default()
            });
            request
        })
        .collect()
}

#[tokio::test]
async fn a_request_alone_among_seven_others_and_after_a_restart_in_the_middle_gives_the_same_pictures() {
    let cluster = cluster(demo_bundle()).await;
    let client = Client::new(&cluster.endpoint());
    let request = requests::long("two red apples on a blue background", 7);

    let alone = client.make(request.clone()).await;
    assert_eq!(alone.len(), 8);

    let mut jobs = Vec::new();
    for other in others() {
        jobs.push(client.submit(other).await.id);
    }
    let among = client.make(request.clone()).await;
    for id in &jobs {
        client.pictures(id).await;
    }
    assert_eq!(among, alone, "among seven others\n{}", logs(&cluster));

    for (stage, part, step) in [(Stage::Base, "base-0", 5), (Stage::Superres, "superres-0", 2)] {
        let stopped = client.submit(request.clone()).await;
        client.reach(&stopped.id, stage, step).await;
        cluster.stop_part(part).await.expect("drains");
        cluster.start_part(part).await.expect("starts again");
        let job = client.end(&stopped.id).await;
        assert_eq!(job.crashes, 0, "a drain is no crash: {job:?}");
        assert_eq!(
            client.pictures(&stopped.id).await,
            alone,
            "{part} restarted\n{}",
            logs(&cluster)
        );
    }
    cluster.stop().await;
}
