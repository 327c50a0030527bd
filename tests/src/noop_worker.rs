//! A shard without a model: the real worker's hub client around jobs that only take time. What it saw it writes down, a line
//! at a time, so that a kill -9 loses nothing of it.
//!
//! A job says by its labels what to do: [`PASS_MS`], [`FAIL_PERCENT`], [`REJECT`].

use std::{
    collections::HashMap,
    fs::OpenOptions,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use muse_engine::{SessionOptions, Stage};
use muse_proto::{
    internal::v1::{AckOutcome, Checkpoint, Fail, Hello, Lease, Release},
    v1::{JobError, JobErrorReason, Progress, Stage as WireStage},
};
use muse_service::{
    Addresses, Readiness, Shutdown,
    config::{Drain, Ops, Process, ServiceConfig, Telemetry},
};
use muse_worker::{
    config::{Encoder, Hub},
    hub::{Client, Jobs, Limits, Protocol, Report, Snapshot, Standing, Ticket},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
};

use crate::{
    harness::history::{Event, Log, LogFile},
    noop,
};

/// Milliseconds that each stage of the job takes.
pub const PASS_MS: &str = "pass_ms";
/// How many of a hundred attempts fail; another may help.
pub const FAIL_PERCENT: &str = "fail_percent";
/// Present: every attempt fails, and another does not help.
pub const REJECT: &str = "reject";

/// Steps of a job, each told as progress.
const STEPS: u32 = 4;
/// Reports that may wait for the hub client.
const REPORTS: usize = 1024;

/// A worker's configuration file, with what only this one knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NoopConfig {
    /// Its part of the cluster; begins its worker id.
    pub name: String,
    /// The pool that it belongs to.
    pub stage: Stage,
    /// Rows held at once.
    pub rows: u32,
    /// Where it writes down what it saw; absent: nowhere.
    pub history: Option<PathBuf>,
    /// Logs and traces.
    pub telemetry: Telemetry,
    /// Metrics and probes.
    pub ops: Ops,
    /// The end of the process.
    pub drain: Drain,
    /// Where it runs.
    pub process: Process,
    /// Gateways.
    pub hub: Hub,
    /// Of a real worker's file; no use here.
    pub bundle: PathBuf,
    /// Likewise.
    pub encoder: Encoder,
    /// Likewise.
    pub runtime: SessionOptions,
}

impl Default for NoopConfig {
    fn default() -> Self {
        Self {
            name: "noop".to_owned(),
            stage: Stage::Base,
            rows: 4,
            history: None,
            telemetry: Telemetry::default(),
            ops: Ops::default(),
            drain: Drain::default(),
            process: Process::default(),
            hub: Hub::default(),
            bundle: PathBuf::new(),
            encoder: Encoder::default(),
            runtime: SessionOptions::default(),
        }
    }
}

impl ServiceConfig for NoopConfig {
    fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    fn drain(&self) -> &Drain {
        &self.drain
    }

    fn process(&self) -> &Process {
        &self.process
    }
}

/// Binds, announces, attaches, works until the shutdown or a drain.
///
/// # Errors
/// When a port or the history cannot be had, or no gateway takes it.
pub async fn run(config: NoopConfig, shutdown: Shutdown) -> anyhow::Result<()> {
    let readiness = Readiness::new();
    let ops = muse_service::ops::Ops::bind(&config.ops, readiness.clone()).await?;
    Addresses {
        grpc: None,
        ops: ops.local_addr(),
    }
    .announce()?;
    tokio::spawn(ops.serve_until(std::future::pending()));
    let log: Option<LogFile> = match &config.history {
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            Some(LogFile::new(
                file.with_context(|| format!("cannot write {}", path.display()))?,
            ))
        }
        None => None,
    };
    let worker = format!("{}-{}", config.name, uuid::Uuid::now_v7().simple());
    let stage = match config.stage {
        Stage::Base => WireStage::Base,
        Stage::Superres => WireStage::Superres,
    };
    let hello = Hello {
        worker_id: worker.clone(),
        stage: stage.into(),
        model: Some(noop::model()),
        provider: "none".to_owned(),
        device: "none".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        row_budget: config.rows,
    };
    let limits = Limits {
        capacity: config.rows,
        max_rows: config.rows.saturating_mul(4),
        resend_after: Duration::from_millis(config.hub.resend_after_ms),
        progress_interval: Some(Duration::from_millis(config.hub.progress_interval_ms)),
    };
    let (reports, received) = mpsc::channel(REPORTS);
    let jobs = NoopJobs {
        worker,
        stage,
        log,
        reports,
        shared: Arc::default(),
    };
    let (standing, mut watched) = watch::channel(Standing::Detached);
    let client = Client::new(config.hub, hello, Protocol::new(limits), jobs, received, standing)?;
    tokio::spawn(async move {
        loop {
            readiness.set_ready(*watched.borrow_and_update() == Standing::Attached);
            if watched.changed().await.is_err() {
                return;
            }
        }
    });
    client.run(shutdown).await?;
    Ok(())
}

