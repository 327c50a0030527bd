//! `muse.v1.Admin`.

use std::collections::BTreeMap;

use muse_proto::v1::{
    GetQueueStatusRequest, GetQueueStatusResponse, ListWorkersRequest, ListWorkersResponse, PoolStatus,
    admin_server::Admin,
};
use tonic::{Request, Response, Status};

use crate::{
    Error,
    jobs::{duration, stage_name, stage_of_name},
    models::Models,
    queue::{PoolCounts, Queue},
};

/// See the module.
#[derive(Clone)]
pub struct AdminService {
    queue: Queue,
    models: Models,
}

impl AdminService {
    /// Over the queue and the registry.
    pub fn new(queue: Queue, models: Models) -> Self {
        Self { queue, models }
    }

    async fn status(&self) -> Result<GetQueueStatusResponse, Error> {
        let (mut counts, dead) = self.queue.counts().await?;
        let models = self.models.all().await?;
        let mut workers: BTreeMap<(String, String), u32> = BTreeMap::new();
        for model in models.values() {
            for served in &model.stages {
                let Some(stage) = stage_name(served.stage()) else {
                    continue;
                };
                let pool = (model.name.clone(), stage.to_owned());
                counts.entry(pool.clone()).or_default();
                workers.insert(pool, served.workers);
            }
        }
        let pools = counts
            .into_iter()
            .map(|(pool, counts)| status_of(&pool, &counts, workers.get(&pool)));
        Ok(GetQueueStatusResponse {
            pools: pools.collect(),
            dead,
        })
    }
}

fn status_of((model, stage): &(String, String), counts: &PoolCounts, workers: Option<&u32>) -> PoolStatus {
    PoolStatus {
        model: model.clone(),
        stage: stage_of_name(stage).unwrap_or_default() as i32,
        waiting: counts.queued,
        running: counts.running,
        delayed: counts.delayed,
        oldest: counts.oldest_ms.map(duration),
        workers: workers.copied().unwrap_or(0),
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
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
}
