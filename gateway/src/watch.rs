//! Watching a job to its end: level-triggered. The record is read again whenever the doorbell rings, and every few seconds
//! without it; what is told is the difference to what was told before, so a lost ring delays news but never loses it.

mod ends;

use std::time::Duration;

use futures::Stream;
use muse_proto::v1::{Job, JobState, Progress};
use muse_service::Shutdown;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    Error, config,
    connection::{Bells, JobBell, RedisError, Ring},
    jobs::{JobId, Record},
    queue::Queue,
};

pub use self::ends::Ends;

/// News of a job.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// Its state or another field than the progress changed.
    Job(Box<Job>),
    /// Only the progress did.
    Progress(Progress),
}

/// What changed between what a watcher was told and what is: `None` when it knows already.
pub fn news(told: Option<&Job>, now: &Job) -> Option<News> {
    let Some(told) = told else {
        return Some(News::Job(Box::new(now.clone())));
    };
    // After a failover that lost the last writes, versions begin again lower; the end is news all the same.
    let has_just_ended = has_ended(now) && !has_ended(told);
    if now.version <= told.version && !has_just_ended {
        return None;
    }
    let place = |job: &Job| {
        (
            job.state,
            job.stage,
            job.attempts,
            job.crashes,
            job.worker_id.clone(),
        )
    };
    match now.progress {
        Some(progress) if place(told) == place(now) => Some(News::Progress(progress)),
        _ => Some(News::Job(Box::new(now.clone()))),
    }
}

/// Watches jobs; cloning is cheap.
#[derive(Clone)]
pub struct Watcher {
    queue: Queue,
    bells: Bells,
    config: config::Watch,
    shutdown: Shutdown,
}

impl Watcher {
    /// Watches jobs of `queue` until the shutdown.
    pub fn new(queue: Queue, bells: Bells, config: config::Watch, shutdown: Shutdown) -> Self {
        Self {
            queue,
            bells,
            config,
            shutdown,
        }
    }

    /// News of a job until it has ended, its last state included; then the stream ends. Nothing is told of versions up to
    /// `after_version`, except a terminal state. The tenant has been checked before.
    pub fn watch(
        &self,
        id: JobId,
        after_version: u64,
    ) -> impl Stream<Item = Result<(News, Option<Record>), Error>> + Send + use<> {
        let (sender, receiver) = mpsc::channel(self.config.outbox);
        let watcher = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                // A client that left needs no more reads.
                () = sender.closed() => {}
                () = watcher.follow(id, after_version, &sender) => {}
            }
        });
        ReceiverStream::new(receiver)
    }

    async fn follow(
        &self,
        id: JobId,
        after_version: u64,
        sender: &mpsc::Sender<Result<(News, Option<Record>), Error>>,
    ) {
        let mut bell = self.bells.job(&id.to_string());
        let mut told: Option<Job> = None;
        let mut outage: Option<Instant> = None;
        loop {
            match self.queue.get(id).await {
                Ok(Some(record)) => {
                    outage = None;
                    let ended = record.has_ended();
                    // A client that resumes knows this version; the next one is news to it.
                    if told.is_none() && !ended && after_version > 0 && record.job.version <= after_version {
                        told = Some(record.job.clone());
                    }
                    if let Some(news) = news(told.as_ref(), &record.job) {
                        told = Some(record.job.clone());
                        if sender.send(Ok((news, ended.then_some(record)))).await.is_err() {
                            return;
                        }
                    }
                    if ended {
                        return;
                    }
                }
                Ok(None) => {
                    let _ = sender.send(Err(Error::UnknownJob)).await;
                    return;
                }
                Err(error) => {
                    let begun = *outage.get_or_insert_with(Instant::now);
                    let lasting = begun.elapsed() > Duration::from_millis(self.config.outage_ms);
                    if lasting || !matches!(error, RedisError::Unavailable(_)) {
                        let _ = sender.send(Err(error.into())).await;
                        return;
                    }
                }
            }
            tokio::select! {
                () = settled(&mut bell, Duration::from_millis(self.config.settle_ms)) => {}
                () = tokio::time::sleep(Duration::from_millis(self.config.reread_ms)) => {}
                () = self.shutdown.requested() => {
                    let _ = sender.send(Err(Error::ShuttingDown)).await;
                    return;
                }
            }
        }
    }
}

/// Returns when the job may have ended, or has changed and what changes with it has had time to: a lease, the first sign of
/// life from its worker and the stage before it come within milliseconds, and are one read.
async fn settled(bell: &mut JobBell, time: Duration) {
    if bell.rung().await == Ring::Changed {
        // In time or not, the job is read.
        let _ = tokio::time::timeout(time, bell.ended()).await;
    }
}

/// Whether a job has ended, from what clients see of it.
pub fn has_ended(job: &Job) -> bool {
    matches!(
        job.state(),
        JobState::Succeeded | JobState::Failed | JobState::Cancelled
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn job(version: u64, state: JobState, step: u32) -> Job {
        let progress = Some(Progress {
            step,
            of: 12,
            ..Progress::default()
        });
        Job {
            version,
            state: state as i32,
            progress,
            ..Job::default()
        }
    }

    #[test]
    fn a_step_is_told_as_progress_and_a_state_as_the_job() {
        let running = job(2, JobState::Running, 1);
        assert_eq!(news(None, &running), Some(News::Job(Box::new(running.clone()))));
        let later = job(3, JobState::Running, 5);
        assert_eq!(news(Some(&running), &later), later.progress.map(News::Progress));
        let done = job(4, JobState::Succeeded, 12);
        assert_eq!(news(Some(&later), &done), Some(News::Job(Box::new(done.clone()))));
    }

    #[test]
    fn the_end_is_told_even_if_a_failover_has_set_the_version_back() {
        let running = job(9, JobState::Running, 1);
        let done = job(4, JobState::Succeeded, 12);
        assert_eq!(
            news(Some(&running), &done),
            Some(News::Job(Box::new(done.clone())))
        );
        assert_eq!(news(Some(&done), &done), None);
    }

    proptest! {
        #[test]
        fn nothing_old_and_nothing_twice_is_told(versions in prop::collection::vec(1_u64..50, 1..80)) {
            let mut told: Option<Job> = None;
            let mut heard = Vec::new();
            for version in &versions {
                let now = job(*version, JobState::Running, *version as u32);
                if news(told.as_ref(), &now).is_some() {
                    heard.push(*version);
                    told = Some(now);
                }
            }
            prop_assert!(heard.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", heard);
            prop_assert_eq!(heard.last(), versions.iter().max());
        }
    }
}
