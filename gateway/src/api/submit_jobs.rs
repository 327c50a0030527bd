//! `SubmitJobs`: many submissions over one stream. Items are accepted side by side, so that their scripts share one fsync of
//! the server's, and each is answered as soon as it is ready. Flow control is not reading: while as many items as allowed
//! are in progress, the rest stays with the client.

use std::collections::{HashMap, VecDeque};

use futures::{StreamExt as _, stream::FuturesUnordered};
use muse_proto::v1::{
    SubmitJobsAccepted, SubmitJobsError, SubmitJobsFieldViolation, SubmitJobsOpened,
    SubmitJobsQuotaViolation, SubmitJobsRequest, SubmitJobsResponse, SubmitJobsUntil,
    submit_jobs_response::Event,
};
use muse_service::{Shutdown, Tenant};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use tonic_types::StatusExt as _;

use crate::{
    Error, config,
    jobs::{Accepted, JobId, Jobs, Record},
};

/// What every stream of this gateway's has in common; cloning is cheap.
#[derive(Clone)]
pub(super) struct Submissions {
    pub(super) jobs: Jobs,
    pub(super) config: config::Submit,
    /// Bytes of an item, as the transport checks them.
    pub(super) item_bytes: usize,
    pub(super) shutdown: Shutdown,
}

/// One client's stream.
pub(super) struct SubmitStream {
    shared: Submissions,
    tenant: Tenant,
    traceparent: Option<String>,
    answers: Answers,
    /// Accepted items whose jobs have not ended.
    followed: HashMap<JobId, Vec<Item>>,
    /// Ended jobs that were not told yet.
    ended: VecDeque<(Item, Record)>,
}

/// An item in progress, without its request.
#[derive(Clone, Copy, Debug)]
struct Item {
    sequence: u64,
    until: SubmitJobsUntil,
}

/// The way back to the client.
#[derive(Clone)]
struct Answers(mpsc::Sender<Result<SubmitJobsResponse, Status>>);

/// The client left.
struct Left;

// === impl SubmitStream ===

impl SubmitStream {
    pub(super) fn new(
        shared: Submissions,
        tenant: Tenant,
        traceparent: Option<String>,
        answers: mpsc::Sender<Result<SubmitJobsResponse, Status>>,
    ) -> Self {
        Self {
            shared,
            tenant,
            traceparent,
            answers: Answers(answers),
            followed: HashMap::new(),
            ended: VecDeque::new(),
        }
    }

    /// Serves the stream to its end, and tells how it ended where that is not OK.
    pub(super) async fn serve(mut self, items: Streaming<SubmitJobsRequest>) {
        let answers = self.answers.0.clone();
        tokio::select! {
            // Whoever left hears no more answers; what was accepted goes on.
            () = answers.closed() => {}
            served = self.run(items) => if let Err(status) = served {
                let _ = answers.send(Err(status)).await;
            },
        }
    }

    async fn run(&mut self, mut items: Streaming<SubmitJobsRequest>) -> Result<(), Status> {
        let limits = self.shared.config.clone();
        let in_flight = usize::try_from(limits.in_flight).unwrap_or(usize::MAX);
        let opened = SubmitJobsOpened {
            max_in_flight: limits.in_flight,
            max_item_bytes: self.shared.item_bytes as u64,
        };
        self.answers.send(0, Event::Opened(opened)).await?;

        let mut ends = self.shared.jobs.ends(in_flight);
        let mut accepting = FuturesUnordered::new();
        let mut delivering = FuturesUnordered::new();
        let (mut open, mut draining) = (true, false);
        loop {
            while delivering.len() < limits.delivering
                && let Some((item, record)) = self.ended.pop_front()
            {
                delivering.push(deliver(
                    self.shared.jobs.clone(),
                    self.answers.clone(),
                    item,
                    record,
                ));
            }
            let followed: usize = self.followed.values().map(Vec::len).sum();
            let told = self.ended.is_empty() && delivering.is_empty();
            let in_progress = accepting.len() + followed + self.ended.len() + delivering.len();
            if !open && in_progress == 0 {
                return Ok(());
            }
            if draining && accepting.is_empty() && told {
                return Err(Error::ShuttingDown.into());
            }
            let read = open && !draining && accepting.len() < limits.accepting && in_progress < in_flight;
            tokio::select! {
                message = items.message(), if read => match message? {
                    Some(request) => accepting.push(self.accept(request)),
                    None => open = false,
                },
                Some((item, accepted)) = accepting.next() => {
                    if let Some(id) = self.accepted(item, accepted).await? {
                        ends.add(id);
                    }
                },
                end = ends.next(), if followed > 0 => match end {
                    Some((id, end)) => self.end(id, end).await?,
                    None => return Err(Error::ShuttingDown.into()),
                },
                Some(delivered) = delivering.next() => delivered?,
                () = self.shared.shutdown.requested(), if !draining => draining = true,
            }
        }
    }

