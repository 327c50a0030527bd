//! Who runs when.

use std::{sync::atomic::Ordering, time::Duration};

use super::fake::*;
use crate::{
    batcher::{Event, WarmUp, warm_up},
    hub::Ticket,
};
use muse_engine::ConditioningInput;

#[test]
fn a_job_of_higher_priority_runs_in_the_very_next_pass_and_the_lower_one_goes_on_after_it() {
    let clock = Clock::new();
    let model = Fake::new(clock.clone(), 2);
    let passes = model.passes.clone();
    let mut batcher = batcher(model);
    let low = Wish {
        priority: 1,
        pictures: 2,
        ..Wish::new(0, &clock)
    };
    let high = Wish {
        priority: 3,
        pictures: 2,
        ..Wish::new(1, &clock)
    };
    batcher.admit(low.job());
    batcher.turn(&|| clock.now()).unwrap();
    batcher.admit(high.job());
    let finished = finish(&mut batcher, &clock);
    let ran: Vec<f32> = passes.lock().unwrap().iter().map(|values| values[0]).collect();
    assert_eq!(ran, [1.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0]);
    assert_eq!(finished.done, [1, 0]);
    assert_eq!(finished.grids[&0], alone(&low, &clock, 2));
}

#[test]
fn memory_is_given_back_only_while_nothing_is_in_hand() {
    let clock = Clock::new();
    let model = Fake::new(clock.clone(), 2);
    let releases = model.releases.clone();
    let mut batcher = batcher(model);
    batcher.admit(Wish::new(0, &clock).job());
    batcher.release_memory().unwrap();
    batcher.turn(&|| clock.now()).unwrap();
    batcher.release_memory().unwrap();
    assert_eq!(releases.load(Ordering::Relaxed), 0);
    finish(&mut batcher, &clock);
    batcher.release_memory().unwrap();
    assert_eq!(releases.load(Ordering::Relaxed), 1);
}

#[test]
fn rows_of_different_jobs_and_steps_share_a_pass() {
    let clock = Clock::new();
    let model = Fake::new(clock.clone(), 8);
    let passes = model.passes.clone();
    let mut batcher = batcher(model);
    batcher.admit(Wish::new(0, &clock).job());
    batcher.turn(&|| clock.now()).unwrap();
    batcher.admit(
        Wish {
            sampling: sampling(7, 1.0),
            ..Wish::new(1, &clock)
        }
        .job(),
    );
    batcher.turn(&|| clock.now()).unwrap();
    assert_eq!(*passes.lock().unwrap(), [vec![1.0], vec![1.0, 2.0]]);
}

#[test]
fn nobody_starves_under_a_flow_of_higher_priority() {
    let clock = Clock::new();
    let mut model = Fake::new(clock.clone(), 2);
    // One pass a second, so that ageing (60 s a level) shows.
    model.time = (Duration::from_secs(1), Duration::ZERO);
    let mut batcher = batcher(model);
    batcher.admit(
        Wish {
            priority: 1,
            pictures: 2,
            ..Wish::new(0, &clock)
        }
        .job(),
    );
    let mut finished = Finished::default();
    for turn in 1..400u64 {
        // Every pass could be filled with rows of high priority.
        batcher.admit(
            Wish {
                priority: 3,
                pictures: 2,
                ..Wish::new(turn, &clock)
            }
            .job(),
        );
        finished.take(batcher.turn(&|| clock.now()).unwrap().events);
        if finished.done.contains(&0) {
            assert!(turn > 100, "two levels take 120 s: {turn}");
            return;
        }
    }
    panic!("starved: {:?}", finished.done);
}

#[test]
fn a_cancelled_job_takes_no_further_step_and_a_checkpoint_comes_back() {
    let clock = Clock::new();
    let model = Fake::new(clock.clone(), 4);
    let passes = model.passes.clone();
    let mut batcher = batcher(model);
    batcher.admit(Wish::new(0, &clock).job());
    batcher.admit(Wish::new(1, &clock).job());
    batcher.turn(&|| clock.now()).unwrap();
    let checkpoint = batcher.remove(Ticket(0)).unwrap();
    assert_eq!(checkpoint[0].step, 1);
    assert_eq!(batcher.remove(Ticket(0)), None);
    let finished = finish(&mut batcher, &clock);
    assert_eq!(finished.done, [1]);
    assert!(passes.lock().unwrap()[1..].iter().all(|values| values == &[2.0]));
}

#[test]
fn an_overdue_job_is_dropped_before_the_next_pass() {
    let clock = Clock::new();
    let model = Fake::new(clock.clone(), 4);
    let passes = model.passes.clone();
    let mut batcher = batcher(model);
    let deadline = Some(clock.now() + Duration::from_millis(25));
    batcher.admit(
        Wish {
            deadline,
            sampling: sampling(9, 0.0),
            ..Wish::new(0, &clock)
        }
        .job(),
    );
    let finished = finish(&mut batcher, &clock);
    assert_eq!(finished.overdue, [0]);
    // 10 ms a pass: the third ends after the deadline.
    assert_eq!(passes.lock().unwrap().len(), 3);
}

