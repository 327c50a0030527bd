//! Drives [`Protocol`] over gRPC: attaches to one of the gateways, and to another when that one is lost.
//!
//! One task owns all of it. It never waits for the connection to take a message while it could hear one, so a slow gateway
//! and a slow shard cannot block each other.

use std::{
    future::{Future, pending},
    pin::Pin,
    time::{Duration, Instant},
};

use muse_proto::internal::v1::{
    Ack, AckOutcome, AttachRequest, AttachResponse, Hello, Lease, Revoke, attach_response,
};
use muse_service::{Shutdown, config::ConfigError};
use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming, transport::Endpoint};
use tracing::{debug, error, info, warn};

use super::{
    Jobs, Protocol, Report, Taken, Ticket,
    attach::{Link, Loss, attach, backoff},
};
use crate::config::Hub;

/// What the outside sees of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// No gateway.
    Detached,
    /// A gateway gives leases.
    Attached,
    /// No more leases are taken.
    Draining,
}

/// How the client ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything held was given back or delivered, and acknowledged.
    Drained,
    /// The drain deadline passed with this many leases not acknowledged; they expire and are reaped.
    Cut {
        /// Leases still held or owed.
        leases: usize,
    },
}

/// A fault that ends the client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The configured endpoints are not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Gateways refuse the worker, and say that asking again does not help.
    #[error("no gateway takes this worker: {0}")]
    Refused(String),
    /// Whatever runs the jobs has gone.
    #[error("what runs the jobs ended before the hub client did")]
    JobsEnded,
}

type Attaching = Pin<Box<dyn Future<Output = Result<Link, Loss>> + Send>>;

/// See the module.
pub struct Client<J> {
    config: Hub,
    endpoints: Vec<Endpoint>,
    hello: Hello,
    protocol: Protocol,
    jobs: J,
    reports: mpsc::Receiver<(Ticket, Report)>,
    standing: watch::Sender<Standing>,
    /// Index of the endpoint to try next.
    next_endpoint: usize,
    /// Attempts since the last welcome.
    failures: u32,
    /// The first refusal since the last welcome that asking again does not change.
    refused_since: Option<Instant>,
}

