mod fake;

use proptest::prelude::*;

use self::fake::{FakeModel, both, defaults, run, settings};
use super::*;
use crate::sampler::Scratch;
use crate::sampling::{GuidanceSchedule, MaskSchedule};
use crate::stage::StageModel;
use crate::stage::tests::stage_spec;

fn any_sampling() -> impl Strategy<Value = Sampling> {
    let mask_schedules = prop_oneof![
        Just(MaskSchedule::Cosine),
        Just(MaskSchedule::Linear),
        Just(MaskSchedule::Arccos)
    ];
    let guidance_schedules = prop_oneof![Just(GuidanceSchedule::Linear), Just(GuidanceSchedule::Constant)];
    let schedulers = prop_oneof![Just(Scheduler::Confidence), Just(Scheduler::Halton)];
    (
        1u32..20,
        prop_oneof![Just(0.0f32), 0.1f32..5.0],
        guidance_schedules,
        prop_oneof![Just(0.0f32), 0.2f32..3.0],
        0u32..10,
        prop_oneof![Just(0.0f32), 0.5f32..6.0],
        mask_schedules,
        schedulers,
    )
        .prop_map(
            |(
                steps,
                guidance,
                guidance_schedule,
                temperature,
                top_k,
                choice_temperature,
                mask_schedule,
                scheduler,
            )| {
                Sampling {
                    steps,
                    guidance,
                    guidance_schedule,
                    temperature,
                    top_k,
                    choice_temperature,
                    mask_schedule,
                    scheduler,
                }
            },
        )
}

/// Tokens and mask of a partly known grid.
fn any_grid() -> impl Strategy<Value = (Vec<u32>, Vec<bool>)> {
    let positions = stage_spec(Stage::Base).positions();
    (
        prop::collection::vec(0u32..7, positions),
        prop::collection::vec(any::<bool>(), positions),
    )
}

proptest! {
    #[test]
    fn every_step_masks_exactly_what_the_schedule_says_and_known_positions_stay(
        sampling in any_sampling(),
        (tokens, mask) in any_grid(),
        seed: u64,
    ) {
        let spec = stage_spec(Stage::Base);
        let mut row = Row::from_grid(&spec, settings(sampling.clone(), seed), &tokens, &mask, both(1.0)).unwrap();
        let initially = mask.iter().filter(|masked| **masked).count() as u32;
        prop_assert_eq!(row.masked().len() as u32, initially);
        prop_assert_eq!(row.of(), sampling.steps.min(initially));
        let mut model = FakeModel::new(Stage::Base);
        let mut unknown = initially;
        while !row.is_done() {
            let step = row.step();
            let before = row.tokens().to_vec();
            model.pass(&mut [&mut row]).unwrap();
            let expected = schedule::masked_after(sampling.mask_schedule, initially, unknown, step, row.of());
            prop_assert!(expected < unknown);
            unknown = expected;
            prop_assert_eq!(row.tokens().iter().filter(|token| **token == spec.mask_id).count() as u32, unknown);
            prop_assert_eq!(row.masked().len() as u32, unknown);
            for (position, token) in before.iter().enumerate() {
                if *token != spec.mask_id {
                    prop_assert_eq!(row.tokens()[position], *token, "position {} changed", position);
                }
            }
        }
        prop_assert_eq!(unknown, 0);
        prop_assert!(row.tokens().iter().all(|token| *token < spec.codebook_size));
        for (position, masked) in mask.iter().enumerate() {
            prop_assert!(*masked || row.tokens()[position] == tokens[position]);
        }
    }

    #[test]
    fn a_checkpoint_resumes_at_any_step_to_the_same_tokens(
        sampling in any_sampling(),
        (tokens, mask) in any_grid(),
        seed: u64,
    ) {
        let spec = stage_spec(Stage::Base);
        let mut row = Row::from_grid(&spec, settings(sampling, seed), &tokens, &mask, both(1.0)).unwrap();
        let mut checkpoints = vec![row.checkpoint()];
        let mut model = FakeModel::new(Stage::Base);
        while !row.is_done() {
            model.pass(&mut [&mut row]).unwrap();
            checkpoints.push(row.checkpoint());
        }
        for state in checkpoints {
            let mut resumed = Row::resume(&spec, row.settings().clone(), state.clone(), both(1.0)).unwrap();
            prop_assert_eq!(resumed.checkpoint(), state);
            run(&mut resumed);
            prop_assert_eq!(resumed.tokens(), row.tokens());
        }
    }

    #[test]
    fn a_rows_tokens_do_not_depend_on_its_batch_mates(
        samplings in prop::collection::vec(any_sampling(), 2..6),
        admissions in prop::collection::vec(0usize..4, 6),
        seed: u64,
    ) {
        let spec = stage_spec(Stage::Base);
        let rows: Vec<Row> = samplings
            .into_iter()
            .enumerate()
            .map(|(index, sampling)| {
                let settings = settings(sampling, seed.wrapping_add(index as u64 / 2));
                Row::text_to_image(&spec, settings, both(index as f32 + 1.0)).unwrap()
            })
            .collect();
        let mut alone = rows.clone();
        alone.iter_mut().for_each(|row| { run(row); });

        let mut mixed = rows;
        let mut model = FakeModel::new(Stage::Base);
        let mut pass = 0;
        while mixed.iter().any(|row| !row.is_done()) {
            let mut admitted: Vec<&mut Row> = mixed
                .iter_mut()
                .zip(&admissions)
                .filter_map(|(row, from)| (pass >= *from && !row.is_done()).then_some(row))
                .collect();
            model.pass(&mut admitted).unwrap();
            pass += 1;
        }
        for (alone, mixed) in alone.iter().zip(&mixed) {
            prop_assert_eq!(alone.tokens(), mixed.tokens());
        }
    }
}

