//! Models and the settings of their stages.

use std::fmt;

use muse_proto::v1::{ListModelsResponse, Sampling};
use serde::Serialize;

use super::{or_dash, render, table, words};

/// Settings of a stage's decoding; absent ones are the bundle's.
#[derive(Debug, Serialize)]
pub(crate) struct SamplingView {
    steps: Option<u32>,
    guidance: Option<f32>,
    guidance_schedule: &'static str,
    temperature: Option<f32>,
    top_k: Option<u32>,
    choice_temperature: Option<f32>,
    mask_schedule: &'static str,
    scheduler: &'static str,
}

#[derive(Debug, Serialize)]
pub(crate) struct ModelsView {
    default_model: String,
    models: Vec<ModelView>,
}

#[derive(Debug, Serialize)]
struct ModelView {
    name: String,
    version: String,
    license: String,
    description: String,
    bundle_digest: String,
    width: u32,
    height: u32,
    max_text_tokens: u32,
    stages: Vec<StageView>,
}

#[derive(Debug, Serialize)]
struct StageView {
    stage: &'static str,
    grid_rows: u32,
    grid_columns: u32,
    codebook_size: u32,
    workers: u32,
    defaults: Option<SamplingView>,
}

impl From<&Sampling> for SamplingView {
    fn from(sampling: &Sampling) -> Self {
        Self {
            steps: sampling.steps,
            guidance: sampling.guidance,
            guidance_schedule: words::guidance_schedule(sampling.guidance_schedule()),
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            choice_temperature: sampling.choice_temperature,
            mask_schedule: words::mask_schedule(sampling.mask_schedule()),
            scheduler: words::scheduler(sampling.scheduler()),
        }
    }
}

impl fmt::Display for SamplingView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: Option<f32>| or_dash(value.map(|value| value.to_string()));
        write!(
            f,
            "{} steps, guidance {} ({}), temperature {}, top-k {}, choice temperature {}, {} mask, {}",
            or_dash(self.steps.map(|steps| steps.to_string())),
            number(self.guidance),
            self.guidance_schedule,
            number(self.temperature),
            or_dash(self.top_k.map(|top_k| top_k.to_string())),
            number(self.choice_temperature),
            self.mask_schedule,
            self.scheduler,
        )
    }
}

impl From<&ListModelsResponse> for ModelsView {
    fn from(response: &ListModelsResponse) -> Self {
        let models = response.models.iter().map(|model| ModelView {
            name: model.name.clone(),
            version: model.version.clone(),
            license: model.license.clone(),
            description: model.description.clone(),
            bundle_digest: model.bundle_digest.clone(),
            width: model.width,
            height: model.height,
            max_text_tokens: model.max_text_tokens,
            stages: model
                .stages
                .iter()
                .map(|stage| StageView {
                    stage: words::stage(stage.stage()),
                    grid_rows: stage.grid_rows,
                    grid_columns: stage.grid_columns,
                    codebook_size: stage.codebook_size,
                    workers: stage.workers,
                    defaults: stage.defaults.as_ref().map(SamplingView::from),
                })
                .collect(),
        });
        Self {
            default_model: response.default_model.clone(),
            models: models.collect(),
        }
    }
}

/// Characters of a digest that tell two bundles apart.
const SHORT_DIGEST: usize = 12;

impl ModelsView {
    /// A row for each stage of each model.
    pub(crate) fn table(&self) -> String {
        let mut rows = table(&[
            "MODEL",
            "VERSION",
            "BUNDLE",
            "PICTURE",
            "TEXT TOKENS",
            "STAGE",
            "GRID",
            "WORKERS",
            "DEFAULTS",
        ]);
        for model in &self.models {
            let mark = if model.name == self.default_model {
                " (default)"
            } else {
                ""
            };
            for stage in &model.stages {
                rows.add_row([
                    format!("{}{mark}", model.name),
                    model.version.clone(),
                    model.bundle_digest.chars().take(SHORT_DIGEST).collect(),
                    format!("{}x{}", model.width, model.height),
                    model.max_text_tokens.to_string(),
                    stage.stage.to_owned(),
                    format!(
                        "{}x{} of {}",
                        stage.grid_rows, stage.grid_columns, stage.codebook_size
                    ),
                    stage.workers.to_string(),
                    or_dash(stage.defaults.as_ref().map(ToString::to_string)),
                ]);
            }
        }
        render(&rows)
    }
}
