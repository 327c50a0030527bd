//! `musectl audit`.

use muse_proto::v1::{AuditFinding, AuditRequest, AuditSummary, audit_response::Event};
use serde::Serialize;
use tonic::{Request, Status};

use crate::{
    arguments::Output,
    client::Gateways,
    failure::Failure,
    output,
    view::{render, table, words},
};

#[derive(Debug, Serialize)]
struct AuditView {
    findings: Vec<FindingView>,
    jobs: u64,
    entries: u64,
    repaired: u64,
}

#[derive(Debug, Serialize)]
struct FindingView {
    fault: &'static str,
    subject: String,
    detail: String,
    repaired: bool,
}

/// Fails when something is found that was not repaired.
pub(crate) async fn run(repair: bool, mut gateways: Gateways, output: Output) -> Result<(), Failure> {
    let mut admin = gateways.admin().await?;
    // No time limit: a large queue is gone through in small steps.
    let mut stream = admin
        .audit(Request::new(AuditRequest { repair }))
        .await?
        .into_inner();
    let (mut findings, mut summary) = (Vec::new(), None);
    while let Some(response) = stream.message().await? {
        match response.event {
            Some(Event::Finding(finding)) => findings.push(FindingView::from(&finding)),
            Some(Event::Summary(told)) => summary = Some(told),
            Some(Event::Progress(_)) | None => {}
        }
    }
    let summary = summary.ok_or_else(|| Status::internal("the audit broke off"))?;
    let left = findings.iter().filter(|finding| !finding.repaired).count();
    let view = AuditView::new(findings, &summary);
    output::print(output, &view, || view.table())?;
    match left {
        0 => Ok(()),
        left => Err(Failure::Failed(format!(
            "{left} findings are not repaired{}",
            if repair {
                ""
            } else {
                "; --repair does what can be done"
            }
        ))),
    }
}

impl AuditView {
    fn new(findings: Vec<FindingView>, summary: &AuditSummary) -> Self {
        Self {
            findings,
            jobs: summary.jobs,
            entries: summary.entries,
            repaired: summary.repaired,
        }
    }

    fn table(&self) -> String {
        let found = match self.findings.len() {
            0 => "all in its place".to_owned(),
            count => format!("{count} findings, {} repaired", self.repaired),
        };
        let summary = format!("{} jobs and {} entries: {found}", self.jobs, self.entries);
        if self.findings.is_empty() {
            return summary;
        }
        let mut rows = table(&["FAULT", "SUBJECT", "REPAIRED", "DETAIL"]);
        for finding in &self.findings {
            let repaired = if finding.repaired { "yes" } else { "no" };
            rows.add_row([finding.fault, &finding.subject, repaired, &finding.detail]);
        }
        format!("{}\n\n{summary}", render(&rows))
    }
}

impl From<&AuditFinding> for FindingView {
    fn from(finding: &AuditFinding) -> Self {
        Self {
            fault: words::audit_fault(finding.fault()),
            subject: finding.subject.clone(),
            detail: finding.detail.clone(),
            repaired: finding.repaired,
        }
    }
}
