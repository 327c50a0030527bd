//! An operator who does everything that the Admin service offers, again and again, while the cluster is disturbed.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use muse_proto::v1::{
    AuditRequest, JobIds, JobState, ListTenantsRequest, PauseRequest, PurgeDeadJobsRequest,
    RequeueJobRequest, ResumeRequest, RetryDeadJobsRequest, SetTenantRequest, TenantSettings,
    admin_client::AdminClient, audit_response, pause_request, purge_dead_jobs_request, resume_request,
    retry_dead_jobs_request,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{task::JoinHandle, time::sleep};
use tonic::{Code, Status, transport::Channel};

use super::{
    clients::{Gateways, Order, Tenant},
    history::{Event, History, JobKind, Log as _},
    load::{GREEDY, labelled, request},
    stage::MAX_WAITING,
};
use crate::noop_worker;

/// Whose jobs the operator handles.
pub const NAME: &str = "operated";
/// A tenant without jobs, which is paused and resumed.
const IDLE: &str = "idle";
/// What the greedy tenant may.
const GREEDY_RUNNING: u64 = 3;
const GREEDY_QUEUED: u64 = 20;
/// A call that does not succeed for so long never will.
const PATIENCE: Duration = Duration::from_secs(120);
/// A call that takes longer is made elsewhere.
const CALL: Duration = Duration::from_secs(4);
/// An audit, of tens of thousands of jobs on a busy machine.
const AUDIT: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub struct Operator {
    admin: Admin,
    stopping: Arc<AtomicBool>,
    rounds: JoinHandle<()>,
    samples: JoinHandle<()>,
}

/// The Admin service of whichever gateway lives.
#[derive(Clone, Debug)]
pub struct Admin {
    gateways: Gateways,
    history: History,
    /// An audit ends the one before it: two who both try until they succeed never do.
    auditing: Arc<tokio::sync::Mutex<()>>,
}

impl Operator {
    /// Starts.
    pub async fn start(gateways: &Gateways, history: &History, seed: u64) -> Self {
        let admin = Admin::new(gateways, history);
        let greedy = TenantSettings {
            max_running: Some(GREEDY_RUNNING),
            max_queued: Some(GREEDY_QUEUED),
            ..TenantSettings::default()
        };
        admin.set_tenant(GREEDY, greedy).await;
        let stopping = Arc::new(AtomicBool::new(false));
        let rounds = tokio::spawn(rounds(admin.clone(), Arc::clone(&stopping), seed));
        let samples = tokio::spawn(samples(admin.clone(), Arc::clone(&stopping)));
        Self {
            admin,
            stopping,
            rounds,
            samples,
        }
    }

    /// For others who have something to ask.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// Finishes what it has begun.
    pub async fn finish(self) -> Admin {
        self.stopping.store(true, Ordering::Relaxed);
        for task in [self.rounds, self.samples] {
            if let Err(panic) = task.await {
                std::panic::resume_unwind(panic.into_panic());
            }
        }
        self.admin
    }
}

// === impl Admin ===

impl Admin {
    /// Takes down what it sees in `history`.
    pub fn new(gateways: &Gateways, history: &History) -> Self {
        Self {
            gateways: gateways.clone(),
            history: history.clone(),
            auditing: Arc::default(),
        }
    }

    /// Calls until there is an answer that another attempt would not change.
    pub async fn until<T, Fut: Future<Output = Result<T, Status>>>(
        &self,
        what: &str,
        call: impl Fn(AdminClient<Channel>) -> Fut,
    ) -> Result<T, Status> {
        self.until_within(CALL, what, call).await
    }

