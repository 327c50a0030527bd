//! Jobs.

use std::collections::BTreeMap;

use muse_proto::v1::{
    GenerationRequest, ImageInfo, Job, JobError, Progress, Sampling, StageTiming, generation_request::Task,
};
use serde::Serialize;

use super::{model::SamplingView, or_dash, render, seconds, span, table, time, words};

#[derive(Debug, Serialize)]
pub(crate) struct JobView {
    pub(crate) id: String,
    pub(crate) state: &'static str,
    pub(crate) stage: &'static str,
    pub(crate) progress: Option<ProgressView>,
    pub(crate) request: Option<RequestView>,
    pub(crate) images: Vec<ImageView>,
    pub(crate) error: Option<ErrorView>,
    pub(crate) attempts: u32,
    pub(crate) crashes: u32,
    pub(crate) created_at: Option<String>,
    pub(crate) updated_at: Option<String>,
    pub(crate) finished_at: Option<String>,
    pub(crate) deadline: Option<String>,
    pub(crate) timings: Vec<TimingView>,
    pub(crate) version: u64,
    pub(crate) worker_id: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct ProgressView {
    stage: &'static str,
    step: u32,
    of: u32,
}

#[derive(Debug, Serialize)]
pub(crate) struct RequestView {
    model: String,
    prompt: String,
    negative_prompt: String,
    count: u32,
    pub(crate) seed: Option<u64>,
    format: &'static str,
    width: u32,
    height: u32,
    priority: &'static str,
    base: Option<SamplingView>,
    superres: Option<SamplingView>,
    timeout_seconds: Option<f64>,
    idempotency_key: String,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ImageView {
    index: u32,
    format: &'static str,
    width: u32,
    height: u32,
    size_bytes: u64,
    sha256: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct ErrorView {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct TimingView {
    pub(crate) stage: &'static str,
    pub(crate) wait_seconds: Option<f64>,
    pub(crate) embed_seconds: Option<f64>,
    pub(crate) decode_seconds: Option<f64>,
    pub(crate) pixels_seconds: Option<f64>,
    pub(crate) worker_id: String,
}

impl From<&Job> for JobView {
    fn from(job: &Job) -> Self {
        Self {
            id: job.id.clone(),
            state: words::state(job.state()),
            stage: words::stage(job.stage()),
            progress: job.progress.as_ref().map(ProgressView::from),
            request: job.request.as_ref().map(RequestView::from),
            images: job.images.iter().map(ImageView::from).collect(),
            error: job.error.as_ref().map(ErrorView::from),
            attempts: job.attempts,
            crashes: job.crashes,
            created_at: time(job.created_at.as_ref()),
            updated_at: time(job.updated_at.as_ref()),
            finished_at: time(job.finished_at.as_ref()),
            deadline: time(job.deadline.as_ref()),
            timings: job.timings.iter().map(TimingView::from).collect(),
            version: job.version,
            worker_id: job.worker_id.clone(),
        }
    }
}

impl From<&JobError> for ErrorView {
    fn from(error: &JobError) -> Self {
        Self {
            reason: words::reason(error.reason()),
            message: error.message.clone(),
        }
    }
}

impl From<&Progress> for ProgressView {
    fn from(progress: &Progress) -> Self {
        Self {
            stage: words::stage(progress.stage()),
            step: progress.step,
            of: progress.of,
        }
    }
}

impl From<&GenerationRequest> for RequestView {
    fn from(request: &GenerationRequest) -> Self {
        let text = request.task.as_ref().map(|Task::TextToImage(text)| text);
        let sampling = |sampling: &Option<Sampling>| sampling.as_ref().map(SamplingView::from);
        Self {
            model: request.model.clone(),
            prompt: text.map(|text| text.prompt.clone()).unwrap_or_default(),
            negative_prompt: text.map(|text| text.negative_prompt.clone()).unwrap_or_default(),
            count: text.and_then(|text| text.count).unwrap_or(1),
            seed: request.seed,
            format: words::format(request.format()),
            width: request.width,
            height: request.height,
            priority: words::priority(request.priority()),
            base: sampling(&request.base),
            superres: sampling(&request.superres),
            timeout_seconds: seconds(request.timeout.as_ref()),
            idempotency_key: request.idempotency_key.clone(),
            labels: request.labels.clone().into_iter().collect(),
        }
    }
}

impl From<&ImageInfo> for ImageView {
    fn from(image: &ImageInfo) -> Self {
        Self {
            index: image.index,
            format: words::format(image.format()),
            width: image.width,
            height: image.height,
            size_bytes: image.size_bytes,
            sha256: image.sha256.clone(),
        }
    }
}

impl From<&StageTiming> for TimingView {
    fn from(timing: &StageTiming) -> Self {
        Self {
            stage: words::stage(timing.stage()),
            wait_seconds: seconds(timing.wait.as_ref()),
            embed_seconds: seconds(timing.embed.as_ref()),
            decode_seconds: seconds(timing.decode.as_ref()),
            pixels_seconds: seconds(timing.pixels.as_ref()),
            worker_id: timing.worker_id.clone(),
        }
    }
}

impl TimingView {
    /// Each phase that took place, with its seconds.
    pub(crate) fn phases(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let phases = [
            ("wait", self.wait_seconds),
            ("embed", self.embed_seconds),
            ("decode", self.decode_seconds),
            ("pixels", self.pixels_seconds),
        ];
        phases
            .into_iter()
            .filter_map(|(phase, seconds)| Some((phase, seconds?)))
    }
}

/// Several jobs, one a row.
pub(crate) fn list(jobs: &[Job]) -> String {
    let mut rows = table(&[
        "ID", "STATE", "STAGE", "STEP", "COUNT", "SEED", "CREATED", "PROMPT",
    ]);
    for job in jobs {
        let view = JobView::from(job);
        let step = view
            .progress
            .as_ref()
            .map(|progress| format!("{}/{}", progress.step, progress.of));
        let request = view.request.as_ref();
        rows.add_row([
            view.id.clone(),
            view.state.to_owned(),
            view.stage.to_owned(),
            or_dash(step),
            or_dash(request.map(|request| request.count.to_string())),
            or_dash(
                request
                    .and_then(|request| request.seed)
                    .map(|seed| seed.to_string()),
            ),
            or_dash(view.created_at.clone()),
            or_dash(request.map(|request| shorten(&request.prompt))),
        ]);
    }
    render(&rows)
}

/// One job, a fact a row.
pub(crate) fn details(job: &Job) -> String {
    let view = JobView::from(job);
    let mut facts = vec![("id", view.id.clone()), ("state", view.state.to_owned())];
    if let Some(error) = &view.error {
        facts.push(("error", format!("{} ({})", error.message, error.reason)));
    }
    facts.push(("stage", view.stage.to_owned()));
    if let Some(progress) = &view.progress {
        facts.push((
            "progress",
            format!("{} {}/{}", progress.stage, progress.step, progress.of),
        ));
    }
    if let Some(request) = &view.request {
        facts.push(("model", request.model.clone()));
        facts.push(("prompt", request.prompt.clone()));
        if !request.negative_prompt.is_empty() {
            facts.push(("negative", request.negative_prompt.clone()));
        }
        facts.push(("count", request.count.to_string()));
        facts.push(("seed", or_dash(request.seed.map(|seed| seed.to_string()))));
        facts.push(("priority", request.priority.to_owned()));
        for (name, sampling) in [("base", &request.base), ("superres", &request.superres)] {
            facts.extend(sampling.as_ref().map(|sampling| (name, sampling.to_string())));
        }
        facts.extend(
            request
                .labels
                .iter()
                .map(|(name, text)| ("label", format!("{name}={text}"))),
        );
    }
    facts.push((
        "attempts",
        format!("{} failed, {} workers lost", view.attempts, view.crashes),
    ));
    for (name, time) in [
        ("created", &view.created_at),
        ("updated", &view.updated_at),
        ("finished", &view.finished_at),
        ("deadline", &view.deadline),
    ] {
        facts.extend(time.clone().map(|time| (name, time)));
    }
    if !view.worker_id.is_empty() {
        facts.push(("worker", view.worker_id.clone()));
    }
    for timing in &view.timings {
        let phases: Vec<String> = timing
            .phases()
            .map(|(phase, seconds)| format!("{phase} {}", span(seconds)))
            .collect();
        facts.push(("timing", format!("{}: {}", timing.stage, phases.join(", "))));
    }
    for image in &view.images {
        let sizes = format!(
            "{}x{} {}, {} bytes",
            image.width, image.height, image.format, image.size_bytes
        );
        facts.push(("image", format!("{}: {sizes}", image.index)));
    }

    super::facts(facts)
}

/// Characters of a prompt in a list.
const SHORT_PROMPT: usize = 40;

fn shorten(text: &str) -> String {
    if text.chars().count() <= SHORT_PROMPT {
        return text.to_owned();
    }
    let start: String = text.chars().take(SHORT_PROMPT - 1).collect();
    format!("{start}…")
}

#[cfg(test)]
mod tests {
    use muse_proto::v1::{JobState, Stage, TextToImage};

    use super::*;

    fn job() -> Job {
        Job {
            id: "0192".to_owned(),
            state: JobState::Running.into(),
            stage: Stage::Superres.into(),
            progress: Some(Progress {
                stage: Stage::Superres.into(),
                step: 3,
                of: 8,
            }),
            request: Some(GenerationRequest {
                task: Some(Task::TextToImage(TextToImage {
                    prompt: "two red apples on a blue background, and more words".to_owned(),
                    count: Some(2),
                    ..TextToImage::default()
                })),
                seed: Some(u64::MAX),
                ..GenerationRequest::default()
            }),
            created_at: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }),
            timings: vec![StageTiming {
                stage: Stage::Base.into(),
                decode: Some(prost_types::Duration {
                    seconds: 1,
                    nanos: 500_000_000,
                }),
                ..StageTiming::default()
            }],
            ..Job::default()
        }
    }

    #[test]
    fn a_list_has_a_row_for_each_job() {
        let text = list(&[job()]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        for part in [
            "0192",
            "running",
            "superres",
            "3/8",
            "18446744073709551615",
            "1970-01-01T00:00:00Z",
            "…",
        ] {
            assert!(lines[1].contains(part), "{part} is missing in {text}");
        }
    }

    #[test]
    fn details_leave_out_what_there_is_not() {
        let text = details(&job());
        assert!(text.contains("base: decode 1.50 s"), "{text}");
        assert!(!text.contains("error") && !text.contains("finished"), "{text}");
    }

    #[test]
    fn json_has_words_units_and_whole_numbers() {
        let json = serde_json::to_value(JobView::from(&job())).unwrap();
        assert_eq!(json["state"], "running");
        assert_eq!(json["progress"]["of"], 8);
        assert_eq!(json["request"]["seed"], u64::MAX);
        assert_eq!(json["timings"][0]["decode_seconds"], 1.5);
        assert_eq!(json["finished_at"], serde_json::Value::Null);
    }
}
