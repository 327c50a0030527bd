//! Workers on the tiny bundle, and leases for them.

use std::path::PathBuf;

use bytes::Bytes;
use muse_engine::{Provider, Stage};
use muse_proto::{
    internal::v1::{Checkpoint, ElementType, Lease, Tensor},
    v1::{GenerationRequest, Sampling, TextToImage, generation_request::Task},
};
use muse_service::{Readiness, Shutdown, ShutdownTrigger, config::Ops};
use muse_worker::{Worker, WorkerConfig};
use tokio::task::JoinHandle;

use crate::{encoder::FakeEncoder, gateway::PATIENCE};

pub(crate) struct Running {
    pub(crate) readiness: Readiness,
    trigger: ShutdownTrigger,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub(crate) async fn start(config: WorkerConfig) -> Self {
        let worker = Worker::bind(config).await.unwrap();
        let readiness = worker.readiness();
        let (trigger, shutdown) = Shutdown::manual_with_drain(PATIENCE);
        Running {
            readiness,
            trigger,
            task: tokio::spawn(worker.serve(shutdown)),
        }
    }

    pub(crate) fn shut_down(&self) {
        self.trigger.shut_down();
    }

    /// Waits for the end.
    pub(crate) async fn ended(self) -> anyhow::Result<()> {
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("the worker did not end")
            .unwrap()
    }

    pub(crate) async fn stop(self) {
        self.shut_down();
        self.ended().await.unwrap();
    }
}

fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

pub(crate) fn bundle() -> PathBuf {
    repository().join("tests/bundles/tiny")
}

pub(crate) fn config(stage: Stage, gateways: &[String], encoders: &[&FakeEncoder]) -> WorkerConfig {
    let mut config = WorkerConfig {
        stage,
        bundle: bundle(),
        ..WorkerConfig::default()
    };
    // The default is one port for the machine.
    config.ops = Ops::on_port(0);
    config.hub.endpoints = gateways.to_vec();
    config.hub.backoff_max_ms = 200;
    config.hub.progress_interval_ms = 5;
    config.encoder.endpoints = encoders.iter().map(|encoder| encoder.endpoint()).collect();
    config.encoder.patience_ms = 300;
    config.encoder.retry_pause_ms = 20;
    config.runtime.onnxruntime = Some(std::env::var_os("MUSE__RUNTIME__ONNXRUNTIME").map_or_else(
        || repository().join(".deps/onnxruntime/libonnxruntime.so"),
        PathBuf::from,
    ));
    config.runtime.providers = vec![Provider::Cpu];
    config.runtime.threads = 1;
    config.batcher.warm_up_passes = 1;
    config.batcher.row_budget = Some(8);
    config.batcher.queue_ahead = 8.0;
    config
}

/// What a test says about a lease.
#[derive(Clone)]
pub(crate) struct Wish {
    pub(crate) job: u8,
    pub(crate) stage: Stage,
    pub(crate) prompt: &'static str,
    pub(crate) negative: &'static str,
    pub(crate) count: u32,
    pub(crate) sampling: Sampling,
    pub(crate) checkpoint: Option<Checkpoint>,
}

pub(crate) fn wish(job: u8, stage: Stage) -> Wish {
    Wish {
        job,
        stage,
        prompt: "two red apples",
        negative: "",
        count: 1,
        sampling: Sampling::default(),
        checkpoint: None,
    }
}

impl Wish {
    pub(crate) fn lease(&self) -> Lease {
        let task = TextToImage {
            prompt: self.prompt.to_owned(),
            negative_prompt: self.negative.to_owned(),
            count: Some(self.count),
        };
        let request = GenerationRequest {
            model: "muse-tiny".to_owned(),
            task: Some(Task::TextToImage(task)),
            base: Some(self.sampling),
            superres: Some(self.sampling),
            seed: Some(1000 + u64::from(self.job)),
            ..GenerationRequest::default()
        };
        Lease {
            job_id: format!("job-{}", self.job),
            nonce: vec![self.job; 16],
            stage: match self.stage {
                Stage::Base => 1,
                Stage::Superres => 2,
            },
            request: Some(request),
            low_tokens: (self.stage == Stage::Superres).then(|| self.low_tokens()),
            checkpoint: self.checkpoint.clone(),
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
            waited: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
            ..Lease::default()
        }
    }

    /// Tokens of the base grid, 4 x 6 with 37 codes.
    fn low_tokens(&self) -> Tensor {
        let data: Vec<u8> = (0..self.count * 24)
            .flat_map(|index| ((index * 7 + u32::from(self.job)) as u16 % 37).to_le_bytes())
            .collect();
        Tensor {
            element_type: ElementType::U16 as i32,
            shape: vec![u64::from(self.count), 24],
            data: Bytes::from(data),
        }
    }
}
