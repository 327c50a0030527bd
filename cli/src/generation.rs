//! Following a job to its end, over as many connections as it takes: the job goes on when a gateway dies, and so does this.

use std::{collections::BTreeMap, time::Duration};

use muse_proto::v1::{
    CancelJobRequest, GenerateRequest, GenerateResponse, GenerationRequest, GetImageRequest, Image, Job,
    JobState, Progress, WatchJobRequest, WatchJobResponse, generate_response, watch_job_response,
};
use tokio::time::{Instant, sleep};
use tonic::{Code, Request, Status};

use crate::{
    client::{Gateways, call, traced},
    failure::Failure,
    pictures,
    progress::Display,
    view::words,
};

/// Between two attempts to reach a gateway: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What is known of a job that is followed.
#[derive(Debug, Default)]
pub(crate) struct Followed {
    pub(crate) job: Option<Job>,
    pub(crate) images: BTreeMap<u32, Image>,
}

/// What a stream tells.
enum Event {
    Job(Box<Job>),
    Progress(Progress),
    Image(Image),
    /// A later release's.
    Unknown,
}

/// Follows one job.
pub(crate) struct Follower<'a> {
    gateways: &'a mut Gateways,
    display: &'a mut Display,
    /// Without any contact for this long, it gives up; the job does not.
    patience: Duration,
    pub(crate) followed: Followed,
    last_contact: Instant,
    pause: Duration,
}

impl<'a> Follower<'a> {
    pub(crate) fn new(gateways: &'a mut Gateways, display: &'a mut Display, patience: Duration) -> Self {
        Self {
            gateways,
            display,
            patience,
            followed: Followed::default(),
            last_contact: Instant::now(),
            pause: FIRST_PAUSE,
        }
    }

    pub(crate) fn job_id(&self) -> Option<String> {
        self.followed.job.as_ref().map(|job| job.id.clone())
    }

    /// Submits a request and follows its job to success, all pictures included. The request must have an idempotency key:
    /// when the first stream breaks before it named the job, the same key finds it.
    pub(crate) async fn generate(&mut self, request: &GenerationRequest) -> Result<(), Failure> {
        loop {
            let begun = self.submit(request).await;
            match begun {
                Ok(()) => break,
                Err(failure) => self.bear(failure).await?,
            }
            if self.followed.job.is_some() {
                break;
            }
        }
        self.follow().await?;
        self.fetch_missing().await
    }

    /// Follows a known job to success.
    pub(crate) async fn watch(&mut self, id: &str) -> Result<(), Failure> {
        self.followed.job = Some(Job {
            id: id.to_owned(),
            ..Job::default()
        });
        self.follow().await
    }

    /// Asks for the job to be cancelled, once and briefly.
    pub(crate) async fn cancel(&mut self) -> Result<(), Failure> {
        if let Some(job_id) = self.job_id() {
            self.gateways
                .generation()
                .await?
                .cancel_job(call(CancelJobRequest { job_id }))
                .await?;
        }
        Ok(())
    }

    async fn submit(&mut self, request: &GenerationRequest) -> Result<(), Failure> {
        let mut client = self.gateways.generation().await?;
        let message = GenerateRequest {
            request: Some(request.clone()),
            omit_images: false,
        };
        let mut stream = client.generate(traced(Request::new(message))).await?.into_inner();
        while let Some(GenerateResponse { event, .. }) = stream.message().await? {
            self.take(match event {
                Some(generate_response::Event::Job(job)) => Event::Job(Box::new(job)),
                Some(generate_response::Event::Progress(progress)) => Event::Progress(progress),
                Some(generate_response::Event::Image(image)) => Event::Image(image),
                None => Event::Unknown,
            })?;
        }
        Ok(())
    }

    async fn follow(&mut self) -> Result<(), Failure> {
        while !self.has_ended() {
            match self.watch_once().await {
                // The gateway drains: another goes on.
                Ok(()) => self.gateways.move_on(),
                Err(failure) => self.bear(failure).await?,
            }
        }
        let Some(job) = &self.followed.job else {
            return Ok(());
        };
        if job.state() == JobState::Succeeded {
            return Ok(());
        }
        let reason = job
            .error
            .as_ref()
            .map(|error| format!("{} ({})", error.message, words::reason(error.reason())));
        Err(Failure::JobEnded {
            id: job.id.clone(),
            state: job.state(),
            reason,
        })
    }