    async fn until_within<T, Fut: Future<Output = Result<T, Status>>>(
        &self,
        limit: Duration,
        what: &str,
        call: impl Fn(AdminClient<Channel>) -> Fut,
    ) -> Result<T, Status> {
        let begun = Instant::now();
        loop {
            match tokio::time::timeout(limit, call(self.gateways.admin())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status))
                    if matches!(
                        status.code(),
                        Code::NotFound | Code::FailedPrecondition | Code::InvalidArgument
                    ) =>
                {
                    return Err(status);
                }
                Ok(Err(status)) if begun.elapsed() > PATIENCE => panic!("{what}: {status}"),
                Err(_) if begun.elapsed() > PATIENCE => panic!("{what}: no answer within {limit:?}"),
                _ => sleep(Duration::from_millis(150)).await,
            }
        }
    }

    /// Settings of a tenant.
    pub async fn set_tenant(&self, name: &str, settings: TenantSettings) {
        let set = self.until("set tenant", |mut admin| {
            let request = SetTenantRequest {
                name: name.to_owned(),
                settings: Some(settings),
                reset: vec![],
            };
            async move { admin.set_tenant(request).await }
        });
        set.await.expect("settings that can be");
    }

    /// Pauses a tenant or a pool, or lets it go on.
    pub async fn pause(&self, target: pause_request::Target, pause: bool) {
        let done = self.until("pause", |mut admin| {
            let target = target.clone();
            async move {
                if pause {
                    let (target, reason) = (Some(target), "to see what happens".to_owned());
                    return admin.pause(PauseRequest { target, reason }).await.map(drop);
                }
                let target = Some(match target {
                    pause_request::Target::Pool(pool) => resume_request::Target::Pool(pool),
                    pause_request::Target::Tenant(tenant) => resume_request::Target::Tenant(tenant),
                });
                admin.resume(ResumeRequest { target }).await.map(drop)
            }
        });
        done.await.expect("a target that can be paused");
    }

    /// One audit to its summary, repeated until it comes to its end; what it finds is taken down.
    pub async fn audit(&self) {
        let _alone = self.auditing.lock().await;
        let audited = self.until_within(AUDIT, "audit", audit_once).await;
        let (jobs, findings) = audited.expect("an audit can be had");
        self.history.write(&Event::Audited { jobs, findings });
    }

    /// One audit beside everything else: it may not come to its end, and what it finds while Redis is killed proves nothing.
    async fn try_audit(&self) {
        let _alone = self.auditing.lock().await;
        let _ = tokio::time::timeout(CALL, audit_once(self.gateways.admin())).await;
    }

    /// Jobs of these tenants that have not ended.
    pub async fn live_jobs(&self, names: &[&str]) -> u64 {
        let listed = self.until("list tenants", |mut admin| async move {
            admin.list_tenants(all_tenants()).await
        });
        let tenants = listed.await.expect("a list").into_inner().tenants;
        let theirs = tenants
            .iter()
            .filter(|tenant| names.contains(&tenant.name.as_str()));
        theirs
            .map(|tenant| tenant.queued + tenant.running + tenant.delayed)
            .sum()
    }

    async fn sample(&self) -> Result<(), Status> {
        let mut admin = self.gateways.admin();
        let tenants = admin.list_tenants(all_tenants()).await?.into_inner().tenants;
        let status = admin
            .get_queue_status(muse_proto::v1::GetQueueStatusRequest {})
            .await?
            .into_inner();
        let sampled = |what: String, value, limit| {
            self.history.write(&Event::Sampled { what, value, limit });
        };
        for tenant in tenants.iter().filter(|tenant| tenant.name == GREEDY) {
            // A shard that was taken for lost and is not may keep its jobs, beside those that took their places.
            sampled(
                "jobs of the greedy tenant running".to_owned(),
                tenant.running,
                2 * GREEDY_RUNNING,
            );
            // Jobs that go on to their next stage, or come back, are never refused.
            let limit = GREEDY_QUEUED + 2 * GREEDY_RUNNING;
            sampled(
                "jobs of the greedy tenant waiting".to_owned(),
                tenant.queued + tenant.delayed,
                limit,
            );
        }
        for pool in status.pools {
            let what = format!("jobs waiting in {}:{:?}", pool.model, pool.stage());
            sampled(what, pool.waiting, MAX_WAITING);
        }
        Ok(())
    }
}

