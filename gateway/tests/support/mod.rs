//! What the gateway's tests share: a Redis of their own, a gateway in process, and a worker that computes nothing.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(unreachable_pub, reason = "a module of test binaries, not a crate")]

pub mod cluster;
pub mod redis_server;
pub mod scene;
pub mod worker;

use std::{future::Future, time::Duration};

use muse_proto::v1::{
    GenerationRequest, GuidanceSchedule, MaskSchedule, Model, ModelStage, Sampling, Scheduler, Stage,
    TextToImage, generation_request::Task,
};

/// Longer than anything takes that works.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` gives something, and fails with what it was about.
pub async fn until<T, Fut: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> Fut) -> T {
    let begun = tokio::time::Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// `future`, which must not take for ever.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited in vain for: {what}"),
    }
}

pub fn defaults() -> Sampling {
    Sampling {
        steps: Some(3),
        guidance: Some(2.0),
        guidance_schedule: GuidanceSchedule::Linear as i32,
        temperature: Some(1.0),
        top_k: Some(0),
        choice_temperature: Some(4.5),
        mask_schedule: MaskSchedule::Cosine as i32,
        scheduler: Scheduler::Confidence as i32,
    }
}

/// A model of odd shapes with the stages given.
pub fn model(name: &str, stages: &[Stage]) -> Model {
    let stage = |stage: &Stage| {
        let grid = if *stage == Stage::Base { (2, 3) } else { (4, 6) };
        ModelStage {
            stage: *stage as i32,
            grid_rows: grid.0,
            grid_columns: grid.1,
            codebook_size: 64,
            defaults: Some(defaults()),
            workers: 0,
        }
    };
    Model {
        name: name.to_owned(),
        version: "1".to_owned(),
        bundle_digest: "ab".repeat(32),
        stages: stages.iter().map(stage).collect(),
        width: 48,
        height: 32,
        max_text_tokens: 16,
        ..Model::default()
    }
}

pub fn request(prompt: &str) -> GenerationRequest {
    let task = TextToImage {
        prompt: prompt.to_owned(),
        ..TextToImage::default()
    };
    GenerationRequest {
        task: Some(Task::TextToImage(task)),
        ..GenerationRequest::default()
    }
}
