//! The loops that run at every step or for every picture, without a model: a step of a row, drawing noise, choosing a pass's
//! rows, encoding a picture.
#![allow(
    clippy::expect_used,
    missing_docs,
    reason = "a benchmark that cannot set itself up says so by panicking"
)]

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use muse_engine::{
    Conditioning, GuidanceSchedule, ImageSize, Logits, MaskSchedule, Row, RowConditioning, RowSettings,
    Sampling, Scheduler, Stage, StageSpec, Unconditional,
    picture::{self, EncodeOptions, PictureFormat, Provenance},
    pixels::RgbImage,
    random::StepKey,
    sampler::Scratch,
};
use muse_worker::batcher::policy::choose;

/// A grid of `side` × `side` positions of `codes` codes.
fn spec(side: u32, codes: u32, sampling: Sampling) -> StageSpec {
    StageSpec {
        stage: Stage::Base,
        rows: side,
        columns: side,
        codebook_size: codes,
        vocab_size: codes + 1,
        logits_size: codes as usize,
        mask_id: codes,
        unconditional: Unconditional::EmptyText,
        condition: String::new(),
        step: String::new(),
        conditioning: None,
        decoder: None,
        encoder: None,
        image_size: ImageSize {
            height: side * 16,
            width: side * 16,
        },
        defaults: sampling,
    }
}

fn sampling(guidance: f32, top_k: u32) -> Sampling {
    Sampling {
        steps: 16,
        guidance,
        // So that the first step, the one with most positions, has its unconditional logits.
        guidance_schedule: GuidanceSchedule::Constant,
        temperature: 1.0,
        top_k,
        choice_temperature: 4.5,
        mask_schedule: MaskSchedule::Cosine,
        scheduler: Scheduler::Confidence,
    }
}

fn row(spec: &StageSpec) -> Row {
    let conditioning = Arc::new(Conditioning { tensors: Vec::new() });
    let conditioning = RowConditioning {
        conditional: Arc::clone(&conditioning),
        unconditional: Some(conditioning),
    };
    let settings = RowSettings {
        seed: 7,
        image_index: 0,
        stage: spec.stage,
        sampling: spec.defaults.clone(),
    };
    Row::text_to_image(spec, settings, conditioning).expect("a row of a well-formed stage")
}

/// As spread as a model's, the same on every machine.
fn logits(count: usize, salt: u32) -> Vec<f32> {
    let key = StepKey {
        seed: 1,
        image_index: salt,
        stage: Stage::Base,
        step: 0,
    };
    (0..count as u32)
        .map(|position| key.uniforms(position).token * 8.0 - 4.0)
        .collect()
}

/// The first step of a row: guidance, softmax, a draw and its confidence at every position, re-masking.
fn step(criterion: &mut Criterion) {
    let cases = [
        ("demo base, 64 x 1024", 8, 1024, sampling(2.0, 0)),
        ("demo superres, 256 x 1024", 16, 1024, sampling(2.0, 0)),
        ("paper base, 256 x 8192", 16, 8192, sampling(2.0, 0)),
        ("paper base, unguided", 16, 8192, sampling(0.0, 0)),
        ("paper base, top-k 64", 16, 8192, sampling(2.0, 64)),
    ];
    let mut group = criterion.benchmark_group("step");
    for (name, side, codes, sampling) in cases {
        let spec = spec(side, codes, sampling);
        let size = spec.positions() * spec.logits_size;
        let (conditional, unconditional) = (logits(size, 0), logits(size, 1));
        let packed = |values| Logits::at_masked(values, spec.logits_size);
        let (fresh, mut scratch) = (row(&spec), Scratch::default());
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                || fresh.clone(),
                |row| row.advance(packed(&conditional), Some(packed(&unconditional)), &mut scratch),
                BatchSize::LargeInput,
            );
        });
    }
}

fn noise(criterion: &mut Criterion) {
    let key = StepKey {
        seed: 7,
        image_index: 0,
        stage: Stage::Base,
        step: 3,
    };
    criterion.bench_function("random numbers of 256 positions", |bencher| {
        bencher.iter(|| {
            (0..256)
                .map(|position| key.uniforms(black_box(position)).token)
                .sum::<f32>()
        });
    });
}

/// 64 jobs of four guided rows each, before every pass.
fn pass(criterion: &mut Criterion) {
    criterion.bench_function("rows of a pass from 64 jobs", |bencher| {
        bencher.iter(|| {
            choose(
                (0..64).map(|job| (job, (0..4).map(|row| (row, 2)))),
                black_box(16),
            )
        });
    });
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    for side in [128, 512] {
        // Soft gradients with some grain, as decoded pictures have.
        let image = RgbImage::from_fn(side, side, |x, y| {
            let grain = (x * 7 + y * 13) % 5;
            image::Rgb([x, y, x + y].map(|value| (value * 255 / (2 * side) + grain) as u8))
        });
        let provenance = Provenance {
            model: "muse-demo".to_owned(),
            version: "1".to_owned(),
            bundle_digest: "0".repeat(64),
            seed: 7,
            image_index: 0,
            prompt: None,
        };
        for format in PictureFormat::ALL {
            let options = EncodeOptions {
                format,
                ..EncodeOptions::default()
            };
            group.bench_function(format!("{side} x {side}, {}", format.as_str()), |bencher| {
                bencher.iter(|| picture::encode(&image, options, &provenance));
            });
        }
    }
}

criterion_group! {
    name = inner_loops;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    targets = step, noise, pass, encode
}
criterion_main!(inner_loops);
