//! The engine computes what the Python reference computes (docs/decoding.md): tokens are equal, to the last one.
//!
//! The files in tests/golden are made by `models/muse_models/reference`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

mod support;

use muse_engine::random::{gumbel, philox, uniform};
use muse_engine::sampler::{DrawSettings, Scratch, confidence, draw, exponential, least_confident};
use muse_engine::stage::OnnxStage;
use muse_engine::{
    Bundle, ConditioningInput, GuidanceSchedule, MaskSchedule, Row, RowConditioning, RowSettings, Sampling,
    Scheduler, Stage, StageModel, TextEncoder, UnconditionalSource, guidance, halton, schedule,
};
use serde::Deserialize;
use support::{bundle, options, root};

#[derive(Deserialize)]
struct Golden {
    bundle: String,
    digest: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    stage: Stage,
    prompt: String,
    negative_prompt: Option<String>,
    seed: String,
    image_index: u32,
    steps: u32,
    guidance: f32,
    guidance_schedule: GuidanceSchedule,
    temperature: f32,
    top_k: u32,
    choice_temperature: f32,
    mask_schedule: MaskSchedule,
    scheduler: Scheduler,
    initial_tokens: Option<Vec<u32>>,
    low_tokens: Option<Vec<u32>>,
    tokens: Vec<u32>,
    masked_after_step: Vec<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SamplerGolden {
    #[serde(rename = "specification")]
    _specification: String,
    philox: Vec<PhiloxCase>,
    draws: Vec<WordsCase>,
    uniforms: Vec<UniformCase>,
    exponentials: Vec<ExponentialCase>,
    schedules: Vec<ScheduleCase>,
    guidance: Vec<GuidanceCase>,
    halton: Vec<HaltonCase>,
    samples: Vec<SampleCase>,
    remasks: Vec<RemaskCase>,
}

#[derive(Deserialize)]
struct PhiloxCase {
    counter: [u32; 4],
    key: [u32; 2],
    words: [u32; 4],
}

#[derive(Deserialize)]
struct WordsCase {
    seed: String,
    position: u32,
    step: u32,
    image_index: u32,
    stage: Stage,
    words: [u32; 4],
}

#[derive(Deserialize)]
struct UniformCase {
    word: u32,
    uniform: f32,
    gumbel: f32,
}

#[derive(Deserialize)]
struct ExponentialCase {
    x: f32,
    exponential: f32,
}

#[derive(Deserialize)]
struct ScheduleCase {
    mask_schedule: MaskSchedule,
    masked: u32,
    steps: u32,
    masked_after_step: Vec<u32>,
}

#[derive(Deserialize)]
struct GuidanceCase {
    guidance: f32,
    guidance_schedule: GuidanceSchedule,
    steps: u32,
    weights: Vec<f32>,
}

#[derive(Deserialize)]
struct HaltonCase {
    grid: [u32; 2],
    order: Vec<u32>,
}

#[derive(Deserialize)]
struct SampleCase {
    logits: Vec<f32>,
    word: u32,
    temperature: f32,
    top_k: u32,
    token: u32,
    log_probability: f32,
}

#[derive(Deserialize)]
struct RemaskCase {
    log_probability: Vec<f32>,
    words: Vec<u32>,
    tau: f32,
    count: usize,
    masked: Vec<u32>,
}

fn read<T: for<'text> Deserialize<'text>>(name: &str) -> T {
    let path = root().join("tests/golden").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

impl Case {
    fn settings(&self) -> RowSettings {
        RowSettings {
            seed: self.seed.parse().unwrap(),
            image_index: self.image_index,
            stage: self.stage,
            sampling: Sampling {
                steps: self.steps,
                guidance: self.guidance,
                guidance_schedule: self.guidance_schedule,
                temperature: self.temperature,
                top_k: self.top_k,
                choice_temperature: self.choice_temperature,
                mask_schedule: self.mask_schedule,
                scheduler: self.scheduler,
            },
        }
    }

    fn row(&self, bundle: &Bundle, text: &mut TextEncoder, model: &mut OnnxStage) -> Row {
        let mut embed = |prompt: &str| {
            let ids = text.tokenize(prompt).unwrap();
            text.embed(&[ids]).unwrap().remove(0)
        };
        let spec = model.spec().clone();
        let prompt = embed(&self.prompt);
        let negative = self.negative_prompt.as_deref().map(&mut embed);
        let empty = spec.needs_empty_text().then(|| embed(""));
        let low = self.low_tokens.as_deref();
        let source = UnconditionalSource {
            prompt: &prompt,
            negative: negative.as_ref(),
            empty: empty.as_ref(),
        };
        let inputs = [
            ConditioningInput::conditional(bundle.text(), &prompt, low).unwrap(),
            ConditioningInput::unconditional(bundle.text(), &spec, source, low).unwrap(),
        ];
        let mut made = model.condition(&inputs).unwrap().into_iter();
        let conditioning = RowConditioning {
            conditional: made.next().unwrap(),
            unconditional: made.next(),
        };
        match &self.initial_tokens {
            None => Row::text_to_image(&spec, self.settings(), conditioning).unwrap(),
            Some(tokens) => {
                let mask: Vec<bool> = tokens.iter().map(|token| *token == spec.mask_id).collect();
                Row::from_grid(&spec, self.settings(), tokens, &mask, conditioning).unwrap()
            }
        }
    }
}

/// Runs every case alone, all of a stage together, and with a restart in the middle, and compares each with the reference.
/// Gives the number of cases.
fn compare(file: &str) -> usize {
    let golden: Golden = read(file);
    let options = options();
    let bundle = bundle(&golden.bundle.replace("muse-", ""));
    assert_eq!(
        bundle.digest(),
        golden.digest,
        "the golden file was made with another bundle"
    );
    let mut text = TextEncoder::open(&bundle, &options).unwrap();
    for stage in bundle.stages().map(|spec| spec.stage) {
        let mut model = OnnxStage::open(&bundle, stage, &options).unwrap();
        let cases: Vec<&Case> = golden.cases.iter().filter(|case| case.stage == stage).collect();
        let mut rows: Vec<Row> = cases
            .iter()
            .map(|case| case.row(&bundle, &mut text, &mut model))
            .collect();
        let mut other = OnnxStage::open(&bundle, stage, &options).unwrap();
        for (case, row) in cases.iter().zip(&rows) {
            let mut row = row.clone();
            while row.step() < row.of() / 2 {
                model.pass(&mut [&mut row]).unwrap();
            }
            let conditioning = case.row(&bundle, &mut text, &mut other).conditioning().clone();
            let mut row = Row::resume(other.spec(), case.settings(), row.checkpoint(), conditioning).unwrap();
            while !row.is_done() {
                other.pass(&mut [&mut row]).unwrap();
            }
            assert_eq!(
                row.tokens(),
                case.tokens,
                "tokens of {} after a restart",
                case.name
            );
        }
        for (case, mut row) in cases.iter().zip(rows.clone()) {
            let mut masked = Vec::new();
            while !row.is_done() {
                model.pass(&mut [&mut row]).unwrap();
                masked.push(row.masked().len());
            }
            assert_eq!(
                masked, case.masked_after_step,
                "masked positions of {}",
                case.name
            );
            assert_eq!(row.tokens(), case.tokens, "tokens of {}", case.name);
        }
        // What is given back between passes changes no result.
        model.release_memory().unwrap();
        while rows.iter().any(|row| !row.is_done()) {
            let mut pass: Vec<&mut Row> = rows.iter_mut().filter(|row| !row.is_done()).collect();
            model.pass(&mut pass).unwrap();
        }
        for (case, row) in cases.iter().zip(&rows) {
            assert_eq!(
                row.tokens(),
                case.tokens,
                "tokens of {} among {} others",
                case.name,
                cases.len() - 1
            );
        }
    }
    golden.cases.len()
}

#[test]
fn token_grids_equal_the_references_alone_in_one_batch_and_after_a_restart() {
    assert!(compare("tiny.json") >= 20);
}

#[test]
fn token_grids_equal_the_references_with_a_null_embedding_and_without_super_resolution() {
    assert!(compare("tiny-null.json") >= 20);
}

#[test]
fn token_grids_of_the_demo_bundle_equal_the_references() {
    assert!(compare("demo.json") >= 5);
}

#[test]
fn random_words_equal_the_references() {
    let golden: SamplerGolden = read("sampler.json");
    for case in &golden.philox {
        assert_eq!(philox(case.counter, case.key), case.words);
    }
    for case in &golden.draws {
        let seed: u64 = case.seed.parse().unwrap();
        let counter = [case.position, case.step, case.image_index, case.stage.code()];
        assert_eq!(philox(counter, [seed as u32, (seed >> 32) as u32]), case.words);
    }
    for case in &golden.uniforms {
        assert_eq!(uniform(case.word), case.uniform, "word {}", case.word);
        assert_eq!(gumbel(case.uniform), case.gumbel, "word {}", case.word);
    }
}

#[test]
fn schedules_guidance_and_orders_equal_the_references() {
    let golden: SamplerGolden = read("sampler.json");
    for case in &golden.schedules {
        let steps = schedule::steps_taken(case.steps, case.masked);
        let mut unknown = case.masked;
        let table: Vec<u32> = (0..steps)
            .map(|step| {
                unknown = schedule::masked_after(case.mask_schedule, case.masked, unknown, step, steps);
                unknown
            })
            .collect();
        assert_eq!(
            table, case.masked_after_step,
            "{:?} {} {}",
            case.mask_schedule, case.masked, case.steps
        );
    }
    for case in &golden.guidance {
        let weights: Vec<f32> = (0..case.steps)
            .map(|step| guidance::weight(case.guidance, case.guidance_schedule, step, case.steps))
            .collect();
        assert_eq!(weights, case.weights);
    }
    for case in &golden.halton {
        assert_eq!(halton::halton_order(case.grid[0], case.grid[1]), case.order);
    }
}

#[test]
fn draws_and_remasks_equal_the_references() {
    let golden: SamplerGolden = read("sampler.json");
    for case in &golden.exponentials {
        assert_eq!(exponential(case.x), case.exponential, "E({})", case.x);
    }
    let mut scratch = Scratch::default();
    for case in &golden.samples {
        let settings = DrawSettings {
            temperature: case.temperature,
            top_k: case.top_k,
        };
        let drawn = draw(&case.logits, settings, uniform(case.word), &mut scratch).unwrap();
        assert_eq!(
            (drawn.token, drawn.log_probability),
            (case.token, case.log_probability),
            "{settings:?}"
        );
    }
    for case in &golden.remasks {
        let confidences = case.log_probability.iter().zip(&case.words).zip(0u32..).map(
            |((log_probability, word), index)| {
                (confidence(*log_probability, case.tau, uniform(*word)), index)
            },
        );
        let mut masked = Vec::new();
        least_confident(confidences, case.count, &mut scratch, |index| masked.push(index));
        masked.sort_unstable();
        let mut expected = case.masked.clone();
        expected.sort_unstable();
        assert_eq!(masked, expected, "tau {} count {}", case.tau, case.count);
    }
}
