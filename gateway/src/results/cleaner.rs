//! Deletes what is not wanted any more, beside the queue's own clockwork, so that a slow store holds up no lease.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use muse_service::Shutdown;
use tokio::{sync::mpsc, time::MissedTickBehavior};

use super::{
    ResultStore, ResultsError,
    sweep::{Sweeper, Walk},
};
use crate::{
    config::Config,
    jobs::{JobId, Nonce},
};

/// Takes the pictures of forgotten jobs; cloning is cheap.
#[derive(Clone)]
pub struct Discarded(mpsc::Sender<(JobId, Nonce)>);

/// Runs until the shutdown.
pub struct Cleaner {
    store: Arc<dyn ResultStore>,
    sweeper: Option<Sweeper>,
    walk: Option<Walk>,
    inbox: mpsc::Receiver<(JobId, Nonce)>,
    sender: mpsc::Sender<(JobId, Nonce)>,
    backlog: VecDeque<(JobId, Nonce)>,
    capacity: usize,
    concurrency: usize,
    tick: Duration,
}

impl Discarded {
    /// These pictures can go. While more wait than may, they are left to the sweep, or to their time to live.
    pub fn discard(&self, id: JobId, nonce: Nonce) {
        if self.0.try_send((id, nonce)).is_err() {
            metrics::counter!("muse_results_left_total").increment(1);
        }
    }
}

impl Cleaner {
    pub(super) fn new(store: Arc<dyn ResultStore>, sweeper: Option<Sweeper>, config: &Config) -> Self {
        let capacity = config.results.backlog;
        let (sender, inbox) = mpsc::channel(capacity);
        Self {
            store,
            sweeper,
            walk: None,
            inbox,
            sender,
            backlog: VecDeque::new(),
            capacity,
            concurrency: config.results.concurrency,
            tick: Duration::from_millis(config.queue.housekeeping_ms),
        }
    }

    /// The way in.
    pub fn discarded(&self) -> Discarded {
        Discarded(self.sender.clone())
    }

    /// Runs until the shutdown. What fails is tried again at the next tick.
    pub async fn run(mut self, shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(self.tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            let cleaned = tokio::select! {
                () = shutdown.requested() => return,
                cleaned = async {
                    ticks.tick().await;
                    self.clean().await
                } => cleaned,
            };
            metrics::gauge!("muse_results_backlog").set(self.backlog.len() as f64);
            match cleaned {
                Ok(()) => failing = false,
                // Once an outage, not every other second.
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(%error, "old pictures cannot be deleted; trying again");
                }
                Err(_) => {}
            }
        }
    }

    async fn clean(&mut self) -> Result<(), ResultsError> {
        // One picture that may not be deleted must not end all sweeps.
        let deleted = self.delete_backlog().await;
        let swept = match &self.sweeper {
            Some(sweeper) => sweeper.round(&mut self.walk).await,
            None => Ok(()),
        };
        deleted.and(swept)
    }

    async fn delete_backlog(&mut self) -> Result<(), ResultsError> {
        while self.backlog.len() < self.capacity
            && let Ok(discarded) = self.inbox.try_recv()
        {
            self.backlog.push_back(discarded);
        }
        // As many at once as the store is given; after the first failure, the rest waits.
        while !self.backlog.is_empty() {
            let batch: Vec<_> = self
                .backlog
                .drain(..self.concurrency.min(self.backlog.len()))
                .collect();
            let store = &self.store;
            let outcomes: Vec<_> = stream::iter(batch)
                .map(|(id, nonce)| async move { ((id, nonce), store.delete(id, nonce).await) })
                .buffer_unordered(self.concurrency)
                .collect()
                .await;
            let mut failure = None;
            for (discarded, outcome) in outcomes {
                match outcome {
                    Ok(()) => metrics::counter!("muse_results_deleted_total").increment(1),
                    Err(error) => {
                        self.backlog.push_back(discarded);
                        failure = Some(error);
                    }
                }
            }
            if let Some(error) = failure {
                return Err(error);
            }
        }
        Ok(())
    }
}
