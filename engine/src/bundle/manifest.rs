//! `bundle.toml` as it is written. `spec` holds it as it is used.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::sampling::Sampling;

/// The only format there is so far.
pub(super) const SCHEMA: u32 = 1;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) schema: u32,
    pub(super) model: Model,
    pub(super) text: Text,
    pub(super) base: Stage,
    pub(super) superres: Option<Stage>,
    pub(super) files: BTreeMap<String, File>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) license: String,
    #[serde(default)]
    pub(super) description: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Text {
    pub(super) tokenizer: String,
    pub(super) max_length: usize,
    pub(super) pad_id: u32,
    pub(super) vocab_size: usize,
    pub(super) width: usize,
    pub(super) length_buckets: Vec<usize>,
    pub(super) encoder: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stage {
    pub(super) grid: [u32; 2],
    pub(super) codebook_size: u32,
    pub(super) vocab_size: u32,
    pub(super) logits_size: usize,
    pub(super) mask_id: u32,
    pub(super) unconditional: UnconditionalForm,
    pub(super) null_embedding: Option<String>,
    pub(super) condition: String,
    pub(super) step: String,
    pub(super) conditioning: Option<Vec<String>>,
    pub(super) decoder: Option<String>,
    pub(super) encoder: Option<String>,
    pub(super) image_size: [u32; 2],
    pub(super) defaults: Sampling,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum UnconditionalForm {
    EmptyText,
    MaskedText,
    NullEmbedding,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) sha256: String,
    pub(super) size: u64,
}

/// Parses a manifest. The error is one line with the line number.
pub(super) fn parse(text: &str) -> Result<Manifest, String> {
    toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map(|span| text.get(..span.start).unwrap_or(text).lines().count().max(1));
        let message = error.message().replace('\n', " ");
        match line {
            Some(line) => format!("line {line}: {message}"),
            None => message,
        }
    })
}

// === impl Manifest ===

impl Manifest {
    /// Every file that a key of the manifest names, with that key.
    pub(super) fn references(&self) -> Vec<(String, &str)> {
        let mut references = vec![
            ("text.tokenizer".to_owned(), &*self.text.tokenizer),
            ("text.encoder".to_owned(), &*self.text.encoder),
        ];
        for (name, stage) in [("base", Some(&self.base)), ("superres", self.superres.as_ref())] {
            let Some(stage) = stage else { continue };
            let files = [
                ("null_embedding", stage.null_embedding.as_deref()),
                ("condition", Some(&*stage.condition)),
                ("step", Some(&*stage.step)),
                ("decoder", stage.decoder.as_deref()),
                ("encoder", stage.encoder.as_deref()),
            ];
            references.extend(
                files
                    .into_iter()
                    .filter_map(|(key, file)| Some((format!("{name}.{key}"), file?))),
            );
        }
        references
    }

    /// The ONNX files among them, with their keys.
    pub(super) fn graphs(&self) -> Vec<(String, &str)> {
        let mut references = self.references();
        references.retain(|(key, _)| key != "text.tokenizer" && !key.ends_with(".null_embedding"));
        references
    }
}