#[test]
fn linear_guidance_runs_no_unconditional_row_in_its_first_step() {
    let mut row = Row::text_to_image(&stage_spec(Stage::Base), settings(defaults(), 1), both(1.0)).unwrap();
    let mut model = FakeModel::new(Stage::Base);
    while !row.is_done() {
        model.pass(&mut [&mut row]).unwrap();
    }
    assert_eq!(model.passes, [1, 2, 2, 2]);
    assert_eq!(row.cost(), 0);
}

#[test]
fn a_row_without_guidance_needs_no_unconditional_conditioning() {
    let spec = stage_spec(Stage::Base);
    let conditioning = RowConditioning {
        unconditional: None,
        ..both(1.0)
    };
    let unguided = Sampling {
        guidance: 0.0,
        ..defaults()
    };
    run(&mut Row::text_to_image(&spec, settings(unguided, 1), conditioning.clone()).unwrap());
    let error = Row::text_to_image(&spec, settings(defaults(), 1), conditioning).unwrap_err();
    assert_eq!(error, RowError::NoUnconditional);
}

#[test]
fn a_grid_without_masked_positions_is_done_at_once() {
    let spec = stage_spec(Stage::Base);
    let tokens = vec![3; spec.positions()];
    let row = Row::from_grid(
        &spec,
        settings(defaults(), 1),
        &tokens,
        &vec![false; spec.positions()],
        both(1.0),
    )
    .unwrap();
    assert!(row.is_done());
    assert_eq!(row.tokens(), tokens);
}

#[test]
fn logits_that_are_not_finite_fail_the_row_and_leave_it_as_it_was() {
    let spec = stage_spec(Stage::Base);
    let mut row = Row::text_to_image(&spec, settings(defaults(), 1), both(1.0)).unwrap();
    let before = row.checkpoint();
    let mut logits = vec![0.0; spec.positions() * spec.logits_size];
    logits[4 * spec.logits_size + 2] = f32::NAN;
    let error = row
        .advance(everywhere(&logits), None, &mut Scratch::default())
        .unwrap_err();
    assert_eq!(error, StepError::NotFinite { position: 4, step: 0 });
    assert_eq!(row.checkpoint(), before);
    // Beyond the codebook nothing is ever read.
    logits[4 * spec.logits_size + 2] = 0.0;
    logits[4 * spec.logits_size + 7] = f32::NAN;
    row.advance(everywhere(&logits), None, &mut Scratch::default())
        .unwrap();
}

#[test]
fn too_few_logits_fail_the_row() {
    let spec = stage_spec(Stage::Base);
    let mut row = Row::text_to_image(&spec, settings(defaults(), 1), both(1.0)).unwrap();
    let short = vec![0.0; spec.positions() * spec.logits_size - 1];
    let error = row
        .advance(everywhere(&short), None, &mut Scratch::default())
        .unwrap_err();
    assert_eq!(error, StepError::TooFewLogits);
    let before = row.checkpoint();
    let packed = Logits::at_masked(&short, spec.logits_size);
    assert_eq!(
        row.advance(packed, None, &mut Scratch::default()),
        Err(StepError::TooFewLogits)
    );
    assert_eq!(row.checkpoint(), before);
}

