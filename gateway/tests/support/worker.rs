//! A worker that computes nothing: the protocol alone, in the test's hands.

use std::net::SocketAddr;

use muse_proto::{
    internal::v1::{
        Ack, AckOutcome, AttachRequest, AttachResponse, Complete, Credit, ElementType, Fail, Heartbeat,
        Hello, Lease, LeaseReport, Picture, Pictures, Release, Revoke, Tensor, Welcome, attach_request,
        attach_response, complete::Result as StageResult, worker_hub_client::WorkerHubClient,
    },
    v1::{
        ImageFormat, ImageInfo, JobError, JobErrorReason, Model, Progress, Stage, StageTiming,
        generation_request::Task,
    },
};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::soon;

pub struct FakeWorker {
    pub id: String,
    pub stage: Stage,
    outbox: mpsc::Sender<AttachRequest>,
    inbox: Streaming<AttachResponse>,
    pub welcome: Welcome,
}

impl FakeWorker {
    pub async fn attach(gateway: SocketAddr, id: &str, stage: Stage, model: &Model) -> Self {
        Self::try_attach(gateway, id, stage, model)
            .await
            .expect("the hub takes the worker in")
    }

    pub async fn try_attach(
        gateway: SocketAddr,
        id: &str,
        stage: Stage,
        model: &Model,
    ) -> Result<Self, Status> {
        let endpoint =
            tonic::transport::Channel::from_shared(format!("http://{gateway}")).expect("an address");
        let mut client = WorkerHubClient::new(endpoint.connect().await.expect("a connection"));
        let (outbox, messages) = mpsc::channel(64);
        let hello = Hello {
            worker_id: id.to_owned(),
            stage: stage as i32,
            model: Some(model.clone()),
            provider: "cpu".to_owned(),
            device: "a test".to_owned(),
            version: "0".to_owned(),
            row_budget: 8,
        };
        outbox
            .send(message(attach_request::Message::Hello(hello)))
            .await
            .expect("an open stream");
        let mut inbox = client.attach(ReceiverStream::new(messages)).await?.into_inner();
        let first = soon("the welcome", inbox.message())
            .await?
            .and_then(|response| response.message);
        let Some(attach_response::Message::Welcome(welcome)) = first else {
            panic!("no welcome but {first:?}")
        };
        Ok(Self {
            id: id.to_owned(),
            stage,
            outbox,
            inbox,
            welcome,
        })
    }

    pub async fn credit(&self, rows: u32) {
        self.send(attach_request::Message::Credit(Credit { rows })).await;
    }

    pub async fn heartbeat(&self, leases: Vec<LeaseReport>) {
        let beat = Heartbeat {
            leases,
            rows: 1,
            passes_per_second: 2.0,
            draining: false,
        };
        self.send(attach_request::Message::Heartbeat(beat)).await;
    }

    pub async fn complete(&self, lease: &Lease) {
        self.send(attach_request::Message::Complete(result_of(lease)))
            .await;
    }

    pub async fn send_complete(&self, complete: Complete) {
        self.send(attach_request::Message::Complete(complete)).await;
    }

    pub async fn fail(&self, lease: &Lease, retriable: bool) {
        let error = JobError {
            reason: JobErrorReason::ModelFailed as i32,
            message: "it was too red".to_owned(),
        };
        let (job_id, nonce) = (lease.job_id.clone(), lease.nonce.clone());
        self.send(attach_request::Message::Fail(Fail {
            job_id,
            nonce,
            error: Some(error),
            retriable,
        }))
        .await;
    }

    pub async fn release(&self, lease: &Lease) {
        let (job_id, nonce) = (lease.job_id.clone(), lease.nonce.clone());
        self.send(attach_request::Message::Release(Release {
            job_id,
            nonce,
            checkpoint: None,
        }))
        .await;
    }

