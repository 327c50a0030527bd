//! One `SubmitJobs` stream, and the way back to a gateway after it broke.

use std::time::Duration;

use muse_proto::v1::{
    SubmitJobsOpened, SubmitJobsRequest, SubmitJobsResponse, SubmitJobsUntil, submit_jobs_response::Event,
};
use prost::Message as _;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use super::window::Task;
use crate::{
    client::{Gateways, traced},
    failure::Failure,
};

/// Items that wait to be sent.
const OUTBOX: usize = 16;
/// A gateway says what it takes within this time.
const OPENING: Duration = Duration::from_secs(10);
/// Everything is done: whether it says good-bye matters little.
const CLOSING: Duration = Duration::from_secs(1);
/// Between two attempts to reach a gateway: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// An open stream.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) items: mpsc::Sender<SubmitJobsRequest>,
    pub(super) answers: Streaming<SubmitJobsResponse>,
    pub(super) opened: SubmitJobsOpened,
}

/// How long it has been since a gateway answered, and how long to wait before the next attempt.
#[derive(Debug)]
pub(super) struct Patience {
    limit: Duration,
    lost: Option<Instant>,
    pause: Duration,
}

impl Link {
    /// Opens a stream to the first gateway that answers.
    pub(super) async fn open(gateways: &mut Gateways) -> Result<Self, Failure> {
        let (items, outbox) = mpsc::channel(OUTBOX);
        let request = traced(Request::new(ReceiverStream::new(outbox)));
        let mut client = gateways.generation().await?;
        let opening = async {
            let mut answers = client.submit_jobs(request).await?.into_inner();
            match answers.message().await? {
                Some(SubmitJobsResponse {
                    event: Some(Event::Opened(opened)),
                    ..
                }) => Ok((answers, opened)),
                _ => Err(Status::internal("the gateway did not say what it takes")),
            }
        };
        let late = |_| Status::unavailable("the gateway is silent");
        let (answers, opened) = timeout(OPENING, opening).await.map_err(late)??;
        Ok(Self {
            items,
            answers,
            opened,
        })
    }

    /// Ends the stream as agreed, so that the gateway does not count a client that left.
    pub(super) async fn close(mut self) {
        drop(self.items);
        let _ = timeout(CLOSING, self.answers.message()).await;
    }

    /// The item that a line is sent as, or why it cannot be.
    pub(super) fn item(&self, task: &Task, run: &str) -> Result<SubmitJobsRequest, String> {
        let mut request = task.line.request.clone();
        request.idempotency_key = task.line.idempotency_key(run, task.round);
        let item = SubmitJobsRequest {
            sequence: task.line.number,
            request: Some(request),
            until: SubmitJobsUntil::Images.into(),
        };
        let (bytes, most) = (item.encoded_len() as u64, self.opened.max_item_bytes);
        if bytes > most {
            return Err(format!(
                "the line is a request of {bytes} bytes, and the gateway takes {most}"
            ));
        }
        Ok(item)
    }
}

impl Patience {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            lost: None,
            pause: FIRST_PAUSE,
        }
    }

    /// A gateway answered an item.
    pub(super) fn answered(&mut self) {
        self.lost = None;
        self.pause = FIRST_PAUSE;
    }

    /// The stream broke, or none could be opened: how long to wait, or the failure when that is too long or no use.
    pub(super) fn bear(&mut self, failure: Failure, now: Instant) -> Result<Duration, Failure> {
        if !may_pass(&failure) {
            return Err(failure);
        }
        let lost = *self.lost.get_or_insert(now);
        let pause = self.pause;
        if now.saturating_duration_since(lost) + pause > self.limit {
            return Err(failure);
        }
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        Ok(pause)
    }
}

/// Whether another gateway, or the same one later, may take the stream.
fn may_pass(failure: &Failure) -> bool {
    match failure {
        Failure::Unreachable(_) => true,
        Failure::Refused(status) => !matches!(
            status.code(),
            Code::InvalidArgument
                | Code::Unimplemented
                | Code::Unauthenticated
                | Code::PermissionDenied
                | Code::FailedPrecondition
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn patience_ends_after_so_long_without_an_answer_and_begins_again_with_one() {
        let mut patience = Patience::new(Duration::from_secs(60));
        let gone = || Failure::Unreachable("x".to_owned());
        let mut now = Instant::now();
        let mut waited = Duration::ZERO;
        while let Ok(pause) = patience.bear(gone(), now) {
            now += pause;
            waited += pause;
        }
        assert!(
            waited > Duration::from_secs(50) && waited <= Duration::from_secs(60),
            "{waited:?}"
        );
        patience.answered();
        assert_eq!(patience.bear(gone(), now).unwrap(), FIRST_PAUSE);
    }

    #[tokio::test]
    async fn a_gateway_that_will_never_take_the_stream_is_not_asked_again() {
        let mut patience = Patience::new(Duration::from_secs(60));
        for code in [Code::Unimplemented, Code::PermissionDenied] {
            let refused = Failure::from(Status::new(code, ""));
            assert!(patience.bear(refused, Instant::now()).is_err(), "{code:?}");
        }
        let drained = Failure::from(Status::unavailable(""));
        assert!(patience.bear(drained, Instant::now()).is_ok());
    }
}
