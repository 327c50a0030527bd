//! Sampling settings between the wire and the engine.

use muse_engine::{
    FieldViolation, GuidanceSchedule, InvalidSettings, MaskSchedule, Sampling, Scheduler, Stage,
};
use muse_proto::v1;

/// A stage, as the wire names it.
pub fn stage_to_wire(stage: Stage) -> v1::Stage {
    match stage {
        Stage::Base => v1::Stage::Base,
        Stage::Superres => v1::Stage::Superres,
    }
}

/// Settings, every field set.
pub fn to_wire(sampling: &Sampling) -> v1::Sampling {
    v1::Sampling {
        steps: Some(sampling.steps),
        guidance: Some(sampling.guidance),
        guidance_schedule: match sampling.guidance_schedule {
            GuidanceSchedule::Linear => v1::GuidanceSchedule::Linear,
            GuidanceSchedule::Constant => v1::GuidanceSchedule::Constant,
        } as i32,
        temperature: Some(sampling.temperature),
        top_k: Some(sampling.top_k),
        choice_temperature: Some(sampling.choice_temperature),
        mask_schedule: match sampling.mask_schedule {
            MaskSchedule::Cosine => v1::MaskSchedule::Cosine,
            MaskSchedule::Linear => v1::MaskSchedule::Linear,
            MaskSchedule::Arccos => v1::MaskSchedule::Arccos,
        } as i32,
        scheduler: match sampling.scheduler {
            Scheduler::Confidence => v1::Scheduler::Confidence,
            Scheduler::Halton => v1::Scheduler::Halton,
        } as i32,
    }
}

/// A request's settings of `stage`, with `defaults` where it is silent (the gateway fills them in, but an older one may not
/// know a newer field), checked.
///
/// # Errors
/// Every field that is out of range or unknown, with its path.
pub fn from_wire(
    request: Option<&v1::Sampling>,
    defaults: &Sampling,
    stage: Stage,
) -> Result<Sampling, InvalidSettings> {
    let request = request.copied().unwrap_or_default();
    let unknown = |field: &str, value: i32| InvalidSettings {
        violations: vec![FieldViolation {
            field: format!("{stage}.{field}"),
            description: format!("{value} is not known to this worker"),
        }],
    };
    let guidance_schedule = match v1::GuidanceSchedule::try_from(request.guidance_schedule) {
        Ok(v1::GuidanceSchedule::Unspecified) => defaults.guidance_schedule,
        Ok(v1::GuidanceSchedule::Linear) => GuidanceSchedule::Linear,
        Ok(v1::GuidanceSchedule::Constant) => GuidanceSchedule::Constant,
        Err(_) => return Err(unknown("guidance_schedule", request.guidance_schedule)),
    };
    let mask_schedule = match v1::MaskSchedule::try_from(request.mask_schedule) {
        Ok(v1::MaskSchedule::Unspecified) => defaults.mask_schedule,
        Ok(v1::MaskSchedule::Cosine) => MaskSchedule::Cosine,
        Ok(v1::MaskSchedule::Linear) => MaskSchedule::Linear,
        Ok(v1::MaskSchedule::Arccos) => MaskSchedule::Arccos,
        Err(_) => return Err(unknown("mask_schedule", request.mask_schedule)),
    };
    let scheduler = match v1::Scheduler::try_from(request.scheduler) {
        Ok(v1::Scheduler::Unspecified) => defaults.scheduler,
        Ok(v1::Scheduler::Confidence) => Scheduler::Confidence,
        Ok(v1::Scheduler::Halton) => Scheduler::Halton,
        Err(_) => return Err(unknown("scheduler", request.scheduler)),
    };
    let sampling = Sampling {
        steps: request.steps.unwrap_or(defaults.steps),
        guidance: request.guidance.unwrap_or(defaults.guidance),
        guidance_schedule,
        temperature: request.temperature.unwrap_or(defaults.temperature),
        top_k: request.top_k.unwrap_or(defaults.top_k),
        choice_temperature: request.choice_temperature.unwrap_or(defaults.choice_temperature),
        mask_schedule,
        scheduler,
    };
    sampling.validate(stage.as_str())?;
    Ok(sampling)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Sampling {
        Sampling {
            steps: 12,
            guidance: 3.0,
            guidance_schedule: GuidanceSchedule::Constant,
            temperature: 0.9,
            top_k: 7,
            choice_temperature: 4.5,
            mask_schedule: MaskSchedule::Arccos,
            scheduler: Scheduler::Halton,
        }
    }

    #[test]
    fn settings_come_back_as_they_went_and_silence_means_the_defaults() {
        let other = Sampling {
            steps: 1,
            guidance: 0.0,
            top_k: 0,
            ..defaults()
        };
        assert_eq!(
            from_wire(Some(&to_wire(&defaults())), &other, Stage::Base),
            Ok(defaults())
        );
        assert_eq!(from_wire(None, &defaults(), Stage::Base), Ok(defaults()));
    }

    #[test]
    fn what_is_out_of_range_or_unknown_is_named_with_its_stage() {
        let nan = v1::Sampling {
            guidance: Some(f32::NAN),
            ..v1::Sampling::default()
        };
        let error = from_wire(Some(&nan), &defaults(), Stage::Superres)
            .unwrap_err()
            .to_string();
        assert!(error.contains("superres.guidance"), "{error}");
        let unknown = v1::Sampling {
            scheduler: 77,
            ..v1::Sampling::default()
        };
        let error = from_wire(Some(&unknown), &defaults(), Stage::Base)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("base.scheduler") && error.contains("77"),
            "{error}"
        );
    }
}
