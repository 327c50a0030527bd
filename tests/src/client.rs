//! A client that asserts: each call panics with what it saw.

use std::time::Duration;

use muse_proto::v1::{
    CancelJobRequest, GenerateRequest, GenerationRequest, GetImageRequest, GetJobRequest, Job, JobState,
    ListJobsRequest, Progress, Stage, SubmitJobRequest, WatchJobRequest, generate_response,
    generation_client::GenerationClient, watch_job_response,
};
use tokio::time::timeout;
use tonic::{Code, Status, transport::Channel};

use crate::PATIENCE;

/// A connection to one gateway.
#[derive(Clone, Debug)]
pub struct Client {
    inner: GenerationClient<Channel>,
}

/// A channel that connects when first used, and again after a loss.
pub fn channel(endpoint: &str) -> Channel {
    Channel::from_shared(endpoint.to_owned())
        .expect("an endpoint")
        .connect_lazy()
}

/// What a whole `Generate` stream told.
#[derive(Debug)]
pub struct Told {
    /// Every job event, the first as accepted, the last terminal.
    pub jobs: Vec<Job>,
    /// Every progress event.
    pub progress: Vec<Progress>,
    /// The pictures' bytes, by index.
    pub images: Vec<Vec<u8>>,
}

impl Client {
    /// Connects when first used, and again after a loss.
    pub fn new(endpoint: &str) -> Self {
        Self {
            inner: GenerationClient::new(channel(endpoint)).max_decoding_message_size(64 * 1024 * 1024),
        }
    }

    /// Submits; panics when refused.
    pub async fn submit(&self, request: GenerationRequest) -> Job {
        self.try_submit(request).await.expect("the job is accepted")
    }

    /// Submits, or tells how it was refused.
    pub async fn try_submit(&self, request: GenerationRequest) -> Result<Job, Status> {
        let response = self
            .inner
            .clone()
            .submit_job(SubmitJobRequest {
                request: Some(request),
            })
            .await?;
        Ok(response.into_inner().job.expect("a job"))
    }

    /// The job as it stands.
    pub async fn job(&self, id: &str) -> Result<Job, Status> {
        let response = self
            .inner
            .clone()
            .get_job(GetJobRequest {
                job_id: id.to_owned(),
            })
            .await?;
        Ok(response.into_inner().job.expect("a job"))
    }

    /// Every job there is, newest first.
    pub async fn jobs(&self) -> Vec<Job> {
        let request = ListJobsRequest {
            page_size: 200,
            ..ListJobsRequest::default()
        };
        self.inner
            .clone()
            .list_jobs(request)
            .await
            .expect("a list")
            .into_inner()
            .jobs
    }

    /// Cancels.
    pub async fn cancel(&self, id: &str) -> Job {
        let response = self
            .inner
            .clone()
            .cancel_job(CancelJobRequest {
                job_id: id.to_owned(),
            })
            .await;
        response.expect("cancelled").into_inner().job.expect("a job")
    }

    /// A picture's bytes.
    pub async fn image(&self, id: &str, index: u32) -> Vec<u8> {
        let request = GetImageRequest {
            job_id: id.to_owned(),
            index,
        };
        let image = self
            .inner
            .clone()
            .get_image(request)
            .await
            .expect("an image")
            .into_inner()
            .image;
        image.expect("an image").data.to_vec()
    }

    /// Submits and watches in one stream, to its end.
    pub async fn generate(&self, request: GenerationRequest) -> Told {
        let request = GenerateRequest {
            request: Some(request),
            omit_images: false,
        };
        let mut told = Told {
            jobs: vec![],
            progress: vec![],
            images: vec![],
        };
        let all = async {
            let mut stream = self
                .inner
                .clone()
                .generate(request)
                .await
                .expect("accepted")
                .into_inner();
            while let Some(response) = stream.message().await.expect("the stream goes on to its end") {
                match response.event.expect("an event") {
                    generate_response::Event::Job(job) => told.jobs.push(job),
                    generate_response::Event::Progress(progress) => told.progress.push(progress),
                    generate_response::Event::Image(image) => told.images.push(image.data.to_vec()),
                }
            }
        };
        timeout(PATIENCE, all).await.expect("the job ends");
        told
    }

    /// Watches until `condition` holds, over as many streams as it takes, each resumed where the last broke. Returns the
    /// versions seen in order and the job that satisfied it.
    async fn watch_until(&self, id: &str, mut condition: impl FnMut(&Seen) -> bool) -> (Vec<u64>, Seen) {
        let mut versions: Vec<u64> = Vec::new();
        let watched = async {
            loop {
                let request = WatchJobRequest {
                    job_id: id.to_owned(),
                    after_version: versions.last().copied().unwrap_or(0),
                };
                match self.inner.clone().watch_job(request).await {
                    Ok(stream) => {
                        let mut stream = stream.into_inner();
                        while let Ok(Some(response)) = stream.message().await {
                            let seen = match response.event.expect("an event") {
                                watch_job_response::Event::Job(job) => {
                                    versions.push(job.version);
                                    Seen::Job(Box::new(job))
                                }
                                watch_job_response::Event::Progress(progress) => Seen::Progress(progress),
                            };
                            if condition(&seen) {
                                return seen;
                            }
                        }
                    }
                    Err(status) if status.code() == Code::NotFound => panic!("the job is lost: {status}"),
                    // A gateway that is down: what this client is made to bear.
                    Err(_) => {}
                }
                // Between two attempts to reach a gateway that may be down; no result depends on its length.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let seen = timeout(PATIENCE, watched).await;
        match seen {
            Ok(seen) => (versions, seen),
            Err(_) => panic!(
                "nothing more to be seen of job {id}; it stands at {:?}",
                self.job(id).await
            ),
        }
    }

    /// Waits until the job is at least at this step of this stage, and is not past it.
    pub async fn reach(&self, id: &str, stage: Stage, step: u32) {
        let (_, seen) = self
            .watch_until(id, |seen| match seen {
                Seen::Progress(progress) => progress.stage() == stage && progress.step >= step,
                Seen::Job(job) => ended(job),
            })
            .await;
        if let Seen::Job(job) = seen {
            panic!("the job ended before it was seen at step {step} of {stage:?}: {job:?}");
        }
    }

    /// Waits for the end, and checks that what was told on the way only ever moved forward.
    pub async fn end(&self, id: &str) -> Job {
        let (versions, seen) = self
            .watch_until(id, |seen| matches!(seen, Seen::Job(job) if ended(job)))
            .await;
        assert!(
            versions.windows(2).all(|pair| pair[0] < pair[1]),
            "versions only grow: {versions:?}"
        );
        match seen {
            Seen::Job(job) => *job,
            Seen::Progress(_) => unreachable!("the condition takes jobs alone"),
        }
    }

    /// Waits for success; returns the digests of the pictures, in order.
    pub async fn pictures(&self, id: &str) -> Vec<String> {
        let job = self.end(id).await;
        assert_eq!(job.state(), JobState::Succeeded, "{job:?}");
        job.images.into_iter().map(|image| image.sha256).collect()
    }

    /// Submits, and waits for success as [`Client::pictures`] does.
    pub async fn make(&self, request: GenerationRequest) -> Vec<String> {
        let job = self.submit(request).await;
        self.pictures(&job.id).await
    }
}

/// An event of a watch.
#[derive(Debug)]
enum Seen {
    Job(Box<Job>),
    Progress(Progress),
}

fn ended(job: &Job) -> bool {
    matches!(
        job.state(),
        JobState::Succeeded | JobState::Failed | JobState::Cancelled
    )
}
