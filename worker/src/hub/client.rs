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
    AckOutcome, AttachRequest, AttachResponse, Hello, Lease, Revoke, attach_request, attach_response,
    worker_hub_client::WorkerHubClient,
};
use muse_service::{Shutdown, config::ConfigError};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Endpoint};
use tracing::{debug, error, info, warn};

use super::{Jobs, Protocol, Report, Taken, Ticket};
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
    /// Whatever runs the jobs has gone.
    #[error("what runs the jobs ended before the hub client did")]
    JobsEnded,
}

#[derive(Debug, thiserror::Error)]
enum AttachError {
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("refused: {} ({})", .0.message(), .0.code())]
    Refused(Box<Status>),
    #[error("no welcome in {0:?}")]
    TimedOut(Duration),
    #[error("its first message is not a welcome with a heartbeat interval")]
    NotWelcome,
}

/// A welcomed connection.
struct Link {
    gateway: String,
    heartbeat: Duration,
    outbound: mpsc::Sender<AttachRequest>,
    inbound: Streaming<AttachResponse>,
}

type Attaching = Pin<Box<dyn Future<Output = Result<Link, AttachError>> + Send>>;

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
        })
    }

    /// Works until the shutdown is requested, or a gateway says to drain, and everything held is given back.
    ///
    /// # Errors
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
                        Err(error) => Some(error.to_string()),
                    }
                }
                permit = reserve(outbound.clone()), if pending_message.is_some() => match permit {
                    Some(permit) => {
                        if let Some(message) = pending_message.take() {
                            permit.send(message);
                        }
                        None
                    }
                    None => Some("the connection closed".to_owned()),
                },
                heard = hear(&mut inbound) => match heard {
                    Ok(Some(message)) => {
                        self.hear(message);
                        None
                    }
                    Ok(None) => Some("the gateway ended the stream".to_owned()),
                    Err(status) => Some(format!("{} ({})", status.message(), status.code())),
                },
                () = sleep_until(wake) => None,
                () = sleep_until(drain_until) => {
                    return Ok(Ended::Cut { leases: self.protocol.leases() });
                }
            };
            if let Some(reason) = lost {
                (outbound, inbound, pending_message) = (None, None, None);
                self.lost(&reason);
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
        let hello = AttachRequest {
            message: Some(attach_request::Message::Hello(self.hello.clone())),
        };
        Box::pin(async move {
            tokio::time::sleep(wait).await;
            tokio::time::timeout(limit, open(endpoint, hello, max_message))
                .await
                .unwrap_or(Err(AttachError::TimedOut(limit)))
        })
    }

    fn welcomed(&mut self, link: &Link) {
        self.failures = 0;
        self.protocol.attached(link.heartbeat);
        metrics::gauge!("muse_hub_attached").set(1.0);
        metrics::counter!("muse_hub_attach_total", "result" => "welcomed").increment(1);
        let (leases, owed) = (self.protocol.leases(), self.protocol.owed());
        info!(gateway = link.gateway, leases, owed, "attached");
        if !self.protocol.is_draining() {
            self.standing.send_replace(Standing::Attached);
        }
    }

    fn lost(&mut self, reason: &str) {
        if self.protocol.is_attached() {
            warn!(
                reason,
                leases = self.protocol.leases(),
                "lost the gateway; attaching to another, jobs go on"
            );
        } else if (self.failures + 1).is_power_of_two() {
            warn!(reason, attempts = self.failures + 1, "could not attach");
        } else {
            debug!(reason, attempts = self.failures + 1, "could not attach");
        }
        self.failures = self.failures.saturating_add(1);
        self.protocol.detached();
        metrics::gauge!("muse_hub_attached").set(0.0);
        metrics::counter!("muse_hub_attach_total", "result" => "lost").increment(1);
        if !self.protocol.is_draining() {
            self.standing.send_replace(Standing::Detached);
        }
    }

    fn hear(&mut self, response: AttachResponse) {
        match response.message {
            Some(attach_response::Message::Lease(lease)) => self.lease(lease),
            Some(attach_response::Message::Revoke(revoke)) => self.revoke(&revoke),
            Some(attach_response::Message::Ack(ack)) => match self.protocol.ack(&ack) {
                Some(matched) => match matched.outcome {
                    AckOutcome::Refused => error!(
                        job_id = ack.job_id,
                        report = matched.report,
                        "the gateway refused a report as wrong"
                    ),
                    outcome => debug!(
                        job_id = ack.job_id,
                        report = matched.report,
                        ?outcome,
                        "acknowledged"
                    ),
                },
                None => debug!(job_id = ack.job_id, "an acknowledgement of nothing owed"),
            },
            Some(attach_response::Message::Drain(_)) => {
                info!("the gateway says to drain");
                self.protocol.drain();
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

/// Full jitter below a doubling limit: after `failures` failures a share `random` (0…1) of it. The first attempt goes at
/// once.
fn backoff(failures: u32, config: &Hub, random: f64) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let doubled = config
        .backoff_initial_ms
        .saturating_mul(1 << (failures - 1).min(30));
    Duration::from_millis(doubled.min(config.backoff_max_ms)).mul_f64(random.clamp(0.0, 1.0))
}

async fn open(endpoint: Endpoint, hello: AttachRequest, max_message: usize) -> Result<Link, AttachError> {
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| AttachError::Connect(causes(&error)))?;
    let mut client = WorkerHubClient::new(channel).max_decoding_message_size(max_message);
    // One message ahead: what waits here is lost with the connection, and would be said anew anyway.
    let (outbound, messages) = mpsc::channel(1);
    outbound.try_send(hello).map_err(|_| AttachError::NotWelcome)?;
    let response = client
        .attach(ReceiverStream::new(messages))
        .await
        .map_err(|status| AttachError::Refused(Box::new(status)))?;
    let mut inbound = response.into_inner();
    let first = inbound
        .message()
        .await
        .map_err(|status| AttachError::Refused(Box::new(status)))?;
    let Some(attach_response::Message::Welcome(welcome)) = first.and_then(|response| response.message) else {
        return Err(AttachError::NotWelcome);
    };
    let heartbeat = welcome
        .heartbeat
        .and_then(|heartbeat| Duration::try_from(heartbeat).ok())
        .filter(|heartbeat| !heartbeat.is_zero())
        .ok_or(AttachError::NotWelcome)?;
    Ok(Link {
        gateway: welcome.gateway_id,
        heartbeat,
        outbound,
        inbound,
    })
}

/// An error with its causes on one line: tonic's own says "transport error" and no more.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

async fn maybe(attaching: &mut Option<Attaching>) -> Result<Link, AttachError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attempt_goes_at_once_and_later_ones_back_off_to_a_limit() {
        let config = Hub {
            backoff_initial_ms: 100,
            backoff_max_ms: 1000,
            ..Hub::default()
        };
        let waits = [0, 1, 2, 4, 5, 40].map(|failures| backoff(failures, &config, 1.0).as_millis());
        assert_eq!(waits, [0, 100, 200, 800, 1000, 1000]);
        assert_eq!(
            backoff(3, &config, 0.5).as_millis(),
            200,
            "jitter spreads the shards"
        );
    }
}
