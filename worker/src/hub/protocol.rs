//! What the shard holds and owes the hub, without any I/O.
//!
//! A lease is *working* until its job has a report, then *reported* until the hub acknowledges it. Both survive the
//! connection: after a re-attach every lease is in the first heartbeat and every report is sent again. Memory is bounded by
//! credit, because a reported lease counts against it until the acknowledgement.
//!
//! The machine is asked for its next message when the connection can take one ([`Protocol::next_message`]), so nothing
//! queues up behind a slow gateway but what is held anyway.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use muse_proto::{
    internal::v1::{
        self as wire, AckOutcome, AttachRequest, Checkpoint, Complete, Credit, Fail, Heartbeat, Lease,
        LeaseReport, Release, Revoke, attach_request,
    },
    v1::Progress,
};

/// A lease's number inside this process. Job ids are not enough: a job that was lost may come back under a new nonce while
/// the report on the old one is still owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// How much is held, and when is spoken.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rows that credit is given for.
    pub capacity: u32,
    /// Rows above which a lease is given back at once. More than `capacity`, because credit and leases cross on the wire and
    /// a job is not divided.
    pub max_rows: u32,
    /// A report that is not acknowledged for this long is sent again on the same connection.
    pub resend_after: Duration,
    /// A heartbeat goes out early when progress was made and the last is older than this; `None`: never early.
    pub progress_interval: Option<Duration>,
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Grows with every change.
    pub version: u64,
    /// For people.
    pub progress: Progress,
    /// For the next shard; `None` before the first step.
    pub checkpoint: Option<Checkpoint>,
}

/// What came of a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// Its stage is done.
    Complete(Complete),
    /// It failed.
    Fail(Fail),
    /// It is given back.
    Release(Release),
}

impl Report {
    fn message(&self) -> AttachRequest {
        let message = match self {
            Report::Complete(complete) => attach_request::Message::Complete(complete.clone()),
            Report::Fail(fail) => attach_request::Message::Fail(fail.clone()),
            Report::Release(release) => attach_request::Message::Release(release.clone()),
        };
        AttachRequest {
            message: Some(message),
        }
    }

    /// Name for logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Report::Complete(_) => "complete",
            Report::Fail(_) => "fail",
            Report::Release(_) => "release",
        }
    }
}

/// What becomes of a lease that arrives.
#[derive(Debug, PartialEq)]
pub enum Taken {
    /// Start it; if it took the place of an older lease of the same job, drop that one.
    Start {
        /// The new lease.
        ticket: Ticket,
        /// The older lease of the same job, whose nonce no longer counts.
        replaces: Option<Ticket>,
    },
    /// The same lease is held already.
    Known,
    /// It is given back: the shard drains or is full.
    GivenBack,
}

/// An acknowledgement, matched.
#[derive(Debug, PartialEq, Eq)]
pub struct Ack {
    /// Which lease has ended.
    pub ticket: Ticket,
    /// What kind of report was acknowledged.
    pub report: &'static str,
    /// What became of it.
    pub outcome: AckOutcome,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a few dozen leases are held, each once")]
enum State {
    Working { told: Option<u64> },
    Reported { report: Report, sent: Option<Instant> },
}

#[derive(Debug)]
struct Held {
    job_id: String,
    nonce: Vec<u8>,
    rows: u32,
    state: State,
    /// As last told: a heartbeat repeats it once the job itself has nothing more to tell.
    progress: Option<Progress>,
}

/// The present connection.
#[derive(Debug)]
struct Link {
    heartbeat: Duration,
    last_heartbeat: Option<Instant>,
    /// The last heartbeat that carried checkpoints. Those that go out early for progress's sake do not: grids are large
    /// beside it, and each is stored.
    last_full: Option<Instant>,
    progress_told: u64,
    rate: Rate,
    /// The credit that the gateway still has from us: what was sent, less the leases since. `None`: nothing sent yet.
    credit: Option<u32>,
}

/// Passes a second, over at least [`Rate::WINDOW`], so that early heartbeats do not make it jump.
#[derive(Debug, Default)]
struct Rate {
    since: Option<(Instant, u64)>,
    per_second: f64,
}

impl Rate {
    const WINDOW: Duration = Duration::from_secs(2);

