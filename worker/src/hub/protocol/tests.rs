use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use muse_proto::internal::v1::{
    self as wire, AckOutcome, Checkpoint, Complete, Lease, Release, Revoke, attach_request::Message,
};
use muse_proto::v1::Progress;
use proptest::prelude::*;

use super::*;
use crate::hub::Jobs;

const HEARTBEAT: Duration = Duration::from_secs(1);

/// Jobs that only have a progress.
#[derive(Default)]
struct Board {
    versions: HashMap<Ticket, u64>,
}

impl Jobs for Board {
    fn start(&mut self, _: Ticket, _: Lease) {}
    fn drop_job(&mut self, _: Ticket) {}
    fn forget(&mut self, _: Ticket) {}
    fn release_all(&mut self) {}
    fn snapshot(&self, ticket: Ticket) -> Option<Snapshot> {
        let version = *self.versions.get(&ticket)?;
        Some(Snapshot {
            version,
            progress: Progress {
                stage: 1,
                step: version as u32,
                of: 9,
            },
            checkpoint: Some(Checkpoint {
                stage: 1,
                rows: Vec::new(),
            }),
        })
    }
    fn progress_version(&self) -> u64 {
        self.versions.values().sum()
    }
    fn passes(&self) -> u64 {
        0
    }
}

fn limits() -> Limits {
    Limits {
        capacity: 4,
        max_rows: 8,
        resend_after: Duration::from_secs(10),
        progress_interval: Some(Duration::from_millis(100)),
    }
}

fn lease(job: u32, nonce: u8) -> Lease {
    Lease {
        job_id: format!("job-{job}"),
        nonce: vec![nonce; 16],
        ..Lease::default()
    }
}

fn complete(lease: &Lease) -> Report {
    Report::Complete(Complete {
        job_id: lease.job_id.clone(),
        nonce: lease.nonce.clone(),
        ..Complete::default()
    })
}

fn ack(lease: &Lease) -> wire::Ack {
    wire::Ack {
        job_id: lease.job_id.clone(),
        nonce: lease.nonce.clone(),
        outcome: AckOutcome::Accepted as i32,
        retry_after: None,
    }
}

fn not_now(lease: &Lease, wait: Duration) -> wire::Ack {
    wire::Ack {
        outcome: AckOutcome::Unavailable as i32,
        retry_after: prost_types::Duration::try_from(wait).ok(),
        ..ack(lease)
    }
}

fn revoke(lease: &Lease) -> Revoke {
    Revoke {
        job_id: lease.job_id.clone(),
        nonce: lease.nonce.clone(),
        reason: 1,
    }
}

fn say(protocol: &mut Protocol, now: Instant, board: &Board) -> Vec<Message> {
    std::iter::from_fn(|| protocol.next_message(now, board))
        .filter_map(|request| request.message)
        .collect()
}

fn attached(now: Instant) -> Protocol {
    let mut protocol = Protocol::new(limits());
    protocol.attached(HEARTBEAT);
    let said = say(&mut protocol, now, &Board::default());
    assert!(
        matches!(&said[..], [Message::Heartbeat(_), Message::Credit(credit)] if credit.rows == 4),
        "{said:?}"
    );
    protocol
}

fn start(protocol: &mut Protocol, lease: &Lease, rows: u32) -> Ticket {
    match protocol.take(lease, rows) {
        Taken::Start { ticket, .. } => ticket,
        other => panic!("not started: {other:?}"),
    }
}

#[test]
fn nothing_is_said_while_detached() {
    let mut protocol = Protocol::new(limits());
    assert!(say(&mut protocol, Instant::now(), &Board::default()).is_empty());
    assert_eq!(protocol.next_wake(Instant::now()), None);
}

#[test]
fn credit_follows_the_rows_held_and_is_not_repeated() {
    let now = Instant::now();
    let mut protocol = attached(now);
    let lease = lease(1, 1);
    let ticket = start(&mut protocol, &lease, 3);
    let said = say(&mut protocol, now, &Board::default());
    assert!(said.is_empty(), "the gateway counts its own leases: {said:?}");
    assert!(protocol.report(ticket, complete(&lease)));
    let said = say(&mut protocol, now, &Board::default());
    assert!(
        matches!(&said[..], [Message::Complete(_)]),
        "a report owed still takes room: {said:?}"
    );
    assert!(protocol.ack(&ack(&lease)).is_some());
    let said = say(&mut protocol, now, &Board::default());
    assert!(
        matches!(&said[..], [Message::Credit(credit)] if credit.rows == 4),
        "{said:?}"
    );
}

