//! What the queue looks like.

use std::collections::BTreeMap;

use muse_proto::v1::{self, GetQueueStatusResponse, PausedTenant, PoolStatus};

use super::AdminService;
use crate::{
    Error,
    jobs::{duration, stage_name, stage_of_name, timestamp},
    queue::{Paused, PoolCounts},
};

impl AdminService {
    pub(super) async fn status(&self) -> Result<GetQueueStatusResponse, Error> {
        let (mut counts, dead) = self.queue.counts().await?;
        let mut paused = self.queue.paused().await?;
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
        // A pool that is paused is shown whatever else is known of it.
        for pool in paused.pools.keys() {
            counts.entry(pool.clone()).or_default();
        }
        let pools = counts.into_iter().map(|(pool, counts)| {
            let status = status_of(&pool, &counts, workers.get(&pool));
            PoolStatus {
                paused: paused.pools.remove(&pool).map(paused_message),
                ..status
            }
        });
        Ok(GetQueueStatusResponse {
            pools: pools.collect(),
            dead,
            paused_tenants: paused
                .tenants
                .into_iter()
                .map(|(tenant, paused)| PausedTenant {
                    tenant,
                    paused: Some(paused_message(paused)),
                })
                .collect(),
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
        paused: None,
    }
}

pub(super) fn paused_message(paused: Paused) -> v1::Paused {
    v1::Paused {
        since: Some(timestamp(paused.since_ms)),
        reason: paused.reason,
    }
}
