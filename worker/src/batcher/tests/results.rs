//! Results depend on the job alone.

use std::time::Duration;

use muse_engine::{GuidanceSchedule, Scheduler};
use proptest::prelude::*;

use super::fake::*;
use crate::{batcher::Event, hub::Ticket};

#[derive(Debug, Clone)]
struct Recipe {
    priority: u8,
    pictures: usize,
    steps: u32,
    guidance: f32,
    constant: bool,
    halton: bool,
    /// Turns before it arrives.
    delay: usize,
}

fn recipes() -> impl Strategy<Value = Vec<Recipe>> {
    let recipe = (
        1u8..4,
        1usize..4,
        1u32..20,
        prop_oneof![Just(0.0f32), 0.5f32..4.0],
        any::<(bool, bool)>(),
        0usize..12,
    )
        .prop_map(
            |(priority, pictures, steps, guidance, (constant, halton), delay)| Recipe {
                priority,
                pictures,
                steps,
                guidance,
                constant,
                halton,
                delay,
            },
        );
    prop::collection::vec(recipe, 1..7)
}

fn wish(ticket: usize, recipe: &Recipe, clock: &Clock) -> Wish {
    let mut sampling = sampling(recipe.steps, recipe.guidance);
    if recipe.constant {
        sampling.guidance_schedule = GuidanceSchedule::Constant;
    }
    if recipe.halton {
        sampling.scheduler = Scheduler::Halton;
    }
    Wish {
        priority: recipe.priority,
        pictures: recipe.pictures,
        sampling,
        ..Wish::new(ticket as u64, clock)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever shares the passes, whenever it arrives, whatever the budget, and although jobs leave in the middle and come
    /// back from their checkpoints. The fake asserts that no pass exceeds the budget.
    #[test]
    fn a_job_makes_the_same_tokens_alone_among_others_and_after_a_restart(
        recipes in recipes(),
        row_budget in 2usize..9,
        restarts in prop::collection::vec((0usize..30, 0usize..7), 0..6),
    ) {
        let clock = Clock::new();
        let wishes: Vec<Wish> =
            recipes.iter().enumerate().map(|(ticket, recipe)| wish(ticket, recipe, &clock)).collect();
        let mut batcher = batcher(Fake::new(clock.clone(), row_budget));
        let mut finished = Finished::default();
        for turn in 0..1000 {
            for (wish, recipe) in wishes.iter().zip(&recipes) {
                if recipe.delay == turn {
                    batcher.admit(wish.job());
                }
            }
            for (at, ticket) in &restarts {
                if *at == turn && let Some(rows) = batcher.remove(Ticket(*ticket as u64)) {
                    // Rows that were done before the restart are told again, to whoever asks then.
                    finished.grids.remove(&(*ticket as u64));
                    batcher.admit(wishes[*ticket].resumed(rows));
                }
            }
            if turn > 12 && batcher.is_idle() {
                break;
            }
            finished.take(batcher.turn(&|| clock.now()).unwrap().events);
        }
        prop_assert_eq!(finished.done.len(), wishes.len(), "{:?}", finished);
        for wish in &wishes {
            prop_assert_eq!(&finished.grids[&wish.ticket], &alone(wish, &clock, 8), "job {}", wish.ticket);
        }
    }
}

#[test]
fn a_job_that_arrives_finished_needs_no_pass() {
    let clock = Clock::new();
    let wish = Wish {
        pictures: 2,
        ..Wish::new(3, &clock)
    };
    let mut first = batcher(Fake::new(clock.clone(), 2));
    first.admit(wish.job());
    let mut states = Vec::new();
    while !first.is_idle() {
        states = first.remove(Ticket(3)).unwrap();
        first.admit(wish.resumed(states.clone()));
        let turn = first.turn(&|| clock.now()).unwrap();
        if first.is_idle() {
            // What the job was before its last step, with that step's grids.
            for event in turn.events {
                if let crate::batcher::Event::Row { index, tokens, .. } = event {
                    states[index].tokens = tokens;
                    states[index].step = states[index].of;
                }
            }
        }
    }
    let model = Fake::new(clock.clone(), 2);
    let passes = model.passes.clone();
    let mut second = batcher(model);
    second.admit(wish.resumed(states));
    let finished = finish(&mut second, &clock);
    assert_eq!(finished.done, [3]);
    assert_eq!(finished.grids[&3], alone(&wish, &clock, 4));
    assert!(passes.lock().unwrap().is_empty());
}

#[test]
fn an_unguided_step_of_a_guided_row_costs_one_row() {
    let clock = Clock::new();
    let mut batcher = batcher(Fake::new(clock.clone(), 8));
    batcher.admit(
        Wish {
            sampling: sampling(3, 2.0),
            pictures: 2,
            ..Wish::new(0, &clock)
        }
        .job(),
    );
    let costs: Vec<usize> = std::iter::from_fn(|| {
        (!batcher.is_idle()).then(|| batcher.turn(&|| clock.now()).unwrap().pass.unwrap().cost)
    })
    .collect();
    assert_eq!(costs, [2, 4, 4]);
}

#[test]
fn the_input_that_all_jobs_have_in_common_is_conditioned_once_and_changes_no_token() {
    let clock = Clock::new();
    let guided = |ticket, common| Wish {
        sampling: sampling(6, 2.0),
        common,
        ..Wish::new(ticket, &clock)
    };
    let model = Fake::new(clock.clone(), 8);
    let conditioned = model.conditioned.clone();
    let mut batcher = batcher(model);
    for ticket in 0..3 {
        batcher.admit(guided(ticket, true).job());
    }
    let together = finish(&mut batcher, &clock);
    batcher.admit(guided(3, true).job());
    let later = finish(&mut batcher, &clock);
    let mut all = conditioned.lock().unwrap().concat();
    all.sort_by(f32::total_cmp);
    assert_eq!(all, [UNCONDITIONAL, 1.0, 2.0, 3.0, 4.0]);
    for (ticket, finished) in [(0, &together), (1, &together), (2, &together), (3, &later)] {
        let own = alone(&guided(ticket, false), &clock, 8);
        assert_eq!(finished.grids[&ticket], own, "job {ticket}");
    }
}

#[test]
fn conditioning_is_told_as_decoding_and_not_as_waiting() {
    let clock = Clock::new();
    let mut model = Fake::new(clock.clone(), 4);
    model.condition_time = Duration::from_millis(5);
    let mut batcher = batcher(model);
    let admitted_at = clock.now();
    batcher.admit(Wish::new(1, &clock).job());
    let mut told = None;
    while !batcher.is_idle() {
        for event in batcher.turn(&|| clock.now()).unwrap().events {
            if let Event::Done {
                begun_at, ended_at, ..
            } = event
            {
                told = Some((begun_at - admitted_at, ended_at - begun_at));
            }
        }
    }
    // Four passes of one row, 10 ms each.
    let decoded = Duration::from_millis(5 + 4 * 10);
    assert_eq!(told, Some((Duration::ZERO, decoded)));
}