    fn update(&mut self, now: Instant, passes: u64) -> f64 {
        let (start, before) = *self.since.get_or_insert((now, passes));
        let elapsed = now.duration_since(start);
        if elapsed >= Self::WINDOW {
            self.per_second = passes.saturating_sub(before) as f64 / elapsed.as_secs_f64();
            self.since = Some((now, passes));
        }
        self.per_second
    }
}

/// See the module.
#[derive(Debug)]
pub struct Protocol {
    limits: Limits,
    held: BTreeMap<Ticket, Held>,
    tickets: HashMap<(String, Vec<u8>), Ticket>,
    next_ticket: u64,
    link: Option<Link>,
    draining: bool,
}

impl Protocol {
    /// Nothing held, not attached.
    pub fn new(limits: Limits) -> Self {
        Protocol {
            limits,
            held: BTreeMap::new(),
            tickets: HashMap::new(),
            next_ticket: 0,
            link: None,
            draining: false,
        }
    }

    // === the connection ===

    /// A gateway welcomed us. Everything held is told again: what the last connection carried may be lost.
    pub fn attached(&mut self, heartbeat: Duration) {
        self.link = Some(Link {
            heartbeat,
            last_heartbeat: None,
            last_full: None,
            progress_told: 0,
            rate: Rate::default(),
            credit: None,
        });
        for held in self.held.values_mut() {
            match &mut held.state {
                State::Working { told } => *told = None,
                State::Reported { sent, .. } => *sent = None,
            }
        }
    }

    /// The connection is gone. Leases and reports stay.
    pub fn detached(&mut self) {
        self.link = None;
    }

    /// Is there a connection?
    pub fn is_attached(&self) -> bool {
        self.link.is_some()
    }

    // === what arrives ===

