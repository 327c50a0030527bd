//! Waiting for the ends of many jobs at once, such as those of a stream of submissions. As level-triggered as the watch of
//! one job, and cheaper than as many of those: one task, and one pipeline of reads for all the jobs whose doorbells rang
//! while the last one was under way.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::Watcher;
use crate::{
    Error,
    connection::{JobBell, RedisError},
    jobs::{JobId, Record},
};

/// Jobs read by one pipeline.
const READ: usize = 100;

/// An end, or why there is none to be told.
type End = (JobId, Result<Record, Error>);

/// The ends of the jobs that were added. Dropping it ends the watch.
pub struct Ends {
    added: mpsc::Sender<JobId>,
    ended: mpsc::Receiver<End>,
}

impl Watcher {
    /// Watches up to `most` jobs at once for their ends; none yet.
    pub fn ends(&self, most: usize) -> Ends {
        let (added, additions) = mpsc::channel(most);
        let (sender, ended) = mpsc::channel(self.config.outbox);
        let watching = Watching {
            watcher: self.clone(),
            jobs: HashMap::new(),
            due: HashSet::new(),
            outage: None,
        };
        tokio::spawn(async move {
            tokio::select! {
                // Nobody listens any more.
                () = sender.closed() => {}
                () = watching.run(additions, &sender) => {}
            }
        });
        Ends { added, ended }
    }
}

// === impl Ends ===

impl Ends {
    /// Watches this job too; its tenant has been checked before. A job is not to be added again before its end was told.
    pub fn add(&self, id: JobId) {
        // There is room for all that may be watched at once, so this fails only when the watching has ended, and then
        // `next` says so.
        let _ = self.added.try_send(id);
    }

    /// The next end. [`Error::UnknownJob`] for a job that is gone, and what Redis said when it was away for longer than
    /// `watch.outage_ms`. `None`: the watching has ended. Safe to drop and call again.
    pub async fn next(&mut self) -> Option<End> {
        self.ended.recv().await
    }
}

struct Watching {
    watcher: Watcher,
    /// Those that have not ended. Dropping the value silences the job's bell.
    jobs: HashMap<JobId, oneshot::Sender<()>>,
    /// Those to be read.
    due: HashSet<JobId>,
    outage: Option<Instant>,
}

/// A watched job's bell.
struct Listening {
    id: JobId,
    bell: JobBell,
    gone: oneshot::Receiver<()>,
}

/// Waits until the bell says that the job may have ended; `None` when it is not watched any more.
async fn ring(mut listening: Listening) -> Option<Listening> {
    tokio::select! {
        _ = &mut listening.gone => None,
        () = listening.bell.ended() => Some(listening),
    }
}

// === impl Watching ===

impl Watching {
    async fn run(mut self, mut additions: mpsc::Receiver<JobId>, sender: &mpsc::Sender<End>) {
        let mut rings = FuturesUnordered::new();
        let reread = Duration::from_millis(self.watcher.config.reread_ms);
        let mut reread = tokio::time::interval_at(Instant::now() + reread, reread);
        loop {
            tokio::select! {
                added = additions.recv() => match added {
                    Some(id) => rings.extend(self.add(id).map(ring)),
                    None => return,
                },
                Some(rung) = rings.next(), if !rings.is_empty() => rings.extend(self.rung(rung).map(ring)),
                _ = reread.tick() => self.due.extend(self.jobs.keys()),
            }
            // All that is due by now goes into one read.
            while let Ok(id) = additions.try_recv() {
                rings.extend(self.add(id).map(ring));
            }
            while let Some(Some(rung)) = rings.next().now_or_never() {
                rings.extend(self.rung(rung).map(ring));
            }
            if self.read(sender).await.is_err() {
                return;
            }
        }
    }

    /// The bell is there before the first read, so that nothing is missed between the two.
    fn add(&mut self, id: JobId) -> Option<Listening> {
        if self.jobs.contains_key(&id) {
            return None;
        }
        let bell = self.watcher.bells.job(&id.to_string());
        let (watched, gone) = oneshot::channel();
        self.jobs.insert(id, watched);
        self.due.insert(id);
        Some(Listening { id, bell, gone })
    }

    fn rung(&mut self, rung: Option<Listening>) -> Option<Listening> {
        self.due.extend(rung.as_ref().map(|listening| listening.id));
        rung
    }

    /// Reads what is due, and tells what has ended. What could not be read stays due: every bell rings when Redis is back.
    async fn read(&mut self, sender: &mpsc::Sender<End>) -> Result<(), mpsc::error::SendError<End>> {
        let due: Vec<JobId> = self.due.drain().filter(|id| self.jobs.contains_key(id)).collect();
        for ids in due.chunks(READ) {
            match self.watcher.queue.get_many(ids).await {
                Ok(records) => {
                    self.outage = None;
                    self.tell(ids, records, sender).await?;
                }
                Err(error) => {
                    let begun = *self.outage.get_or_insert_with(Instant::now);
                    let lasting = begun.elapsed() > Duration::from_millis(self.watcher.config.outage_ms);
                    if !lasting && matches!(error, RedisError::Unavailable(_)) {
                        self.due.extend(ids);
                        continue;
                    }
                    for id in ids {
                        self.jobs.remove(id);
                        sender.send((*id, Err(error.clone().into()))).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn tell(
        &mut self,
        asked: &[JobId],
        records: Vec<Record>,
        sender: &mpsc::Sender<End>,
    ) -> Result<(), mpsc::error::SendError<End>> {
        let mut gone: HashSet<JobId> = asked.iter().copied().collect();
        for record in records {
            let Ok(id) = JobId::parse(&record.job.id) else {
                continue;
            };
            gone.remove(&id);
            if record.has_ended() {
                self.jobs.remove(&id);
                sender.send((id, Ok(record))).await?;
            }
        }
        for id in gone {
            self.jobs.remove(&id);
            sender.send((id, Err(Error::UnknownJob))).await?;
        }
        Ok(())
    }
}
