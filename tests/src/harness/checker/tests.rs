//! A checker is worth what it refuses: a good history, and each way in which it can be spoilt.

use super::{Bounds, Invariant, check};
use crate::{
    harness::history::{Event, JobKind, Record, View},
    noop,
};

const JOB: &str = "job-1";
const WORKER: &str = "noop-base-0-abc";
const OTHER: &str = "noop-base-1-def";

/// Milliseconds and what happened then.
struct Story(Vec<(u64, Event)>);

fn text(text: &str) -> String {
    text.to_owned()
}

fn view(version: u64, state: &str) -> View {
    View {
        version,
        state: text(state),
        ..View::default()
    }
}

fn done(version: u64, nonce: &str) -> View {
    View {
        digests: vec![noop::digest(&noop::picture(0, 5, &hex::decode(nonce).unwrap()))],
        ..view(version, "JOB_STATE_SUCCEEDED")
    }
}

fn grant(sent: u64, nonce: &str, stage: &str, owner: &str) -> Event {
    Event::Granted {
        sent: sent * 1000,
        job: text(JOB),
        nonce: text(nonce),
        stage: text(stage),
        owner: text(owner),
        tenant: text("acme"),
    }
}

fn complete(sent: u64, nonce: &str, stage: &str, outcome: &str) -> Event {
    Event::Completed {
        sent: sent * 1000,
        job: text(JOB),
        nonce: text(nonce),
        stage: text(stage),
        digest: format!("digest-{nonce}"),
        outcome: text(outcome),
        state: text(if stage == "superres" {
            "succeeded"
        } else {
            "queued"
        }),
        other: String::new(),
    }
}

fn seen(view: View) -> Event {
    Event::Seen { job: text(JOB), view }
}

fn fault(kind: &str, lone: bool) -> Event {
    Event::Fault {
        kind: text(kind),
        target: text("noop-base-0"),
        lone,
    }
}

/// A worker dies with a job, another takes it over, and it ends well.
fn good() -> Story {
    Story(vec![
        (
            0,
            Event::Submitting {
                tenant: text("acme"),
                key: text("k"),
                kind: JobKind::Plain,
                prompt: text("nothing"),
            },
        ),
        (
            10,
            Event::Accepted {
                tenant: text("acme"),
                key: text("k"),
                job: text(JOB),
            },
        ),
        (11, seen(view(1, "JOB_STATE_QUEUED"))),
        (20, grant(15, "aa", "base", WORKER)),
        (100, fault("kill worker", true)),
        (2500, grant(2490, "bb", "base", OTHER)),
        (2600, complete(2590, "bb", "base", "accepted")),
        (
            2601,
            Event::Acked {
                worker: text(OTHER),
                job: text(JOB),
                nonce: text("bb"),
                outcome: text("ACK_OUTCOME_ACCEPTED"),
            },
        ),
        (2700, grant(2690, "cc", "superres", "noop-superres-0-x")),
        (2800, complete(2790, "cc", "superres", "accepted")),
        (2810, seen(done(9, "cc"))),
        (
            3000,
            Event::Refused {
                tenant: text("acme"),
                code: text("Unavailable"),
                retry_ms: Some(5),
            },
        ),
        (
            9000,
            Event::Audited {
                jobs: 1,
                findings: vec![],
            },
        ),
        (
            9100,
            Event::Swept {
                tenant: text("acme"),
                job: text(JOB),
                seed: 5,
                view: done(9, "cc"),
            },
        ),
    ])
}

impl Story {
    fn with(mut self, at: u64, event: Event) -> Self {
        self.0.push((at, event));
        self
    }

    fn without(mut self, gone: impl Fn(&Event) -> bool) -> Self {
        self.0.retain(|(_, event)| !gone(event));
        self
    }

    fn breaches(self) -> Vec<Invariant> {
        let mut records: Vec<Record> = self
            .0
            .into_iter()
            .map(|(ms, event)| Record { at: ms * 1000, event })
            .collect();
        records.sort_by_key(|record| record.at);
        let verdict = check(&records, &Bounds::default());
        let mut found: Vec<Invariant> = verdict.violations.iter().map(|breach| breach.invariant).collect();
        found.dedup();
        found
    }
}

fn is_superres(event: &Event) -> bool {
    matches!(event, Event::Granted { stage, .. } | Event::Completed { stage, .. } if stage == "superres")
}

fn is_sweep(event: &Event) -> bool {
    matches!(event, Event::Swept { .. })
}