    /// A lease of `rows` rows arrived.
    pub fn take(&mut self, lease: &Lease, rows: u32) -> Taken {
        let rows = rows.max(1);
        if let Some(credit) = self.link.as_mut().and_then(|link| link.credit.as_mut()) {
            *credit = credit.saturating_sub(rows);
        }
        let key = (lease.job_id.clone(), lease.nonce.clone());
        if self.tickets.contains_key(&key) {
            return Taken::Known;
        }
        let replaces = self
            .held
            .iter()
            .find(|(_, held)| held.job_id == lease.job_id && matches!(held.state, State::Working { .. }))
            .map(|(ticket, _)| *ticket);
        if let Some(old) = replaces {
            self.forget(old);
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let held = self.rows();
        // A job larger than everything is still taken by an empty shard: otherwise nobody could run it.
        let full = held > 0 && held.saturating_add(rows) > self.limits.max_rows;
        let state = if self.draining || full {
            let release = Release {
                job_id: lease.job_id.clone(),
                nonce: lease.nonce.clone(),
                checkpoint: lease.checkpoint.clone(),
            };
            State::Reported {
                report: Report::Release(release),
                sent: None,
            }
        } else {
            State::Working { told: None }
        };
        let given_back = matches!(state, State::Reported { .. });
        self.tickets.insert(key, ticket);
        self.held.insert(
            ticket,
            Held {
                job_id: lease.job_id.clone(),
                nonce: lease.nonce.clone(),
                rows,
                state,
                progress: None,
            },
        );
        if given_back {
            Taken::GivenBack
        } else {
            Taken::Start { ticket, replaces }
        }
    }

    /// The hub wants a job dropped. Returns what to stop. A report that is already owed stays until its acknowledgement,
    /// which always comes: the revocation may have crossed it.
    pub fn revoke(&mut self, revoke: &Revoke) -> Option<Ticket> {
        let ticket = *self.tickets.get(&(revoke.job_id.clone(), revoke.nonce.clone()))?;
        match self.held.get(&ticket)?.state {
            State::Working { .. } => {
                self.forget(ticket);
                Some(ticket)
            }
            State::Reported { .. } => None,
        }
    }

    /// The hub answered a report. `None` when nothing was owed under that nonce.
    pub fn ack(&mut self, ack: &wire::Ack) -> Option<Ack> {
        let ticket = *self.tickets.get(&(ack.job_id.clone(), ack.nonce.clone()))?;
        let State::Reported { report, .. } = &self.held.get(&ticket)?.state else {
            return None;
        };
        let report = report.kind();
        self.forget(ticket);
        Some(Ack {
            ticket,
            report,
            outcome: ack.outcome(),
        })
    }

    // === what comes of jobs ===

    /// A job has a report, which is owed from now on. False when the lease is no longer held.
    pub fn report(&mut self, ticket: Ticket, report: Report) -> bool {
        match self.held.get_mut(&ticket) {
            Some(held) if matches!(held.state, State::Working { .. }) => {
                held.state = State::Reported { report, sent: None };
                true
            }
            _ => false,
        }
    }

    /// Takes no more leases: credit is 0 from now on, and what still arrives is given back.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Has [`Protocol::drain`] been called?
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    // === what is held ===

    /// Nothing runs and nothing is owed.
    pub fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    /// Leases held, reports included.
    pub fn leases(&self) -> usize {
        self.held.len()
    }

    /// Reports that the hub has not acknowledged.
    pub fn owed(&self) -> usize {
        self.held
            .values()
            .filter(|held| matches!(held.state, State::Reported { .. }))
            .count()
    }

    /// Rows held, those of reports included.
    pub fn rows(&self) -> u32 {
        self.held
            .values()
            .fold(0, |sum, held| sum.saturating_add(held.rows))
    }

    fn working_rows(&self) -> u32 {
        self.held
            .values()
            .filter(|held| matches!(held.state, State::Working { .. }))
            .fold(0, |sum, held| sum.saturating_add(held.rows))
    }

    /// Rows that would be taken now.
    pub fn credit(&self) -> u32 {
        if self.draining {
            0
        } else {
            self.limits.capacity.saturating_sub(self.rows())
        }
    }

    fn forget(&mut self, ticket: Ticket) {
        if let Some(held) = self.held.remove(&ticket) {
            self.tickets.remove(&(held.job_id, held.nonce));
        }
    }

    // === what is said ===

    /// The next message for the hub, if one is due. The first after attaching is the heartbeat that names every lease, then
    /// the reports that are owed, then credit.
    pub fn next_message(&mut self, now: Instant, jobs: &dyn super::Jobs) -> Option<AttachRequest> {
        self.link.as_ref()?;
        if self.heartbeat_due(now, jobs.progress_version()) {
            return self.heartbeat(now, jobs).map(|heartbeat| AttachRequest {
                message: Some(attach_request::Message::Heartbeat(heartbeat)),
            });
        }
        let resend_after = self.limits.resend_after;
        for held in self.held.values_mut() {
            if let State::Reported { report, sent } = &mut held.state
                && sent.is_none_or(|sent| now.duration_since(sent) >= resend_after)
            {
                *sent = Some(now);
                return Some(report.message());
            }
        }
        let rows = self.credit();
        let link = self.link.as_mut()?;
        if link.credit != Some(rows) {
            link.credit = Some(rows);
            return Some(AttachRequest {
                message: Some(attach_request::Message::Credit(Credit { rows })),
            });
        }
        None
    }

    /// When [`Protocol::next_message`] should be asked again if nothing else happens; `None` while detached.
    pub fn next_wake(&self, now: Instant) -> Option<Instant> {
        let link = self.link.as_ref()?;
        let heartbeat = link.last_full.map_or(now, |last| last + link.heartbeat);
        let resend = self.held.values().filter_map(|held| match &held.state {
            State::Reported { sent: Some(sent), .. } => Some(*sent + self.limits.resend_after),
            _ => None,
        });
        // Whether there is progress is seen only by looking.
        let progress = self
            .limits
            .progress_interval
            .filter(|_| self.working_rows() > 0)
            .map(|interval| now + interval);
        resend.chain(progress).chain([heartbeat]).min()
    }

    fn heartbeat_due(&self, now: Instant, progress_version: u64) -> bool {
        let Some(link) = &self.link else { return false };
        let (Some(last), Some(last_full)) = (link.last_heartbeat, link.last_full) else {
            return true;
        };
        let early = self
            .limits
            .progress_interval
            .filter(|_| progress_version != link.progress_told);
        last_full + link.heartbeat <= now || early.is_some_and(|early| last + early <= now)
    }

    fn heartbeat(&mut self, now: Instant, jobs: &dyn super::Jobs) -> Option<Heartbeat> {
        let rows = self.working_rows();
        let draining = self.draining;
        let link = self.link.as_mut()?;
        let passes_per_second = link.rate.update(now, jobs.passes());
        link.last_heartbeat = Some(now);
        let full = link.last_full.is_none_or(|last| last + link.heartbeat <= now);
        if full {
            link.last_full = Some(now);
        }
        link.progress_told = jobs.progress_version();
        let leases = self.held.iter_mut().map(|(ticket, held)| {
            let mut report = LeaseReport {
                job_id: held.job_id.clone(),
                nonce: held.nonce.clone(),
                progress: held.progress,
                checkpoint: None,
            };
            if let State::Working { told } = &mut held.state
                && let Some(snapshot) = jobs.snapshot(*ticket)
            {
                held.progress = Some(snapshot.progress);
                report.progress = held.progress;
                if full && *told != Some(snapshot.version) {
                    *told = Some(snapshot.version);
                    report.checkpoint = snapshot.checkpoint;
                }
            }
            report
        });
        Some(Heartbeat {
            leases: leases.collect(),
            rows,
            passes_per_second,
            draining,
        })
    }
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
