//! The sampling settings of `musectl generate`, for each stage.

use clap::{Args, ValueEnum};
use muse_proto::v1::{GuidanceSchedule, MaskSchedule, Sampling, Scheduler};

/// The base stage's settings; what is not given comes from the bundle.
#[derive(Args, Debug)]
#[command(next_help_heading = "Base stage (what is not given comes from the bundle)")]
pub(crate) struct BaseSampling {
    /// Forward passes
    #[arg(long, value_name = "N")]
    steps: Option<u32>,
    /// The paper's t: logits = (1+t)*conditional - t*unconditional
    #[arg(long, value_name = "T")]
    guidance: Option<f32>,
    /// How guidance changes over the steps
    #[arg(long, value_enum)]
    guidance_schedule: Option<GuidanceScheduleName>,
    /// 0 takes the most likely token
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Keep the k most likely tokens; 0 keeps all
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Noise on the confidence
    #[arg(long, value_name = "TAU")]
    choice_temperature: Option<f32>,
    /// How fast the grid fills
    #[arg(long, value_enum)]
    mask_schedule: Option<MaskScheduleName>,
    /// Which positions are filled first
    #[arg(long, value_enum)]
    scheduler: Option<SchedulerName>,
}

/// The super-resolution stage's settings.
#[derive(Args, Debug)]
#[command(next_help_heading = "Super-resolution stage")]
pub(crate) struct SuperresSampling {
    /// As --steps
    #[arg(long, value_name = "N")]
    sr_steps: Option<u32>,
    /// As --guidance
    #[arg(long, value_name = "T")]
    sr_guidance: Option<f32>,
    /// As --guidance-schedule
    #[arg(long, value_enum)]
    sr_guidance_schedule: Option<GuidanceScheduleName>,
    /// As --temperature
    #[arg(long, value_name = "T")]
    sr_temperature: Option<f32>,
    /// As --top-k
    #[arg(long, value_name = "K")]
    sr_top_k: Option<u32>,
    /// As --choice-temperature
    #[arg(long, value_name = "TAU")]
    sr_choice_temperature: Option<f32>,
    /// As --mask-schedule
    #[arg(long, value_enum)]
    sr_mask_schedule: Option<MaskScheduleName>,
    /// As --scheduler
    #[arg(long, value_enum)]
    sr_scheduler: Option<SchedulerName>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum GuidanceScheduleName {
    /// From 0 at the first step to the full value at the last
    Linear,
    Constant,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MaskScheduleName {
    Cosine,
    Linear,
    Arccos,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SchedulerName {
    /// The surest tokens first
    Confidence,
    /// A fixed, evenly spread order
    Halton,
}

impl BaseSampling {
    pub(super) fn sampling(&self) -> Sampling {
        Sampling {
            steps: self.steps,
            guidance: self.guidance,
            guidance_schedule: self
                .guidance_schedule
                .map_or(0, |name| GuidanceSchedule::from(name).into()),
            temperature: self.temperature,
            top_k: self.top_k,
            choice_temperature: self.choice_temperature,
            mask_schedule: self
                .mask_schedule
                .map_or(0, |name| MaskSchedule::from(name).into()),
            scheduler: self.scheduler.map_or(0, |name| Scheduler::from(name).into()),
        }
    }
}

impl SuperresSampling {
    pub(super) fn sampling(&self) -> Sampling {
        Sampling {
            steps: self.sr_steps,
            guidance: self.sr_guidance,
            guidance_schedule: self
                .sr_guidance_schedule
                .map_or(0, |name| GuidanceSchedule::from(name).into()),
            temperature: self.sr_temperature,
            top_k: self.sr_top_k,
            choice_temperature: self.sr_choice_temperature,
            mask_schedule: self
                .sr_mask_schedule
                .map_or(0, |name| MaskSchedule::from(name).into()),
            scheduler: self.sr_scheduler.map_or(0, |name| Scheduler::from(name).into()),
        }
    }
}

impl From<GuidanceScheduleName> for GuidanceSchedule {
    fn from(name: GuidanceScheduleName) -> Self {
        match name {
            GuidanceScheduleName::Linear => Self::Linear,
            GuidanceScheduleName::Constant => Self::Constant,
        }
    }
}

impl From<MaskScheduleName> for MaskSchedule {
    fn from(name: MaskScheduleName) -> Self {
        match name {
            MaskScheduleName::Cosine => Self::Cosine,
            MaskScheduleName::Linear => Self::Linear,
            MaskScheduleName::Arccos => Self::Arccos,
        }
    }
}

impl From<SchedulerName> for Scheduler {
    fn from(name: SchedulerName) -> Self {
        match name {
            SchedulerName::Confidence => Self::Confidence,
            SchedulerName::Halton => Self::Halton,
        }
    }
}