fn sweep(view: View) -> Event {
    Event::Swept {
        tenant: text("acme"),
        job: text(JOB),
        seed: 5,
        view,
    }
}

#[test]
fn a_good_history_passes_and_its_recovery_is_measured() {
    assert_eq!(good().breaches(), []);
    let records: Vec<Record> = good()
        .0
        .into_iter()
        .map(|(ms, event)| Record { at: ms * 1000, event })
        .collect();
    let verdict = check(&records, &Bounds::default());
    assert_eq!(verdict.recoveries.worker, [2400]);
    assert_eq!(
        verdict.ends.into_iter().collect::<Vec<_>>(),
        [((JobKind::Plain, text("JOB_STATE_SUCCEEDED")), 1)]
    );
}

#[test]
fn a_lost_job_a_stuck_one_and_a_key_without_an_answer_are_found() {
    assert_eq!(good().without(is_sweep).breaches(), [Invariant::NothingIsLost]);
    let stuck = good()
        .without(|event| is_sweep(event) || matches!(event, Event::Seen { view, .. } if view.version == 9))
        .with(9100, sweep(view(8, "JOB_STATE_RUNNING")));
    assert_eq!(stuck.breaches(), [Invariant::NothingIsLost]);
    let unanswered = good().with(
        1,
        Event::Submitting {
            tenant: text("acme"),
            key: text("other"),
            kind: JobKind::Plain,
            prompt: String::new(),
        },
    );
    assert_eq!(unanswered.breaches(), [Invariant::NothingIsLost]);
    let missing = good().with(50, Event::Missing { job: text(JOB) });
    assert_eq!(missing.breaches(), [Invariant::NothingIsLost]);
}

#[test]
fn two_jobs_of_one_key_and_a_job_of_nobody_are_found() {
    let doubled = good()
        .with(
            12,
            Event::Accepted {
                tenant: text("acme"),
                key: text("k"),
                job: text("job-2"),
            },
        )
        .with(
            9200,
            Event::Swept {
                tenant: text("acme"),
                job: text("job-2"),
                seed: 5,
                view: View {
                    digests: vec![],
                    ..view(3, "JOB_STATE_CANCELLED")
                },
            },
        );
    assert!(doubled.breaches().contains(&Invariant::OneKeyOneJob));
    let nobodys = good().with(
        9200,
        Event::Swept {
            tenant: text("acme"),
            job: text("job-3"),
            seed: 1,
            view: view(2, "JOB_STATE_SUCCEEDED"),
        },
    );
    assert_eq!(nobodys.breaches(), [Invariant::OneKeyOneJob]);
    let anothers = good().without(is_sweep).with(
        9100,
        Event::Swept {
            tenant: text("lab"),
            job: text(JOB),
            seed: 5,
            view: done(9, "cc"),
        },
    );
    assert_eq!(anothers.breaches(), [Invariant::OneKeyOneJob]);
}

#[test]
fn an_end_that_is_left_or_told_in_two_ways_is_found() {
    let left = good().with(3000, seen(view(10, "JOB_STATE_RUNNING")));
    assert_eq!(left.breaches(), [Invariant::EndsAreFinal]);
    let told = good().with(3000, seen(view(9, "JOB_STATE_CANCELLED")));
    assert_eq!(told.breaches(), [Invariant::EndsAreFinal]);
    let back = || Event::WentBack {
        job: text(JOB),
        from: 9,
        to: 5,
    };
    assert_eq!(good().with(3000, back()).breaches(), [Invariant::EndsAreFinal]);
    let unsynced = Event::Unsynced { from: 0, to: 20_000 };
    assert_eq!(good().with(3000, back()).with(3001, unsynced).breaches(), []);
    let purged = good().with(8000, Event::Purging { job: text(JOB) });
    assert_eq!(purged.breaches(), [Invariant::EndsAreFinal]);
}

#[test]
fn a_plain_job_that_fails_is_found() {
    let failed = View {
        reason: text("JOB_ERROR_REASON_CRASHED_WORKERS"),
        ..view(9, "JOB_STATE_FAILED")
    };
    let story = good()
        .without(|event| is_sweep(event) || matches!(event, Event::Seen { view, .. } if view.version == 9))
        .with(9100, sweep(failed));
    assert_eq!(story.breaches(), [Invariant::EndsAreRight]);
}

