//! The loop of a batch: what is read goes out, answers come in, pictures are written, until every line is settled.

use muse_proto::v1::{SubmitJobsRequest, SubmitJobsResponse, submit_jobs_response::Event};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use tonic::Status;

use super::{
    display::{self, Counts, Display},
    feeder::{BadLine, Fed},
    folder::{FailureEntry, FailureKind},
    link::{Link, Patience},
    names::Names,
    shards::Shards,
    window::{Outcome, Window},
    writer::{self, Done, Order},
};
use crate::{client::Gateways, failure::Failure};

/// A run under way.
pub(super) struct Batch {
    pub(super) gateways: Gateways,
    pub(super) window: Window,
    pub(super) patience: Patience,
    pub(super) display: Display,
    pub(super) counts: Counts,
    pub(super) shards: Option<Shards>,
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) run: String,
    /// Made after they had failed in an earlier run.
    pub(super) mended: Names,
}

/// What happened next.
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
enum Next {
    Fed(Option<Fed>),
    /// The stream takes an item.
    Sendable,
    Answer(Result<Option<SubmitJobsResponse>, Status>),
    Written(Option<Result<Done, Failure>>),
    /// Time went by.
    Tick,
}

impl Batch {
    /// Until every line is settled and on disk.
    pub(super) async fn go(
        &mut self,
        mut fed: mpsc::Receiver<Fed>,
        mut written: mpsc::Receiver<Result<Done, Failure>>,
    ) -> Result<(), Failure> {
        let mut ticks = tokio::time::interval(display::TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut link, mut all_read, mut sealing) = (None::<Link>, false, 0_usize);
        loop {
            while sealing < writer::GROUP && self.seal().await? {
                sealing += 1;
            }
            if all_read && self.window.is_empty() && sealing == 0 {
                if let Some(link) = link {
                    link.close().await;
                }
                return Ok(());
            }
            if link.is_none() && self.window.needs_gateway() {
                link = self.connect().await?;
                continue;
            }
            let now = Instant::now();
            let room = link.as_ref().is_some_and(|link| {
                let most = usize::try_from(link.opened.max_in_flight).unwrap_or(usize::MAX);
                self.window.sent() < most
            });
            let send = room && self.window.has_ready(now);
            let again = self.window.next_moment();
            let items = link.as_ref().filter(|_| send).map(|link| link.items.clone());
            let next = tokio::select! {
                found = fed.recv(), if !all_read && self.window.has_room() => Next::Fed(found),
                () = sendable(items), if send => Next::Sendable,
                answer = answer(link.as_mut()), if link.is_some() => Next::Answer(answer),
                done = written.recv() => Next::Written(done),
                () = sleep_until(again.unwrap_or(now)), if again.is_some() => Next::Tick,
                now = ticks.tick() => {
                    self.display.tick(&self.counts, now);
                    Next::Tick
                }
            };
            match next {
                Next::Fed(Some(found)) => self.take(found).await?,
                Next::Fed(None) => {
                    all_read = true;
                    if let Some(shards) = &mut self.shards {
                        shards.all_read();
                    }
                }
                Next::Sendable => self.send(link.as_ref()).await?,
                Next::Answer(Ok(Some(answer))) => self.answered(answer).await?,
                Next::Answer(Ok(None)) => {
                    link = None;
                    self.lost(Status::unavailable("the gateway ended the stream").into())
                        .await?;
                }
                Next::Answer(Err(status)) => {
                    link = None;
                    self.lost(status.into()).await?;
                }
                Next::Written(Some(Ok(Done::Shard))) => sealing = sealing.saturating_sub(1),
                Next::Written(Some(done)) => self.written(done?),
                Next::Written(None) => {
                    return Err(Failure::Failed("the thread that writes died".to_owned()));
                }
                Next::Tick => {}
            }
        }
    }

    /// Orders a shard that can be written; false: there is none.
    async fn seal(&mut self) -> Result<bool, Failure> {
        let Some(shard) = self.shards.as_mut().and_then(Shards::next) else {
            return Ok(false);
        };
        self.order(Order::Shard(shard)).await?;
        Ok(true)
    }

    /// One attempt to open a stream; a failed one is borne, or ends the run.
    async fn connect(&mut self) -> Result<Option<Link>, Failure> {
        match Link::open(&mut self.gateways).await {
            Ok(link) => Ok(Some(link)),
            Err(failure) => {
                self.lost(failure).await?;
                Ok(None)
            }
        }
    }

    async fn lost(&mut self, failure: Failure) -> Result<(), Failure> {
        self.window.lost();
        let pause = self.patience.bear(failure, Instant::now())?;
        self.display
            .lost("lost the gateway; the jobs go on, looking for a gateway");
        self.display.tick(&self.counts, Instant::now());
        self.gateways.move_on();
        sleep(pause).await;
        Ok(())
    }

