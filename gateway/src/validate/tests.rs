use muse_proto::v1::{GuidanceSchedule, MaskSchedule, ModelStage, Sampling, Scheduler};
use proptest::prelude::*;

use super::*;

fn defaults() -> Sampling {
    Sampling {
        steps: Some(12),
        guidance: Some(3.0),
        guidance_schedule: GuidanceSchedule::Linear as i32,
        temperature: Some(1.0),
        top_k: Some(0),
        choice_temperature: Some(4.5),
        mask_schedule: MaskSchedule::Cosine as i32,
        scheduler: Scheduler::Confidence as i32,
    }
}

fn model(stages: &[Stage]) -> Model {
    let stages = stages.iter().map(|stage| ModelStage {
        stage: *stage as i32,
        grid_rows: 20,
        grid_columns: if *stage == Stage::Base { 16 } else { 64 },
        defaults: Some(defaults()),
        ..ModelStage::default()
    });
    Model {
        name: "tiny".to_owned(),
        stages: stages.collect(),
        width: 128,
        height: 96,
        ..Model::default()
    }
}

fn good() -> GenerationRequest {
    let task = TextToImage {
        prompt: "two red apples".to_owned(),
        ..TextToImage::default()
    };
    GenerationRequest {
        task: Some(Task::TextToImage(task)),
        ..GenerationRequest::default()
    }
}

fn with_task(change: impl FnOnce(&mut TextToImage)) -> GenerationRequest {
    let mut request = good();
    if let Some(Task::TextToImage(task)) = &mut request.task {
        change(task);
    }
    request
}

fn check(given: &GenerationRequest) -> Vec<(String, String)> {
    let model = model(&[Stage::Base, Stage::Superres]);
    let found = super::request(Some(given), Some(&model), &Limits::default());
    found
        .into_iter()
        .map(|violation| (violation.field, violation.description))
        .collect()
}

#[track_caller]
fn refused(given: &GenerationRequest, field: &str, word: &str) {
    let found = check(given);
    assert!(
        found.len() == 1 && found[0].0 == field && found[0].1.contains(word),
        "{found:?}"
    );
}

#[test]
fn a_plain_prompt_is_a_good_request() {
    assert_eq!(check(&good()), []);
    assert_eq!(check(&with_task(|task| task.prompt = "ü".repeat(2_000))), []);
}

#[test]
fn an_empty_a_blank_and_a_long_prompt_are_refused() {
    refused(
        &with_task(|task| task.prompt.clear()),
        "request.text_to_image.prompt",
        "empty",
    );
    refused(
        &with_task(|task| task.prompt = " \n\t".to_owned()),
        "request.text_to_image.prompt",
        "empty",
    );
    refused(
        &with_task(|task| task.prompt = "x".repeat(10_000)),
        "request.text_to_image.prompt",
        "10000",
    );
    let long = with_task(|task| task.negative_prompt = "x".repeat(2_001));
    refused(&long, "request.text_to_image.negative_prompt", "2001");
}

#[test]
fn counts_and_steps_outside_their_limits_are_refused() {
    for count in [0, 17, 1_000_000] {
        refused(
            &with_task(|task| task.count = Some(count)),
            "request.text_to_image.count",
            &count.to_string(),
        );
    }
    for steps in [0, 257] {
        let base = Some(Sampling {
            steps: Some(steps),
            ..Sampling::default()
        });
        refused(
            &GenerationRequest { base, ..good() },
            "request.base.steps",
            &steps.to_string(),
        );
        let superres = Some(Sampling {
            steps: Some(steps),
            ..Sampling::default()
        });
        refused(
            &GenerationRequest { superres, ..good() },
            "request.superres.steps",
            &steps.to_string(),
        );
    }
}

#[test]
fn numbers_that_are_none_are_refused() {
    for guidance in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.1, 50.1] {
        let base = Some(Sampling {
            guidance: Some(guidance),
            ..Sampling::default()
        });
        refused(
            &GenerationRequest { base, ..good() },
            "request.base.guidance",
            "between 0 and 50",
        );
    }
    let superres = Some(Sampling {
        temperature: Some(f32::NAN),
        ..Sampling::default()
    });
    refused(
        &GenerationRequest { superres, ..good() },
        "request.superres.temperature",
        "NaN",
    );
    let base = Some(Sampling {
        choice_temperature: Some(-1.0),
        ..Sampling::default()
    });
    refused(
        &GenerationRequest { base, ..good() },
        "request.base.choice_temperature",
        "-1",
    );
}

#[test]
fn sizes_other_than_the_models_are_refused() {
    refused(
        &GenerationRequest { width: 129, ..good() },
        "request.width",
        "128",
    );
    refused(
        &GenerationRequest {
            height: 128,
            ..good()
        },
        "request.height",
        "96",
    );
    assert_eq!(
        check(&GenerationRequest {
            width: 128,
            height: 96,
            ..good()
        }),
        []
    );
}

#[test]
fn values_of_enums_that_do_not_exist_are_refused() {
    refused(
        &GenerationRequest { format: 99, ..good() },
        "request.format",
        "99",
    );
    refused(
        &GenerationRequest {
            priority: -1,
            ..good()
        },
        "request.priority",
        "-1",
    );
    let base = Some(Sampling {
        mask_schedule: 7,
        scheduler: 8,
        guidance_schedule: 9,
        ..Sampling::default()
    });
    let found = check(&GenerationRequest { base, ..good() });
    assert_eq!(found.len(), 3, "{found:?}");
}

