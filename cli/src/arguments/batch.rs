//! `musectl batch`, and what its options make of every line.

use std::path::PathBuf;

use clap::Args;
use muse_proto::v1::{GenerationRequest, ImageFormat, Priority};

use super::{
    generate::{Format, Urgency},
    sampling::{BaseSampling, SuperresSampling},
    seconds,
};
use crate::failure::Failure;

#[derive(Args, Debug)]
pub(crate) struct BatchArguments {
    /// Prompts, a JSON object a line: {"prompt": "…"} with optional id, seed, negative_prompt, count, model, priority and
    /// the sampling options below as fields (steps, …, sr_steps, …); `-` is stdin
    pub(crate) prompts: PathBuf,
    /// Folder of the results: <id>.png, or <id>-<n>.png where count is over 1; results.jsonl; failures.jsonl. The same
    /// command again goes on where the last one ended
    #[arg(short, long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Lines in progress at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) in_flight: u32,
    /// Submit nothing when a line is bad
    #[arg(long)]
    pub(crate) strict: bool,
    /// Try lines again that failed in an earlier run
    #[arg(long)]
    pub(crate) retry_failed: bool,
    /// Write tar shards for WebDataset, shard-000000.tar and so on, instead of a file for each picture
    #[arg(long)]
    pub(crate) webdataset: bool,
    /// Lines of a shard
    #[arg(
        long,
        value_name = "LINES",
        default_value_t = 1000,
        requires = "webdataset",
        value_parser = clap::value_parser!(u64).range(1..=1_000_000)
    )]
    pub(crate) shard_size: u64,
    /// The model of lines that name none [default: the cluster's]
    #[arg(long, default_value = "")]
    pub(crate) model: String,
    /// The pictures' format
    #[arg(long, value_enum, default_value_t = Format::Png)]
    pub(crate) format: Format,
    /// How soon among waiting jobs; a batch gives way unless told otherwise
    #[arg(long, value_enum, default_value_t = Urgency::Low)]
    pub(crate) priority: Urgency,
    /// Give a job up when it is not done after so many seconds [default: the gateway's]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<std::time::Duration>,
    #[command(flatten)]
    pub(crate) base: BaseSampling,
    #[command(flatten)]
    pub(crate) superres: SuperresSampling,
    /// Give up when no gateway has answered for so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = seconds)]
    pub(crate) patience: std::time::Duration,
    /// A longer line is a bad one
    #[arg(long, value_name = "BYTES", default_value_t = 1_048_576)]
    pub(crate) max_line_bytes: usize,
}

impl BatchArguments {
    /// What holds for every line that does not say otherwise.
    ///
    /// # Errors
    /// When a number makes no sense.
    pub(crate) fn template(&self) -> Result<GenerationRequest, Failure> {
        let timeout = self
            .timeout
            .map(prost_types::Duration::try_from)
            .transpose()
            .map_err(|_| Failure::Usage("--timeout is too long".to_owned()))?;
        Ok(GenerationRequest {
            model: self.model.clone(),
            base: Some(self.base.sampling()),
            superres: Some(self.superres.sampling()),
            format: ImageFormat::from(self.format).into(),
            priority: Priority::from(self.priority).into(),
            timeout,
            ..GenerationRequest::default()
        })
    }

    /// Lines of a shard, when shards are wanted.
    pub(crate) fn shard_size(&self) -> Option<u64> {
        self.webdataset.then_some(self.shard_size)
    }
}