async fn audit_once(mut admin: AdminClient<Channel>) -> Result<(u64, Vec<String>), Status> {
    let mut stream = admin.audit(AuditRequest { repair: false }).await?.into_inner();
    let mut findings = vec![];
    while let Some(response) = stream.message().await? {
        match response.event {
            Some(audit_response::Event::Finding(finding)) => {
                findings.push(format!(
                    "{:?} {}: {}",
                    finding.fault(),
                    finding.subject,
                    finding.detail
                ));
            }
            Some(audit_response::Event::Summary(summary)) => return Ok((summary.jobs, findings)),
            _ => {}
        }
    }
    Err(Status::unavailable("no summary"))
}

fn all_tenants() -> ListTenantsRequest {
    ListTenantsRequest {
        page_size: 100,
        ..ListTenantsRequest::default()
    }
}

async fn samples(admin: Admin, stopping: Arc<AtomicBool>) {
    while !stopping.load(Ordering::Relaxed) {
        // Without an answer there is nothing to take down.
        let _ = tokio::time::timeout(CALL, admin.sample()).await;
        sleep(Duration::from_millis(300)).await;
    }
}

async fn rounds(admin: Admin, stopping: Arc<AtomicBool>, seed: u64) {
    let tenant = Tenant::new(NAME, &admin.gateways, &admin.history);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut number = 0;
    while !stopping.load(Ordering::Relaxed) {
        number += 1;
        let settings = TenantSettings {
            weight: Some(rng.random_range(0.5..2.0)),
            ..TenantSettings::default()
        };
        admin.set_tenant(IDLE, settings).await;
        let idle = pause_request::Target::Tenant(IDLE.to_owned());
        admin.pause(idle.clone(), true).await;
        admin.try_audit().await;
        admin.pause(idle, false).await;
        requeue(&admin, &tenant, number, rng.random()).await;
        bury(&admin, &tenant, number, rng.random()).await;
        sleep(Duration::from_millis(300)).await;
    }
}

/// A job that is put back while it runs ends none the less.
async fn requeue(admin: &Admin, tenant: &Tenant, number: u64, seed: u64) {
    let order = Order {
        key: format!("requeued-{number}"),
        kind: JobKind::Requeued,
        request: request(seed, 400),
    };
    let Some(job) = tenant.submit(&order).await else {
        return;
    };
    sleep(Duration::from_millis(150)).await;
    let requeued = admin.until("requeue", |mut service| {
        let job_id = job.id.clone();
        async move { service.requeue_job(RequeueJobRequest { job_id }).await }
    });
    // It may have ended, or be lost with what was taken from the disk: the sweep says.
    if let Ok(response) = requeued.await
        && let Some(job) = response.into_inner().job
    {
        tenant.saw(&job);
    }
    tenant.watch(&job.id).await;
}

/// A job that fails, is retried, fails again, and is forgotten.
async fn bury(admin: &Admin, tenant: &Tenant, number: u64, seed: u64) {
    let order = Order {
        key: format!("buried-{number}"),
        kind: JobKind::Buried,
        request: labelled(request(seed, 50), noop_worker::REJECT, "yes"),
    };
    let Some(job) = tenant.submit(&order).await else {
        return;
    };
    let Some(dead) = tenant.watch(&job.id).await else {
        return;
    };
    if dead.state() != JobState::Failed {
        return;
    }
    let job_ids = vec![job.id.clone()];
    let retried = admin.until("retry", |mut service| {
        // Each attempt may do it, also one whose answer is lost.
        admin.history.write(&Event::Reviving { job: job.id.clone() });
        let which = retry_dead_jobs_request::Which::Jobs(JobIds {
            job_ids: job_ids.clone(),
        });
        async move {
            service
                .retry_dead_jobs(RetryDeadJobsRequest { which: Some(which) })
                .await
        }
    });
    retried.await.expect("a job that can be retried");
    if tenant.watch_after(&job.id, dead.version).await.is_none() {
        return;
    }
    admin.history.write(&Event::Purging { job: job.id.clone() });
    let purged = admin.until("purge", |mut service| {
        let which = purge_dead_jobs_request::Which::Jobs(JobIds {
            job_ids: job_ids.clone(),
        });
        async move {
            service
                .purge_dead_jobs(PurgeDeadJobsRequest { which: Some(which) })
                .await
        }
    });
    purged.await.expect("a job that can be purged");
}
