//! Workers that compute nothing, as fast as the hub lets them; results and their protocol are those of the end-to-end tests.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use futures::FutureExt as _;
use muse_proto::{
    internal::v1::{
        AckOutcome, AttachRequest, AttachResponse, Credit, Heartbeat, Hello, Lease, attach_request::Message,
        attach_response::Message as Answer, worker_hub_client::WorkerHubClient,
    },
    v1::Stage,
};
use muse_tests::noop;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

/// Messages that may wait to be sent.
const OUTBOX: usize = 1024;
/// Silence after which a worker that wants no more leases takes it that none is on its way.
const SILENCE: Duration = Duration::from_millis(200);
/// As the hub asks for by default.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Workers of both stages, until this is dropped.
pub(super) struct Workers {
    tasks: JoinSet<anyhow::Result<()>>,
    finished: watch::Receiver<u64>,
    between: Arc<Semaphore>,
    stop: watch::Sender<bool>,
}

/// What the workers of a run share.
#[derive(Clone)]
struct Shared {
    /// Whole jobs whose end the gateway has acknowledged.
    finished: Arc<watch::Sender<u64>>,
    /// Jobs that may be between the stages: base shards do not run ahead, so that as many jobs pass one as pass the other.
    between: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

impl Workers {
    /// `rows`: how many leases each takes at a time. `between`: how far base shards may be ahead.
    pub(super) async fn attach(endpoint: &str, rows: u32, between: usize) -> anyhow::Result<Self> {
        let (sender, finished) = watch::channel(0);
        let (stop, stopped) = watch::channel(false);
        let shared = Shared {
            finished: Arc::new(sender),
            between: Arc::new(Semaphore::new(between)),
            stop: stopped,
        };
        let between = Arc::clone(&shared.between);
        let mut tasks = JoinSet::new();
        for stage in [Stage::Base, Stage::Superres] {
            let session = Session::attach(endpoint, stage, rows).await?;
            tasks.spawn(work(session, shared.clone(), stage, rows));
        }
        Ok(Self {
            tasks,
            finished,
            between,
            stop,
        })
    }

    /// Whole jobs so far.
    pub(super) fn finished(&self) -> watch::Receiver<u64> {
        self.finished.clone()
    }

    /// Waits until so many whole jobs are finished.
    pub(super) async fn reach(&mut self, jobs: u64) -> anyhow::Result<()> {
        tokio::select! {
            reached = self.finished.wait_for(|finished| *finished >= jobs) => {
                reached?;
                Ok(())
            }
            Some(ended) = self.tasks.join_next() => {
                ended??;
                bail!("a worker's stream ended")
            }
        }
    }

    /// Leaves no job behind that is leased.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.send_replace(true);
        // A base shard that waits for the other stage would wait for ever.
        self.between.add_permits(Semaphore::MAX_PERMITS / 2);
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        Ok(())
    }
}

async fn work(mut session: Session, shared: Shared, stage: Stage, rows: u32) -> anyhow::Result<()> {
    let mut beats = tokio::time::interval(HEARTBEAT);
    let (mut stop, mut stopping, mut unacknowledged) = (shared.stop.clone(), false, 0_u64);
    session.send(Message::Credit(Credit { rows })).await?;
    loop {
        let mut answer = tokio::select! {
            answer = session.next() => answer?,
            stopped = stop.changed(), if !stopping => {
                stopped?;
                stopping = true;
                session.send(Message::Credit(Credit { rows: 0 })).await?;
                continue;
            }
            () = tokio::time::sleep(SILENCE), if stopping && unacknowledged == 0 => return Ok(()),
            _ = beats.tick() => {
                session.send(Message::Heartbeat(Heartbeat::default())).await?;
                continue;
            }
        };
        // One message of credit for all the leases that are there by now.
        let mut leased = false;
        loop {
            match answer {
                Answer::Lease(lease) => {
                    leased = true;
                    if stage == Stage::Base {
                        shared.between.acquire().await?.forget();
                    }
                    session.complete(&lease).await?;
                    unacknowledged += 1;
                }
                Answer::Ack(ack) => {
                    unacknowledged = unacknowledged.saturating_sub(1);
                    if ack.outcome() != AckOutcome::Accepted {
                        bail!("a result is not taken: {ack:?}");
                    }
                    if stage == Stage::Superres {
                        shared.between.add_permits(1);
                        shared.finished.send_modify(|finished| *finished += 1);
                    }
                }
                Answer::Drain(_) => bail!("the gateway drains"),
                _ => {}
            }
            match session.next().now_or_never() {
                Some(next) => answer = next?,
                None => break,
            }
        }
        if leased && !stopping {
            session.send(Message::Credit(Credit { rows })).await?;
        }
    }
}

/// A worker's stream.
pub(super) struct Session {
    outbox: mpsc::Sender<AttachRequest>,
    inbox: Streaming<AttachResponse>,
}

impl Session {
    /// Attaches, and waits to be welcomed.
    pub(super) async fn attach(endpoint: &str, stage: Stage, rows: u32) -> anyhow::Result<Self> {
        Self::attach_as(&format!("noop-{}", stage.as_str_name()), endpoint, stage, rows).await
    }

    /// As one of several workers of a stage.
    pub(super) async fn attach_as(id: &str, endpoint: &str, stage: Stage, rows: u32) -> anyhow::Result<Self> {
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let hello = Message::Hello(Hello {
            worker_id: id.to_owned(),
            stage: stage.into(),
            model: Some(noop::model()),
            provider: "none".to_owned(),
            device: "none".to_owned(),
            version: "0".to_owned(),
            row_budget: rows,
        });
        outbox.send(AttachRequest { message: Some(hello) }).await?;
        let channel = Channel::from_shared(endpoint.to_owned())?.connect().await?;
        let inbox = WorkerHubClient::new(channel)
            .attach(ReceiverStream::new(messages))
            .await?
            .into_inner();
        let mut session = Self { outbox, inbox };
        match session.next().await? {
            Answer::Welcome(_) => Ok(session),
            other => bail!("not welcomed but {other:?}"),
        }
    }

    pub(super) async fn send(&self, message: Message) -> anyhow::Result<()> {
        let message = AttachRequest {
            message: Some(message),
        };
        self.outbox
            .send(message)
            .await
            .context("the worker's stream broke")
    }

    pub(super) async fn next(&mut self) -> anyhow::Result<Answer> {
        let response = self.inbox.message().await?.context("the worker's stream ended")?;
        response.message.context("an answer without content")
    }

    pub(super) async fn complete(&self, lease: &Lease) -> anyhow::Result<()> {
        self.send(Message::Complete(noop::result_of(lease, &[]))).await
    }

    /// Asks for one job that waits, and finishes its stage: how long it took from the credit to the lease.
    pub(super) async fn claim_one(&mut self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        self.send(Message::Credit(Credit { rows: 1 })).await?;
        let (lease, took) = loop {
            if let Answer::Lease(lease) = self.next().await? {
                break (lease, begun.elapsed());
            }
        };
        self.complete(&lease).await?;
        while !matches!(self.next().await?, Answer::Ack(_)) {}
        Ok(took)
    }
}
