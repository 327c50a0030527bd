//! The settings of one stage.

use std::ops::RangeInclusive;

use muse_proto::v1::{GuidanceSchedule, MaskSchedule, Sampling, Scheduler};

use super::Violations;
use crate::config::Limits;

/// Adds what is wrong with `sampling`; `field` is its path.
pub(super) fn check(sampling: &Sampling, field: &str, limits: &Limits, found: &mut Violations) {
    if let Some(steps) = sampling.steps
        && !(1..=limits.steps).contains(&steps)
    {
        found.add(
            format!("{field}.steps"),
            format!("must be between 1 and {}, not {steps}", limits.steps),
        );
    }
    if let Some(top_k) = sampling.top_k
        && top_k > limits.top_k
    {
        found.add(
            format!("{field}.top_k"),
            format!("must be between 0 (off) and {}, not {top_k}", limits.top_k),
        );
    }
    for (name, value, most) in [
        ("guidance", sampling.guidance, limits.guidance),
        ("temperature", sampling.temperature, limits.temperature),
        (
            "choice_temperature",
            sampling.choice_temperature,
            limits.choice_temperature,
        ),
    ] {
        if let Some(value) = value {
            number(&format!("{field}.{name}"), value, 0.0..=most, found);
        }
    }
    let unknown = [
        (
            "guidance_schedule",
            sampling.guidance_schedule,
            GuidanceSchedule::try_from(sampling.guidance_schedule).is_err(),
        ),
        (
            "mask_schedule",
            sampling.mask_schedule,
            MaskSchedule::try_from(sampling.mask_schedule).is_err(),
        ),
        (
            "scheduler",
            sampling.scheduler,
            Scheduler::try_from(sampling.scheduler).is_err(),
        ),
    ];
    for (name, value, unknown) in unknown {
        if unknown {
            found.add(
                format!("{field}.{name}"),
                format!("{value} is no value that this version knows"),
            );
        }
    }
}

/// NaN lies in no range.
fn number(field: &str, value: f32, range: RangeInclusive<f32>, found: &mut Violations) {
    if !range.contains(&value) {
        let (least, most) = range.into_inner();
        found.add(
            field,
            format!("must be a number between {least} and {most}, not {value}"),
        );
    }
}
