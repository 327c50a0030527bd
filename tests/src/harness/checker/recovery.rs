//! How long it took until all was well again, where nothing else was disturbed meanwhile.

use std::collections::{HashMap, HashSet};

use super::{Bounds, Invariant, Verdict};
use crate::harness::history::{Event, Record};

/// Milliseconds, in the order in which they were measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recoveries {
    /// From a worker's death until a job that it held was with another or had ended.
    pub worker: Vec<u64>,
    /// From Redis' answer until a client's job was accepted and a lease granted or a result taken.
    pub redis: Vec<u64>,
}

pub(super) fn check(records: &[Record], bounds: &Bounds, verdict: &mut Verdict) {
    let worker = (bounds.lease + bounds.worker).as_millis() as u64;
    let redis_bound = bounds.redis.as_millis() as u64;
    let recoveries = Recoveries {
        worker: workers(records, worker),
        redis: redis(records, redis_bound),
    };
    for ms in recoveries.worker.iter().filter(|ms| **ms > worker) {
        let what = format!("{ms} ms after a worker's death, {worker} are allowed");
        verdict.breach(Invariant::WorkersAreReplaced, what);
    }
    for ms in recoveries.redis.iter().filter(|ms| **ms > redis_bound) {
        let what = format!("{ms} ms after Redis' return, {redis_bound} are allowed");
        verdict.breach(Invariant::RedisIsTakenUp, what);
    }
    verdict.recoveries = recoveries;
}

/// Who holds what, by what Redis answered.
fn workers(records: &[Record], bound: u64) -> Vec<u64> {
    // nonce → (job, owner, since when), while held.
    let mut held: HashMap<&str, (&str, &str, u64)> = HashMap::new();
    let mut granted = HashSet::new();
    // job → when its worker died
    let mut orphans: HashMap<&str, u64> = HashMap::new();
    let mut took = Vec::new();
    for Record { at, event } in records {
        let over = match event {
            Event::Granted {
                job, nonce, owner, ..
            } => {
                if granted.insert(nonce.as_str()) {
                    if let Some(died) = orphans.remove(job.as_str()) {
                        took.push(ms(died, *at));
                    }
                    // Whoever had it before has it no more.
                    held.retain(|_, (of, ..)| of != job);
                    held.insert(nonce, (job, owner, *at));
                }
                None
            }
            Event::Completed {
                job, nonce, outcome, ..
            } => {
                held.remove(nonce.as_str());
                (outcome == "accepted" || outcome == "duplicate").then_some(job)
            }
            Event::GivenUp { job, nonce, .. } => {
                held.remove(nonce.as_str());
                Some(job)
            }
            Event::TakenBack { job, .. } => {
                held.retain(|_, (of, ..)| of != job);
                Some(job)
            }
            Event::Seen { job, view } if super::is_terminal(&view.state) => {
                held.retain(|_, (of, ..)| of != job);
                Some(job)
            }
            Event::Fault { kind, target, lone } if *lone && kind == "kill worker" => {
                let theirs = format!("{target}-");
                for (job, ..) in held.values().filter(|(_, owner, _)| owner.starts_with(&theirs)) {
                    orphans.insert(job, *at);
                }
                None
            }
            // From here on, time proves nothing about the worker's death.
            Event::Fault { .. } => {
                let waited = orphans.drain().map(|(_, died)| ms(died, *at));
                took.extend(waited.filter(|ms| *ms > bound));
                None
            }
            // Leases, and jobs, may be gone with what was taken from the disk; older ones are there.
            Event::Unsynced { from, .. } => {
                held.retain(|_, (_, _, since)| *since < *from);
                None
            }
            _ => None,
        };
        if let Some(job) = over
            && let Some(died) = orphans.remove(job.as_str())
        {
            took.push(ms(died, *at));
        }
    }
    let end = records.last().map_or(0, |record| record.at);
    let waited = orphans.into_values().map(|died| ms(died, end));
    took.extend(waited.filter(|ms| *ms > bound));
    took
}

fn redis(records: &[Record], bound: u64) -> Vec<u64> {
    let mut took = Vec::new();
    // Since when; whether a client was served, whether a worker was.
    let mut waiting: Option<(u64, bool, bool)> = None;
    for Record { at, event } in records {
        match event {
            Event::RedisBack { .. } | Event::Fault { .. } => {
                // Nothing came for all that time.
                if let Some((since, _, _)) = waiting.take() {
                    took.extend(Some(ms(since, *at)).filter(|ms| *ms > bound));
                }
                waiting = matches!(event, Event::RedisBack { lone: true }).then_some((*at, false, false));
            }
            Event::Accepted { .. } => {
                if let Some((_, client, _)) = &mut waiting {
                    *client = true;
                }
            }
            Event::Granted { .. } | Event::Completed { .. } => {
                if let Some((_, _, worker)) = &mut waiting {
                    *worker = true;
                }
            }
            _ => {}
        }
        if let Some((since, true, true)) = waiting {
            took.push(ms(since, *at));
            waiting = None;
        }
    }
    took
}

fn ms(from: u64, to: u64) -> u64 {
    to.saturating_sub(from) / 1000
}