#[test]
fn logits_at_masked_positions_alone_are_as_good_as_those_of_the_whole_grid() {
    let spec = stage_spec(Stage::Base);
    let mask: Vec<bool> = (0..spec.positions()).map(|position| position % 4 != 1).collect();
    let tokens = vec![3; spec.positions()];
    let mut whole = Row::from_grid(&spec, settings(defaults(), 5), &tokens, &mask, both(1.0)).unwrap();
    let mut packed = whole.clone();
    let mut scratch = Scratch::default();
    let mut salt = 0u32;
    let mut values = || -> Vec<f32> {
        salt += 1;
        (0..(spec.positions() * spec.logits_size) as u32)
            .map(|n| ((n + 1).wrapping_mul(2_654_435_761).rotate_left(salt) >> 8) as f32 / (1 << 21) as f32)
            .collect()
    };
    while !whole.is_done() {
        let (conditional, unconditional) = (values(), values());
        let at_masked = |values: &[f32]| -> Vec<f32> {
            let lines = packed.masked().iter().map(|position| *position as usize);
            lines
                .flat_map(|line| &values[line * spec.logits_size..(line + 1) * spec.logits_size])
                .copied()
                .collect()
        };
        let (few, fewer) = (at_masked(&conditional), at_masked(&unconditional));
        whole
            .advance(
                everywhere(&conditional),
                Some(everywhere(&unconditional)),
                &mut scratch,
            )
            .unwrap();
        let packed_logits = |values| Logits::at_masked(values, spec.logits_size);
        packed
            .advance(packed_logits(&few), Some(packed_logits(&fewer)), &mut scratch)
            .unwrap();
        assert_eq!(packed.checkpoint(), whole.checkpoint());
    }
    assert!(packed.is_done());
}

fn everywhere(values: &[f32]) -> Logits<'_> {
    Logits::everywhere(values, stage_spec(Stage::Base).logits_size)
}

#[test]
fn a_checkpoint_that_does_not_fit_is_refused() {
    let spec = stage_spec(Stage::Base);
    let mask: Vec<bool> = (0..spec.positions()).map(|position| position % 3 != 0).collect();
    let mut row = Row::from_grid(
        &spec,
        settings(defaults(), 1),
        &vec![2; spec.positions()],
        &mask,
        both(1.0),
    )
    .unwrap();
    FakeModel::new(Stage::Base).pass(&mut [&mut row]).unwrap();
    let good = row.checkpoint();
    let wrong: [fn(&mut RowState); 9] = [
        |state| state.tokens.truncate(3),
        |state| state.tokens[1] = 7,
        |state| state.tokens[0] = 8,
        |state| state.step = 5,
        |state| state.step = 0,
        |state| state.of = 3,
        |state| state.initially_masked = 15,
        |state| state.initially_known.clear(),
        |state| state.initially_known.truncate(1),
    ];
    for (index, damage) in wrong.into_iter().enumerate() {
        let mut state = good.clone();
        damage(&mut state);
        let result = Row::resume(&spec, row.settings().clone(), state, both(1.0));
        assert!(
            matches!(
                result,
                Err(RowError::Grid {
                    what: "checkpoint",
                    ..
                })
            ),
            "damage {index}: {result:?}"
        );
    }
    Row::resume(&spec, row.settings().clone(), good, both(1.0)).unwrap();
}

#[test]
fn settings_of_another_stage_or_out_of_range_are_refused() {
    let spec = stage_spec(Stage::Superres);
    let error = Row::text_to_image(&spec, settings(defaults(), 1), both(1.0)).unwrap_err();
    assert_eq!(
        error,
        RowError::Stage {
            settings: Stage::Base,
            stage: Stage::Superres
        }
    );
    let spec = stage_spec(Stage::Base);
    let error = Row::text_to_image(
        &spec,
        settings(
            Sampling {
                steps: 0,
                ..defaults()
            },
            1,
        ),
        both(1.0),
    )
    .unwrap_err();
    assert!(error.to_string().contains("base.steps"), "{error}");
}
