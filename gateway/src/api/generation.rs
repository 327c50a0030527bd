//! `muse.v1.Generation`.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use muse_proto::v1::{
    CancelJobRequest, CancelJobResponse, GenerateRequest, GenerateResponse, GetImageRequest,
    GetImageResponse, GetJobRequest, GetJobResponse, ListJobsRequest, ListJobsResponse, SubmitJobRequest,
    SubmitJobResponse, SubmitJobsRequest, SubmitJobsResponse, WatchJobRequest, WatchJobResponse,
    generate_response, generation_server::Generation, watch_job_response,
};
use muse_service::{Shutdown, Tenant, identity::tenant, telemetry::trace_context};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use super::submit_jobs::{Submissions, SubmitStream};
use crate::{Config, Error, jobs::Jobs, watch::News};

/// See the module.
#[derive(Clone)]
pub struct GenerationService {
    jobs: Jobs,
    outbox: usize,
    submissions: Submissions,
}

impl GenerationService {
    /// Over `jobs`, within the limits of `config`.
    pub fn new(jobs: Jobs, config: &Config, shutdown: Shutdown) -> Self {
        let submissions = Submissions {
            jobs: jobs.clone(),
            config: config.submit.clone(),
            item_bytes: config.limits.control_message_bytes,
            shutdown,
        };
        Self {
            jobs,
            outbox: config.watch.outbox,
            submissions,
        }
    }

    async fn generate(
        self,
        tenant: Tenant,
        request: GenerateRequest,
        traceparent: Option<String>,
        sender: &mpsc::Sender<Result<GenerateResponse, Status>>,
    ) -> Result<(), Error> {
        let submitted = self.jobs.submit(&tenant, request.request, traceparent).await?;
        let (id, version) = (submitted.job.id.clone(), submitted.job.version);
        let mut durability = Some(submitted.durability);
        let mut event = |event| {
            Ok(GenerateResponse {
                event: Some(event),
                durability: durability.take(),
            })
        };
        // An earlier job may have ended already: then the watch has the last word.
        if !crate::watch::has_ended(&submitted.job)
            && sender
                .send(event(generate_response::Event::Job(submitted.job)))
                .await
                .is_err()
        {
            return Ok(());
        }
        let mut news = Box::pin(self.jobs.watch(&tenant, &id, version).await?);
        while let Some(item) = news.next().await {
            let (news, ended) = item?;
            if let Some(record) = ended.filter(|_| !request.omit_images) {
                for info in &record.job.images {
                    let image = self.jobs.image_of(&record, info.index).await?;
                    if sender
                        .send(event(generate_response::Event::Image(image)))
                        .await
                        .is_err()
                    {
                        return Ok(());
                    }
                }
            }
            let told = match news {
                News::Job(job) => generate_response::Event::Job(*job),
                News::Progress(progress) => generate_response::Event::Progress(progress),
            };
            if sender.send(event(told)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The trace that the job belongs to: this call's span, which is the client's child; else what the client sent.
fn traceparent(metadata: &MetadataMap) -> Option<String> {
    trace_context::current().or_else(|| trace_context::from_metadata(metadata))
}

type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Generation for GenerationService {
    type GenerateStream = EventStream<GenerateResponse>;
    type SubmitJobsStream = EventStream<SubmitJobsResponse>;
    type WatchJobStream = EventStream<WatchJobResponse>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let tenant = tenant(&request)?;
        let traceparent = traceparent(request.metadata());
        let request = request.into_inner();
        let (sender, receiver) = mpsc::channel(self.outbox);
        let service = self.clone();
        // The job goes on when the client leaves: only the watching ends, at the next send.
        tokio::spawn(async move {
            let generated = Self::generate(service, tenant, request, traceparent, &sender);
            if let Err(error) = generated.await {
                let _ = sender.send(Err(error.into())).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn submit_job(
        &self,
        request: Request<SubmitJobRequest>,
    ) -> Result<Response<SubmitJobResponse>, Status> {
        let tenant = tenant(&request)?;
        let traceparent = traceparent(request.metadata());
        let submitted = self
            .jobs
            .submit(&tenant, request.into_inner().request, traceparent)
            .await?;
        Ok(Response::new(SubmitJobResponse {
            job: Some(submitted.job),
            already_existed: submitted.already_existed,
            durability: Some(submitted.durability),
        }))
    }

    async fn submit_jobs(
        &self,
        request: Request<Streaming<SubmitJobsRequest>>,
    ) -> Result<Response<Self::SubmitJobsStream>, Status> {
        let tenant = tenant(&request)?;
        // The client's own trace, if it wants one for all; this call's span would tie every job of the stream together.
        let traceparent = trace_context::from_metadata(request.metadata());
        let (sender, receiver) = mpsc::channel(self.submissions.config.outbox);
        let stream = SubmitStream::new(self.submissions.clone(), tenant, traceparent, sender);
        tokio::spawn(stream.serve(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        let tenant = tenant(&request)?;
        let job = self.jobs.get(&tenant, &request.into_inner().job_id).await?;
        Ok(Response::new(GetJobResponse { job: Some(job) }))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let tenant = tenant(&request)?;
        Ok(Response::new(
            self.jobs.list(&tenant, &request.into_inner()).await?,
        ))
    }

    async fn watch_job(
        &self,
        request: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let tenant = tenant(&request)?;
        let request = request.into_inner();
        let news = self
            .jobs
            .watch(&tenant, &request.job_id, request.after_version)
            .await?;
        let events = news.map(|item| {
            let event = match item?.0 {
                News::Job(job) => watch_job_response::Event::Job(*job),
                News::Progress(progress) => watch_job_response::Event::Progress(progress),
            };
            Ok(WatchJobResponse { event: Some(event) })
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn cancel_job(
        &self,
        request: Request<CancelJobRequest>,
    ) -> Result<Response<CancelJobResponse>, Status> {
        let tenant = tenant(&request)?;
        let job = self.jobs.cancel(&tenant, &request.into_inner().job_id).await?;
        Ok(Response::new(CancelJobResponse { job: Some(job) }))
    }

    async fn get_image(
        &self,
        request: Request<GetImageRequest>,
    ) -> Result<Response<GetImageResponse>, Status> {
        let tenant = tenant(&request)?;
        let request = request.into_inner();
        let image = self.jobs.image(&tenant, &request.job_id, request.index).await?;
        Ok(Response::new(GetImageResponse { image: Some(image) }))
    }
}
