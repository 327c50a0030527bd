//! Faults of every kind, drawn from a seed, while clients go on: nothing is lost, nothing is done twice, nothing is stuck.
//!
//! `MUSE_FAULT_SEED` replays a schedule, `MUSE_FAULT_SECONDS` makes the storm longer, `MUSE_FAULT_HISTORY` names a folder for the
//! whole history.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what it saw by panicking"
)]

use std::{fs, time::Duration};

use muse_tests::{
    harness::{
        load::Rate,
        report,
        run::{Goals, Outcome, Plan, run},
        schedule::Promise,
        stage::Wish,
    },
    repository,
};

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}: {text:?} is no number")),
        _ => default,
    }
}

/// Another one each time, unless one is wanted.
fn seed() -> u64 {
    setting("MUSE_FAULT_SEED", u64::from(std::process::id()) ^ now_seconds())
}

fn now_seconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("a clock").as_secs()
}

fn assert_sound(outcome: &Outcome) {
    println!(
        "{} jobs, {} kills of gateways and workers, {} of Redis, {} cuts, {} audits in {:.0} s: {:?}\nrecoveries {:?}\nshares {:?}\nends {:?}",
        outcome.jobs,
        outcome.kills(),
        outcome.redis_kills(),
        outcome.cuts.values().sum::<u64>(),
        outcome.audits,
        outcome.took.as_secs_f64(),
        outcome.faults,
        outcome.verdict.recoveries,
        outcome.verdict.shares,
        outcome.verdict.ends,
    );
    let missed = outcome.missed();
    assert!(
        outcome.breaches().next().is_none() && missed.is_empty(),
        "seed {}: {missed:?}\n{}",
        outcome.plan.seed,
        outcome.verdict
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_loses_doubles_or_holds_up_a_job() {
    let outcome = run(Plan {
        seed: seed(),
        wish: Wish {
            promise: Promise::Always,
            gateways: 2,
            real: true,
        },
        rate: Rate { jobs: 8.0, real: 0.4 },
        // With its beginning and its end about three minutes.
        time: Duration::from_secs(setting("MUSE_FAULT_SECONDS", 145)),
        goals: Goals {
            jobs: 500,
            kills: 20,
            redis_kills: 3,
            failpoints: false,
        },
        saturate: true,
        timed: false,
    })
    .await;
    assert_sound(&outcome);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_syncs_each_second_loses_what_was_not_synced_and_nothing_else() {
    let outcome = run(Plan {
        seed: seed(),
        wish: Wish {
            promise: Promise::Everysec,
            gateways: 2,
            real: false,
        },
        rate: Rate { jobs: 6.0, real: 0.0 },
        time: Duration::from_secs(setting("MUSE_FAULT_SECONDS", 40)),
        goals: Goals::default(),
        saturate: false,
        timed: false,
    })
    .await;
    assert_sound(&outcome);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "half an hour: part of `make soak`"]
async fn soak() {
    let minutes = setting("MUSE_SOAK_MINUTES", 30);
    let (seed, seconds) = (seed(), minutes * 60);
    let share = minutes as f64 / 30.0;
    let goal = |of: f64| (of * share).ceil() as u64;
    let plan = Plan {
        seed,
        wish: Wish {
            promise: Promise::Always,
            gateways: 3,
            real: true,
        },
        rate: Rate { jobs: 8.0, real: 0.4 },
        // A tenth of the time is that of the other promise.
        time: Duration::from_secs(seconds * 9 / 10),
        goals: Goals {
            jobs: goal(10_000.0),
            kills: goal(300.0),
            redis_kills: goal(30.0),
            failpoints: true,
        },
        saturate: true,
        timed: true,
    };
    let always = run(plan).await;
    let everysec = run(Plan {
        seed: seed + 1,
        wish: Wish {
            promise: Promise::Everysec,
            real: false,
            ..plan.wish
        },
        rate: Rate { jobs: 8.0, real: 0.0 },
        time: Duration::from_secs(seconds / 10),
        goals: Goals::default(),
        saturate: false,
        timed: true,
    })
    .await;
    let command = format!("make soak SOAK_MINUTES={minutes} SOAK_SEED={seed}");
    let outcomes = [always, everysec];
    let text = report::markdown(&outcomes, &command);
    let path =
        repository().join(std::env::var("MUSE_SOAK_REPORT").unwrap_or("docs/reliability.md".to_owned()));
    fs::write(&path, &text).expect("the report is written");
    println!("{text}\nwritten to {}", path.display());
    outcomes.iter().for_each(assert_sound);
}