    async fn watch_once(&mut self) -> Result<(), Failure> {
        let Some(job) = &self.followed.job else {
            return Ok(());
        };
        let message = WatchJobRequest {
            job_id: job.id.clone(),
            after_version: job.version,
        };
        let mut client = self.gateways.generation().await?;
        let mut stream = client.watch_job(message).await?.into_inner();
        while let Some(WatchJobResponse { event }) = stream.message().await? {
            self.take(match event {
                Some(watch_job_response::Event::Job(job)) => Event::Job(Box::new(job)),
                Some(watch_job_response::Event::Progress(progress)) => Event::Progress(progress),
                None => Event::Unknown,
            })?;
        }
        Ok(())
    }

    fn take(&mut self, event: Event) -> Result<(), Failure> {
        self.last_contact = Instant::now();
        self.pause = FIRST_PAUSE;
        match event {
            Event::Job(job) => {
                self.display.state(job.state(), job.stage());
                self.followed.job = Some(*job);
            }
            Event::Progress(progress) => self.display.progress(&progress),
            Event::Image(image) => self.keep(image)?,
            Event::Unknown => {}
        }
        Ok(())
    }

    fn keep(&mut self, image: Image) -> Result<(), Failure> {
        pictures::check(&image)?;
        if let Some(info) = &image.info {
            self.followed.images.insert(info.index, image);
        }
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.followed
            .job
            .as_ref()
            .is_some_and(|job| words::is_terminal(job.state()))
    }

    /// What the first stream did not bring before it broke.
    async fn fetch_missing(&mut self) -> Result<(), Failure> {
        let Some(job) = &self.followed.job else {
            return Ok(());
        };
        let (id, indexes) = (
            job.id.clone(),
            job.images.iter().map(|info| info.index).collect::<Vec<_>>(),
        );
        for index in indexes {
            while !self.followed.images.contains_key(&index) {
                match fetch(self.gateways, &id, index).await {
                    Ok(image) => self.keep(image)?,
                    Err(failure) => self.bear(failure).await?,
                }
            }
        }
        Ok(())
    }

    /// Waits before the next attempt, if the failure may pass and there is patience left.
    async fn bear(&mut self, failure: Failure) -> Result<(), Failure> {
        let submitted = self.followed.job.is_some();
        if !may_pass(&failure, submitted) || self.last_contact.elapsed() + self.pause > self.patience {
            return Err(failure);
        }
        self.display
            .say("lost the gateway; the job goes on, looking for a gateway");
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.gateways.move_on();
        Ok(())
    }
}

/// One picture of a job.
pub(crate) async fn fetch(gateways: &mut Gateways, id: &str, index: u32) -> Result<Image, Failure> {
    let message = GetImageRequest {
        job_id: id.to_owned(),
        index,
    };
    let response = gateways
        .generation()
        .await?
        .get_image(call(message))
        .await?
        .into_inner();
    let image = response
        .image
        .ok_or_else(|| Status::internal("the gateway sent no picture"))?;
    pictures::check(&image)?;
    Ok(image)
}

/// Whether another attempt may help. Before the job is accepted, only a connection that broke: a gateway that cannot be
/// reached at all, or that says to come back later, is the caller's to decide on.
fn may_pass(failure: &Failure, submitted: bool) -> bool {
    match failure {
        Failure::Unreachable(_) => submitted,
        Failure::Refused(status) => match status.code() {
            Code::Unavailable => submitted || is_transport(status),
            Code::Unknown | Code::Internal | Code::Cancelled => is_transport(status),
            _ => false,
        },
        _ => false,
    }
}

/// Made on this side when the connection broke, and not by a gateway.
fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_never_tried_again_and_a_lost_gateway_only_once_the_job_is_known() {
        let refused = |code| Failure::from(Status::new(code, ""));
        for code in [
            Code::InvalidArgument,
            Code::NotFound,
            Code::ResourceExhausted,
            Code::Internal,
        ] {
            assert!(!may_pass(&refused(code), true), "{code:?}");
        }
        assert!(may_pass(&refused(Code::Unavailable), true));
        assert!(
            !may_pass(&refused(Code::Unavailable), false),
            "the gateway said so itself"
        );
        assert!(may_pass(&Failure::Unreachable(String::new()), true));
        assert!(!may_pass(&Failure::Unreachable(String::new()), false));
        let broken = Status::from_error(Box::new(std::io::Error::other("connection reset")));
        assert!(may_pass(&Failure::from(broken), false));
    }
}
