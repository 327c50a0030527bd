//! How a stage is sampled: the settings of docs/decoding.md, their ranges, and how a request's fill up from defaults.

use serde::{Deserialize, Serialize};

/// How the number of masked positions falls over the steps (MaskGIT §3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MaskSchedule {
    /// `cos(πr/2)`.
    Cosine,
    /// `1 − r`.
    Linear,
    /// `acos(r)·2/π`.
    Arccos,
}

/// Which positions are masked again after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    /// Those of the lowest confidence (Muse §2.8).
    Confidence,
    /// Those last in a 2-D Halton order.
    Halton,
}

/// How the guidance scale moves over the steps (Muse §2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuidanceSchedule {
    /// From 0 at the first step to the full scale at the last.
    Linear,
    /// The full scale at every step.
    Constant,
}

/// Settings of one stage's decoding, every one of them given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Forward passes asked for, at least 1. A row with fewer masked positions takes one step for each.
    pub steps: u32,
    /// The paper's t, at least 0: `(1+t)·conditional − t·unconditional`.
    pub guidance: f32,
    /// How t moves over the steps.
    pub guidance_schedule: GuidanceSchedule,
    /// Divides the logits, at least 0; 0 takes the most likely token.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// τ, noise on the confidence, falling linearly to 0; at least 0.
    pub choice_temperature: f32,
    /// How many positions stay masked after each step.
    pub mask_schedule: MaskSchedule,
    /// Which positions stay masked.
    pub scheduler: Scheduler,
}

/// One field that is out of range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// The field's name, with a path before it where the caller gave one: `base.steps`.
    pub field: String,
    /// What is wrong and what is allowed.
    pub description: String,
}

/// Settings out of range, field by field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .violations.iter().map(|violation| format!("{}: {}", violation.field, violation.description))
    .collect::<Vec<_>>().join("; "))]
pub struct InvalidSettings {
    /// At least one.
    pub violations: Vec<FieldViolation>,
}

// === impl Sampling ===

impl Sampling {
    /// Checks every range. `path` names the settings in the error (`base` gives `base.steps`); empty: bare names.
    pub fn validate(&self, path: &str) -> Result<(), InvalidSettings> {
        let mut violations = Vec::new();
        let mut refuse = |field: &str, description: String| {
            let field = if path.is_empty() {
                field.to_owned()
            } else {
                format!("{path}.{field}")
            };
            violations.push(FieldViolation { field, description });
        };
        if self.steps == 0 {
            refuse("steps", "must be at least 1".to_owned());
        }
        for (field, value) in [
            ("guidance", self.guidance),
            ("temperature", self.temperature),
            ("choice_temperature", self.choice_temperature),
        ] {
            if !value.is_finite() || value < 0.0 {
                refuse(
                    field,
                    format!("must be a finite number of at least 0, not {value}"),
                );
            }
        }
        if violations.is_empty() {
            Ok(())
        } else {
            Err(InvalidSettings { violations })
        }
    }
}

/// What a request says about a stage's sampling; the rest comes from the bundle's defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingOverrides {
    /// See [`Sampling::steps`].
    pub steps: Option<u32>,
    /// See [`Sampling::guidance`].
    pub guidance: Option<f32>,
    /// See [`Sampling::guidance_schedule`].
    pub guidance_schedule: Option<GuidanceSchedule>,
    /// See [`Sampling::temperature`].
    pub temperature: Option<f32>,
    /// See [`Sampling::top_k`].
    pub top_k: Option<u32>,
    /// See [`Sampling::choice_temperature`].
    pub choice_temperature: Option<f32>,
    /// See [`Sampling::mask_schedule`].
    pub mask_schedule: Option<MaskSchedule>,
    /// See [`Sampling::scheduler`].
    pub scheduler: Option<Scheduler>,
}

// === impl SamplingOverrides ===

impl SamplingOverrides {
    /// These settings over `defaults`. The result is not yet validated.
    pub fn resolve(&self, defaults: &Sampling) -> Sampling {
        Sampling {
            steps: self.steps.unwrap_or(defaults.steps),
            guidance: self.guidance.unwrap_or(defaults.guidance),
            guidance_schedule: self.guidance_schedule.unwrap_or(defaults.guidance_schedule),
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            choice_temperature: self.choice_temperature.unwrap_or(defaults.choice_temperature),
            mask_schedule: self.mask_schedule.unwrap_or(defaults.mask_schedule),
            scheduler: self.scheduler.unwrap_or(defaults.scheduler),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Sampling {
        Sampling {
            steps: 12,
            guidance: 3.0,
            guidance_schedule: GuidanceSchedule::Linear,
            temperature: 1.0,
            top_k: 0,
            choice_temperature: 4.5,
            mask_schedule: MaskSchedule::Cosine,
            scheduler: Scheduler::Confidence,
        }
    }

    #[test]
    fn every_field_out_of_range_is_named_with_its_path() {
        let wrong = Sampling {
            steps: 0,
            guidance: f32::NAN,
            temperature: -1.0,
            ..defaults()
        };
        let error = wrong.validate("superres").unwrap_err();
        let fields: Vec<_> = error
            .violations
            .iter()
            .map(|violation| violation.field.as_str())
            .collect();
        assert_eq!(
            fields,
            ["superres.steps", "superres.guidance", "superres.temperature"]
        );
        assert!(
            error.to_string().contains("superres.steps: must be at least 1"),
            "{error}"
        );
    }

    #[test]
    fn what_a_request_leaves_out_comes_from_the_defaults() {
        let overrides = SamplingOverrides {
            steps: Some(3),
            guidance: Some(0.0),
            ..Default::default()
        };
        let sampling = overrides.resolve(&defaults());
        assert_eq!(
            sampling,
            Sampling {
                steps: 3,
                guidance: 0.0,
                ..defaults()
            }
        );
        sampling.validate("").unwrap();
    }
}
