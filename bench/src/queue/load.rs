//! Clients: submissions one by one and over a stream.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use anyhow::{Context as _, bail};
use futures::future::try_join_all;
use muse_proto::v1::{
    GenerationRequest, SubmitJobRequest, SubmitJobsRequest, SubmitJobsUntil, TextToImage,
    generation_client::GenerationClient, generation_request::Task, submit_jobs_response::Event,
};
use muse_service::{client, config::GrpcClient};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Submissions that wait for their answer at any time, and so for the peers.
pub(super) const IN_FLIGHT: usize = 64;
/// Bytes of a request, about; and of the peers' payload.
pub(super) const REQUEST_BYTES: usize = 1024;

/// Items that may wait to be sent.
const STREAM_OUTBOX: usize = 256;

/// The peers' jobs have the same content as well, and it costs their clients as little to make.
static PROMPT: LazyLock<String> = LazyLock::new(|| "x".repeat(REQUEST_BYTES - 24));

fn request(number: u64) -> GenerationRequest {
    GenerationRequest {
        task: Some(Task::TextToImage(TextToImage {
            prompt: PROMPT.clone(),
            ..TextToImage::default()
        })),
        seed: Some(number),
        ..GenerationRequest::default()
    }
}

/// An ordinary client with one connection of `muse_service::client`, on a thread of its own, as BullMQ's has one.
pub(super) struct Client {
    channel: Channel,
    runtime: Handle,
    /// Ends the thread when it is dropped.
    _stop: oneshot::Sender<()>,
}

impl Client {
    pub(super) async fn connect(endpoint: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        thread::Builder::new()
            .name("client".to_owned())
            .spawn(move || runtime.block_on(stopped).is_ok())?;
        let config = GrpcClient::default();
        let endpoint = client::endpoint(endpoint, &config)?;
        let connect = async move { endpoint.connect_with_connector(client::connector(&config)).await };
        Ok(Self {
            channel: handle.spawn(connect).await??,
            runtime: handle,
            _stop: stop,
        })
    }

    /// Its connection.
    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Runs `task` on its thread.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.runtime.spawn(task)
    }

    fn generation(&self) -> GenerationClient<Channel> {
        GenerationClient::new(self.channel())
    }
}

/// Keeps submissions in step with the ends of jobs.
#[derive(Clone)]
pub(super) struct Pace {
    /// Whole jobs that have ended.
    pub(super) finished: watch::Receiver<u64>,
    /// How many of them had before the first submission.
    pub(super) before: u64,
    /// Submissions that there may be beyond those that have ended since.
    pub(super) ahead: u64,
}

/// `jobs` submissions, each a call of its own; seconds until all were accepted.
pub(super) async fn one_by_one(client: &Client, jobs: u64, pace: Option<Pace>) -> anyhow::Result<f64> {
    let next = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let lanes = (0..IN_FLIGHT).map(|_| {
        let (mut generation, next, mut pace) = (client.generation(), Arc::clone(&next), pace.clone());
        let lane = async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= jobs {
                    return anyhow::Ok(());
                }
                if let Some(Pace {
                    finished,
                    before,
                    ahead,
                }) = &mut pace
                {
                    let turn = number + *before;
                    finished.wait_for(|finished| turn < *finished + *ahead).await?;
                }
                let request = Some(request(number));
                generation.submit_job(SubmitJobRequest { request }).await?;
            }
        };
        let lane = client.spawn(lane);
        async move { lane.await? }
    });
    try_join_all(lanes).await?;
    Ok(begun.elapsed().as_secs_f64())
}

/// `jobs` submissions over one stream; seconds until all were accepted. What is refused for now is sent again, as clients do;
/// the second figure is how often.
pub(super) async fn streamed(client: &Client, jobs: u64) -> anyhow::Result<(f64, u64)> {
    client.spawn(stream(client.generation(), jobs)).await?
}

async fn stream(mut generation: GenerationClient<Channel>, jobs: u64) -> anyhow::Result<(f64, u64)> {
    let (sender, items) = mpsc::channel(STREAM_OUTBOX);
    let begun = Instant::now();
    let item = |number| SubmitJobsRequest {
        sequence: number,
        request: Some(request(number)),
        until: SubmitJobsUntil::Accepted.into(),
    };
    let first = sender.clone();
    let producer = tokio::spawn(async move {
        for number in 0..jobs {
            if first.send(item(number)).await.is_err() {
                break;
            }
        }
    });
    let mut answers = generation
        .submit_jobs(ReceiverStream::new(items))
        .await?
        .into_inner();
    // The stream ends when nobody can send any more.
    let mut again = Some(sender);
    let (mut accepted, mut repeated) = (0, 0);
    while accepted < jobs
        && let Some(answer) = answers.message().await?
    {
        match (answer.event.context("an answer without content")?, &again) {
            (Event::Accepted(_), _) => accepted += 1,
            (Event::Error(error), Some(sender)) if error.retry_delay.is_some() => {
                repeated += 1;
                let (sender, delay) = (sender.clone(), error.retry_delay.unwrap_or_default());
                let delay = muse_proto::std_duration(&delay).unwrap_or_default();
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    // Nobody listens any more when the run has failed.
                    let _ = sender.send(item(answer.sequence)).await;
                });
            }
            (Event::Error(error), _) => bail!("a submission was refused: {}", error.message),
            _ => {}
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    again.take();
    producer.await?;
    if accepted != jobs {
        bail!("{accepted} of {jobs} submissions were accepted");
    }
    Ok((seconds, repeated))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_about_a_kibibyte() {
        use prost::Message as _;
        let bytes = request(123_456).encoded_len();
        assert!(bytes.abs_diff(REQUEST_BYTES) < 32, "{bytes}");
    }
}