    async fn take(&mut self, found: Fed) -> Result<(), Failure> {
        match found {
            Fed::Total(total) => self.counts.total = Some(total),
            Fed::Task(task) => {
                if let Some(shards) = &mut self.shards {
                    shards.pending(task.line.number);
                }
                self.window.add(*task);
            }
            Fed::Done { line, stems } => {
                if let Some(shards) = &mut self.shards {
                    shards.done_before(line, stems);
                }
                self.counts.made_before += 1;
            }
            Fed::FailedBefore => self.counts.failed += 1,
            Fed::Bad(bad) => self.bad(bad).await?,
            Fed::Refused { bad } => {
                let lines = if bad == 1 { "line is" } else { "lines are" };
                return Err(Failure::Usage(format!(
                    "{bad} {lines} bad; nothing was submitted"
                )));
            }
            Fed::Broken(failure) => return Err(failure),
        }
        Ok(())
    }

    async fn bad(&mut self, bad: BadLine) -> Result<(), Failure> {
        self.display.detail(&format!("line {}: {}", bad.line, bad.fault));
        self.counts.failed += 1;
        self.window.writing_failure();
        if let Some(shards) = &mut self.shards {
            shards.pending(bad.line);
        }
        let entry = FailureEntry {
            line: bad.line,
            id: bad.id,
            kind: FailureKind::BadLine,
            message: bad.fault,
            reason: None,
            job_id: None,
            digest: None,
            round: 0,
        };
        self.order(Order::Failure(Box::new(entry))).await
    }

    /// Sends the next line; the stream has room for it.
    async fn send(&mut self, link: Option<&Link>) -> Result<(), Failure> {
        let (Some(link), Some(task)) = (link, self.window.send()) else {
            return Ok(());
        };
        let number = task.line.number;
        match link.item(task, &self.run) {
            // A stream that has just broken says so to whoever reads its answers.
            Ok(item) => {
                let _ = link.items.send(item).await;
                Ok(())
            }
            Err(fault) => {
                let outcome = self.window.unsendable(number, fault);
                self.follow(outcome).await
            }
        }
    }

    async fn answered(&mut self, answer: SubmitJobsResponse) -> Result<(), Failure> {
        let number = answer.sequence;
        self.patience.answered();
        let outcome = match answer.event {
            Some(Event::Accepted(accepted)) => {
                self.display.no_trouble();
                self.window.accepted(number, accepted.job_id);
                Outcome::Goes
            }
            Some(Event::Image(image)) => {
                self.window.image(number, image);
                Outcome::Goes
            }
            Some(Event::Ended(job)) => self.window.ended(number, &job),
            Some(Event::Error(error)) => self
                .window
                .refused(number, &error, Instant::now(), rand::random()),
            // A later release's.
            Some(Event::Opened(_)) | None => Outcome::Goes,
        };
        self.follow(outcome).await
    }

    async fn follow(&mut self, outcome: Outcome) -> Result<(), Failure> {
        match outcome {
            Outcome::Goes => Ok(()),
            Outcome::Later(why) => {
                self.display.waiting(why);
                Ok(())
            }
            Outcome::Finished(finished) => self.order(Order::Result(finished)).await,
            Outcome::Failed(entry) => {
                let id = entry.id.as_deref().unwrap_or_default();
                self.display
                    .detail(&format!("line {} (id {id}): {}", entry.line, entry.message));
                self.counts.failed += 1;
                self.window.writing_failure();
                self.order(Order::Failure(entry)).await
            }
        }
    }

    fn written(&mut self, done: Done) {
        self.window.written();
        let (line, stems) = match done {
            Done::Result {
                line,
                id,
                stems,
                failed_before,
            } => {
                self.counts.made += 1;
                if failed_before {
                    self.mended.insert(&id);
                }
                (line, stems)
            }
            Done::Failure { line } => (line, Vec::new()),
            Done::Shard => return,
        };
        if let Some(shards) = &mut self.shards {
            shards.settled(line, stems);
        }
    }

    async fn order(&self, order: Order) -> Result<(), Failure> {
        // A writer that failed has said why, and that is read next.
        let _ = self.orders.send(order).await;
        Ok(())
    }
}

async fn sendable(items: Option<mpsc::Sender<SubmitJobsRequest>>) {
    if let Some(items) = items {
        // Closed counts too: then the answers' end is read next.
        let _ = items.reserve().await;
    }
}

async fn answer(link: Option<&mut Link>) -> Result<Option<SubmitJobsResponse>, Status> {
    match link {
        Some(link) => link.answers.message().await,
        None => std::future::pending().await,
    }
}