#[test]
fn a_report_is_sent_again_on_the_next_connection_and_after_a_time_on_the_same() {
    let now = Instant::now();
    let mut protocol = attached(now);
    let lease = lease(1, 1);
    let ticket = start(&mut protocol, &lease, 1);
    protocol.detached();
    assert!(protocol.report(ticket, complete(&lease)));
    protocol.attached(HEARTBEAT);
    let said = say(&mut protocol, now, &Board::default());
    let [
        Message::Heartbeat(heartbeat),
        Message::Complete(_),
        Message::Credit(_),
    ] = &said[..]
    else {
        panic!("{said:?}");
    };
    assert_eq!(heartbeat.leases.len(), 1);
    let later = now + Duration::from_secs(10);
    let said = say(&mut protocol, later, &Board::default());
    assert!(
        said.iter().any(|message| matches!(message, Message::Complete(_))),
        "{said:?}"
    );
}

#[test]
fn a_checkpoint_is_sent_when_it_changed_and_again_after_a_reattach() {
    let now = Instant::now();
    let mut protocol = attached(now);
    let ticket = start(&mut protocol, &lease(1, 1), 1);
    let mut board = Board::default();
    board.versions.insert(ticket, 1);
    let has_checkpoint = |protocol: &mut Protocol, now, board: &Board| {
        let said = say(protocol, now, board);
        let Some(Message::Heartbeat(heartbeat)) = said.first() else {
            panic!("no heartbeat: {said:?}")
        };
        assert!(heartbeat.leases[0].progress.is_some());
        heartbeat.leases[0].checkpoint.is_some()
    };
    assert!(has_checkpoint(&mut protocol, now + HEARTBEAT, &board));
    assert!(!has_checkpoint(&mut protocol, now + 2 * HEARTBEAT, &board));
    protocol.detached();
    protocol.attached(HEARTBEAT);
    assert!(has_checkpoint(&mut protocol, now + 2 * HEARTBEAT, &board));
    // A report may be as lost as a checkpoint: a gateway that knows neither is told both.
    protocol.detached();
    assert!(protocol.report(ticket, complete(&lease(1, 1))));
    protocol.attached(HEARTBEAT);
    assert!(has_checkpoint(&mut protocol, now + 3 * HEARTBEAT, &board));
}

#[test]
fn progress_brings_the_heartbeat_forward() {
    let now = Instant::now();
    let mut protocol = attached(now);
    let ticket = start(&mut protocol, &lease(1, 1), 1);
    let mut board = Board::default();
    board.versions.insert(ticket, 1);
    let soon = now + Duration::from_millis(100);
    let early = |said: &[Message]| match said {
        [Message::Heartbeat(heartbeat)] => {
            heartbeat.leases[0].progress.is_some() && heartbeat.leases[0].checkpoint.is_none()
        }
        _ => false,
    };
    assert!(say(&mut protocol, soon - Duration::from_millis(1), &board).is_empty());
    let said = say(&mut protocol, soon, &board);
    assert!(early(&said), "progress alone: {said:?}");
    assert!(
        say(&mut protocol, soon + Duration::from_millis(100), &board).is_empty(),
        "no further progress"
    );
    let said = say(&mut protocol, now + HEARTBEAT, &board);
    let [Message::Heartbeat(heartbeat)] = &said[..] else {
        panic!("{said:?}")
    };
    assert!(
        heartbeat.leases[0].checkpoint.is_some(),
        "the regular one comes on time, whole: {said:?}"
    );
}

#[test]
fn a_revoked_job_is_dropped_but_an_owed_report_stays() {
    let now = Instant::now();
    let mut protocol = attached(now);
    let (first, second) = (lease(1, 1), lease(2, 2));
    let dropped = start(&mut protocol, &first, 1);
    let owed = start(&mut protocol, &second, 1);
    assert_eq!(protocol.revoke(&revoke(&first)), Some(dropped));
    assert!(!protocol.report(dropped, complete(&first)), "nobody waits for it");
    assert!(protocol.report(owed, complete(&second)));
    assert_eq!(protocol.revoke(&revoke(&second)), None);
    assert_eq!(protocol.owed(), 1);
}

