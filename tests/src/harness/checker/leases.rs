//! What Redis granted and took, and what workers heard of it.

use std::collections::{HashMap, HashSet};

use super::{Bounds, Invariant, Jobs, Verdict};
use crate::{
    harness::history::{Event, JobKind, Record},
    noop,
};

const LAST_STAGE: &str = "superres";

/// A lease: when it was asked for and given.
struct Grant<'a> {
    sent: u64,
    at: u64,
    nonce: &'a str,
    stage: &'a str,
}

/// A result that counts.
struct Commit<'a> {
    sent: u64,
    at: u64,
    nonce: &'a str,
    stage: &'a str,
    digest: &'a str,
    ended: bool,
    /// Its own reply was lost: a repetition told of it, which says nothing of its time.
    told_later: bool,
}

/// Cancelled, or put back by an operator: when it was sent and answered.
struct TakenBack {
    sent: u64,
    at: u64,
    /// Put back: of a job whose lease had run out, which waits already, that changes nothing.
    requeued: bool,
}

#[derive(Default)]
struct Story<'a> {
    grants: Vec<Grant<'a>>,
    commits: Vec<Commit<'a>>,
    taken_back: Vec<TakenBack>,
    /// Ends other than by a result.
    other_ends: usize,
}

pub(super) fn check(records: &[Record], jobs: &Jobs, bounds: &Bounds, verdict: &mut Verdict) {
    let stories = stories(records);
    let lease = bounds.lease.as_micros() as u64;
    let jumps: Vec<u64> = records
        .iter()
        .filter(|record| matches!(&record.event, Event::Fault { kind, .. } if kind == "clock jump"))
        .map(|record| record.at)
        .collect();
    // Whether a lease that was given then was surely not over: a jump of the clock may cost it as much as it has.
    let held = |from: u64, to: u64| to < from + lease && !jumps.iter().any(|jump| (from..=to).contains(jump));
    for (id, story) in &stories {
        let known = jobs.known.get(*id);
        if known.is_none_or(|known| known.unsynced) {
            continue;
        }
        once(id, story, known.map_or(0, |known| known.revivals), verdict);
        stale(id, story, &held, verdict);
        let swept = known.and_then(|known| known.swept.as_ref().map(|swept| (known.kind, swept)));
        if let Some((kind, (seed, view))) = swept
            && kind != JobKind::Real
            && let Some(digest) = view.digests.first()
        {
            committed(id, story, *seed, digest, verdict);
        }
    }
    // Each can be the work of one death at most.
    let deaths = records
        .iter()
        .filter(|record| matches!(record.event, Event::Fault { .. } | Event::Cut { .. }));
    let deaths = deaths.count() as u64;
    if verdict.unseen > deaths {
        let what = format!(
            "{} results count that nobody saw accepted, after {deaths} faults",
            verdict.unseen
        );
        verdict.breach(Invariant::NoStaleCommit, what);
    }
    disagreements(records, jobs, &stories, verdict);
    acks(records, verdict);
}

fn stories(records: &[Record]) -> HashMap<&str, Story<'_>> {
    let mut stories: HashMap<&str, Story> = HashMap::new();
    // A claim whose reply was lost is answered again with the same leases; where Redis had forgotten it, as after a lease's time or
    // a jump of its clock, it gives other jobs under the same nonces, and the earlier ones run out.
    let mut granted = HashSet::new();
    for Record { at, event } in records {
        match event {
            Event::Granted {
                sent,
                job,
                nonce,
                stage,
                ..
            } if granted.insert((job.as_str(), nonce.as_str())) => {
                let (sent, at) = (*sent, *at);
                stories.entry(job).or_default().grants.push(Grant {
                    sent,
                    at,
                    nonce,
                    stage,
                });
            }
            Event::Completed {
                sent,
                job,
                nonce,
                stage,
                digest,
                outcome,
                state,
                ..
            } if outcome == "accepted" || outcome == "duplicate" => {
                let story = stories.entry(job).or_default();
                if story
                    .commits
                    .iter()
                    .any(|commit| commit.stage == stage && commit.nonce == nonce)
                {
                    continue;
                }
                story.commits.push(Commit {
                    sent: *sent,
                    at: *at,
                    nonce,
                    stage,
                    digest,
                    // A repetition tells the state of its own time: another stage may have ended the job since.
                    ended: stage == LAST_STAGE || (outcome == "accepted" && state == "succeeded"),
                    told_later: outcome == "duplicate",
                });
            }
            Event::GivenUp {
                job,
                state,
                again: false,
                ..
            } if state == "failed" => {
                stories.entry(job).or_default().other_ends += 1;
            }
            Event::TakenBack { sent, job, state } => {
                let story = stories.entry(job).or_default();
                story.taken_back.push(TakenBack {
                    sent: *sent,
                    at: *at,
                    requeued: state == "queued",
                });
                story.other_ends += usize::from(state == "cancelled");
            }
            _ => {}
        }
    }
    stories
}

/// One result counts for a stage, and one end for a life.
fn once(id: &str, story: &Story<'_>, revivals: usize, verdict: &mut Verdict) {
    let mut by_stage: HashMap<&str, &str> = HashMap::new();
    for commit in &story.commits {
        if let Some(other) = by_stage.insert(commit.stage, commit.nonce) {
            let what = format!(
                "{id}: {} was finished by {} and by {other}",
                commit.stage, commit.nonce
            );
            verdict.breach(Invariant::NothingIsDoneTwice, what);
        }
    }
    let ends = story.commits.iter().filter(|commit| commit.ended).count() + story.other_ends;
    if ends > 1 + revivals {
        verdict.breach(
            Invariant::NothingIsDoneTwice,
            format!("{id} ended {ends} times in Redis, with {revivals} revivals"),
        );
    }
}

