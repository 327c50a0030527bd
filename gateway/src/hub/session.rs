//! One attached worker: a loop over its messages, the doorbells, and the answers in progress.
//!
//! Leases are claimed only against credit. A claim runs beside the loop, so that a slow Redis delays neither heartbeats nor
//! reports; at most one is in flight.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use muse_proto::{
    internal::v1::{
        AttachRequest, AttachResponse, Expect, Hello, Lease, Revoke, RevokeReason, Welcome, attach_request,
        attach_response::Message,
    },
    v1::{Model, ModelStage, Stage, Worker},
};
use muse_service::telemetry::trace_context;
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tonic::{Status, Streaming};

use super::{
    Shared, check,
    claim::{self, Claimed},
    heartbeat::{self, Noted},
    reports::{self, Report},
};
use crate::{
    Error,
    connection::{Expected, Revocation},
    jobs::{JobId, Nonce, duration, stage_after, stage_name, timestamp},
    queue::{Grant, pool_name},
    validate,
};

/// Who is attached; fixed for the session.
pub(super) struct Attached {
    pub(super) worker: Worker,
    pub(super) model: Model,
    pub(super) served: ModelStage,
    pub(super) stage: Stage,
    pub(super) stage_name: &'static str,
    pub(super) session: String,
    /// Of leases that this session gave, until their results come.
    given: Mutex<HashMap<(JobId, Nonce), Expected>>,
    /// An operator wants it drained, as the table of workers said last.
    pub(super) drains: AtomicBool,
}

/// Leases that are remembered. Of others, the trace is read again, and the next stage does not hear of them before they come.
const GIVEN: usize = 1024;

/// See the module.
pub(super) struct Session {
    shared: Arc<Shared>,
    attached: Arc<Attached>,
    outbox: mpsc::Sender<Result<AttachResponse, Status>>,
    credit: u32,
    // Where the next claim begins, so that no shard is always last.
    next_shard: u16,
    noted: Noted,
}

impl Attached {
    fn remember(&self, id: JobId, nonce: Nonce, expected: Expected) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if given.len() >= GIVEN {
            given.clear();
        }
        given.insert((id, nonce), expected);
    }

    /// What was told of a job with its lease; `None`: another session gave it, or it was forgotten.
    pub(super) fn told(&self, id: JobId, nonce: Nonce) -> Option<Expected> {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.remove(&(id, nonce))
    }
}

/// What a message is answered with.
pub(super) type Replies = Result<Vec<Message>, Status>;

impl Session {
    /// Takes a worker in: checks what it says, notes it in the table, and welcomes it.
    pub(super) async fn begin(
        shared: Arc<Shared>,
        hello: Hello,
        outbox: mpsc::Sender<Result<AttachResponse, Status>>,
    ) -> Result<Self, Error> {
        let model = check::hello(&hello).map_err(Error::Invalid)?;
        let stage = hello.stage();
        let served = model
            .stages
            .iter()
            .find(|served| served.stage() == stage)
            .copied();
        let (Some(stage_name), Some(served)) = (stage_name(stage), served) else {
            return Err(Error::field("hello.stage", "must be one of the model's stages"));
        };
        let worker = Worker {
            id: hello.worker_id,
            stage: stage as i32,
            model: model.name.clone(),
            bundle_digest: model.bundle_digest.clone(),
            provider: hello.provider,
            device: hello.device,
            version: hello.version,
            row_budget: hello.row_budget,
            gateway_id: shared.gateway_id.clone(),
            attached_at: Some(timestamp(unix_ms())),
            ..Worker::default()
        };
        let session = Nonce::random().to_string();
        let attached = Arc::new(Attached {
            worker,
            model,
            served,
            stage,
            stage_name,
            session,
            given: Mutex::default(),
            drains: AtomicBool::new(false),
        });
        heartbeat::note(&shared, &attached, &attached.worker).await?;
        let welcome = Welcome {
            gateway_id: shared.gateway_id.clone(),
            lease: Some(duration(shared.lease_ms)),
            heartbeat: Some(duration(shared.config.heartbeat_ms)),
        };
        tracing::info!(
            worker = attached.worker.id,
            model = attached.model.name,
            stage = stage_name,
            provider = attached.worker.provider,
            device = attached.worker.device,
            "worker attached"
        );
        let session = Self {
            shared,
            attached,
            outbox,
            credit: 0,
            next_shard: 0,
            noted: Noted::default(),
        };
        session.send(Message::Welcome(welcome)).await;
        Ok(session)
    }