#[test]
fn a_job_that_comes_back_under_a_new_nonce_replaces_the_old_lease() {
    let mut protocol = attached(Instant::now());
    let old = start(&mut protocol, &lease(1, 1), 1);
    assert_eq!(protocol.take(&lease(1, 1), 1), Taken::Known);
    let Taken::Start { ticket, replaces } = protocol.take(&lease(1, 2), 1) else {
        panic!("not started")
    };
    assert_eq!(replaces, Some(old));
    assert_ne!(ticket, old);
    assert_eq!(protocol.rows(), 1);
}

#[test]
fn a_full_or_draining_shard_gives_leases_back_with_their_checkpoint() {
    let now = Instant::now();
    let mut protocol = attached(now);
    start(&mut protocol, &lease(1, 1), 20);
    let mut second = lease(2, 2);
    second.checkpoint = Some(Checkpoint {
        stage: 1,
        rows: Vec::new(),
    });
    assert_eq!(protocol.take(&second, 1), Taken::GivenBack);
    let said = say(&mut protocol, now, &Board::default());
    assert!(
        said.iter().any(|message| matches!(
            message,
            Message::Release(Release {
                checkpoint: Some(_),
                ..
            })
        )),
        "{said:?}"
    );
    let mut draining = attached(now);
    draining.drain();
    assert_eq!(draining.take(&lease(3, 3), 1), Taken::GivenBack);
    let said = say(&mut draining, now, &Board::default());
    assert!(
        said.iter()
            .any(|message| matches!(message, Message::Credit(credit) if credit.rows == 0)),
        "{said:?}"
    );
}

#[test]
fn an_interval_that_no_clock_reaches_is_never_due() {
    let now = Instant::now();
    let mut protocol = Protocol::new(limits());
    protocol.attached(Duration::from_secs(i64::MAX as u64));
    let board = Board::default();
    assert!(
        !say(&mut protocol, now, &board).is_empty(),
        "the first is always due"
    );
    assert_eq!(protocol.next_wake(now), None);
    assert!(say(&mut protocol, now + HEARTBEAT, &board).is_empty());
}

#[test]
fn a_report_that_cannot_be_taken_for_now_is_kept_and_sent_again_when_it_was_asked_for() {
    let now = Instant::now();
    let mut protocol = attached(now);
    let (first, second) = (lease(1, 1), lease(2, 2));
    let ticket = start(&mut protocol, &first, 1);
    assert!(protocol.report(ticket, complete(&first)));
    let said = say(&mut protocol, now, &Board::default());
    assert!(matches!(&said[..], [Message::Complete(_)]), "{said:?}");

    let wait = Duration::from_secs(3);
    assert!(protocol.postpone(&not_now(&first, wait), now));
    assert_eq!((protocol.owed(), protocol.rows()), (1, 1), "it is still held");
    // Another job's report passes by.
    let ticket = start(&mut protocol, &second, 1);
    assert!(protocol.report(ticket, complete(&second)));
    let said = say(&mut protocol, now, &Board::default());
    assert!(
        matches!(&said[..], [Message::Complete(report)] if report.job_id == second.job_id),
        "{said:?}"
    );
    assert!(protocol.ack(&ack(&second)).is_some());
    let completes = |said: &[Message]| {
        said.iter()
            .filter(|message| matches!(message, Message::Complete(_)))
            .count()
    };
    let early = say(
        &mut protocol,
        now + wait - Duration::from_millis(1),
        &Board::default(),
    );
    assert_eq!(completes(&early), 0, "{early:?}");
    assert!(
        protocol
            .next_wake(now + wait)
            .is_some_and(|wake| wake <= now + wait)
    );
    let due = say(&mut protocol, now + wait, &Board::default());
    assert_eq!(completes(&due), 1, "{due:?}");
    assert!(protocol.ack(&ack(&first)).is_some());
    assert!(!protocol.postpone(&not_now(&first, wait), now), "nothing is owed");
}

#[test]
fn a_postponement_is_neither_endless_nor_none() {
    let now = Instant::now();
    for (asked, wanted) in [
        (Duration::ZERO, SHORTEST_POSTPONEMENT),
        (Duration::from_secs(1 << 40), limits().resend_after),
    ] {
        let mut protocol = attached(now);
        let lease = lease(1, 1);
        let ticket = start(&mut protocol, &lease, 1);
        assert!(protocol.report(ticket, complete(&lease)));
        say(&mut protocol, now, &Board::default());
        assert!(protocol.postpone(&not_now(&lease, asked), now));
        let early = say(
            &mut protocol,
            now + wanted - Duration::from_millis(1),
            &Board::default(),
        );
        assert!(
            !early
                .iter()
                .any(|message| matches!(message, Message::Complete(_))),
            "{early:?}"
        );
        let due = say(&mut protocol, now + wanted, &Board::default());
        assert!(
            due.iter().any(|message| matches!(message, Message::Complete(_))),
            "{due:?}"
        );
    }
}