/// A result must not count that was sent after the stage had been granted to another, or taken back.
fn stale(id: &str, story: &Story<'_>, held: &impl Fn(u64, u64) -> bool, verdict: &mut Verdict) {
    for commit in &story.commits {
        let Some(own) = story.grants.iter().find(|grant| grant.nonce == commit.nonce) else {
            verdict.breach(
                Invariant::NoStaleCommit,
                format!("{id}: {} counts and was never granted", commit.nonce),
            );
            continue;
        };
        if commit.told_later {
            continue;
        }
        let later = story
            .grants
            .iter()
            .find(|grant| grant.stage == commit.stage && grant.sent > own.at && grant.at < commit.sent);
        if let Some(later) = later {
            let what = format!("{id}: {} counts, after {} was granted", commit.nonce, later.nonce);
            verdict.breach(Invariant::NoStaleCommit, what);
        }
        let taken_back = story.taken_back.iter().any(|taken| {
            let between = taken.sent > own.at && taken.at < commit.sent;
            between && (!taken.requeued || held(own.sent, taken.at))
        });
        if taken_back {
            let what = format!("{id}: {} counts, after the job was taken back", commit.nonce);
            verdict.breach(Invariant::NoStaleCommit, what);
        }
    }
}

/// Whether the stage was granted again after this lease.
fn is_replaced(story: &Story<'_>, lease: &Grant<'_>) -> bool {
    let grants = story.grants.iter();
    grants
        .filter(|grant| grant.stage == lease.stage)
        .any(|grant| grant.sent > lease.at)
}

/// The picture that clients get is that of the lease whose result counts: a no-op worker's pictures name it.
fn committed(id: &str, story: &Story<'_>, seed: u64, digest: &str, verdict: &mut Verdict) {
    let made_by = |nonce: &str| {
        let stamp = hex::decode(nonce).unwrap_or_default();
        noop::digest(&noop::picture(0, seed, &stamp)) == digest
    };
    let author = story
        .grants
        .iter()
        .filter(|grant| grant.stage == LAST_STAGE)
        .find(|grant| made_by(grant.nonce));
    let counts = story.commits.iter().find(|commit| commit.ended);
    match (author, counts) {
        (Some(author), Some(commit)) if author.nonce == commit.nonce => {}
        // Redis ended before its answer, and the worker before it could ask again: right if no other was granted the stage.
        (Some(author), None) if !is_replaced(story, author) => verdict.unseen += 1,
        (author, commit) => {
            let what = format!(
                "{id} shows the picture of {:?}, and that of {:?} counts",
                author.map(|grant| grant.nonce),
                commit.map(|commit| commit.nonce)
            );
            verdict.breach(Invariant::NoStaleCommit, what);
        }
    }
}

/// Whoever comes too late with another result than the one that counts is told so.
fn disagreements(records: &[Record], jobs: &Jobs, stories: &HashMap<&str, Story<'_>>, verdict: &mut Verdict) {
    for Record { event, .. } in records {
        let Event::Completed {
            sent,
            job,
            nonce,
            stage,
            digest,
            outcome,
            other,
            ..
        } = event
        else {
            continue;
        };
        verdict.disagreements += u64::from(!other.is_empty());
        let (Some(story), Some(known)) = (stories.get(job.as_str()), jobs.known.get(job)) else {
            continue;
        };
        let counted = story
            .commits
            .iter()
            .find(|commit| commit.stage == stage && commit.at < *sent && commit.digest != digest);
        if let Some(commit) = counted
            && outcome == "stale"
            && !known.purged
            && !known.unsynced
            && other != commit.digest
        {
            let what = format!(
                "{job}: {nonce} finished {stage} with another result than {}, and nobody was told",
                commit.nonce
            );
            verdict.breach(Invariant::DisagreementsAreTold, what);
        }
    }
}

/// What a worker was told to be accepted is in Redis, and no report is refused.
fn acks(records: &[Record], verdict: &mut Verdict) {
    let mut taken: HashSet<(&str, &str)> = HashSet::new();
    for record in records {
        match &record.event {
            Event::Completed {
                job, nonce, outcome, ..
            } if outcome == "accepted" || outcome == "duplicate" => {
                taken.insert((job, nonce));
            }
            Event::GivenUp { job, nonce, .. } => {
                taken.insert((job, nonce));
            }
            _ => {}
        }
    }
    for record in records {
        if let Event::Acked {
            worker,
            job,
            nonce,
            outcome,
        } = &record.event
        {
            let accepted = outcome == "ACK_OUTCOME_ACCEPTED" || outcome == "ACK_OUTCOME_DUPLICATE";
            if accepted && !taken.contains(&(job.as_str(), nonce.as_str())) {
                let what = format!("{worker} was told that its report on {job} is kept ({nonce}): it is not");
                verdict.breach(Invariant::AcksAreTrue, what);
            }
            if outcome == "ACK_OUTCOME_REFUSED" {
                verdict.breach(
                    Invariant::AcksAreTrue,
                    format!("{worker} had a right report on {job} refused ({nonce})"),
                );
            }
        }
    }
}
