//! Jobs that gave up.

use muse_proto::v1::{DeadJob, Failure, GetDeadJobResponse};
use serde::Serialize;

use super::{
    job::{ErrorView, JobView},
    or_dash, render, table, time, words,
};

#[derive(Debug, Serialize)]
pub(crate) struct DeadView {
    job_id: String,
    tenant: String,
    model: String,
    stage: &'static str,
    error: Option<ErrorView>,
    attempts: u32,
    crashes: u32,
    worker_id: String,
    created_at: Option<String>,
    failed_at: Option<String>,
}

/// One of them, with all that happened to it.
#[derive(Debug, Serialize)]
pub(crate) struct DeadDetails {
    dead: DeadView,
    /// Oldest first.
    history: Vec<FailureView>,
    job: Option<JobView>,
}

#[derive(Debug, Serialize)]
struct FailureView {
    at: Option<String>,
    stage: &'static str,
    reason: &'static str,
    message: String,
    worker_id: String,
}

impl From<&DeadJob> for DeadView {
    fn from(dead: &DeadJob) -> Self {
        Self {
            job_id: dead.job_id.clone(),
            tenant: dead.tenant.clone(),
            model: dead.model.clone(),
            stage: words::stage(dead.stage()),
            error: dead.error.as_ref().map(ErrorView::from),
            attempts: dead.attempts,
            crashes: dead.crashes,
            worker_id: dead.worker_id.clone(),
            created_at: time(dead.created_at.as_ref()),
            failed_at: time(dead.failed_at.as_ref()),
        }
    }
}

impl From<&Failure> for FailureView {
    fn from(failure: &Failure) -> Self {
        Self {
            at: time(failure.at.as_ref()),
            stage: words::stage(failure.stage()),
            reason: words::reason(failure.reason()),
            message: failure.message.clone(),
            worker_id: failure.worker_id.clone(),
        }
    }
}

impl DeadDetails {
    /// `None` when the answer has no job.
    pub(crate) fn new(response: &GetDeadJobResponse) -> Option<Self> {
        Some(Self {
            dead: DeadView::from(response.dead.as_ref()?),
            history: response.history.iter().map(FailureView::from).collect(),
            job: response.job.as_ref().map(JobView::from),
        })
    }

    pub(crate) fn table(&self) -> String {
        let dead = &self.dead;
        let mut facts = vec![
            ("id", dead.job_id.clone()),
            ("tenant", dead.tenant.clone()),
            ("model", dead.model.clone()),
            ("stage", dead.stage.to_owned()),
        ];
        if let Some(error) = &dead.error {
            facts.push(("error", format!("{} ({})", error.message, error.reason)));
        }
        facts.push((
            "attempts",
            format!("{} failed, {} workers lost", dead.attempts, dead.crashes),
        ));
        facts.push(("worker", or_dash(Some(dead.worker_id.clone()))));
        facts.push(("created", or_dash(dead.created_at.clone())));
        facts.push(("failed", or_dash(dead.failed_at.clone())));
        let mut rows = table(&["AT", "STAGE", "REASON", "WORKER", "MESSAGE"]);
        for failure in &self.history {
            rows.add_row([
                or_dash(failure.at.clone()),
                failure.stage.to_owned(),
                failure.reason.to_owned(),
                or_dash(Some(failure.worker_id.clone())),
                failure.message.clone(),
            ]);
        }
        format!("{}\n\n{}", super::facts(facts), render(&rows))
    }
}

/// One a row.
pub(crate) fn list(jobs: &[DeadView]) -> String {
    let mut rows = table(&[
        "ID", "TENANT", "MODEL", "STAGE", "REASON", "ATTEMPTS", "CRASHES", "FAILED", "MESSAGE",
    ]);
    for job in jobs {
        let error = job.error.as_ref();
        rows.add_row([
            job.job_id.clone(),
            job.tenant.clone(),
            job.model.clone(),
            job.stage.to_owned(),
            or_dash(error.map(|error| error.reason.to_owned())),
            job.attempts.to_string(),
            job.crashes.to_string(),
            or_dash(job.failed_at.clone()),
            or_dash(error.map(|error| error.message.clone())),
        ]);
    }
    render(&rows)
}