    /// Submits an item; runs by itself.
    fn accept(
        &self,
        message: SubmitJobsRequest,
    ) -> impl Future<Output = (Item, Result<Accepted, Error>)> + use<> {
        let SubmitJobsRequest {
            sequence,
            request,
            until,
        } = message;
        let known = SubmitJobsUntil::try_from(until);
        let item = Item {
            sequence,
            until: known.unwrap_or_default(),
        };
        let (jobs, tenant, traceparent) = (
            self.shared.jobs.clone(),
            self.tenant.clone(),
            self.traceparent.clone(),
        );
        async move {
            if known.is_err() {
                let unknown = format!("{until} is nothing that this version knows");
                return (item, Err(Error::field("until", unknown)));
            }
            (item, jobs.accept(&tenant, request, traceparent).await)
        }
    }

    /// Tells what became of an item; the job to watch from now on, if there is one.
    async fn accepted(
        &mut self,
        item: Item,
        accepted: Result<Accepted, Error>,
    ) -> Result<Option<JobId>, Left> {
        let Accepted {
            id,
            already_existed,
            durability,
        } = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                self.answers.refuse(item, error).await?;
                return Ok(None);
            }
        };
        let accepted = SubmitJobsAccepted {
            job_id: id.to_string(),
            already_existed,
            durability: Some(durability),
        };
        self.answers
            .send(item.sequence, Event::Accepted(accepted))
            .await?;
        if !is_followed(item.until) {
            return Ok(None);
        }
        let items = self.followed.entry(id).or_default();
        items.push(item);
        // Two items with one key share a job, which is watched once.
        Ok((items.len() == 1).then_some(id))
    }

    async fn end(&mut self, id: JobId, end: Result<Record, Error>) -> Result<(), Left> {
        let items = self.followed.remove(&id).unwrap_or_default();
        match end {
            Ok(record) => {
                let ended = items.into_iter().map(|item| (item, record.clone()));
                self.ended.extend(ended);
            }
            Err(error) => {
                let error = refusal(&error.into());
                for item in items {
                    self.answers
                        .send(item.sequence, Event::Error(error.clone()))
                        .await?;
                }
            }
        }
        Ok(())
    }
}

/// Tells that an item's job has ended, its pictures first where they were asked for.
async fn deliver(jobs: Jobs, answers: Answers, item: Item, record: Record) -> Result<(), Left> {
    if item.until == SubmitJobsUntil::Images {
        for info in &record.job.images {
            match jobs.image_of(&record, info.index).await {
                Ok(image) => answers.send(item.sequence, Event::Image(image)).await?,
                Err(error) => return answers.refuse(item, error).await,
            }
        }
    }
    answers.send(item.sequence, Event::Ended(record.job)).await
}

// === impl Answers ===

impl Answers {
    async fn send(&self, sequence: u64, event: Event) -> Result<(), Left> {
        let answer = SubmitJobsResponse {
            sequence,
            event: Some(event),
        };
        self.0.send(Ok(answer)).await.map_err(|_| Left)
    }

    async fn refuse(&self, item: Item, error: Error) -> Result<(), Left> {
        let error = refusal(&error.into());
        self.send(item.sequence, Event::Error(error)).await
    }
}

impl From<Left> for Status {
    fn from(Left: Left) -> Self {
        Self::cancelled("the client left")
    }
}

fn is_followed(until: SubmitJobsUntil) -> bool {
    matches!(until, SubmitJobsUntil::Ended | SubmitJobsUntil::Images)
}

/// What a call would have failed with, as a message.
fn refusal(status: &Status) -> SubmitJobsError {
    let details = status.get_error_details();
    let fields = details
        .bad_request()
        .map(|request| request.field_violations.as_slice())
        .unwrap_or_default();
    let quotas = details
        .quota_failure()
        .map(|failure| failure.violations.as_slice())
        .unwrap_or_default();
    SubmitJobsError {
        code: status.code().into(),
        message: status.message().to_owned(),
        field_violations: fields
            .iter()
            .map(|violation| SubmitJobsFieldViolation {
                field: violation.field.clone(),
                description: violation.description.clone(),
            })
            .collect(),
        retry_delay: details
            .retry_info()
            .and_then(|retry| retry.retry_delay)
            .and_then(|delay| delay.try_into().ok()),
        quota_violations: quotas
            .iter()
            .map(|violation| SubmitJobsQuotaViolation {
                subject: violation.subject.clone(),
                description: violation.description.clone(),
            })
            .collect(),
    }
}
