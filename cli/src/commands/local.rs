//! `musectl generate --local`: the model in this process, without a cluster. The same request gives the same pictures.

use std::{
    path::{Path, PathBuf},
    str::FromStr as _,
    time::{Duration, Instant},
};

use muse_engine::{
    Bundle, GuidanceSchedule, MaskSchedule, Provider, SamplingOverrides, Scheduler, SessionOptions, Stage,
    picture::{EncodeOptions, PictureFormat},
    pipeline::{Picture, Pipeline, PipelineOptions, Progress, Request, Timings},
};
use muse_proto::v1::{self as proto, GenerationRequest, ImageFormat, generation_request::Task};
use serde::Serialize;

use crate::{
    arguments::{GenerateArguments, LocalArguments, Output},
    cluster::find_onnxruntime,
    commands::bundle,
    failure::Failure,
    output,
    pictures::{Destination, name_of},
    progress::Display,
    terminal,
    view::{self, span},
};

/// What `--output json` prints.
#[derive(Serialize)]
struct Report {
    model: String,
    bundle_digest: String,
    provider: &'static str,
    seed: u64,
    files: Vec<PathBuf>,
    load_seconds: f64,
    phases: Vec<Phase>,
    total_seconds: f64,
}

#[derive(Serialize)]
struct Phase {
    stage: &'static str,
    phase: &'static str,
    seconds: f64,
}

pub(crate) fn run(arguments: &GenerateArguments, output: Output) -> Result<(), Failure> {
    let message = arguments.request()?;
    let format = message.format();
    let seed = message.seed.unwrap_or_else(rand::random);
    let request = request_of(&message, seed)?;
    let count = usize::try_from(request.count).unwrap_or(usize::MAX);
    let name = format!("{}-{seed}", name_of(&request.prompt));
    let destination = Destination::new(arguments.out.as_deref(), &name, format, count)?;

    let folder = arguments.bundle.as_deref().unwrap_or(Path::new("bundles/demo"));
    let bundle = bundle::load(folder)?;
    request
        .resolve(&bundle)
        .map_err(|error| Failure::Usage(error.to_string()))?;

    let mut display = Display::new(output == Output::Json);
    display.say("loading the model");
    let begun = Instant::now();
    let mut pipeline = open(&bundle, &arguments.local_runtime)?;
    let loaded = begun.elapsed();
    display.say("embedding the prompt");
    let pictures = pipeline.generate(&request, |progress| tell(&mut display, progress));
    display.finish();
    let pictures = pictures.map_err(failed)?;

    let files = write(&pictures, &destination, format, arguments, output)?;
    let report = Report {
        model: format!("{} {}", bundle.model().name, bundle.model().version),
        bundle_digest: bundle.digest().to_owned(),
        provider: pipeline.provider().as_str(),
        seed,
        files,
        load_seconds: loaded.as_secs_f64(),
        phases: phases(pipeline.timings()),
        total_seconds: begun.elapsed().as_secs_f64(),
    };
    if destination == Destination::Stdout {
        eprintln!("{}", report.table());
        return Ok(());
    }
    output::print(output, &report, || {
        let mut lines = vec![format!("seed {seed}"), report.table()];
        lines.extend(
            report
                .files
                .iter()
                .map(|file| format!("wrote {}", file.display())),
        );
        lines.join("\n")
    })
}

/// Opens every graph that makes pictures; tensors that are not as docs/bundle.md says are an error.
pub(crate) fn open(bundle: &Bundle, arguments: &LocalArguments) -> Result<Pipeline, Failure> {
    let onnxruntime = match &arguments.onnxruntime {
        Some(library) => library.clone(),
        None => find_onnxruntime()?,
    };
    let providers = arguments
        .providers
        .iter()
        .map(|name| Provider::from_str(name))
        .collect::<Result<_, _>>()
        .map_err(Failure::Usage)?;
    let session = SessionOptions {
        onnxruntime: Some(onnxruntime),
        providers,
        threads: arguments.threads,
        ..SessionOptions::default()
    };
    let options = PipelineOptions {
        session,
        ..PipelineOptions::default()
    };
    Pipeline::open(bundle, &options).map_err(failed)
}

fn failed(error: muse_engine::Error) -> Failure {
    match error {
        muse_engine::Error::Settings(_) | muse_engine::Error::Text(_) => Failure::Usage(error.to_string()),
        other => Failure::Failed(other.to_string()),
    }
}