#[test]
fn a_stage_that_two_have_finished_and_a_job_that_ended_twice_are_found() {
    let twice = good()
        .with(2710, grant(2705, "dd", "superres", OTHER))
        .with(2720, complete(2701, "dd", "superres", "accepted"));
    assert!(twice.breaches().contains(&Invariant::NothingIsDoneTwice));
    let cancelled = good().with(
        2900,
        Event::TakenBack {
            sent: 2_890_000,
            job: text(JOB),
            state: text("cancelled"),
        },
    );
    assert_eq!(cancelled.breaches(), [Invariant::NothingIsDoneTwice]);
}

#[test]
fn a_result_of_a_lease_that_another_had_replaced_is_found() {
    // The first worker lives, and its result counts though the job is another's.
    let stale = good()
        .without(|event| matches!(event, Event::Completed { stage, .. } if stage == "base"))
        .with(2590, complete(2550, "aa", "base", "accepted"))
        .with(2600, complete(2595, "bb", "base", "stale"));
    let found = stale.breaches();
    assert!(found.contains(&Invariant::NoStaleCommit), "{found:?}");
    // Sent before the other's lease was known to be granted: the order cannot be told, and it may be right.
    let early = good()
        .without(|event| {
            matches!(event, Event::Completed { stage, .. } if stage == "base")
                || matches!(event, Event::Acked { .. })
        })
        .with(2590, complete(2495, "aa", "base", "accepted"));
    assert_eq!(early.breaches(), []);
    let requeued = good().with(
        2550,
        Event::TakenBack {
            sent: 2_540_000,
            job: text(JOB),
            state: text("queued"),
        },
    );
    assert_eq!(requeued.breaches(), [Invariant::NoStaleCommit]);
    // Long after the lease was given it may have run out: then the job waits, may be finished late, and is put back for nothing.
    let waiting = good()
        .without(|event| {
            matches!(event, Event::Completed { stage, .. } if stage == "base") || is_superres(event)
        })
        .with(
            4600,
            Event::TakenBack {
                sent: 4_590_000,
                job: text(JOB),
                state: text("queued"),
            },
        )
        .with(4700, complete(4690, "bb", "base", "accepted"))
        .with(4800, grant(4790, "cc", "superres", OTHER))
        .with(4900, complete(4890, "cc", "superres", "accepted"));
    assert_eq!(waiting.breaches(), []);
    let never = good().without(|event| matches!(event, Event::Granted { nonce, .. } if nonce == "bb"));
    assert!(never.breaches().contains(&Invariant::NoStaleCommit));
}

#[test]
fn a_claim_that_redis_forgot_and_answers_with_other_jobs_is_no_stale_commit() {
    let mut first = grant(1000, "bb", "base", OTHER);
    if let Event::Granted { job, .. } = &mut first {
        *job = text("job-2");
    }
    assert_eq!(good().with(1010, first.clone()).breaches(), []);
    // Of the other job alone it is a lease.
    let never = good()
        .without(|event| matches!(event, Event::Granted { nonce, .. } if nonce == "bb"))
        .with(1010, first);
    assert!(never.breaches().contains(&Invariant::NoStaleCommit));
}

#[test]
fn a_picture_of_another_lease_than_the_one_that_counts_is_found() {
    let story = good()
        .without(|event| is_sweep(event) || matches!(event, Event::Seen { view, .. } if view.version == 9))
        .with(2650, grant(2640, "ee", "superres", WORKER))
        .with(9100, sweep(done(9, "ee")));
    assert_eq!(story.breaches(), [Invariant::NoStaleCommit]);
}

#[test]
fn a_finisher_that_differs_and_is_not_told_is_found() {
    let silent = good().with(4000, complete(3990, "aa", "base", "stale"));
    assert_eq!(silent.breaches(), [Invariant::DisagreementsAreTold]);
    let mut told = complete(3990, "aa", "base", "stale");
    let Event::Completed { other, .. } = &mut told else {
        panic!("a result")
    };
    *other = text("digest-bb");
    assert_eq!(good().with(4000, told).breaches(), []);
}

#[test]
fn an_acknowledgement_that_is_not_true_and_a_refused_report_are_found() {
    let acked = |nonce: &str, outcome: &str| Event::Acked {
        worker: text(WORKER),
        job: text(JOB),
        nonce: text(nonce),
        outcome: text(outcome),
    };
    let false_one = good().with(3000, acked("aa", "ACK_OUTCOME_ACCEPTED"));
    assert_eq!(false_one.breaches(), [Invariant::AcksAreTrue]);
    let refused = good().with(3000, acked("bb", "ACK_OUTCOME_REFUSED"));
    assert_eq!(refused.breaches(), [Invariant::AcksAreTrue]);
}

