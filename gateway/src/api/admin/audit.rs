//! The audit as a stream.

use futures::{StreamExt as _, stream::BoxStream};
use muse_proto::v1::{
    AuditFault, AuditFinding, AuditProgress, AuditRequest, AuditResponse, AuditSummary, audit_response::Event,
};
use muse_service::Tenant;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::AdminService;
use crate::{
    Error,
    queue::{AuditError, AuditEvent, Audited, Fault, Finding},
};

impl AdminService {
    pub(super) fn begin_audit(
        &self,
        actor: &Tenant,
        request: AuditRequest,
    ) -> Response<BoxStream<'static, Result<AuditResponse, Status>>> {
        let repair = request.repair;
        tracing::info!(%actor, repair, "an audit begins");
        let (events, found) = mpsc::channel(self.outbox);
        let queue = self.queue.clone();
        let walk = tokio::spawn(async move { queue.audit(repair, &events).await });
        let told = ReceiverStream::new(found).map(move |event| Ok(message(event, repair)));
        // The walk has ended when it drops its sender; a client that leaves makes its next event fail.
        let last = futures::stream::once(async move {
            match walk.await {
                Ok(Ok(audited)) => Ok(summary(&audited, repair)),
                Ok(Err(AuditError::Redis(error))) => Err(Error::from(error).into()),
                Ok(Err(error @ (AuditError::Superseded | AuditError::Abandoned))) => {
                    Err(Error::AuditStopped(error.to_string()).into())
                }
                Err(error) => Err(muse_service::Error::internal(error).into()),
            }
        });
        Response::new(told.chain(last).boxed())
    }
}

fn message(event: AuditEvent, repaired: bool) -> AuditResponse {
    let event = match event {
        AuditEvent::Found(Finding {
            fault,
            subject,
            detail,
        }) => {
            tracing::warn!(?fault, subject, detail, repaired, "the audit found a fault");
            let fault = match fault {
                Fault::Misplaced => AuditFault::Misplaced,
                Fault::Orphan => AuditFault::Orphan,
                Fault::Broken => AuditFault::Broken,
                Fault::Counter => AuditFault::Counter,
            };
            Event::Finding(AuditFinding {
                fault: fault as i32,
                subject,
                detail,
                repaired,
            })
        }
        AuditEvent::Progress(Audited { jobs, entries, .. }) => {
            Event::Progress(AuditProgress { jobs, entries })
        }
    };
    AuditResponse { event: Some(event) }
}

fn summary(audited: &Audited, repair: bool) -> AuditResponse {
    let summary = AuditSummary {
        jobs: audited.jobs,
        entries: audited.entries,
        findings: audited.findings,
        repaired: if repair { audited.findings } else { 0 },
    };
    AuditResponse {
        event: Some(Event::Summary(summary)),
    }
}