#[test]
fn timeouts_outside_their_range_are_refused() {
    for (seconds, nanos) in [
        (0, 0),
        (0, 999_999_999),
        (86_401, 0),
        (-5, 0),
        (i64::MAX, i32::MAX),
        (i64::MIN, -1),
    ] {
        let timeout = Some(prost_types::Duration { seconds, nanos });
        refused(
            &GenerationRequest { timeout, ..good() },
            "request.timeout",
            "between 1 and 86400",
        );
    }
}

#[test]
fn all_violations_are_told_at_once() {
    let mut bad = with_task(|task| {
        task.prompt.clear();
        task.count = Some(0);
    });
    bad.base = Some(Sampling {
        steps: Some(0),
        guidance: Some(f32::NAN),
        ..Sampling::default()
    });
    bad.width = 1;
    bad.labels = (0..20).map(|n| (n.to_string(), String::new())).collect();
    bad.idempotency_key = "k".repeat(200);
    let fields: Vec<String> = check(&bad).into_iter().map(|(field, _)| field).collect();
    let expected = [
        "request.text_to_image.prompt",
        "request.text_to_image.count",
        "request.base.steps",
        "request.base.guidance",
        "request.width",
        "request.idempotency_key",
        "request.labels",
    ];
    assert_eq!(fields, expected);
}

#[test]
fn a_missing_request_and_a_missing_task_are_named() {
    let found = super::request(None, None, &Limits::default());
    assert_eq!(found[0].field, "request");
    refused(&GenerationRequest::default(), "request.text_to_image", "required");
}

#[test]
fn settings_for_a_stage_that_the_model_lacks_are_refused() {
    let given = GenerationRequest {
        superres: Some(Sampling::default()),
        ..good()
    };
    let found = super::request(Some(&given), Some(&model(&[Stage::Base])), &Limits::default());
    assert_eq!((found.len(), found[0].field.as_str()), (1, "request.superres"));
}

#[test]
fn a_resolved_request_leaves_nothing_open() {
    let resolved = resolve(
        good(),
        &model(&[Stage::Base, Stage::Superres]),
        &Limits::default(),
        7,
    );
    assert_eq!(resolved.model, "tiny");
    assert_eq!(resolved.seed, Some(7));
    assert_eq!(
        (resolved.base, resolved.superres),
        (Some(defaults()), Some(defaults()))
    );
    assert_eq!((resolved.width, resolved.height), (128, 96));
    assert_eq!(
        (resolved.format(), resolved.priority()),
        (ImageFormat::Png, Priority::Normal)
    );
    assert_eq!((count_of(&resolved), timeout_of(&resolved)), (1, 3_600_000));
    let base_only = resolve(good(), &model(&[Stage::Base]), &Limits::default(), 7);
    assert_eq!(base_only.superres, None);
}

#[test]
fn steps_above_the_stages_grid_are_lowered_to_its_positions() {
    let mut model = model(&[Stage::Base, Stage::Superres]);
    for served in &mut model.stages {
        (served.grid_rows, served.grid_columns) = (2, if served.stage() == Stage::Base { 3 } else { 100 });
    }
    let asked = Some(Sampling {
        steps: Some(100),
        ..Sampling::default()
    });
    let given = GenerationRequest {
        base: asked,
        superres: asked,
        ..good()
    };
    let resolved = resolve(given, &model, &Limits::default(), 7);
    let steps = |sampling: Option<Sampling>| sampling.and_then(|sampling| sampling.steps);
    assert_eq!(
        (steps(resolved.base), steps(resolved.superres)),
        (Some(6), Some(100))
    );
    let silent = resolve(good(), &model, &Limits::default(), 7);
    assert_eq!(steps(silent.base), Some(6), "a manifest's default too");
}

proptest! {
    #[test]
    fn what_a_client_sets_is_never_replaced_by_a_default(
        seed: u64, steps in 1_u32..=256, guidance in 0.0_f32..=50.0, top_k in 0_u32..100, count in 1_u32..=16,
    ) {
        let mut given = with_task(|task| task.count = Some(count));
        given.seed = Some(seed);
        given.base = Some(Sampling {
            steps: Some(steps), guidance: Some(guidance), top_k: Some(top_k), temperature: Some(0.0), ..Sampling::default()
        });
        prop_assert!(check(&given).is_empty());
        let resolved = resolve(given, &model(&[Stage::Base, Stage::Superres]), &Limits::default(), !seed);
        let base = resolved.base.unwrap();
        prop_assert_eq!(resolved.seed, Some(seed));
        prop_assert_eq!(
            (base.steps, base.guidance, base.top_k, base.temperature),
            (Some(steps), Some(guidance), Some(top_k), Some(0.0))
        );
        prop_assert_eq!(count_of(&resolved), count);
        // Resolving what is resolved changes nothing, so a job's request can be sent again as it is.
        let again = resolve(resolved.clone(), &model(&[Stage::Base, Stage::Superres]), &Limits::default(), 1);
        prop_assert_eq!(again, resolved);
    }
}
