//! What the shard holds and owes the hub, without any I/O.
//!
//! A lease is *working* until its job has a report, then *reported* until the hub acknowledges it. Both survive the
//! connection: after a re-attach every lease is in the first heartbeat and every report is sent again. Memory is bounded by
//! credit, because a reported lease counts against it until the acknowledgement.
//!
//! The machine is asked for its next message when the connection can take one ([`Protocol::next_message`]), so nothing
//! queues up behind a slow gateway but what is held anyway.

mod link;
#[cfg(test)]
mod tests;
mod words;

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use muse_proto::internal::v1::{
    self as wire, AttachRequest, Credit, Heartbeat, Lease, LeaseReport, Release, Revoke, attach_request,
};

use self::link::Link;
pub use self::words::{Ack, Limits, Report, Snapshot, Taken, Ticket};

/// A gateway that cannot take a report is not asked more often.
const SHORTEST_POSTPONEMENT: Duration = Duration::from_millis(100);

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a few dozen leases are held, each once")]
enum State {
    Working,
    /// `due`: when it is to be sent, again or at all; `None`: now.
    Reported {
        report: Report,
        due: Option<Instant>,
    },
}

#[derive(Debug)]
struct Held {
    job_id: String,
    nonce: Vec<u8>,
    rows: u32,
    state: State,
    /// Version of the snapshot whose checkpoint this connection was told.
    told: Option<u64>,
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
        self.link = Some(Link::new(heartbeat));
        for held in self.held.values_mut() {
            held.told = None;
            if let State::Reported { due, .. } = &mut held.state {
                *due = None;
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
            .find(|(_, held)| held.job_id == lease.job_id && matches!(held.state, State::Working))
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
                due: None,
            }
        } else {
            State::Working
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
                told: None,
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
            State::Working => {
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

    /// The hub cannot take a report for now: it stays, and is sent again after `retry_after`. Those that come meanwhile are
    /// not held up. False when nothing was owed under that nonce.
    pub fn postpone(&mut self, ack: &wire::Ack, now: Instant) -> bool {
        let ticket = self.tickets.get(&(ack.job_id.clone(), ack.nonce.clone()));
        let Some(State::Reported { due, .. }) = ticket
            .and_then(|ticket| self.held.get_mut(ticket))
            .map(|held| &mut held.state)
        else {
            return false;
        };
        let asked = ack.retry_after.as_ref().and_then(muse_proto::std_duration);
        let wait = asked.unwrap_or(self.limits.resend_after);
        // From outside: neither at once for ever, nor never.
        *due = Some(
            now + wait.clamp(
                SHORTEST_POSTPONEMENT,
                self.limits.resend_after.max(SHORTEST_POSTPONEMENT),
            ),
        );
        true
    }

    // === what comes of jobs ===

    /// A job has a report, which is owed from now on. False when the lease is no longer held.
    pub fn report(&mut self, ticket: Ticket, report: Report) -> bool {
        match self.held.get_mut(&ticket) {
            Some(held) if matches!(held.state, State::Working) => {
                held.state = State::Reported { report, due: None };
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
            .filter(|held| matches!(held.state, State::Working))
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
        let early = self.limits.progress_interval;
        let link = self.link.as_ref()?;
        if link.is_heartbeat_due(now, jobs.progress_version(), early) {
            return self.heartbeat(now, jobs).map(|heartbeat| AttachRequest {
                message: Some(attach_request::Message::Heartbeat(heartbeat)),
            });
        }
        let resend_after = self.limits.resend_after;
        for held in self.held.values_mut() {
            if let State::Reported { report, due } = &mut held.state
                && due.is_none_or(|due| now >= due)
            {
                *due = Some(now + resend_after);
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
        let resend = self.held.values().filter_map(|held| match &held.state {
            State::Reported { due, .. } => *due,
            State::Working => None,
        });
        // Whether there is progress is seen only by looking.
        let progress = self
            .limits
            .progress_interval
            .filter(|_| self.working_rows() > 0)
            .map(|interval| now + interval);
        resend.chain(progress).chain(link.next_heartbeat(now)).min()
    }

    fn heartbeat(&mut self, now: Instant, jobs: &dyn super::Jobs) -> Option<Heartbeat> {
        let rows = self.working_rows();
        let draining = self.draining;
        let link = self.link.as_mut()?;
        let passes_per_second = link.rate(now, jobs.passes());
        let full = link.beat(now, jobs.progress_version());
        let leases = self.held.iter_mut().map(|(ticket, held)| {
            let mut report = LeaseReport {
                job_id: held.job_id.clone(),
                nonce: held.nonce.clone(),
                ..LeaseReport::default()
            };
            if let Some(snapshot) = jobs.snapshot(*ticket) {
                report.progress = Some(snapshot.progress);
                if full && held.told != Some(snapshot.version) {
                    held.told = Some(snapshot.version);
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
