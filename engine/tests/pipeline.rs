//! A whole request in one process on the tiny bundle.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

mod support;

use std::num::NonZeroUsize;

use muse_engine::pipeline::{Pipeline, PipelineOptions, Progress, Request};
use muse_engine::pixels::ImageDecoder;
use muse_engine::{
    Error, SamplingOverrides, SessionOptions, Stage, TextEncoder, TextError, Tokenizer, WidenWeights,
};
use support::{bundle, options};

fn pipeline(name: &str, row_budget: usize) -> Pipeline {
    Pipeline::open(
        &bundle(name),
        &PipelineOptions {
            session: options(),
            row_budget,
        },
    )
    .unwrap()
}

#[test]
fn a_request_goes_through_every_stage_to_pictures_of_the_manifests_size() {
    let mut pipeline = pipeline("tiny", 16);
    let mut seen = Vec::new();
    let request = Request {
        count: 3,
        ..Request::new("a red circle", 5)
    };
    let pictures = pipeline
        .generate(&request, |progress| seen.push(progress))
        .unwrap();
    assert_eq!(pictures.len(), 3);
    for (index, picture) in pictures.iter().enumerate() {
        assert_eq!(picture.index as usize, index);
        assert_eq!(picture.image.dimensions(), (48, 32));
        let stages: Vec<_> = picture
            .tokens
            .iter()
            .map(|(stage, tokens)| (*stage, tokens.len()))
            .collect();
        assert_eq!(stages, [(Stage::Base, 24), (Stage::Superres, 96)]);
        assert_eq!(picture.provenance.seed, 5);
    }
    assert_ne!(pictures[0].tokens, pictures[1].tokens);
    let base: Vec<_> = seen
        .iter()
        .filter(|progress| {
            matches!(
                progress,
                Progress::Step {
                    stage: Stage::Base,
                    ..
                }
            )
        })
        .collect();
    assert_eq!(base.len(), 6, "{seen:?}");
    assert_eq!(seen.first(), Some(&Progress::Embedded));
    assert_eq!(seen.last(), Some(&Progress::Pixels { done: 3, of: 3 }));
}

#[test]
fn a_picture_is_the_same_whatever_the_count_and_the_row_budget() {
    let request = |count| Request {
        count,
        ..Request::new("two blue stars", 9)
    };
    let one = pipeline("tiny", 16).generate(&request(1), |_| ()).unwrap();
    let five = pipeline("tiny", 3).generate(&request(5), |_| ()).unwrap();
    assert_eq!(one[0], five[0]);
    assert_eq!(pipeline("tiny", 16).generate(&request(5), |_| ()).unwrap(), five);
}

#[test]
fn a_picture_is_the_same_whatever_its_batch_where_each_pass_widens_the_weights() {
    let pictures = |count, row_budget| {
        let session = SessionOptions {
            widen_weights: WidenWeights::InEachPass,
            ..options()
        };
        let options = PipelineOptions { session, row_budget };
        let request = Request {
            count,
            ..Request::new("two blue stars", 9)
        };
        Pipeline::open(&bundle("tiny"), &options)
            .unwrap()
            .generate(&request, |_| ())
            .unwrap()
    };
    let five = pictures(5, 16);
    assert_eq!(pictures(1, 16)[0], five[0]);
    assert_eq!(pictures(5, 3), five);
}

#[test]
fn a_bundle_with_a_base_stage_alone_makes_pictures() {
    let pictures = pipeline("tiny-null", 4)
        .generate(&Request::new("a red circle", 1), |_| ())
        .unwrap();
    assert_eq!(pictures[0].image.dimensions(), (48, 32));
    assert_eq!(pictures[0].tokens.len(), 1);
}

#[test]
fn a_negative_prompt_and_settings_change_the_picture() {
    let mut pipeline = pipeline("tiny", 16);
    let plain = Request::new("a red circle", 1);
    let mut tokens = |request: &Request| pipeline.generate(request, |_| ()).unwrap().remove(0).tokens;
    let first = tokens(&plain);
    assert_eq!(first, tokens(&plain));
    assert_ne!(
        first,
        tokens(&Request {
            negative_prompt: Some("a blue square".to_owned()),
            ..plain.clone()
        })
    );
    let steps = SamplingOverrides {
        steps: Some(2),
        ..Default::default()
    };
    assert_ne!(
        first,
        tokens(&Request {
            base: steps,
            ..plain.clone()
        })
    );
    assert_ne!(first, tokens(&Request { seed: 2, ..plain }));
}