#[test]
fn a_refusal_without_a_time_a_finding_and_a_limit_that_is_passed_are_found() {
    let refused = good().with(
        50,
        Event::Refused {
            tenant: text("acme"),
            code: text("Unavailable"),
            retry_ms: None,
        },
    );
    assert_eq!(refused.breaches(), [Invariant::RefusalsSayWhen]);
    let found = good().with(
        50,
        Event::Audited {
            jobs: 1,
            findings: vec![text("a counter is off")],
        },
    );
    assert_eq!(found.breaches(), [Invariant::AuditsAreClean]);
    let above = |value| Event::Sampled {
        what: text("waiting"),
        value,
        limit: 7,
    };
    assert_eq!(good().with(50, above(7)).breaches(), []);
    assert_eq!(good().with(50, above(8)).breaches(), [Invariant::LimitsHold]);
}

#[test]
fn recoveries_that_take_too_long_or_never_come_are_found() {
    let slow = good()
        .without(|event| {
            matches!(event, Event::Granted { nonce, .. } | Event::Completed { nonce, .. } if nonce != "aa")
                || matches!(event, Event::Acked { .. })
                || matches!(event, Event::Seen { view, .. } if view.version == 9)
        })
        .with(4200, grant(4190, "bb", "base", OTHER));
    assert!(slow.breaches().contains(&Invariant::WorkersAreReplaced));
    let never = good()
        .with(5000, grant(4999, "ff", "base", WORKER))
        .with(5100, fault("kill worker", true))
        .with(9300, fault("kill gateway", false));
    assert!(never.breaches().contains(&Invariant::WorkersAreReplaced));
    // Where more went wrong at once, time proves nothing.
    let busy = good()
        .with(5000, grant(4999, "ff", "base", WORKER))
        .with(5100, fault("kill worker", true))
        .with(5200, fault("kill gateway", false));
    assert_eq!(busy.breaches(), []);
    let cut = |from| {
        good()
            .with(5000, grant(4999, "ff", "base", WORKER))
            .with(5040, fault("kill redis", false))
            .with(5050, Event::Unsynced { from, to: 5_050_000 })
            .with(5100, fault("kill worker", true))
            .with(9300, fault("kill gateway", false))
            .breaches()
    };
    assert_eq!(cut(4_000_000), []);
    // Its lease was on disk.
    assert_eq!(cut(5_020_000), [Invariant::WorkersAreReplaced]);
    let redis = good()
        .with(3100, Event::RedisBack { lone: true })
        .with(8500, grant(8490, "ff", "base", WORKER))
        .with(
            8600,
            Event::Accepted {
                tenant: text("acme"),
                key: text("k"),
                job: text(JOB),
            },
        );
    assert_eq!(redis.breaches(), [Invariant::RedisIsTakenUp]);
}

#[test]
fn shares_are_judged_by_first_leases_in_the_window() {
    let window = |counts: [(&str, u64); 2]| {
        let mut story = good();
        for (tenant, count) in counts {
            for number in 0..count {
                story = story.with(
                    6000,
                    Event::Granted {
                        sent: 6_000_000,
                        job: format!("{tenant}-{number}"),
                        nonce: format!("{tenant}-{number}"),
                        stage: text("base"),
                        owner: text("w"),
                        tenant: text(tenant),
                    },
                );
            }
        }
        story
            .with(
                7000,
                Event::Saturated {
                    from: 5_900_000,
                    to: 6_100_000,
                    stage: text("base"),
                    weights: vec![(text("one"), 1.0), (text("two"), 3.0)],
                },
            )
            .breaches()
    };
    assert_eq!(window([("one", 50), ("two", 150)]), []);
    assert_eq!(window([("one", 54), ("two", 146)]), []);
    assert_eq!(window([("one", 60), ("two", 140)]), [Invariant::SharesAreFair]);
    assert_eq!(window([("one", 5), ("two", 15)]), [Invariant::SharesAreFair]);
}

#[test]
fn what_was_taken_from_the_disk_may_be_lost_and_nothing_older() {
    let lost = |from: u64| {
        good()
            .without(is_sweep)
            .with(3000, Event::Missing { job: text(JOB) })
            .with(
                9000,
                Event::Unsynced {
                    from: from * 1000,
                    to: 9_000_000,
                },
            )
            .breaches()
    };
    assert_eq!(lost(5), []);
    // Accepted before, and worked on since: its acceptance was on disk.
    assert_eq!(lost(2000), [Invariant::NothingIsLost]);
    // Accepted and ended long before.
    assert_eq!(lost(5000), [Invariant::NothingIsLost]);
}

