//! A row takes the same steps, to the bit, whatever rows share its passes, in both forms of a step graph: with the inputs
//! `grids` and `positions` (tiny, demo) and without (tiny-null).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

mod support;

use std::num::NonZeroUsize;
use std::sync::Arc;

use muse_engine::random::StepKey;
use muse_engine::stage::OnnxStage;
use muse_engine::{
    Conditioning, ConditioningInput, Embedding, GuidanceSchedule, Provider, Row, RowConditioning,
    RowSettings, RowState, Sampling, SessionOptions, Stage, StageModel,
};
use support::{bundle, options};

/// Numbers that are the same in every run.
struct Random(u32);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 += 1;
        let key = StepKey {
            seed: 20_261_126,
            image_index: 0,
            stage: Stage::Base,
            step: 0,
        };
        (key.uniforms(self.0).token * end as f32) as usize
    }
}

/// Conditioning on `count` texts, each also with the text masked.
fn conditionings(
    model: &mut OnnxStage,
    name: &str,
    count: usize,
    random: &mut Random,
) -> Vec<RowConditioning> {
    let bundle = bundle(name);
    let text = bundle.text();
    let mut inputs = Vec::new();
    for number in 0..count {
        let length = 1 + random.below(text.max_length);
        let values: Vec<f32> = (0..length * text.width)
            .map(|_| random.below(2000) as f32 / 1000.0 - 1.0)
            .collect();
        let embedding = Embedding::new(values.into(), length, text.width).unwrap();
        let low: Vec<u32> = (0..bundle.base().positions())
            .map(|_| random.below(bundle.base().codebook_size as usize) as u32)
            .collect();
        let low = (model.spec().stage == Stage::Superres).then_some(low.as_slice());
        let input = ConditioningInput::conditional(text, &embedding, low).unwrap();
        let mut unconditional = input.clone();
        unconditional.text_mask.fill(0);
        unconditional.text_mask[number % text.max_length] = 1;
        inputs.extend([input, unconditional]);
    }
    let made: Vec<Arc<Conditioning>> = model.condition(&inputs).unwrap();
    made.chunks_exact(2)
        .map(|pair| RowConditioning {
            conditional: Arc::clone(&pair[0]),
            unconditional: Some(Arc::clone(&pair[1])),
        })
        .collect()
}

/// Rows of different settings; of every third all positions are masked, of the others some, and of one a single one.
fn rows(model: &mut OnnxStage, name: &str, count: usize, random: &mut Random) -> Vec<Row> {
    let conditionings = conditionings(model, name, count, random);
    let spec = model.spec().clone();
    let build = |(number, conditioning): (usize, RowConditioning)| {
        let sampling = Sampling {
            steps: 1 + number as u32 % 6,
            guidance: [0.0, 1.5, 3.0][number % 3],
            guidance_schedule: [GuidanceSchedule::Linear, GuidanceSchedule::Constant][number % 2],
            ..spec.defaults.clone()
        };
        let settings = RowSettings {
            seed: number as u64,
            image_index: 0,
            stage: spec.stage,
            sampling,
        };
        let positions = spec.positions();
        let tokens: Vec<u32> = (0..positions)
            .map(|_| random.below(spec.codebook_size as usize) as u32)
            .collect();
        let most = 1 + random.below(positions);
        let mask: Vec<bool> = (0..positions)
            .map(|position| match number % 3 {
                0 => true,
                _ if number == 1 => position == positions - 1,
                _ => position == 0 || random.below(positions) < most,
            })
            .collect();
        Row::from_grid(&spec, settings, &tokens, &mask, conditioning).unwrap()
    };
    conditionings.into_iter().enumerate().map(build).collect()
}

/// The row after each of its steps, with no other row in its passes.
fn alone(model: &mut OnnxStage, row: &Row) -> Vec<RowState> {
    let mut row = row.clone();
    let mut states = Vec::new();
    while !row.is_done() {
        model.pass(&mut [&mut row]).unwrap();
        states.push(row.checkpoint());
    }
    states
}

fn check(name: &str, stage: Stage, count: usize, threads: usize, lanes: usize) {
    // Lanes are for the CPU alone.
    if lanes > 1 && support::provider() != Provider::Cpu {
        return;
    }
    let options = SessionOptions {
        threads,
        lanes,
        lane_rows: NonZeroUsize::new(2).unwrap(),
        ..options()
    };
    let mut model = OnnxStage::open(&bundle(name), stage, &options).unwrap();
    let mut random = Random(0);
    let mut rows = rows(&mut model, name, count, &mut random);
    let alone: Vec<Vec<RowState>> = rows.iter().map(|row| alone(&mut model, row)).collect();
    while rows.iter().any(|row| !row.is_done()) {
        // Some of the rows, in an order that turns.
        let first = random.below(count);
        rows.rotate_left(first);
        let chosen: Vec<bool> = (0..count).map(|_| random.below(3) > 0).collect();
        let mut pass: Vec<&mut Row> = rows
            .iter_mut()
            .zip(&chosen)
            .filter(|(row, chosen)| **chosen && !row.is_done())
            .map(|(row, _)| row)
            .collect();
        model.pass(&mut pass).unwrap();
        for row in pass {
            let number = row.settings().seed as usize;
            let state = row.checkpoint();
            // A row that ends early says that it is at its last step.
            let step = alone[number]
                .iter()
                .position(|other| other.step == state.step)
                .unwrap();
            assert_eq!(
                state, alone[number][step],
                "{name} {stage}, {threads} threads in {lanes} lanes, row {number}"
            );
        }
    }
}

#[test]
fn rows_of_the_tiny_bundle_take_the_same_steps_alone_and_in_random_company() {
    for (threads, lanes) in [(1, 1), (2, 1), (2, 2), (3, 3)] {
        check("tiny", Stage::Base, 11, threads, lanes);
        check("tiny", Stage::Superres, 8, threads, lanes);
    }
}

#[test]
fn rows_of_a_bundle_whose_steps_compute_whole_grids_do_too() {
    for lanes in [1, 2] {
        check("tiny-null", Stage::Base, 11, lanes, lanes);
    }
}

#[test]
fn rows_of_the_demo_bundle_do_too() {
    for lanes in [1, 2] {
        check("demo", Stage::Base, 8, 2, lanes);
        check("demo", Stage::Superres, 5, 2, lanes);
    }
}

/// Lanes run one session at once, which must not show: the same passes five times in four parts at once, against one lane.
#[test]
fn lanes_make_what_one_lane_makes() {
    if support::provider() != Provider::Cpu {
        return;
    }
    let open = |lanes| {
        let options = SessionOptions {
            threads: lanes,
            lanes,
            lane_rows: NonZeroUsize::MIN,
            ..options()
        };
        OnnxStage::open(&bundle("demo"), Stage::Base, &options).unwrap()
    };
    let (mut one, mut many) = (open(1), open(4));
    for count in 1..=4 {
        let mut expected = rows(&mut one, "demo", count, &mut Random(count as u32));
        let fresh = expected.clone();
        while expected.iter().any(|row| !row.is_done()) {
            let mut pass: Vec<&mut Row> = expected.iter_mut().filter(|row| !row.is_done()).collect();
            one.pass(&mut pass).unwrap();
        }
        for _ in 0..5 {
            let mut found = fresh.clone();
            while found.iter().any(|row| !row.is_done()) {
                let mut pass: Vec<&mut Row> = found.iter_mut().filter(|row| !row.is_done()).collect();
                many.pass(&mut pass).unwrap();
            }
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.tokens(), expected.tokens());
            }
        }
    }
}