#[test]
fn progress_is_that_of_the_least_advanced_row_and_pictures_finish_one_after_the_other() {
    let clock = Clock::new();
    let mut batcher = batcher(Fake::new(clock.clone(), 2));
    batcher.admit(
        Wish {
            pictures: 3,
            ..Wish::new(0, &clock)
        }
        .job(),
    );
    let mut told = Vec::new();
    while !batcher.is_idle() {
        for event in batcher.turn(&|| clock.now()).unwrap().events {
            match event {
                Event::Stepped { step, of, rows, .. } => told.push(format!("{step}/{of} of {}", rows.len())),
                Event::Row { index, .. } => told.push(format!("row {index}")),
                other => told.push(format!("{}", matches!(other, Event::Done { .. }))),
            }
        }
    }
    let expected = [
        "0/4 of 3", "0/4 of 3", "0/4 of 3", "0/4 of 3", "row 0", "row 1", "1/4 of 3", "2/4 of 3", "3/4 of 3",
        "row 2", "true",
    ];
    assert_eq!(told, expected);
}

#[test]
fn the_estimate_counts_what_is_left_of_a_job() {
    let clock = Clock::new();
    let mut batcher = batcher(Fake::new(clock.clone(), 2));
    batcher.admit(
        Wish {
            sampling: sampling(6, 0.0),
            ..Wish::new(0, &clock)
        }
        .job(),
    );
    batcher.turn(&|| clock.now()).unwrap();
    assert_eq!(batcher.remaining(Ticket(0)), Some(Duration::from_millis(5 * 10)));
    assert_eq!(batcher.remaining(Ticket(9)), None);
}

#[test]
fn warm_up_finds_the_knee_of_the_model() {
    let clock = Clock::new();
    let mut model = Fake::new(clock.clone(), 16);
    model.time = (Duration::from_millis(2), Duration::from_millis(10));
    let input = ConditioningInput {
        text: vec![0.5],
        text_mask: vec![1],
        low_tokens: None,
    };
    let settings = WarmUp {
        max_rows: 16,
        rounds: 2,
        max_pass: Duration::from_secs(1),
    };
    let curve = warm_up(&mut model, &input, settings, &|| clock.now()).unwrap();
    let sizes: Vec<usize> = curve.points().iter().map(|point| point.rows).collect();
    assert_eq!(sizes, [1, 2, 3, 4, 6, 8, 12, 16]);
    assert_eq!(curve.time(4), Duration::from_millis(42));
    // 16 rows: 98.8 rows/s; 3 rows: 93.8; 4 rows: 95.2.
    assert_eq!(curve.knee(0.05), Some(4 - 1 + 1));
    let short = WarmUp {
        max_pass: Duration::from_millis(30),
        ..settings
    };
    let curve = warm_up(&mut model, &input, short, &|| clock.now()).unwrap();
    assert_eq!(
        curve.points().last().map(|point| point.rows),
        Some(3),
        "no pass longer than needed"
    );

    model.time = (Duration::ZERO, Duration::from_millis(10));
    let curve = warm_up(&mut model, &input, settings, &|| clock.now()).unwrap();
    let sizes: Vec<usize> = curve.points().iter().map(|point| point.rows).collect();
    assert_eq!(
        sizes,
        [1, 2, 3, 4, 6, 8, 12, 16],
        "every size is known, for estimates"
    );
    assert_eq!(curve.knee(0.05), Some(1));
}

#[test]
fn a_busy_second_at_warm_up_does_not_move_the_knee() {
    let clock = Clock::new();
    let input = ConditioningInput {
        text: vec![0.5],
        text_mask: vec![1],
        low_tokens: None,
    };
    let settings = WarmUp {
        max_rows: 16,
        rounds: 3,
        max_pass: Duration::from_secs(1),
    };
    // Each pass reads the clock twice, and there are eight sizes: this is the second half of the first round that counts,
    // then of the second.
    for spell in [24..=32, 40..=48] {
        let mut model = Fake::new(clock.clone(), 16);
        model.time = (Duration::from_millis(2), Duration::from_millis(10));
        let reads = std::cell::Cell::new(0);
        let busy = || {
            reads.set(reads.get() + 1);
            if reads.get() % 2 == 0 && spell.contains(&reads.get()) {
                clock.advance(Duration::from_millis(100));
            }
            clock.now()
        };
        let curve = warm_up(&mut model, &input, settings, &busy).unwrap();
        assert_eq!(curve.knee(0.02), Some(8), "{spell:?}: {curve:?}");
    }
}
