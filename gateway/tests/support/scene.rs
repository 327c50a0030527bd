//! The usual scene: a Redis, a gateway, a worker of the first stage, a client.

use muse_gateway::Config;
use muse_proto::{
    internal::v1::Lease,
    v1::{
        CancelJobRequest, GetJobRequest, Job, JobState, Model, Stage, SubmitJobRequest, WatchJobRequest,
        WatchJobResponse, generation_client::GenerationClient,
    },
};
use tonic::{Streaming, transport::Channel};

use super::{
    cluster::{self, RunningGateway},
    model,
    redis_server::RedisServer,
    request, soon, until,
    worker::{FakeWorker, report},
};

pub const BOTH: [Stage; 2] = [Stage::Base, Stage::Superres];

pub type Client = GenerationClient<Channel>;

/// Its parts are stopped with it.
pub struct Scene {
    pub redis: RedisServer,
    pub gateway: RunningGateway,
    pub worker: FakeWorker,
    pub client: Client,
    pub model: Model,
}

impl Scene {
    /// Around the model "tiny" with these stages.
    pub async fn of(stages: &[Stage]) -> Self {
        Self::with(stages, |_| {}).await
    }

    /// Around a gateway whose configuration is not the usual one.
    pub async fn with(stages: &[Stage], change: impl FnOnce(&mut Config)) -> Self {
        let redis = RedisServer::start().await;
        let mut config = cluster::config(&redis);
        change(&mut config);
        let gateway = RunningGateway::start_with(config).await;
        let model = model("tiny", stages);
        let worker = FakeWorker::attach(gateway.address, "worker-1", Stage::Base, &model).await;
        let client = gateway.generation().await;
        Self {
            redis,
            gateway,
            worker,
            client,
            model,
        }
    }

    /// Another worker of the first stage.
    pub async fn another(&self, id: &str) -> FakeWorker {
        FakeWorker::attach(self.gateway.address, id, Stage::Base, &self.model).await
    }

    /// A new job, and the worker's lease on it.
    pub async fn lease(&mut self) -> (Job, Lease) {
        let job = submit(&mut self.client, "a cat").await;
        self.worker.credit(1).await;
        (job, self.worker.lease().await)
    }
}

impl Scene {
    /// The worker's first sign of the lease, and the gateway has it.
    pub async fn acknowledge(&mut self, lease: &Lease) {
        self.worker.heartbeat(vec![report(lease, 1, 3)]).await;
        until("the heartbeat in the job", || {
            let mut client = self.client.clone();
            async move {
                let job = get(&mut client, &lease.job_id).await;
                job.progress.filter(|progress| progress.step == 1)
            }
        })
        .await;
    }
}

pub fn submission(prompt: &str) -> SubmitJobRequest {
    SubmitJobRequest {
        request: Some(request(prompt)),
    }
}

pub async fn submit(client: &mut Client, prompt: &str) -> Job {
    let response = client.submit_job(submission(prompt)).await;
    response.expect("accepted").into_inner().job.expect("a job")
}

pub async fn get(client: &mut Client, id: &str) -> Job {
    let get = GetJobRequest {
        job_id: id.to_owned(),
    };
    let response = client.get_job(get).await;
    response.expect("known").into_inner().job.expect("a job")
}

pub async fn cancel(client: &mut Client, id: &str) -> Job {
    let cancel = CancelJobRequest {
        job_id: id.to_owned(),
    };
    let response = client.cancel_job(cancel).await;
    response.expect("known").into_inner().job.expect("a job")
}

pub async fn watch(client: &mut Client, id: &str, after_version: u64) -> Streaming<WatchJobResponse> {
    let watch = WatchJobRequest {
        job_id: id.to_owned(),
        after_version,
    };
    client.watch_job(watch).await.expect("known").into_inner()
}

/// The job, as soon as it is in `state`.
pub async fn until_state(client: &Client, id: &str, state: JobState) -> Job {
    until(&format!("job {id} in state {state:?}"), || {
        let mut client = client.clone();
        async move { Some(get(&mut client, id).await).filter(|job| job.state() == state) }
    })
    .await
}

/// The next message of a stream; `None` at its end.
pub async fn next<T>(stream: &mut Streaming<T>) -> Option<T> {
    soon("an event", stream.message()).await.expect("no error")
}
