//! Clients that want their pictures whatever happens: each keeps asking, at any gateway that lives, until it knows.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use muse_proto::v1::{
    CancelJobRequest, GenerationRequest, Job, JobState, ListJobsRequest, SubmitJobRequest, SubmitJobResponse,
    WatchJobRequest, admin_client::AdminClient, generation_client::GenerationClient, watch_job_response,
};
use tokio::time::{sleep, timeout};
use tonic::{Code, Request, Status, transport::Channel};
use tonic_types::StatusExt as _;

use super::{
    history::{Event, History, JobKind, Log as _, View},
    stage::{Stage, TENANT_HEADER},
};
use crate::client::channel;

/// A call that takes longer is made elsewhere: the gateway may be stopped.
const CALL: Duration = Duration::from_secs(4);
/// A watch that says nothing for so long is made elsewhere.
const SILENCE: Duration = Duration::from_secs(6);
/// A gateway takes so many streams on one connection, and a watch is one for long: watches have some of their own.
const WATCH_CONNECTIONS: usize = 4;
/// Before another attempt where nobody said when.
const PAUSE: Duration = Duration::from_millis(150);
/// A client that knows nothing for so long has found a job that is stuck.
const PATIENCE: Duration = Duration::from_secs(180);

/// Ways to every gateway; clones share them.
#[derive(Clone, Debug)]
pub struct Gateways {
    calls: Arc<Vec<Channel>>,
    watches: Arc<Vec<Channel>>,
    next: Arc<AtomicUsize>,
}

/// A tenant's client.
#[derive(Clone, Debug)]
pub struct Tenant {
    name: String,
    gateways: Gateways,
    history: History,
}

/// What to submit.
#[derive(Clone, Debug)]
pub struct Order {
    pub key: String,
    pub kind: JobKind,
    pub request: GenerationRequest,
}

// === impl Gateways ===

impl Gateways {
    /// Of a cluster.
    pub fn of(stage: &Stage) -> Self {
        let endpoints = stage.cluster.endpoints();
        Self {
            calls: Arc::new(endpoints.iter().map(|endpoint| channel(endpoint)).collect()),
            watches: Arc::new(
                (0..WATCH_CONNECTIONS)
                    .flat_map(|_| endpoints.iter().map(|endpoint| channel(endpoint)))
                    .collect(),
            ),
            next: Arc::default(),
        }
    }

    /// Another one each time.
    fn any(&self, channels: &[Channel]) -> Channel {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        channels[index % channels.len()].clone()
    }

    /// For an operator.
    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.any(&self.calls))
    }
}

// === impl Tenant ===

impl Tenant {
    /// A client of the tenant called `name`.
    pub fn new(name: &str, gateways: &Gateways, history: &History) -> Self {
        Self {
            name: name.to_owned(),
            gateways: gateways.clone(),
            history: history.clone(),
        }
    }

    /// The tenant's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Until a gateway has answered with a job; none after too long.
    pub async fn submit(&self, order: &Order) -> Option<Job> {
        self.history.write(&Event::Submitting {
            tenant: self.name.clone(),
            key: order.key.clone(),
            kind: order.kind,
            prompt: super::load::prompt_of(&order.request),
        });
        self.resubmit(order).await
    }

    /// As [`Tenant::submit`], of what another submits, too.
    pub async fn resubmit(&self, order: &Order) -> Option<Job> {
        let request = GenerationRequest {
            idempotency_key: order.key.clone(),
            ..order.request.clone()
        };
        let job = self.until(|mut client| {
            let request = self.of(SubmitJobRequest {
                request: Some(request.clone()),
            });
            async move {
                let response = client.submit_job(request).await?.into_inner();
                response.job.ok_or_else(|| Status::internal("no job"))
            }
        });
        match job.await {
            Some(Ok(job)) => {
                self.history.write(&Event::Accepted {
                    tenant: self.name.clone(),
                    key: order.key.clone(),
                    job: job.id.clone(),
                });
                self.saw(&job);
                Some(job)
            }
            Some(Err(status)) => {
                self.wrong(format!("{} was refused for good: {status}", order.key));
                None
            }
            None => None,
        }
    }

    /// The key stands for another request: it has to be refused, unless Redis has lost that one with its disk.
    pub async fn conflict(&self, order: &Order) {
        let request = GenerationRequest {
            idempotency_key: order.key.clone(),
            seed: order.request.seed.map(|seed| seed ^ 1),
            ..order.request.clone()
        };
        let answer = self.until(|mut client| {
            let request = self.of(SubmitJobRequest {
                request: Some(request.clone()),
            });
            async move { Ok(client.submit_job(request).await?.into_inner()) }
        });
        match answer.await {
            Some(Err(status)) if status.code() == Code::AlreadyExists => {}
            None => {}
            Some(Ok(SubmitJobResponse {
                job: Some(job),
                already_existed: false,
                ..
            })) => {
                self.history.write(&Event::TakenAnew {
                    tenant: self.name.clone(),
                    key: order.key.clone(),
                    job: job.id.clone(),
                });
                self.saw(&job);
            }
            Some(other) => self.wrong(format!("{} with another request: {other:?}", order.key)),
        }
    }

    /// Until the gateway has taken it.
    pub async fn cancel(&self, id: &str) {
        let cancelled = self.until(|mut client| {
            let job_id = id.to_owned();
            let request = self.of(CancelJobRequest { job_id });
            async move { Ok(client.cancel_job(request).await?.into_inner().job) }
        });
        match cancelled.await {
            Some(Ok(Some(job))) => self.saw(&job),
            Some(Err(status)) if status.code() == Code::NotFound => self.missing(id),
            None => {}
            other => self.wrong(format!("cancelling {id}: {other:?}")),
        }
    }

