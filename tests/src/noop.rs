//! Workers that compute nothing, for runs in which only the queue and its clients matter.

use std::time::Duration;

use muse_proto::{
    internal::v1::{
        AttachRequest, Complete, Credit, ElementType, Heartbeat, Hello, Lease, Picture, Pictures, Tensor,
        attach_request::Message, attach_response, complete::Result as StageResult,
        worker_hub_client::WorkerHubClient,
    },
    v1::{
        GuidanceSchedule, ImageFormat, ImageInfo, MaskSchedule, Model, ModelStage, Sampling, Scheduler,
        Stage, StageTiming, generation_request::Task,
    },
};
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::client::channel;

/// Rows that each would take at any time.
const ROWS: u32 = 256;
/// Messages that may wait to be sent; more than leases are ever granted before their reports are read.
const OUTBOX: usize = 4096;
/// Well within any lease.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Between two attempts to attach.
const PAUSE: Duration = Duration::from_millis(100);
/// Tokens of a base grid of 2 x 3.
const TOKENS: u64 = 6;
/// Tokens that there are.
const CODEBOOK: u32 = 64;
/// What their model is called.
pub const MODEL: &str = "noop";

/// A worker of each stage; they end with this.
#[derive(Debug)]
pub struct NoopWorkers(Vec<JoinHandle<()>>);

impl NoopWorkers {
    /// Attached to the gateway at `endpoint`, and again whenever it is back.
    pub fn start(endpoint: &str) -> Self {
        let start = |stage: Stage| {
            let (endpoint, id) = (endpoint.to_owned(), format!("noop-{stage:?}"));
            tokio::spawn(async move {
                loop {
                    let ended = session(&endpoint, &id, stage).await;
                    eprintln!("{id}: {ended:?}");
                    tokio::time::sleep(PAUSE).await;
                }
            })
        };
        Self(vec![start(Stage::Base), start(Stage::Superres)])
    }
}

impl Drop for NoopWorkers {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

async fn session(endpoint: &str, id: &str, stage: Stage) -> Result<(), Status> {
    let (outbox, messages) = mpsc::channel(OUTBOX);
    let send = async |message| {
        let message = AttachRequest {
            message: Some(message),
        };
        // A stream that broke is noticed by its other half.
        let _ = outbox.send(message).await;
    };
    send(Message::Hello(Hello {
        worker_id: id.to_owned(),
        stage: stage.into(),
        model: Some(model()),
        provider: "none".to_owned(),
        device: "none".to_owned(),
        version: "0".to_owned(),
        row_budget: ROWS,
    }))
    .await;
    send(Message::Credit(Credit { rows: ROWS })).await;
    let mut client = WorkerHubClient::new(channel(endpoint)).max_decoding_message_size(64 * 1024 * 1024);
    let mut inbox = client.attach(ReceiverStream::new(messages)).await?.into_inner();
    let mut beats = tokio::time::interval(HEARTBEAT);
    loop {
        tokio::select! {
            message = inbox.message() => match message?.and_then(|message| message.message) {
                Some(attach_response::Message::Lease(lease)) => {
                    send(Message::Complete(result_of(&lease, &[]))).await;
                    send(Message::Credit(Credit { rows: ROWS })).await;
                }
                Some(attach_response::Message::Drain(_)) | None => return Ok(()),
                Some(_) => {}
            },
            _ = beats.tick() => send(Message::Heartbeat(Heartbeat::default())).await,
        }
    }
}

/// The model that they serve: two stages, grids of 2 x 3 and 4 x 6.
pub fn model() -> Model {
    let defaults = Sampling {
        steps: Some(1),
        guidance: Some(0.0),
        guidance_schedule: GuidanceSchedule::Linear.into(),
        temperature: Some(1.0),
        top_k: Some(0),
        choice_temperature: Some(1.0),
        mask_schedule: MaskSchedule::Cosine.into(),
        scheduler: Scheduler::Confidence.into(),
    };
    let stage = |stage: Stage, grid_rows, grid_columns| ModelStage {
        stage: stage.into(),
        grid_rows,
        grid_columns,
        codebook_size: CODEBOOK,
        defaults: Some(defaults),
        ..ModelStage::default()
    };
    Model {
        name: MODEL.to_owned(),
        version: "1".to_owned(),
        bundle_digest: "00".repeat(32),
        stages: vec![stage(Stage::Base, 2, 3), stage(Stage::Superres, 4, 6)],
        width: 48,
        height: 32,
        max_text_tokens: 16,
        ..Model::default()
    }
}

/// Pictures of a job.
pub fn count_of(lease: &Lease) -> u32 {
    match lease.request.as_ref().and_then(|request| request.task.as_ref()) {
        Some(Task::TextToImage(task)) => task.count.unwrap_or(1),
        None => 1,
    }
}

/// Tokens of the base stage; pictures that hold nothing but their job's seed. With a `stamp` both carry it, so that the
/// results of two leases differ.
pub fn result_of(lease: &Lease, stamp: &[u8]) -> Complete {
    let request = lease.request.clone().unwrap_or_default();
    let count = count_of(lease);
    let result = if lease.stage() == Stage::Base {
        StageResult::Tokens(Tensor {
            element_type: ElementType::U16.into(),
            shape: vec![u64::from(count), TOKENS],
            data: stamped_tokens(count as usize, stamp).into(),
        })
    } else {
        let picture = |index| {
            let data = picture(index, request.seed.unwrap_or_default(), stamp);
            let info = ImageInfo {
                index,
                format: ImageFormat::Png.into(),
                width: 48,
                height: 32,
                size_bytes: data.len() as u64,
                sha256: digest(&data),
            };
            Picture {
                info: Some(info),
                data: data.into(),
            }
        };
        StageResult::Pictures(Pictures {
            pictures: (0..count).map(picture).collect(),
        })
    };
    Complete {
        job_id: lease.job_id.clone(),
        nonce: lease.nonce.clone(),
        stage: lease.stage,
        result: Some(result),
        timing: Some(StageTiming {
            stage: lease.stage,
            ..StageTiming::default()
        }),
    }
}

/// The bytes that stand for a picture.
pub fn picture(index: u32, seed: u64, stamp: &[u8]) -> Vec<u8> {
    let mut text = format!("picture {index} of seed {seed}");
    if !stamp.is_empty() {
        text += &format!(" by {}", hex::encode(stamp));
    }
    text.into_bytes()
}

/// SHA-256, hexadecimal.
pub fn digest(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

/// Token grids of u16: zeros, or the first bytes of the stamp as far as tokens hold them.
fn stamped_tokens(count: usize, stamp: &[u8]) -> Vec<u8> {
    let token = |at: usize| u32::from(stamp.get(at % TOKENS as usize).copied().unwrap_or(0)) % CODEBOOK;
    (0..count * TOKENS as usize)
        .flat_map(|at| (token(at) as u16).to_le_bytes())
        .collect()
}
