//! What clients saw: keys, ends, refusals.

use std::collections::HashMap;

use super::{Invariant, Jobs, Known, Verdict, is_terminal};
use crate::harness::history::{Event, JobKind, Record, View};

const SUCCEEDED: &str = "JOB_STATE_SUCCEEDED";
const FAILED: &str = "JOB_STATE_FAILED";
const CANCELLED: &str = "JOB_STATE_CANCELLED";

pub(super) fn check(records: &[Record], jobs: &Jobs, verdict: &mut Verdict) {
    keys(records, jobs, verdict);
    for (id, known) in &jobs.known {
        is_there(id, known, verdict);
        story(id, known, verdict);
        if let Some((_, view)) = &known.swept {
            *verdict.ends.entry((known.kind, view.state.clone())).or_default() += 1;
            if is_terminal(&view.state) && !ends_right(known.kind, view) {
                let what = format!("{id} ({:?}) ended as {} {}", known.kind, view.state, view.reason);
                verdict.breach(Invariant::EndsAreRight, what);
            }
        }
    }
    same_prompt_same_pictures(jobs, verdict);
    for record in records {
        match &record.event {
            Event::Refused {
                tenant,
                code,
                retry_ms: None,
            } => {
                let what = format!("{code} to {tenant} without RetryInfo");
                verdict.breach(Invariant::RefusalsSayWhen, what);
            }
            // What was taken from the disk takes versions with it.
            Event::WentBack { job, from, to } if jobs.known.get(job).is_none_or(|known| !known.unsynced) => {
                verdict.breach(
                    Invariant::EndsAreFinal,
                    format!("{job}: version {to} after {from}"),
                );
            }
            Event::Wrong { what } => verdict.breach(Invariant::EndsAreRight, what.clone()),
            _ => {}
        }
    }
}

fn keys(records: &[Record], jobs: &Jobs, verdict: &mut Verdict) {
    let is_kept = |job: &String| {
        let known = jobs.known.get(job);
        !known.is_some_and(|known| known.acceptance_unsynced)
    };
    // A key whose job was lost from the disk is free again.
    for (key, found) in &jobs.by_key {
        if found.iter().filter(|job| is_kept(job)).count() > 1 {
            verdict.breach(Invariant::OneKeyOneJob, format!("{key:?} is {found:?}"));
        }
    }
    for (key, job) in &jobs.taken_anew {
        let found = jobs.by_key.get(key);
        if found.is_none_or(|found| found.iter().any(is_kept)) {
            let what = format!("{key:?} is {found:?}, and was given to another request, {job}");
            verdict.breach(Invariant::OneKeyOneJob, what);
        }
    }
    for key in jobs.keys.keys() {
        if !jobs.by_key.contains_key(key) {
            verdict.breach(Invariant::NothingIsLost, format!("{key:?} never got an answer"));
        }
    }
    let mut owner: HashMap<&str, &(String, String)> = HashMap::new();
    for (key, found) in &jobs.by_key {
        for job in found {
            if let Some(other) = owner.insert(job, key) {
                verdict.breach(
                    Invariant::OneKeyOneJob,
                    format!("{job} is of {key:?} and {other:?}"),
                );
            }
        }
    }
    for record in records {
        if let Event::Swept { tenant, job, .. } = &record.event {
            match jobs.known.get(job) {
                None => verdict.breach(
                    Invariant::OneKeyOneJob,
                    format!("{job} of {tenant} is nobody's: no client was told of it"),
                ),
                Some(known) if known.tenant != *tenant => verdict.breach(
                    Invariant::OneKeyOneJob,
                    format!("{job} is {tenant}'s and was accepted for {}", known.tenant),
                ),
                Some(_) => {}
            }
        }
    }
}

fn is_there(id: &str, known: &Known, verdict: &mut Verdict) {
    match &known.swept {
        Some(_) if known.purged && !known.unsynced => {
            verdict.breach(Invariant::EndsAreFinal, format!("{id} was purged and is there"));
        }
        Some((_, view)) if !is_terminal(&view.state) => {
            verdict.breach(
                Invariant::NothingIsLost,
                format!("{id} ({:?}) is stuck as {}", known.kind, view.state),
            );
        }
        Some(_) if known.missing && !known.unsynced => {
            verdict.breach(
                Invariant::NothingIsLost,
                format!("{id} was not found, and is there"),
            );
        }
        Some(_) => {}
        None if known.purged => {}
        None if known.acceptance_unsynced => verdict.forgiven += 1,
        None => verdict.breach(
            Invariant::NothingIsLost,
            format!("{id} ({:?}) was accepted and is gone", known.kind),
        ),
    }
}

/// Versions order what was seen, whoever saw it and when.
fn story(id: &str, known: &Known, verdict: &mut Verdict) {
    if known.unsynced {
        return;
    }
    let mut views: Vec<&View> = known.views.iter().map(|(_, view)| view).collect();
    views.sort_by_key(|view| view.version);
    let mut revivals = 0;
    for pair in views.windows(2) {
        let [before, after] = pair else { continue };
        if before.version == after.version && is_terminal(&before.state) && before != after {
            let what = format!(
                "{id}: two ends of version {}: {before:?}, {after:?}",
                before.version
            );
            verdict.breach(Invariant::EndsAreFinal, what);
        }
        if before.version < after.version && is_terminal(&before.state) {
            revivals += 1;
            if revivals > known.revivals || before.state != FAILED {
                let what = format!("{id} left its end: {before:?}, then {after:?}");
                verdict.breach(Invariant::EndsAreFinal, what);
            }
        }
    }
}

/// Whether a job of this kind may end so.
fn ends_right(kind: JobKind, view: &View) -> bool {
    let failed = |reason: &str| view.state == FAILED && view.reason == reason;
    let succeeded = view.state == SUCCEEDED && !view.digests.is_empty();
    match kind {
        JobKind::Plain | JobKind::Real | JobKind::Requeued => succeeded,
        JobKind::Cancelled => succeeded || view.state == CANCELLED,
        JobKind::Hasty => succeeded || failed("JOB_ERROR_REASON_DEADLINE_EXCEEDED"),
        JobKind::Flaky => succeeded || failed("JOB_ERROR_REASON_MODEL_FAILED"),
        JobKind::Rejected | JobKind::Buried => failed("JOB_ERROR_REASON_INVALID_REQUEST"),
    }
}

/// A real model gives the same pictures for the same prompt, whoever died meanwhile.
fn same_prompt_same_pictures(jobs: &Jobs, verdict: &mut Verdict) {
    let mut first: HashMap<&str, (&str, &View)> = HashMap::new();
    for (id, known) in &jobs.known {
        let (JobKind::Real, Some((_, view))) = (known.kind, &known.swept) else {
            continue;
        };
        if view.state != SUCCEEDED {
            continue;
        }
        let (other, expected) = *first.entry(&known.prompt).or_insert((id, view));
        if expected.digests != view.digests {
            verdict.breach(
                Invariant::EndsAreRight,
                format!("{id} and {other} have one prompt and differ in their pictures"),
            );
        }
    }
}