impl<J: Jobs> Client<J> {
    /// A client that is not attached yet. `reports` brings what comes of the jobs that `jobs` was told to start.
    ///
    /// # Errors
    /// When the configured endpoints are not usable.
    pub fn new(
        config: Hub,
        hello: Hello,
        protocol: Protocol,
        jobs: J,
        reports: mpsc::Receiver<(Ticket, Report)>,
        standing: watch::Sender<Standing>,
    ) -> Result<Self, ClientError> {
        let endpoints = config
            .endpoints
            .iter()
            .map(|endpoint| {
                muse_service::client::endpoint(endpoint, &config.client)
                    .map_err(|error| ConfigError::invalid("hub.endpoints", error.to_string()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err(ConfigError::invalid("hub.endpoints", "name at least one gateway").into());
        }
        // Shards start at different gateways, so that they spread.
        let next_endpoint = rand::random_range(0..endpoints.len());
        Ok(Client {
            config,
            endpoints,
            hello,
            protocol,
            jobs,
            reports,
            standing,
            next_endpoint,
            failures: 0,
            refused_since: None,
        })
    }

    /// Works until the shutdown is requested, or a gateway says to drain, and everything held is given back.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when no gateway takes this worker for `hub.refusal_patience_ms`, and
    /// [`ClientError::JobsEnded`] when nothing can run jobs any more.
    pub async fn run(mut self, shutdown: Shutdown) -> Result<Ended, ClientError> {
        let mut outbound: Option<mpsc::Sender<AttachRequest>> = None;
        let mut inbound: Option<Streaming<AttachResponse>> = None;
        let mut attaching: Option<Attaching> = Some(self.attach());
        let mut pending_message: Option<AttachRequest> = None;
        let mut drain_until: Option<Instant> = None;
        loop {
            if self.protocol.is_draining() && self.protocol.is_idle() {
                // The connection closes in order: what was sent is acknowledged.
                return Ok(Ended::Drained);
            }
            if self.protocol.is_draining() && drain_until.is_none() {
                drain_until = Some(Instant::now() + shutdown.drain());
                self.standing.send_replace(Standing::Draining);
                self.jobs.release_all();
            }
            let now = Instant::now();
            if pending_message.is_none() {
                pending_message = self.protocol.next_message(now, &self.jobs);
            }
            metrics::gauge!("muse_hub_reports_owed").set(self.protocol.owed() as f64);
            let wake = self.protocol.next_wake(now);
            let lost = tokio::select! {
                () = shutdown.requested(), if !self.protocol.is_draining() => {
                    self.protocol.drain();
                    None
                }
                report = self.reports.recv() => {
                    let (ticket, report) = report.ok_or(ClientError::JobsEnded)?;
                    let kind = report.kind();
                    if !self.protocol.report(ticket, report) {
                        debug!(ticket = ticket.0, report = kind, "a report on a lease that is no longer held");
                        self.jobs.forget(ticket);
                    }
                    None
                }
                attached = maybe(&mut attaching) => {
                    attaching = None;
                    match attached {
                        Ok(link) => {
                            self.welcomed(&link);
                            outbound = Some(link.outbound);
                            inbound = Some(link.inbound);
                            None
                        }
                        Err(loss) => Some(loss),
                    }
                }
                permit = reserve(outbound.clone()), if pending_message.is_some() => match permit {
                    Some(permit) => {
                        if let Some(message) = pending_message.take() {
                            permit.send(message);
                        }
                        None
                    }
                    None => Some(Loss::passing("the connection closed")),
                },
                heard = hear(&mut inbound) => match heard {
                    Ok(Some(message)) => {
                        self.hear(message);
                        None
                    }
                    Ok(None) => Some(Loss::passing("the gateway ended the stream")),
                    Err(status) => Some(Loss::of(&status)),
                },
                () = sleep_until(wake) => None,
                () = sleep_until(drain_until) => {
                    return Ok(Ended::Cut { leases: self.protocol.leases() });
                }
            };
            if let Some(loss) = lost {
                (outbound, inbound, pending_message) = (None, None, None);
                self.lost(&loss)?;
                attaching = Some(self.attach());
            }
        }
    }

    /// The attempt to reach the next endpoint, after the back-off that is due.
    fn attach(&mut self) -> Attaching {
        let endpoint = self.endpoints[self.next_endpoint % self.endpoints.len()].clone();
        self.next_endpoint = (self.next_endpoint + 1) % self.endpoints.len();
        let wait = backoff(self.failures, &self.config, rand::random::<f64>());
        let limit = Duration::from_millis(self.config.attach_timeout_ms);
        let max_message = self.config.max_message_bytes;
        let (client, hello) = (self.config.client.clone(), self.hello.clone());
        Box::pin(async move {
            tokio::time::sleep(wait).await;
            attach(endpoint, &client, hello, limit, max_message).await
        })
    }

    fn welcomed(&mut self, link: &Link) {
        self.failures = 0;
        self.refused_since = None;
        self.protocol.attached(link.heartbeat);
        metrics::gauge!("muse_hub_attached").set(1.0);
        metrics::counter!("muse_hub_attach_total", "result" => "welcomed").increment(1);
        let (leases, owed) = (self.protocol.leases(), self.protocol.owed());
        info!(gateway = link.gateway, leases, owed, "attached");
        if !self.protocol.is_draining() {
            self.standing.send_replace(Standing::Attached);
        }
    }

    /// # Errors
    /// When gateways have refused this worker for as long as it tries.
    fn lost(&mut self, loss: &Loss) -> Result<(), ClientError> {
        let reason = loss.reason.as_str();
        let attempts = self.failures.saturating_add(1);
        if self.protocol.is_attached() {
            warn!(
                reason,
                leases = self.protocol.leases(),
                "lost the gateway; attaching to another, jobs go on"
            );
        } else if attempts.is_power_of_two() {
            warn!(reason, attempts, "could not attach");
        } else {
            debug!(reason, attempts, "could not attach");
        }
        self.failures = attempts;
        self.protocol.detached();
        metrics::gauge!("muse_hub_attached").set(0.0);
        let result = if loss.is_standing { "refused" } else { "lost" };
        metrics::counter!("muse_hub_attach_total", "result" => result).increment(1);
        if self.protocol.is_draining() {
            return Ok(());
        }
        self.standing.send_replace(Standing::Detached);
        if loss.is_standing {
            // What is in the way may be on its way out, such as the workers that this one replaces.
            let since = *self.refused_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= Duration::from_millis(self.config.refusal_patience_ms) {
                return Err(ClientError::Refused(loss.reason.clone()));
            }
        }
        Ok(())
    }

    fn hear(&mut self, response: AttachResponse) {
        match response.message {
            Some(attach_response::Message::Lease(lease)) => self.lease(lease),
            Some(attach_response::Message::Revoke(revoke)) => self.revoke(&revoke),
            Some(attach_response::Message::Ack(ack)) => self.ack(&ack),
            Some(attach_response::Message::Drain(_)) => {
                info!("the gateway says to drain");
                self.protocol.drain();
            }
            Some(attach_response::Message::Expect(expect)) => {
                if !self.protocol.is_draining() {
                    self.jobs.expect(expect);
                }
            }
            Some(attach_response::Message::Welcome(_)) | None => debug!("a message without meaning here"),
        }
    }

    fn lease(&mut self, lease: Lease) {
        match self.protocol.take(&lease, crate::lease::rows(&lease)) {
            Taken::Start { ticket, replaces } => {
                debug!(job_id = lease.job_id, ticket = ticket.0, "leased");
                if let Some(old) = replaces {
                    self.jobs.drop_job(old);
                }
                self.jobs.start(ticket, lease);
            }
            Taken::Known => debug!(job_id = lease.job_id, "leased again"),
            Taken::GivenBack => info!(job_id = lease.job_id, "given back: draining or full"),
        }
    }

    fn ack(&mut self, ack: &Ack) {
        if ack.outcome() == AckOutcome::Unavailable {
            metrics::counter!("muse_hub_postponed_total").increment(1);
            let owed = self.protocol.postpone(ack, Instant::now());
            debug!(
                job_id = ack.job_id,
                owed, "the gateway cannot store the result for now; it is kept"
            );
            return;
        }
        let Some(matched) = self.protocol.ack(ack) else {
            debug!(job_id = ack.job_id, "an acknowledgement of nothing owed");
            return;
        };
        self.jobs.acknowledged(matched.ticket, matched.outcome);
        self.jobs.forget(matched.ticket);
        let (job_id, report) = (&ack.job_id, matched.report);
        match matched.outcome {
            AckOutcome::Refused => error!(job_id, report, "the gateway refused a report as wrong"),
            outcome => debug!(job_id, report, ?outcome, "acknowledged"),
        }
    }

    fn revoke(&mut self, revoke: &Revoke) {
        if let Some(ticket) = self.protocol.revoke(revoke) {
            info!(
                job_id = revoke.job_id,
                reason = revoke.reason().as_str_name(),
                "revoked"
            );
            self.jobs.drop_job(ticket);
        }
    }
}

async fn maybe(attaching: &mut Option<Attaching>) -> Result<Link, Loss> {
    match attaching {
        Some(attaching) => attaching.await,
        None => pending().await,
    }
}

async fn reserve(outbound: Option<mpsc::Sender<AttachRequest>>) -> Option<mpsc::OwnedPermit<AttachRequest>> {
    match outbound {
        Some(outbound) => outbound.reserve_owned().await.ok(),
        None => pending().await,
    }
}

async fn hear(inbound: &mut Option<Streaming<AttachResponse>>) -> Result<Option<AttachResponse>, Status> {
    match inbound {
        Some(inbound) => inbound.message().await,
        None => pending().await,
    }
}

async fn sleep_until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when.into()).await,
        None => pending().await,
    }
}