    /// The next message but those of jobs on their way, or `None` at the stream's end.
    pub async fn next(&mut self) -> Option<attach_response::Message> {
        loop {
            match self.next_of_all().await {
                Some(attach_response::Message::Expect(_)) => {}
                message => return message,
            }
        }
    }

    /// The next message, or `None` at the stream's end.
    pub async fn next_of_all(&mut self) -> Option<attach_response::Message> {
        let message = soon("a message of the hub's", self.inbox.message()).await;
        message.ok().flatten().and_then(|response| response.message)
    }

    pub async fn lease(&mut self) -> Lease {
        match self.next().await {
            Some(attach_response::Message::Lease(lease)) => lease,
            other => panic!("no lease but {other:?}"),
        }
    }

    pub async fn ack(&mut self) -> Ack {
        match self.next().await {
            Some(attach_response::Message::Ack(ack)) => ack,
            other => panic!("no ack but {other:?}"),
        }
    }

    pub async fn revoke(&mut self) -> Revoke {
        match self.next().await {
            Some(attach_response::Message::Revoke(revoke)) => revoke,
            other => panic!("no revoke but {other:?}"),
        }
    }

    /// Takes the next lease, completes it, and waits for the acknowledgement.
    pub async fn work_once(&mut self) -> Lease {
        self.credit(8).await;
        let lease = self.lease().await;
        self.complete(&lease).await;
        assert_eq!(self.ack().await.outcome(), AckOutcome::Accepted);
        lease
    }

    async fn send(&self, body: attach_request::Message) {
        let _ = self.outbox.send(message(body)).await;
    }
}

fn message(message: attach_request::Message) -> AttachRequest {
    AttachRequest {
        message: Some(message),
    }
}

pub fn report(lease: &Lease, step: u32, of: u32) -> LeaseReport {
    LeaseReport {
        job_id: lease.job_id.clone(),
        nonce: lease.nonce.clone(),
        progress: Some(Progress {
            stage: lease.stage,
            step,
            of,
        }),
        checkpoint: None,
    }
}

pub fn count_of(lease: &Lease) -> u32 {
    match lease.request.as_ref().and_then(|request| request.task.as_ref()) {
        Some(Task::TextToImage(task)) => task.count.unwrap_or(1),
        None => panic!("a lease without a task: {lease:?}"),
    }
}

/// The tokens that the fake base stage gives for `count` rows of 2 x 3.
pub fn tokens(count: u32) -> Tensor {
    let data: Vec<u8> = (0..count * 6)
        .flat_map(|n| ((n % 64) as u16).to_le_bytes())
        .collect();
    Tensor {
        element_type: ElementType::U16 as i32,
        shape: vec![u64::from(count), 6],
        data: data.into(),
    }
}

pub fn picture_bytes(index: u32) -> Vec<u8> {
    format!("picture {index}").into_bytes()
}

/// What the fake worker makes of a lease: pictures when the lease has low tokens or its stage is the last.
pub fn result_of(lease: &Lease) -> Complete {
    let count = count_of(lease);
    let last = lease.stage() == Stage::Superres
        || lease
            .request
            .as_ref()
            .is_some_and(|request| request.superres.is_none());
    let result = if last {
        let picture = |index| {
            let data = picture_bytes(index);
            let info = ImageInfo {
                index,
                format: ImageFormat::Png as i32,
                width: 48,
                height: 32,
                size_bytes: data.len() as u64,
                sha256: hex::encode(Sha256::digest(&data)),
            };
            Picture {
                info: Some(info),
                data: data.into(),
            }
        };
        StageResult::Pictures(Pictures {
            pictures: (0..count).map(picture).collect(),
        })
    } else {
        StageResult::Tokens(tokens(count))
    };
    let timing = StageTiming {
        stage: lease.stage,
        wait: lease.waited,
        ..StageTiming::default()
    };
    Complete {
        job_id: lease.job_id.clone(),
        nonce: lease.nonce.clone(),
        stage: lease.stage,
        result: Some(result),
        timing: Some(timing),
    }
}