/// Jobs that take their time and nothing else.
struct NoopJobs {
    worker: String,
    stage: WireStage,
    log: Option<LogFile>,
    reports: mpsc::Sender<(Ticket, Report)>,
    shared: Arc<Mutex<Running>>,
}

#[derive(Default)]
struct Running {
    jobs: HashMap<Ticket, Job>,
    version: u64,
}

struct Job {
    lease: Arc<Lease>,
    step: u32,
    task: Option<AbortHandle>,
}

fn locked(shared: &Mutex<Running>) -> MutexGuard<'_, Running> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NoopJobs {
    fn write(&self, event: impl FnOnce(String) -> Event) {
        if let Some(log) = &self.log {
            log.write(&event(self.worker.clone()));
        }
    }
}

impl Jobs for NoopJobs {
    fn start(&mut self, ticket: Ticket, lease: Lease) {
        let lease = Arc::new(lease);
        let (job, nonce) = (lease.job_id.clone(), hex::encode(&lease.nonce));
        let stage = self.stage;
        self.write(|worker| Event::Leased {
            worker,
            job,
            nonce,
            stage: stage.as_str_name().to_owned(),
        });
        let (shared, reports, taken) = (Arc::clone(&self.shared), self.reports.clone(), Arc::clone(&lease));
        let task = tokio::spawn(async move {
            let step = Duration::from_millis(label(&taken, PASS_MS).unwrap_or(0)) / STEPS;
            for _ in 0..STEPS {
                tokio::time::sleep(step).await;
                let mut running = locked(&shared);
                running.version += 1;
                if let Some(job) = running.jobs.get_mut(&ticket) {
                    job.step += 1;
                }
            }
            let _ = reports.send((ticket, outcome(&taken))).await;
        });
        let task = Some(task.abort_handle());
        locked(&self.shared)
            .jobs
            .insert(ticket, Job { lease, step: 0, task });
    }

    fn drop_job(&mut self, ticket: Ticket) {
        let dropped = locked(&self.shared).jobs.remove(&ticket);
        if let Some(job) = dropped {
            job.task.inspect(AbortHandle::abort);
            self.write(|worker| Event::Dropped {
                worker,
                job: job.lease.job_id.clone(),
                nonce: hex::encode(&job.lease.nonce),
            });
        }
    }

    fn forget(&mut self, ticket: Ticket) {
        locked(&self.shared).jobs.remove(&ticket);
    }

    fn acknowledged(&mut self, ticket: Ticket, outcome: AckOutcome) {
        let lease = locked(&self.shared)
            .jobs
            .get(&ticket)
            .map(|job| Arc::clone(&job.lease));
        if let Some(lease) = lease {
            self.write(|worker| Event::Acked {
                worker,
                job: lease.job_id.clone(),
                nonce: hex::encode(&lease.nonce),
                outcome: outcome.as_str_name().to_owned(),
            });
        }
    }

    fn release_all(&mut self) {
        let mut running = locked(&self.shared);
        for (ticket, job) in &mut running.jobs {
            if let Some(task) = job.task.take() {
                // One that has reported is past this: the protocol takes one report alone.
                task.abort();
                let release = Release {
                    job_id: job.lease.job_id.clone(),
                    nonce: job.lease.nonce.clone(),
                    checkpoint: None,
                };
                let _ = self.reports.try_send((*ticket, Report::Release(release)));
            }
        }
    }

    fn snapshot(&self, ticket: Ticket) -> Option<Snapshot> {
        let running = locked(&self.shared);
        let step = running.jobs.get(&ticket)?.step;
        let stage = self.stage.into();
        Some(Snapshot {
            version: u64::from(step),
            progress: Progress {
                stage,
                step,
                of: STEPS,
            },
            checkpoint: (step > 0).then(|| Checkpoint { stage, rows: vec![] }),
        })
    }

    fn progress_version(&self) -> u64 {
        locked(&self.shared).version
    }

    fn passes(&self) -> u64 {
        locked(&self.shared).version
    }
}

fn label(lease: &Lease, name: &str) -> Option<u64> {
    lease.request.as_ref()?.labels.get(name)?.parse().ok()
}

/// What comes of a job: by its labels, and by its nonce, which is random and the same in every report on the lease.
fn outcome(lease: &Lease) -> Report {
    let failed = |reason: JobErrorReason, retriable| {
        Report::Fail(Fail {
            job_id: lease.job_id.clone(),
            nonce: lease.nonce.clone(),
            error: Some(JobError {
                reason: reason.into(),
                message: "as its labels wish".to_owned(),
            }),
            retriable,
        })
    };
    let rejected = lease
        .request
        .as_ref()
        .is_some_and(|request| request.labels.contains_key(REJECT));
    if rejected {
        return failed(JobErrorReason::InvalidRequest, false);
    }
    let draw = lease
        .nonce
        .iter()
        .fold(0_u64, |sum, byte| sum * 31 % 9973 + u64::from(*byte))
        % 100;
    if label(lease, FAIL_PERCENT).is_some_and(|percent| draw < percent) {
        return failed(JobErrorReason::ModelFailed, true);
    }
    // Each lease's result is its own, so that a commit tells whose it is.
    Report::Complete(noop::result_of(lease, &lease.nonce))
}