    /// To the end, over as many streams as it takes, each going on where the last broke. None after too long.
    pub async fn watch(&self, id: &str) -> Option<Job> {
        self.watch_after(id, 0).await
    }

    /// As [`Tenant::watch`], from a version on.
    pub async fn watch_after(&self, id: &str, mut version: u64) -> Option<Job> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let request = WatchJobRequest {
                job_id: id.to_owned(),
                after_version: version,
            };
            let channel = self.gateways.any(&self.gateways.watches);
            let mut client = GenerationClient::new(channel);
            let mut stream = match timeout(CALL, client.watch_job(self.of(request))).await {
                Ok(Ok(stream)) => stream.into_inner(),
                Ok(Err(status)) if status.code() == Code::NotFound => {
                    self.missing(id);
                    return None;
                }
                Ok(Err(status)) => {
                    sleep(self.refused(&status)).await;
                    continue;
                }
                Err(_) => continue,
            };
            while let Ok(Ok(Some(response))) = timeout(SILENCE, stream.message()).await {
                let Some(watch_job_response::Event::Job(job)) = response.event else {
                    continue;
                };
                if job.version <= version {
                    self.history.write(&Event::WentBack {
                        job: id.to_owned(),
                        from: version,
                        to: job.version,
                    });
                }
                version = job.version;
                self.saw(&job);
                if is_terminal(&job) {
                    return Some(job);
                }
            }
            sleep(PAUSE).await;
        }
        self.wrong(format!("no watch of {id} told its end within {PATIENCE:?}"));
        None
    }

    /// Takes down every job that the tenant has now.
    pub async fn sweep(&self) {
        let mut page_token = String::new();
        loop {
            let page = self.until(|mut client| {
                let request = self.of(ListJobsRequest {
                    page_size: 200,
                    page_token: page_token.clone(),
                    ..ListJobsRequest::default()
                });
                async move { Ok(client.list_jobs(request).await?.into_inner()) }
            });
            let Some(Ok(page)) = page.await else {
                self.wrong(format!("the jobs of {} cannot be listed", self.name));
                return;
            };
            for job in page.jobs {
                self.history.write(&Event::Swept {
                    tenant: self.name.clone(),
                    seed: job
                        .request
                        .as_ref()
                        .and_then(|request| request.seed)
                        .unwrap_or_default(),
                    view: view(&job),
                    job: job.id,
                });
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return;
            }
        }
    }

    /// Something that must not be.
    pub fn wrong(&self, what: String) {
        self.history.write(&Event::Wrong { what });
    }

    /// Takes down a job as an answer has it.
    pub fn saw(&self, job: &Job) {
        self.history.write(&Event::Seen {
            job: job.id.clone(),
            view: view(job),
        });
    }

    fn missing(&self, id: &str) {
        self.history.write(&Event::Missing { job: id.to_owned() });
    }

    fn client(&self) -> GenerationClient<Channel> {
        GenerationClient::new(self.gateways.any(&self.gateways.calls))
            .max_decoding_message_size(64 * 1024 * 1024)
    }

    fn of<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let name = self.name.parse().expect("a tenant's name is plain");
        request.metadata_mut().insert(TENANT_HEADER, name);
        request
    }

    /// Calls until there is an answer that another attempt would not change; none after too long.
    async fn until<T, Fut: Future<Output = Result<T, Status>>>(
        &self,
        call: impl Fn(GenerationClient<Channel>) -> Fut,
    ) -> Option<Result<T, Status>> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            match timeout(CALL, call(self.client())).await {
                Ok(Ok(answer)) => return Some(Ok(answer)),
                Ok(Err(status)) if is_passing(&status) => sleep(self.refused(&status)).await,
                Ok(Err(status)) => return Some(Err(status)),
                Err(_) => {}
            }
        }
        None
    }

    /// How long to wait; takes down what a gateway, and not the connection to it, has refused.
    fn refused(&self, status: &Status) -> Duration {
        let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
        if is_a_gateways(status) && matches!(status.code(), Code::Unavailable | Code::ResourceExhausted) {
            self.history.write(&Event::Refused {
                tenant: self.name.clone(),
                code: format!("{:?}: {}", status.code(), status.message()),
                retry_ms: retry.map(|delay| delay.as_millis() as u64),
            });
        }
        retry.unwrap_or(PAUSE)
    }
}

/// A status that a gateway sent has no cause on this side.
fn is_a_gateways(status: &Status) -> bool {
    std::error::Error::source(status).is_none()
}

fn is_passing(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded | Code::Aborted => true,
        // Of the connection: a gateway that was killed in the middle.
        Code::Unknown | Code::Cancelled | Code::Internal => !is_a_gateways(status),
        _ => false,
    }
}

/// Whether it has ended.
pub fn is_terminal(job: &Job) -> bool {
    matches!(
        job.state(),
        JobState::Succeeded | JobState::Failed | JobState::Cancelled
    )
}

fn view(job: &Job) -> View {
    View {
        version: job.version,
        state: job.state().as_str_name().to_owned(),
        reason: job
            .error
            .as_ref()
            .map(|error| error.reason().as_str_name().to_owned())
            .unwrap_or_default(),
        digests: job.images.iter().map(|image| image.sha256.clone()).collect(),
    }
}
