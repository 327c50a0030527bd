//! Pools and workers.

use muse_proto::v1::{GetQueueStatusResponse, ListWorkersResponse, Worker};
use serde::Serialize;

use super::{or_dash, render, seconds, span, table, tenant::PausedView, time, words};

#[derive(Debug, Serialize)]
pub(crate) struct QueueView {
    pools: Vec<PoolView>,
    dead: u64,
    paused_tenants: Vec<PausedTenantView>,
    workers: Vec<WorkerView>,
}

#[derive(Debug, Serialize)]
struct PausedTenantView {
    tenant: String,
    paused: Option<PausedView>,
}

#[derive(Debug, Serialize)]
struct PoolView {
    model: String,
    stage: &'static str,
    waiting: u64,
    running: u64,
    delayed: u64,
    oldest_seconds: Option<f64>,
    workers: u32,
    paused: Option<PausedView>,
}

#[derive(Debug, Serialize)]
pub(crate) struct WorkerView {
    id: String,
    stage: &'static str,
    model: String,
    bundle_digest: String,
    provider: String,
    device: String,
    version: String,
    rows: u32,
    row_budget: u32,
    passes_per_second: f64,
    draining: bool,
    gateway_id: String,
    attached_at: Option<String>,
    last_seen_at: Option<String>,
}

impl QueueView {
    pub(crate) fn new(status: &GetQueueStatusResponse, workers: &ListWorkersResponse) -> Self {
        let pools = status.pools.iter().map(|pool| PoolView {
            model: pool.model.clone(),
            stage: words::stage(pool.stage()),
            waiting: pool.waiting,
            running: pool.running,
            delayed: pool.delayed,
            oldest_seconds: seconds(pool.oldest.as_ref()),
            workers: pool.workers,
            paused: pool.paused.as_ref().map(PausedView::from),
        });
        let paused_tenants = status.paused_tenants.iter().map(|tenant| PausedTenantView {
            tenant: tenant.tenant.clone(),
            paused: tenant.paused.as_ref().map(PausedView::from),
        });
        Self {
            pools: pools.collect(),
            dead: status.dead,
            paused_tenants: paused_tenants.collect(),
            workers: workers_of(workers),
        }
    }

    pub(crate) fn table(&self) -> String {
        let mut rows = table(&[
            "MODEL", "STAGE", "WAITING", "RUNNING", "DELAYED", "OLDEST", "WORKERS", "PAUSED",
        ]);
        for pool in &self.pools {
            rows.add_row([
                pool.model.clone(),
                pool.stage.to_owned(),
                pool.waiting.to_string(),
                pool.running.to_string(),
                pool.delayed.to_string(),
                or_dash(pool.oldest_seconds.map(span)),
                pool.workers.to_string(),
                PausedView::cell(pool.paused.as_ref()),
            ]);
        }
        let mut facts = format!("dead jobs: {}", self.dead);
        for tenant in &self.paused_tenants {
            let paused = PausedView::cell(tenant.paused.as_ref());
            facts.push_str(&format!("\npaused tenant {}: {paused}", tenant.tenant));
        }
        format!("{}\n\n{facts}\n\n{}", render(&rows), worker_table(&self.workers))
    }
}

/// Each worker of an answer.
pub(crate) fn workers_of(response: &ListWorkersResponse) -> Vec<WorkerView> {
    response.workers.iter().map(WorkerView::from).collect()
}

impl From<&Worker> for WorkerView {
    fn from(worker: &Worker) -> Self {
        Self {
            id: worker.id.clone(),
            stage: words::stage(worker.stage()),
            model: worker.model.clone(),
            bundle_digest: worker.bundle_digest.clone(),
            provider: worker.provider.clone(),
            device: worker.device.clone(),
            version: worker.version.clone(),
            rows: worker.rows,
            row_budget: worker.row_budget,
            passes_per_second: worker.passes_per_second,
            draining: worker.draining,
            gateway_id: worker.gateway_id.clone(),
            attached_at: time(worker.attached_at.as_ref()),
            last_seen_at: time(worker.last_seen_at.as_ref()),
        }
    }
}

/// A row for each worker.
pub(crate) fn worker_table(workers: &[WorkerView]) -> String {
    let mut rows = table(&[
        "WORKER", "STAGE", "MODEL", "PROVIDER", "DEVICE", "ROWS", "PASSES/S", "STATE", "SEEN",
    ]);
    for worker in workers {
        rows.add_row([
            worker.id.clone(),
            worker.stage.to_owned(),
            worker.model.clone(),
            worker.provider.clone(),
            or_dash(Some(worker.device.clone())),
            format!("{}/{}", worker.rows, worker.row_budget),
            format!("{:.1}", worker.passes_per_second),
            if worker.draining { "draining" } else { "serving" }.to_owned(),
            or_dash(worker.last_seen_at.clone()),
        ]);
    }
    render(&rows)
}

#[cfg(test)]
mod tests {
    use muse_proto::v1::{PoolStatus, Stage};

    use super::*;

    #[test]
    fn the_status_shows_pools_dead_jobs_and_workers() {
        let pool = PoolStatus {
            model: "muse-demo".to_owned(),
            stage: Stage::Base.into(),
            waiting: 3,
            oldest: Some(prost_types::Duration {
                seconds: 90,
                nanos: 0,
            }),
            ..PoolStatus::default()
        };
        let worker = Worker {
            id: "w1".to_owned(),
            stage: Stage::Base.into(),
            device: "CPU, 2 threads".to_owned(),
            rows: 2,
            row_budget: 12,
            passes_per_second: 33.33,
            ..Worker::default()
        };
        let status = GetQueueStatusResponse {
            pools: vec![pool],
            dead: 4,
            ..GetQueueStatusResponse::default()
        };
        let view = QueueView::new(
            &status,
            &ListWorkersResponse {
                workers: vec![worker],
            },
        );
        let text = view.table();
        for part in [
            "muse-demo",
            "90.00 s",
            "dead jobs: 4",
            "2/12",
            "33.3",
            "serving",
            "CPU, 2 threads",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        assert_eq!(
            serde_json::to_value(&view).unwrap()["pools"][0]["oldest_seconds"],
            90.0
        );
    }
}
