//! Fills in what a checked request left open.

use muse_proto::v1::{
    GenerationRequest, GuidanceSchedule, ImageFormat, MaskSchedule, Model, ModelStage, Priority, Sampling,
    Scheduler, Stage, generation_request::Task,
};

use crate::{
    config::Limits,
    jobs::{duration, std_duration},
};

/// The request with every default of `model` and of the gateway in it. `seed` is used when the request has none.
/// Settings of stages that the model does not have are dropped. Call it with a request that passed the checks.
pub fn resolve(
    mut request: GenerationRequest,
    model: &Model,
    limits: &Limits,
    seed: u64,
) -> GenerationRequest {
    request.model.clone_from(&model.name);
    request.seed = Some(request.seed.unwrap_or(seed));
    let given = (request.base.take(), request.superres.take());
    for served in &model.stages {
        match served.stage() {
            Stage::Base => request.base = Some(merge(given.0.unwrap_or_default(), served)),
            Stage::Superres => request.superres = Some(merge(given.1.unwrap_or_default(), served)),
            Stage::Unspecified => {}
        }
    }
    if request.format() == ImageFormat::Unspecified {
        request.set_format(ImageFormat::Png);
    }
    if request.priority() == Priority::Unspecified {
        request.set_priority(Priority::Normal);
    }
    request.width = model.width;
    request.height = model.height;
    if request.timeout.is_none() {
        request.timeout = Some(duration(limits.default_timeout_seconds.saturating_mul(1000)));
    }
    if let Some(Task::TextToImage(task)) = &mut request.task {
        task.count = Some(task.count.unwrap_or(1));
    }
    request
}

/// The pictures of a request, at least 1.
pub fn count_of(request: &GenerationRequest) -> u32 {
    match &request.task {
        Some(Task::TextToImage(task)) => task.count.unwrap_or(1).max(1),
        None => 1,
    }
}

/// The texts whose embeddings a request needs.
pub fn texts_of(request: &GenerationRequest) -> Vec<String> {
    let mut texts = Vec::new();
    if let Some(Task::TextToImage(task)) = &request.task {
        texts.push(task.prompt.clone());
        if !task.negative_prompt.is_empty() {
            texts.push(task.negative_prompt.clone());
        }
    }
    texts
}

/// The timeout of a resolved request in milliseconds.
pub fn timeout_of(request: &GenerationRequest) -> u64 {
    let timeout = request.timeout.as_ref().and_then(std_duration);
    timeout.map_or(0, |timeout| {
        u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)
    })
}

fn merge(given: Sampling, served: &ModelStage) -> Sampling {
    let defaults = served.defaults.unwrap_or_default();
    let or = |given: i32, default: i32| if given == 0 { default } else { given };
    let mut merged = Sampling {
        steps: given.steps.or(defaults.steps),
        guidance: given.guidance.or(defaults.guidance),
        guidance_schedule: or(given.guidance_schedule, defaults.guidance_schedule),
        temperature: given.temperature.or(defaults.temperature),
        top_k: given.top_k.or(defaults.top_k),
        choice_temperature: given.choice_temperature.or(defaults.choice_temperature),
        mask_schedule: or(given.mask_schedule, defaults.mask_schedule),
        scheduler: or(given.scheduler, defaults.scheduler),
    };
    // Attaching checked that a model gives every default; an unset one would leave the choice to the worker.
    debug_assert_ne!(merged.guidance_schedule(), GuidanceSchedule::Unspecified);
    debug_assert_ne!(merged.mask_schedule(), MaskSchedule::Unspecified);
    debug_assert_ne!(merged.scheduler(), Scheduler::Unspecified);
    // Each step reveals at least one position, so more steps than positions cannot be run. Said here, so that the job and
    // its progress tell the true number from the start.
    let positions = served.grid_rows.saturating_mul(served.grid_columns).max(1);
    merged.steps = merged.steps.map(|steps| steps.clamp(1, positions));
    merged
}
