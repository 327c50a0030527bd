//! Whether a request can be done: pure, field by field, every violation at once.
//!
//! [`request`] checks against the limits and the model; [`resolve`] then fills in what the request left open, so that
//! what is stored decides every token.

mod resolve;
mod sampling;

use std::time::Duration;

use muse_proto::v1::{
    GenerationRequest, ImageFormat, Model, Priority, Stage, TextToImage, generation_request::Task,
};
use tonic_types::FieldViolation;

pub use self::resolve::{count_of, resolve, texts_of, timeout_of};
use crate::{config::Limits, jobs::std_duration};

/// The violations found so far, each with the field's path.
#[derive(Debug, Default)]
pub(crate) struct Violations(Vec<FieldViolation>);

impl Violations {
    pub(crate) fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.0.push(FieldViolation::new(field, description));
    }

    pub(crate) fn into_vec(self) -> Vec<FieldViolation> {
        self.0
    }
}

/// Every violation of a request. `model` is what it names; `None` when that is unknown, which the caller adds itself.
pub fn request(
    request: Option<&GenerationRequest>,
    model: Option<&Model>,
    limits: &Limits,
) -> Vec<FieldViolation> {
    let mut found = Violations::default();
    let Some(request) = request else {
        found.add("request", "is required");
        return found.0;
    };
    match &request.task {
        Some(Task::TextToImage(task)) => text_to_image(task, limits, &mut found),
        None => found.add(
            "request.text_to_image",
            "is required: a request needs a task, and this is the only one",
        ),
    }
    for (stage, field, given) in [
        (Stage::Base, "request.base", request.base.as_ref()),
        (Stage::Superres, "request.superres", request.superres.as_ref()),
    ] {
        let Some(given) = given else { continue };
        let served = |model: &Model| model.stages.iter().any(|served| served.stage() == stage);
        if let Some(model) = model.filter(|model| !served(model)) {
            found.add(
                field,
                format!("model {} has no such stage; leave it out", model.name),
            );
        }
        sampling::check(given, field, limits, &mut found);
    }
    if ImageFormat::try_from(request.format).is_err() {
        found.add(
            "request.format",
            format!("{} is no image format that this version knows", request.format),
        );
    }
    if Priority::try_from(request.priority).is_err() {
        found.add(
            "request.priority",
            format!("{} is no priority that this version knows", request.priority),
        );
    }
    if let Some(model) = model {
        size("request.width", request.width, model.width, model, &mut found);
        size("request.height", request.height, model.height, model, &mut found);
    }
    if let Some(timeout) = &request.timeout {
        check_timeout(timeout, limits, &mut found);
    }
    let key = request.idempotency_key.chars().count();
    if key > limits.idempotency_key_characters {
        let most = limits.idempotency_key_characters;
        found.add(
            "request.idempotency_key",
            format!("must have at most {most} characters, not {key}"),
        );
    }
    labels(request, limits, &mut found);
    found.0
}

fn text_to_image(task: &TextToImage, limits: &Limits, found: &mut Violations) {
    let field = "request.text_to_image.prompt";
    let characters = task.prompt.chars().count();
    if task.prompt.trim().is_empty() {
        found.add(field, "must not be empty");
    } else if characters > limits.prompt_characters {
        let most = limits.prompt_characters;
        found.add(
            field,
            format!("must have at most {most} characters, not {characters}"),
        );
    }
    let characters = task.negative_prompt.chars().count();
    if characters > limits.negative_prompt_characters {
        let most = limits.negative_prompt_characters;
        let field = "request.text_to_image.negative_prompt";
        found.add(
            field,
            format!("must have at most {most} characters, not {characters}"),
        );
    }
    if let Some(count) = task.count
        && !(1..=limits.count).contains(&count)
    {
        let most = limits.count;
        found.add(
            "request.text_to_image.count",
            format!("must be between 1 and {most}, not {count}"),
        );
    }
}

fn size(field: &str, asked: u32, made: u32, model: &Model, found: &mut Violations) {
    if asked != 0 && asked != made {
        let name = &model.name;
        found.add(
            field,
            format!("must be {made} (or 0), the size of model {name}'s pictures, not {asked}"),
        );
    }
}

fn check_timeout(timeout: &prost_types::Duration, limits: &Limits, found: &mut Violations) {
    let least = Duration::from_millis(limits.min_timeout_ms);
    let most = Duration::from_secs(limits.max_timeout_seconds);
    match std_duration(timeout) {
        Some(timeout) if (least..=most).contains(&timeout) => {}
        _ => found.add(
            "request.timeout",
            format!(
                "must be between {} and {} seconds, not {}.{:09}",
                least.as_secs_f64(),
                most.as_secs(),
                timeout.seconds,
                timeout.nanos.unsigned_abs()
            ),
        ),
    }
}

fn labels(request: &GenerationRequest, limits: &Limits, found: &mut Violations) {
    let count = request.labels.len();
    if count > limits.labels {
        found.add(
            "request.labels",
            format!("must have at most {} entries, not {count}", limits.labels),
        );
    }
    // The first in order, so that the same request is refused with the same words.
    let long_name = |name: &&String| name.is_empty() || name.chars().count() > limits.label_name_characters;
    if request.labels.keys().any(|name| long_name(&name)) {
        let most = limits.label_name_characters;
        found.add(
            "request.labels",
            format!("names must have 1 to {most} characters"),
        );
    }
    let mut long: Vec<&String> = request
        .labels
        .iter()
        .filter(|(_, text)| text.chars().count() > limits.label_characters)
        .map(|(name, _)| name)
        .collect();
    long.sort_unstable();
    if let Some(name) = long.first().filter(|name| !long_name(name)) {
        found.add(
            format!("request.labels[{name}]"),
            format!("must have at most {} characters", limits.label_characters),
        );
    }
}

#[cfg(test)]
mod tests;