#[derive(Debug, Clone)]
enum Event {
    Lease { rows: u32 },
    Report(usize),
    AckOne,
    Revoke(usize),
    Cut,
    Attach,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => (1u32..4).prop_map(|rows| Event::Lease { rows }),
        3 => (0usize..8).prop_map(Event::Report),
        3 => Just(Event::AckOne),
        1 => (0usize..8).prop_map(Event::Revoke),
        1 => Just(Event::Cut),
        2 => Just(Event::Attach),
    ];
    prop::collection::vec(event, 1..120)
}

proptest! {
    /// Against a hub that grants only against credit and may vanish at any moment: what is held stays within the limit, and
    /// every report is acknowledged in the end, none is forgotten before.
    #[test]
    fn every_report_is_acknowledged_in_the_end_and_memory_is_bounded(events in events()) {
        let now = Instant::now();
        let board = Board::default();
        let mut protocol = Protocol::new(limits());
        let (mut credit, mut jobs) = (0u32, 0u32);
        let mut leases: HashMap<Ticket, Lease> = HashMap::new();
        let mut unacked: Vec<(String, Vec<u8>)> = Vec::new();
        let mut owed: BTreeSet<String> = BTreeSet::new();
        let mut linked = false;
        let finish = [Event::Attach, Event::AckOne].into_iter().chain(std::iter::repeat_n(Event::AckOne, 200));
        for event in events.into_iter().chain(finish) {
            match event {
                Event::Lease { rows } if linked && credit > 0 => {
                    jobs += 1;
                    credit = credit.saturating_sub(rows);
                    let lease = lease(jobs, jobs as u8);
                    match protocol.take(&lease, rows) {
                        Taken::Start { ticket, .. } => { leases.insert(ticket, lease); }
                        Taken::GivenBack => { owed.insert(lease.job_id); }
                        Taken::Known => prop_assert!(false, "a new lease was known"),
                    }
                }
                Event::Report(index) => {
                    let ticket = leases.keys().min().map(|first| Ticket(first.0 + index as u64));
                    if let Some((ticket, lease)) = ticket.and_then(|ticket| leases.remove_entry(&ticket)) {
                        prop_assert!(protocol.report(ticket, complete(&lease)));
                        owed.insert(lease.job_id);
                    }
                }
                Event::AckOne => if linked && !unacked.is_empty() {
                    let (job_id, nonce) = unacked.remove(0);
                    let answer = wire::Ack { job_id: job_id.clone(), nonce, outcome: 1, retry_after: None };
                    if protocol.ack(&answer).is_some() {
                        prop_assert!(owed.remove(&job_id), "{job_id} was not owed");
                    }
                },
                Event::Revoke(index) => {
                    if let Some((ticket, lease)) = leases.iter().nth(index).map(|(t, l)| (*t, l.clone())) {
                        prop_assert_eq!(protocol.revoke(&revoke(&lease)), Some(ticket));
                        leases.remove(&ticket);
                    }
                }
                Event::Cut => { linked = false; credit = 0; unacked.clear(); protocol.detached(); }
                Event::Attach => if !linked { linked = true; protocol.attached(HEARTBEAT); }
                Event::Lease { .. } => {}
            }
            for message in say(&mut protocol, now, &board) {
                prop_assert!(linked);
                match message {
                    Message::Credit(message) => credit = message.rows,
                    Message::Heartbeat(heartbeat) => prop_assert_eq!(heartbeat.leases.len(), leases.len() + owed.len()),
                    Message::Complete(report) => unacked.push((report.job_id, report.nonce)),
                    Message::Release(report) => unacked.push((report.job_id, report.nonce)),
                    other => prop_assert!(false, "unexpected {:?}", other),
                }
            }
            // Credit may be overdrawn by the last job alone, which is not divided.
            prop_assert!(protocol.rows() < limits().capacity + 3, "{} rows", protocol.rows());
        }
        prop_assert!(owed.is_empty(), "never acknowledged: {:?}", owed);
    }
}
