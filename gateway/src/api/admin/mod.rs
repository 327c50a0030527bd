//! `muse.v1.Admin`.

mod audit;
mod dead;
mod status;
mod tenants;

use futures::stream::BoxStream;
use muse_proto::v1::{
    AuditRequest, AuditResponse, DrainWorkerRequest, DrainWorkerResponse, GetDeadJobRequest,
    GetDeadJobResponse, GetQueueStatusRequest, GetQueueStatusResponse, ListDeadJobsRequest,
    ListDeadJobsResponse, ListTenantsRequest, ListTenantsResponse, ListWorkersRequest, ListWorkersResponse,
    PauseRequest, PauseResponse, PurgeDeadJobsRequest, PurgeDeadJobsResponse, RequeueJobRequest,
    RequeueJobResponse, ResumeRequest, ResumeResponse, RetryDeadJobsRequest, RetryDeadJobsResponse,
    SetTenantRequest, SetTenantResponse, admin_server::Admin,
};
use muse_service::{Tenant, identity::tenant};
use tonic::{Request, Response, Status};

use crate::{Config, Error, config::Limits, models::Models, queue::Queue};

/// See the module.
#[derive(Clone)]
pub struct AdminService {
    queue: Queue,
    models: Models,
    limits: Limits,
    outbox: usize,
}

impl AdminService {
    /// Over the queue and the registry.
    pub fn new(queue: Queue, models: Models, config: &Config) -> Self {
        Self {
            queue,
            models,
            limits: config.limits.clone(),
            outbox: config.watch.outbox,
        }
    }

    /// A page's size from what was asked for.
    fn page_size(&self, asked: u32) -> u32 {
        match asked {
            0 => self.limits.default_page_size.min(self.limits.page_size),
            size => size.min(self.limits.page_size),
        }
    }
}

/// Who acts, for the log: operators change what is others'.
fn actor<T>(request: &Request<T>) -> Result<Tenant, Status> {
    Ok(tenant(request)?)
}

#[tonic::async_trait]
impl Admin for AdminService {
    type AuditStream = BoxStream<'static, Result<AuditResponse, Status>>;

    async fn get_queue_status(
        &self,
        _: Request<GetQueueStatusRequest>,
    ) -> Result<Response<GetQueueStatusResponse>, Status> {
        Ok(Response::new(self.status().await?))
    }

    async fn list_workers(
        &self,
        _: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        let workers = self.models.workers().await.map_err(Error::from)?;
        Ok(Response::new(ListWorkersResponse { workers }))
    }

    async fn drain_worker(
        &self,
        request: Request<DrainWorkerRequest>,
    ) -> Result<Response<DrainWorkerResponse>, Status> {
        let (actor, worker) = (actor(&request)?, request.into_inner().worker_id);
        if !self.models.drain(&worker).await.map_err(Error::from)? {
            return Err(Error::UnknownWorker.into());
        }
        tracing::info!(%actor, %worker, "a worker is to drain");
        Ok(Response::new(DrainWorkerResponse {}))
    }

    async fn list_tenants(
        &self,
        request: Request<ListTenantsRequest>,
    ) -> Result<Response<ListTenantsResponse>, Status> {
        Ok(Response::new(self.tenants(request.into_inner()).await?))
    }

    async fn set_tenant(
        &self,
        request: Request<SetTenantRequest>,
    ) -> Result<Response<SetTenantResponse>, Status> {
        let actor = actor(&request)?;
        Ok(Response::new(
            self.change_tenant(&actor, request.into_inner()).await?,
        ))
    }

    async fn pause(&self, request: Request<PauseRequest>) -> Result<Response<PauseResponse>, Status> {
        let actor = actor(&request)?;
        Ok(Response::new(self.stop(&actor, request.into_inner()).await?))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        let actor = actor(&request)?;
        Ok(Response::new(self.let_go_on(&actor, request.into_inner()).await?))
    }

    async fn list_dead_jobs(
        &self,
        request: Request<ListDeadJobsRequest>,
    ) -> Result<Response<ListDeadJobsResponse>, Status> {
        Ok(Response::new(self.dead_jobs(request.into_inner()).await?))
    }

    async fn get_dead_job(
        &self,
        request: Request<GetDeadJobRequest>,
    ) -> Result<Response<GetDeadJobResponse>, Status> {
        Ok(Response::new(self.dead_job(&request.into_inner().job_id).await?))
    }

    async fn retry_dead_jobs(
        &self,
        request: Request<RetryDeadJobsRequest>,
    ) -> Result<Response<RetryDeadJobsResponse>, Status> {
        let actor = actor(&request)?;
        Ok(Response::new(
            self.retry_dead(&actor, request.into_inner()).await?,
        ))
    }

    async fn purge_dead_jobs(
        &self,
        request: Request<PurgeDeadJobsRequest>,
    ) -> Result<Response<PurgeDeadJobsResponse>, Status> {
        let actor = actor(&request)?;
        Ok(Response::new(
            self.purge_dead(&actor, request.into_inner()).await?,
        ))
    }

    async fn requeue_job(
        &self,
        request: Request<RequeueJobRequest>,
    ) -> Result<Response<RequeueJobResponse>, Status> {
        let actor = actor(&request)?;
        Ok(Response::new(
            self.requeue(&actor, &request.into_inner().job_id).await?,
        ))
    }

    async fn audit(&self, request: Request<AuditRequest>) -> Result<Response<Self::AuditStream>, Status> {
        let actor = actor(&request)?;
        Ok(self.begin_audit(&actor, request.into_inner()))
    }
}