    /// Runs until the worker leaves or the gateway drains.
    pub(super) async fn run(mut self, mut inbound: Streaming<AttachRequest>) {
        let pool = pool_name(&self.attached.model.name, self.attached.stage_name);
        let shutdown = self.shared.shutdown.clone();
        let work = self.shared.bells.pool(&pool);
        let mut revocations = self.shared.bells.revocations(&self.attached.worker.id);
        let mut poll = tokio::time::interval(Duration::from_millis(self.shared.config.poll_ms));
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut replies: FuturesUnordered<BoxFuture<'static, Replies>> = FuturesUnordered::new();
        let mut claims: FuturesUnordered<BoxFuture<'static, Claimed>> = FuturesUnordered::new();
        // Whether looking for work is worth a call.
        let mut hungry = true;
        // The last look ended early, so that what it did not see may be there.
        let mut blind = false;
        let ended = loop {
            if hungry && self.credit == 0 {
                // The bell may have rung for this session: it is somebody else's.
                hungry = false;
                work.pass_on();
            }
            if hungry && claims.is_empty() {
                hungry = false;
                claims.push(self.claim());
            }
            tokio::select! {
                () = shutdown.requested() => break "the gateway drains",
                () = self.outbox.closed() => break "the worker left",
                message = inbound.message(), if replies.len() < self.shared.config.reports_in_flight => match message {
                    Ok(Some(message)) => {
                        if let Some(attach_request::Message::Credit(credit)) = &message.message {
                            // More or less of it is no news of work: who looked with any saw all there was, and hears
                            // of what came since.
                            hungry |= credit.rows > 0 && (self.credit == 0 || blind);
                            self.credit = credit.rows;
                        }
                        match self.reply(message) {
                            Ok(Some(reply)) => replies.push(reply),
                            Ok(None) => {}
                            Err(status) => {
                                let _ = self.outbox.try_send(Err(status));
                                break "the worker broke the protocol";
                            }
                        }
                    }
                    Ok(None) => break "the worker closed the stream",
                    Err(_) => break "the stream broke",
                },
                Some(reply) = replies.next(), if !replies.is_empty() => match reply {
                    Ok(messages) => {
                        for message in messages {
                            self.send(message).await;
                        }
                    }
                    Err(status) => {
                        let _ = self.outbox.try_send(Err(status));
                        break "the worker was refused";
                    }
                },
                Some(claimed) = claims.next(), if !claims.is_empty() => {
                    blind = claimed.error.is_some();
                    if let Some(error) = claimed.error {
                        tracing::debug!(%error, "no leases for now");
                    }
                    self.deliver(claimed.leases).await;
                    if claimed.more {
                        // Others may help.
                        work.pass_on();
                        hungry |= self.credit > 0;
                    }
                }
                // Who cannot look does not listen.
                () = work.rung(), if self.credit > 0 && claims.is_empty() => {
                    hungry = true;
                    work.expected().into_iter().for_each(|expected| self.announce(expected));
                }
                _ = poll.tick() => hungry |= self.credit > 0,
                revocation = revocations.next() => {
                    if let Some(message) = revoke(&revocation) {
                        self.send(message).await;
                    }
                }
            }
        };
        work.pass_on();
        self.end(ended, replies, claims).await;
    }

    /// Acknowledges what can be acknowledged soon, and gives back what the worker will not get.
    async fn end(
        mut self,
        why: &str,
        mut replies: FuturesUnordered<BoxFuture<'static, Replies>>,
        mut claims: FuturesUnordered<BoxFuture<'static, Claimed>>,
    ) {
        tracing::info!(worker = self.attached.worker.id, why, "worker detached");
        let finish = async {
            while let Some(claimed) = claims.next().await {
                for (grant, _) in claimed.leases {
                    self.give_back(&grant).await;
                }
            }
            while let Some(reply) = replies.next().await {
                for message in reply.unwrap_or_default() {
                    self.send(message).await;
                }
            }
            if let Err(error) = self
                .shared
                .models
                .left(&self.attached.worker.id, &self.attached.session)
                .await
            {
                tracing::debug!(%error, "a worker that left stays in the table until it expires");
            }
        };
        // What does not fit is repeated by the worker elsewhere, or expires.
        let _ =
            tokio::time::timeout(Duration::from_millis(self.shared.config.drain_reports_ms), finish).await;
        self.credit = 0;
    }