#[test]
fn a_key_is_another_requests_only_when_its_job_was_taken_from_the_disk() {
    let taken_anew = |lost_from: u64| {
        let at_the_end = View {
            digests: vec![text("a")],
            ..view(7, "JOB_STATE_SUCCEEDED")
        };
        good()
            .without(is_sweep)
            .with(3000, Event::Missing { job: text(JOB) })
            .with(
                3010,
                Event::TakenAnew {
                    tenant: text("acme"),
                    key: text("k"),
                    job: text("job-2"),
                },
            )
            .with(
                3020,
                Event::Unsynced {
                    from: lost_from * 1000,
                    to: 3_000_000,
                },
            )
            .with(
                9100,
                Event::Swept {
                    tenant: text("acme"),
                    job: text("job-2"),
                    seed: 4,
                    view: at_the_end,
                },
            )
            .breaches()
    };
    assert_eq!(taken_anew(5), []);
    let kept = taken_anew(2000);
    assert!(kept.contains(&Invariant::OneKeyOneJob), "{kept:?}");
}

#[test]
fn an_acceptance_that_nobody_lived_to_see_is_counted_and_needs_a_fault() {
    let unseen =
        || good().without(|event| matches!(event, Event::Completed { stage, .. } if stage == "superres"));
    assert_eq!(unseen().breaches(), []);
    let without_faults = unseen().without(|event| matches!(event, Event::Fault { .. }));
    assert_eq!(without_faults.breaches(), [Invariant::NoStaleCommit]);
    let replaced = unseen().with(2805, grant(2802, "dd", "superres", OTHER));
    assert_eq!(replaced.breaches(), [Invariant::NoStaleCommit]);
}

#[test]
fn what_an_answer_should_not_be_and_pictures_that_differ_for_one_prompt_are_found() {
    let wrong = good().with(
        50,
        Event::Wrong {
            what: text("a part died by itself"),
        },
    );
    assert_eq!(wrong.breaches(), [Invariant::EndsAreRight]);
    let real = |job: &'static str, digest: &str| {
        let (tenant, key) = (text("gallery"), text(job));
        let accepted = Event::Accepted {
            tenant: tenant.clone(),
            key: key.clone(),
            job: text(job),
        };
        let submitting = Event::Submitting {
            tenant: tenant.clone(),
            key,
            kind: JobKind::Real,
            prompt: text("a cat"),
        };
        let view = View {
            digests: vec![text(digest)],
            ..view(5, "JOB_STATE_SUCCEEDED")
        };
        let swept = Event::Swept {
            tenant,
            job: text(job),
            seed: 7,
            view,
        };
        [(3000, submitting), (3001, accepted), (9100, swept)]
    };
    let two = |one: &str, other: &str| {
        let events = real("cat-1", one).into_iter().chain(real("cat-2", other));
        events
            .fold(good(), |story, (at, event)| story.with(at, event))
            .breaches()
    };
    assert_eq!(two("p", "p"), []);
    assert_eq!(two("p", "q"), [Invariant::EndsAreRight]);
}

/// A base shard whose answer was lost asks again when super-resolution has ended the job meanwhile.
#[test]
fn a_repetition_that_tells_of_another_stages_end_is_no_end() {
    let is_answer = |event: &Event| matches!(event, Event::Completed { stage, .. } | Event::Acked { job: stage, .. } if stage == "base" || stage == JOB);
    let mut again = complete(2840, "bb", "base", "duplicate");
    let Event::Completed { state, .. } = &mut again else {
        panic!("a result")
    };
    *state = text("succeeded");
    assert_eq!(good().without(is_answer).with(2850, again).breaches(), []);
}

/// A history that was kept, judged again: MUSE_FAULT_JUDGE names the file.
#[test]
#[ignore = "needs a history"]
fn a_kept_history_is_judged() {
    let Some(path) = std::env::var_os("MUSE_FAULT_JUDGE") else {
        return;
    };
    let text = std::fs::read_to_string(&path).unwrap();
    let records: Vec<Record> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let verdict = check(&records, &Bounds::default());
    assert!(verdict.violations.is_empty(), "{verdict}");
}