fn write(
    pictures: &[Picture],
    destination: &Destination,
    format: ImageFormat,
    arguments: &GenerateArguments,
    output: Output,
) -> Result<Vec<PathBuf>, Failure> {
    let format = match format {
        ImageFormat::Unspecified | ImageFormat::Png => PictureFormat::Png,
        ImageFormat::Webp => PictureFormat::Webp,
        ImageFormat::Jpeg => PictureFormat::Jpeg,
    };
    let options = EncodeOptions {
        format,
        ..EncodeOptions::default()
    };
    let mut files = Vec::new();
    for picture in pictures {
        let data = muse_engine::picture::encode(&picture.image, options, &picture.provenance)
            .map_err(|error| Failure::Failed(error.to_string()))?;
        files.extend(destination.write(picture.index, pictures.len(), &data)?);
        if *destination != Destination::Stdout && output == Output::Table {
            terminal::show(&data, arguments.show)?;
        }
    }
    Ok(files)
}

fn tell(display: &mut Display, progress: Progress) {
    match progress {
        Progress::Embedded => display.say("decoding"),
        Progress::Step { stage, step, of } => {
            let stage = match stage {
                Stage::Base => proto::Stage::Base,
                Stage::Superres => proto::Stage::Superres,
            };
            display.progress(&proto::Progress {
                stage: stage.into(),
                step,
                of,
            });
        }
        Progress::Pixels { done, of } => display.say(&format!("{done} of {of} pictures")),
    }
}

/// The request as the engine takes it.
fn request_of(message: &GenerationRequest, seed: u64) -> Result<Request, Failure> {
    let Some(Task::TextToImage(text)) = &message.task else {
        return Err(Failure::Usage("there is no prompt".to_owned()));
    };
    Ok(Request {
        prompt: text.prompt.clone(),
        negative_prompt: Some(text.negative_prompt.clone()).filter(|negative| !negative.is_empty()),
        count: text.count.unwrap_or(1),
        seed,
        base: overrides(message.base.as_ref()),
        superres: overrides(message.superres.as_ref()),
    })
}

fn overrides(sampling: Option<&proto::Sampling>) -> SamplingOverrides {
    let Some(sampling) = sampling else {
        return SamplingOverrides::default();
    };
    SamplingOverrides {
        steps: sampling.steps,
        guidance: sampling.guidance,
        guidance_schedule: match sampling.guidance_schedule() {
            proto::GuidanceSchedule::Unspecified => None,
            proto::GuidanceSchedule::Linear => Some(GuidanceSchedule::Linear),
            proto::GuidanceSchedule::Constant => Some(GuidanceSchedule::Constant),
        },
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        choice_temperature: sampling.choice_temperature,
        mask_schedule: match sampling.mask_schedule() {
            proto::MaskSchedule::Unspecified => None,
            proto::MaskSchedule::Cosine => Some(MaskSchedule::Cosine),
            proto::MaskSchedule::Linear => Some(MaskSchedule::Linear),
            proto::MaskSchedule::Arccos => Some(MaskSchedule::Arccos),
        },
        scheduler: match sampling.scheduler() {
            proto::Scheduler::Unspecified => None,
            proto::Scheduler::Confidence => Some(Scheduler::Confidence),
            proto::Scheduler::Halton => Some(Scheduler::Halton),
        },
    }
}

fn phases(timings: &Timings) -> Vec<Phase> {
    let phase = |stage, phase, duration: Duration| Phase {
        stage,
        phase,
        seconds: duration.as_secs_f64(),
    };
    let mut phases = vec![phase("text", "embed", timings.embed)];
    phases.extend(
        timings
            .decode
            .iter()
            .map(|(stage, duration)| phase(stage.as_str(), "decode", *duration)),
    );
    phases.push(phase("picture", "pixels", timings.pixels));
    phases
}

impl Report {
    fn table(&self) -> String {
        let mut rows = view::table(&["STAGE", "PHASE", "TIME"]);
        rows.add_row(["all", "load", &span(self.load_seconds)]);
        for phase in &self.phases {
            rows.add_row([phase.stage, phase.phase, &span(phase.seconds)]);
        }
        rows.add_row(["all", "total", &span(self.total_seconds)]);
        view::render(&rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_means_the_same_here_as_on_the_cluster() {
        let sampling = proto::Sampling {
            steps: Some(4),
            guidance: Some(0.0),
            scheduler: proto::Scheduler::Halton.into(),
            ..proto::Sampling::default()
        };
        let text = proto::TextToImage {
            prompt: "a cat".to_owned(),
            count: Some(3),
            ..proto::TextToImage::default()
        };
        let message = GenerationRequest {
            task: Some(Task::TextToImage(text)),
            superres: Some(sampling),
            ..GenerationRequest::default()
        };
        let request = request_of(&message, 7).unwrap();
        assert_eq!(
            (request.count, request.seed, request.negative_prompt),
            (3, 7, None)
        );
        assert_eq!(request.base, SamplingOverrides::default());
        let superres = request.superres;
        assert_eq!(
            (superres.steps, superres.guidance, superres.top_k),
            (Some(4), Some(0.0), None)
        );
        assert_eq!(superres.scheduler, Some(Scheduler::Halton));
        assert_eq!(superres.mask_schedule, None, "left to the bundle");
    }
}