    /// What a message is answered with, if anything.
    fn reply(&mut self, message: AttachRequest) -> Result<Option<BoxFuture<'static, Replies>>, Status> {
        let (shared, attached) = (Arc::clone(&self.shared), Arc::clone(&self.attached));
        let answer = |report| -> BoxFuture<'static, Replies> {
            let (shared, attached) = (Arc::clone(&self.shared), Arc::clone(&self.attached));
            Box::pin(async move {
                Ok(vec![Message::Ack(
                    reports::answer(&shared, &attached, report).await,
                )])
            })
        };
        match message.message {
            Some(attach_request::Message::Hello(_)) => {
                Err(Status::invalid_argument("hello comes once, at first"))
            }
            Some(attach_request::Message::Credit(_)) | None => Ok(None),
            Some(attach_request::Message::Heartbeat(beat)) => {
                let interval = Duration::from_millis(self.shared.config.heartbeat_ms);
                let noting = self.noted.is_due(&beat, interval);
                Ok(Some(Box::pin(async move {
                    heartbeat::answer(&shared, &attached, beat, noting).await
                })))
            }
            Some(attach_request::Message::Complete(report)) => Ok(Some(answer(Report::Complete(report)))),
            Some(attach_request::Message::Fail(report)) => Ok(Some(answer(Report::Fail(report)))),
            Some(attach_request::Message::Release(report)) => Ok(Some(answer(Report::Release(report)))),
        }
    }

    /// Claims leases in all shards, as far as the credit goes.
    fn claim(&mut self) -> BoxFuture<'static, Claimed> {
        let (shared, attached, credit) = (Arc::clone(&self.shared), Arc::clone(&self.attached), self.credit);
        let first = self.next_shard;
        self.next_shard = (first + 1) % shared.queue.keys().shards();
        Box::pin(claim::claim(shared, attached, credit, first))
    }

    async fn deliver(&mut self, leases: Vec<(Grant, Lease)>) {
        for (grant, mut lease) in leases {
            self.credit = self
                .credit
                .saturating_sub(lease.request.as_ref().map_or(1, validate::count_of));
            let span = tracing::info_span!(
                "lease", job = %grant.id, stage = self.attached.stage_name, worker = self.attached.worker.id,
                tenant = grant.tenant, waited_ms = grant.waited_ms, attempts = grant.attempts,
            );
            trace_context::set_parent(&span, &grant.traceparent);
            // For the next stage, if there is one.
            let texts = match (&lease.request, stage_after(self.attached.stage_name)) {
                (Some(request), Some(_)) => validate::texts_of(request),
                _ => Vec::new(),
            };
            let traceparent = grant.traceparent.clone();
            self.attached
                .remember(grant.id, grant.nonce, Expected { texts, traceparent });
            lease.traceparent = span.in_scope(trace_context::current).unwrap_or(lease.traceparent);
            let seconds = grant.waited_ms as f64 / 1000.0;
            let stage = self.attached.stage_name;
            metrics::histogram!("muse_job_seconds", "stage" => stage, "phase" => "wait").record(seconds);
            if !self.send(Message::Lease(lease)).await {
                self.give_back(&grant).await;
            }
        }
    }

    /// Tells the worker of a job that is on its way; one that has no time to hear it does without.
    fn announce(&self, expected: Expected) {
        let Expected { texts, traceparent } = expected;
        let message = Some(Message::Expect(Expect { texts, traceparent }));
        let _ = self.outbox.try_send(Ok(AttachResponse { message }));
    }

    /// A lease that never reached its worker goes back at once; nobody's budget pays.
    async fn give_back(&self, grant: &Grant) {
        if let Err(error) = self.shared.queue.release(grant.id, grant.nonce, &[]).await {
            tracing::debug!(%error, job = %grant.id, "an undelivered lease has to run out");
        }
    }

    /// False when the worker is gone, or reads too slowly to be served.
    async fn send(&self, message: Message) -> bool {
        let limit = Duration::from_millis(self.shared.config.send_timeout_ms);
        let response = AttachResponse {
            message: Some(message),
        };
        matches!(
            tokio::time::timeout(limit, self.outbox.send(Ok(response))).await,
            Ok(Ok(()))
        )
    }
}

fn revoke(revocation: &Revocation) -> Option<Message> {
    let reason = match revocation.reason.as_str() {
        "cancelled" => RevokeReason::Cancelled,
        "deadline" => RevokeReason::Deadline,
        _ => RevokeReason::LeaseLost,
    };
    let id = JobId::parse(&revocation.job).ok()?;
    let nonce = Nonce::from_hex(&revocation.nonce)?;
    Some(Message::Revoke(Revoke {
        job_id: id.to_string(),
        nonce: nonce.to_vec(),
        reason: reason as i32,
    }))
}

fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
