//! `musectl generate`, and the request that it means.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use muse_proto::v1::{GenerationRequest, ImageFormat, Priority, TextToImage, generation_request::Task};

use super::{
    sampling::{BaseSampling, SuperresSampling},
    seconds,
};
use crate::failure::Failure;

#[derive(Args, Debug)]
pub(crate) struct GenerateArguments {
    /// What the picture shows
    pub(crate) prompt: String,
    /// What it should not show
    #[arg(long, default_value = "")]
    pub(crate) negative: String,
    /// Pictures to make
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u32>,
    /// The same seed gives the same pictures [default: a random one]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// The model [default: the cluster's]
    #[arg(long, default_value = "")]
    pub(crate) model: String,
    /// Where to; `-` is stdout. With several pictures: NAME-<k>.EXT, k from 0 [default: from prompt and seed]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// The pictures' format [default: by the ending of --out, or png]
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    #[command(flatten)]
    pub(crate) base: BaseSampling,
    #[command(flatten)]
    pub(crate) superres: SuperresSampling,
    /// How soon among waiting jobs
    #[arg(long, value_enum)]
    pub(crate) priority: Option<Urgency>,
    /// Give the job up when it is not done after so many seconds [default: the gateway's]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<std::time::Duration>,
    /// Makes a repeated command give the same job [default: a new one each time]
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    /// Free text that is kept with the job
    #[arg(long = "label", value_name = "NAME=TEXT", value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    /// Submit the job, print its id, and do not wait for it
    #[arg(long, conflicts_with_all = ["local", "out"])]
    pub(crate) detach: bool,
    /// Show the pictures in the terminal: kitty's and iTerm2's protocols; with `always`, coloured blocks anywhere else
    #[arg(long, value_enum, default_value_t = Show::Auto, num_args = 0..=1, default_missing_value = "always")]
    pub(crate) show: Show,
    /// Keep trying to reach a gateway for so many seconds after contact was lost
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub(crate) patience: std::time::Duration,
    /// Run the model in this process, without a cluster
    #[arg(long)]
    pub(crate) local: bool,
    /// With --local: the bundle
    #[arg(
        long,
        value_name = "FOLDER",
        requires = "local",
        default_value_if("local", "true", "bundles/demo")
    )]
    pub(crate) bundle: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) local_runtime: LocalArguments,
}

/// ONNX Runtime in this process.
#[derive(Args, Debug)]
pub(crate) struct LocalArguments {
    /// ONNX Runtime's library [default: .deps/onnxruntime, as `make runtime` fetches it]
    #[arg(long, value_name = "FILE", env = crate::cluster::ONNXRUNTIME_VARIABLE)]
    pub(crate) onnxruntime: Option<PathBuf>,
    /// Execution providers in order: cuda, tensorrt, openvino, cpu
    #[arg(
        long = "provider",
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "cpu"
    )]
    pub(crate) providers: Vec<String>,
    /// Threads inside an operator; 0: one for each core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) threads: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Show {
    /// When stdout is a terminal that can show pictures
    Auto,
    /// In any terminal, if need be as coloured blocks
    Always,
    /// Not
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Png,
    /// Lossless
    Webp,
    #[value(alias = "jpg")]
    Jpeg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Urgency {
    Low,
    Normal,
    High,
}

impl GenerateArguments {
    /// The request, and the format of its pictures.
    ///
    /// # Errors
    /// When --format and the ending of --out disagree.
    pub(crate) fn request(&self) -> Result<GenerationRequest, Failure> {
        let format = format(self.format, self.out.as_deref())?;
        let timeout = match self.timeout {
            Some(timeout) => Some(
                timeout
                    .try_into()
                    .map_err(|_| Failure::Usage("--timeout is too long".to_owned()))?,
            ),
            None => None,
        };
        Ok(GenerationRequest {
            model: self.model.clone(),
            task: Some(Task::TextToImage(TextToImage {
                prompt: self.prompt.clone(),
                negative_prompt: self.negative.clone(),
                count: self.count,
            })),
            base: Some(self.base.sampling()),
            superres: Some(self.superres.sampling()),
            seed: self.seed,
            format: ImageFormat::from(format).into(),
            priority: self.priority.map_or(Priority::Unspecified, Priority::from).into(),
            timeout,
            idempotency_key: self.idempotency_key.clone().unwrap_or_default(),
            labels: self.labels.iter().cloned().collect(),
            ..GenerationRequest::default()
        })
    }
}

/// The format asked for; a file name that says another one is a mistake that nobody wants to find out later.
fn format(asked: Option<Format>, out: Option<&Path>) -> Result<Format, Failure> {
    let ending = out
        .and_then(Path::extension)
        .map(|ending| ending.to_string_lossy().into_owned());
    let by_name = ending
        .as_deref()
        .and_then(|ending| Format::from_str(ending, true).ok());
    match (asked, by_name, ending) {
        (Some(asked), Some(named), Some(ending)) if asked != named => Err(Failure::Usage(format!(
            "--format and --out disagree: .{ending} is not {}",
            ImageFormat::from(asked).as_str_name()
        ))),
        (Some(asked), ..) => Ok(asked),
        (None, Some(named), _) => Ok(named),
        (None, None, Some(ending)) => Err(Failure::Usage(format!(
            ".{ending} is no format that is made: use .png, .webp or .jpg, or say --format"
        ))),
        (None, None, None) => Ok(Format::Png),
    }
}

impl From<Format> for ImageFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Png => Self::Png,
            Format::Webp => Self::Webp,
            Format::Jpeg => Self::Jpeg,
        }
    }
}

impl From<Urgency> for Priority {
    fn from(urgency: Urgency) -> Self {
        match urgency {
            Urgency::Low => Self::Low,
            Urgency::Normal => Self::Normal,
            Urgency::High => Self::High,
        }
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=TEXT")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use muse_proto::v1::Sampling;

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn request(arguments: &[&str]) -> Result<GenerationRequest, Failure> {
        match Arguments::parse_from([&["musectl", "generate"], arguments].concat()).command {
            Command::Generate(generate) => generate.request(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_not_given_is_left_to_the_bundle() {
        let request = request(&["a cat", "--sr-steps", "4", "--guidance", "0"]).unwrap();
        let (base, superres) = (request.base.unwrap(), request.superres.unwrap());
        assert_eq!(
            base,
            Sampling {
                guidance: Some(0.0),
                ..Sampling::default()
            }
        );
        assert_eq!(
            superres,
            Sampling {
                steps: Some(4),
                ..Sampling::default()
            }
        );
        assert_eq!((request.seed, request.format), (None, ImageFormat::Png as i32));
    }

    #[test]
    fn the_format_follows_the_file_name_and_a_contradiction_is_refused() {
        let format = |arguments: &[&str]| request(arguments).map(|request| request.format);
        assert_eq!(format(&["x", "-o", "a.JPG"]).unwrap(), ImageFormat::Jpeg as i32);
        assert_eq!(
            format(&["x", "-o", "a.webp", "--format", "webp"]).unwrap(),
            ImageFormat::Webp as i32
        );
        assert_eq!(format(&["x", "-o", "-"]).unwrap(), ImageFormat::Png as i32);
        assert!(
            format(&["x", "-o", "a.png", "--format", "jpeg"])
                .unwrap_err()
                .to_string()
                .contains("disagree")
        );
        assert!(
            format(&["x", "-o", "a.gif"])
                .unwrap_err()
                .to_string()
                .contains(".gif")
        );
        assert_eq!(
            format(&["x", "-o", "a.gif", "--format", "png"]).unwrap(),
            ImageFormat::Png as i32
        );
    }
}