#[test]
fn a_request_out_of_range_is_refused_field_by_field() {
    let mut pipeline = pipeline("tiny-null", 4);
    let request = Request {
        count: 0,
        base: SamplingOverrides {
            steps: Some(0),
            guidance: Some(f32::NAN),
            ..Default::default()
        },
        superres: SamplingOverrides {
            steps: Some(1),
            ..Default::default()
        },
        ..Request::new("  ", 1)
    };
    let Err(Error::Settings(error)) = pipeline.generate(&request, |_| ()) else {
        panic!("it was taken")
    };
    let fields: Vec<_> = error
        .violations
        .iter()
        .map(|violation| violation.field.as_str())
        .collect();
    assert_eq!(
        fields,
        ["prompt", "count", "superres", "base.steps", "base.guidance"]
    );
}

#[test]
fn a_text_of_too_many_tokens_is_refused_with_its_count_and_never_cut() {
    let tokenizer = Tokenizer::open(&bundle("tiny")).unwrap();
    let long = "red ".repeat(40);
    let error = tokenizer.tokenize(&long).unwrap_err();
    assert!(
        matches!(
            error,
            TextError::TooLong {
                tokens: 41..,
                limit: 20
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("at most 20"), "{error}");
}

#[test]
fn an_embedding_does_not_depend_on_its_batch_mates() {
    let mut encoder = TextEncoder::open(&bundle("tiny"), &options()).unwrap();
    let texts = [
        "a red circle",
        "",
        "two blue stars above a green square on a red circle",
        "red",
        "a blue square",
    ];
    let ids: Vec<_> = texts.iter().map(|text| encoder.tokenize(text).unwrap()).collect();
    let together = encoder.embed(&ids).unwrap();
    assert_eq!(together.len(), texts.len());
    for (ids, together) in ids.iter().zip(&together) {
        assert_eq!(together.length, ids.len());
        assert_eq!(together.values.len(), together.length * together.width);
        assert_eq!(&encoder.embed(std::slice::from_ref(ids)).unwrap()[0], together);
    }
    assert_eq!(encoder.embed(&[]).unwrap(), []);
}

#[test]
fn an_embedding_does_not_depend_on_the_lanes_that_texts_are_divided_among() {
    let encoder = |lanes| {
        let options = SessionOptions {
            threads: 2,
            lanes,
            lane_rows: NonZeroUsize::MIN,
            ..options()
        };
        TextEncoder::open(&bundle("tiny"), &options).unwrap()
    };
    let (mut one, mut two) = (encoder(1), encoder(2));
    // More of one length than there are lanes, and other lengths between them.
    let texts = [
        "a red circle",
        "red",
        "a blue star",
        "",
        "two green hearts",
        "a star",
    ];
    let ids: Vec<_> = texts.iter().map(|text| one.tokenize(text).unwrap()).collect();
    assert_eq!(one.embed(&ids).unwrap(), two.embed(&ids).unwrap());
}

/// A worker decodes with other threads while it is busy, which must not show.
#[test]
fn a_picture_does_not_depend_on_the_decoders_threads() {
    for name in ["tiny", "demo"] {
        let bundle = bundle(name);
        let spec = bundle.last_stage();
        let grids: Vec<Vec<u32>> = (0..3u32)
            .map(|seed| {
                (0..spec.positions() as u32)
                    .map(|position| (position * 7919 + seed * 104_729) % spec.codebook_size)
                    .collect()
            })
            .collect();
        let pictures = |threads| {
            let options = SessionOptions { threads, ..options() };
            let decoder = ImageDecoder::open(&bundle, spec.stage, &options).unwrap();
            grids
                .iter()
                .map(|grid| decoder.decode(&[grid]).unwrap().remove(0).into_raw())
                .collect::<Vec<_>>()
        };
        let one = pictures(1);
        for threads in [2, 3] {
            assert_eq!(pictures(threads), one, "{name}, {threads} threads");
        }
    }
}
