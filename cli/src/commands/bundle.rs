//! `musectl bundle …`.

use std::path::Path;

use muse_engine::{Bundle, StageSpec, Unconditional};
use serde::Serialize;

use crate::{
    arguments::{BundleCommand, Output},
    commands::local,
    failure::Failure,
    output, view,
};

#[derive(Serialize)]
struct BundleView {
    name: String,
    version: String,
    license: String,
    description: String,
    digest: String,
    folder: String,
    width: u32,
    height: u32,
    text: TextView,
    stages: Vec<StageView>,
}

#[derive(Serialize)]
struct TextView {
    tokenizer: String,
    encoder: String,
    max_length: usize,
    vocab_size: usize,
    width: usize,
    length_buckets: Vec<usize>,
}

#[derive(Serialize)]
struct StageView {
    stage: &'static str,
    grid_rows: u32,
    grid_columns: u32,
    codebook_size: u32,
    vocab_size: u32,
    mask_id: u32,
    unconditional: &'static str,
    condition: String,
    step: String,
    decoder: Option<String>,
    encoder: Option<String>,
    width: u32,
    height: u32,
    defaults: muse_engine::Sampling,
}

pub(crate) fn run(command: BundleCommand, output: Output) -> Result<(), Failure> {
    match command {
        BundleCommand::Inspect { folder } => {
            let view = BundleView::from(&load(&folder)?);
            output::print(output, &view, || view.facts())
        }
        BundleCommand::Verify { folder, local } => {
            let bundle = load(&folder)?;
            local::open(&bundle, &local)?;
            let view = BundleView::from(&bundle);
            output::print(output, &view, || {
                format!("{} {} is whole: {}", view.name, view.version, view.digest)
            })
        }
    }
}

pub(crate) fn load(folder: &Path) -> Result<Bundle, Failure> {
    Bundle::load(folder).map_err(|error| Failure::Failed(error.to_string()))
}

impl From<&Bundle> for BundleView {
    fn from(bundle: &Bundle) -> Self {
        let (model, text, size) = (bundle.model(), bundle.text(), bundle.image_size());
        Self {
            name: model.name.clone(),
            version: model.version.clone(),
            license: model.license.clone(),
            description: model.description.clone(),
            digest: bundle.digest().to_owned(),
            folder: bundle.folder().display().to_string(),
            width: size.width,
            height: size.height,
            text: TextView {
                tokenizer: text.tokenizer.clone(),
                encoder: text.encoder.clone(),
                max_length: text.max_length,
                vocab_size: text.vocab_size,
                width: text.width,
                length_buckets: text.length_buckets.clone(),
            },
            stages: bundle.stages().map(StageView::from).collect(),
        }
    }
}

impl From<&StageSpec> for StageView {
    fn from(spec: &StageSpec) -> Self {
        Self {
            stage: spec.stage.as_str(),
            grid_rows: spec.rows,
            grid_columns: spec.columns,
            codebook_size: spec.codebook_size,
            vocab_size: spec.vocab_size,
            mask_id: spec.mask_id,
            unconditional: match spec.unconditional {
                Unconditional::EmptyText => "empty_text",
                Unconditional::MaskedText => "masked_text",
                Unconditional::NullEmbedding(_) => "null_embedding",
            },
            condition: spec.condition.clone(),
            step: spec.step.clone(),
            decoder: spec.decoder.clone(),
            encoder: spec.encoder.clone(),
            width: spec.image_size.width,
            height: spec.image_size.height,
            defaults: spec.defaults.clone(),
        }
    }
}

impl BundleView {
    fn facts(&self) -> String {
        let mut facts = vec![
            (
                "model",
                format!("{} {} ({})", self.name, self.version, self.license),
            ),
            ("digest", self.digest.clone()),
            ("picture", format!("{}x{}", self.width, self.height)),
            (
                "text",
                format!(
                    "{} ids, at most {} tokens, embeddings of {}, buckets {:?}: {}, {}",
                    self.text.vocab_size,
                    self.text.max_length,
                    self.text.width,
                    self.text.length_buckets,
                    self.text.tokenizer,
                    self.text.encoder
                ),
            ),
        ];
        if !self.description.is_empty() {
            facts.insert(1, ("description", self.description.clone()));
        }
        for stage in &self.stages {
            let graphs = [
                Some(&stage.condition),
                Some(&stage.step),
                stage.decoder.as_ref(),
                stage.encoder.as_ref(),
            ];
            let graphs: Vec<&str> = graphs.into_iter().flatten().map(String::as_str).collect();
            facts.push((
                stage.stage,
                format!(
                    "{}x{} tokens of {} codes, mask id {}, unconditional {}: {}",
                    stage.grid_rows,
                    stage.grid_columns,
                    stage.codebook_size,
                    stage.mask_id,
                    stage.unconditional,
                    graphs.join(", ")
                ),
            ));
            facts.push(("  defaults", defaults(&stage.defaults)));
        }
        view::facts(facts)
    }
}

/// In the words of the manifest.
fn defaults(sampling: &muse_engine::Sampling) -> String {
    let muse_engine::Sampling {
        steps,
        guidance,
        temperature,
        top_k,
        choice_temperature,
        ..
    } = sampling;
    let word = |value: serde_json::Result<serde_json::Value>| {
        value
            .ok()
            .and_then(|value| value.as_str().map(str::to_owned))
            .unwrap_or_default()
    };
    format!(
        "{steps} steps, guidance {guidance} ({}), temperature {temperature}, top-k {top_k}, choice temperature \
         {choice_temperature}, {} mask, {}",
        word(serde_json::to_value(sampling.guidance_schedule)),
        word(serde_json::to_value(sampling.mask_schedule)),
        word(serde_json::to_value(sampling.scheduler)),
    )
}
