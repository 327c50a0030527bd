//! What a bundle says about its model, checked.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::sampling::Sampling;
use crate::text::Embedding;

/// A stage of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Fills the base grid from text (Muse §2.3).
    Base,
    /// Fills the larger grid from text and the base tokens (Muse §2.4).
    Superres,
}

/// Height and width in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSize {
    /// Rows of pixels.
    pub height: u32,
    /// Columns of pixels.
    pub width: u32,
}

/// Who made the model, and which it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// What requests name.
    pub name: String,
    /// Shown to people, recorded in pictures.
    pub version: String,
    /// An SPDX expression.
    pub license: String,
    /// A line for people; may be empty.
    pub description: String,
}

/// The text encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextSpec {
    /// File of the tokenizer.
    pub tokenizer: String,
    /// L: most tokens a prompt may have, the end token included.
    pub max_length: usize,
    /// Token id that fills up a shorter prompt.
    pub pad_id: u32,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// D: length of an embedding vector.
    pub width: usize,
    /// Ascending; the last is `max_length`.
    pub length_buckets: Vec<usize>,
    /// File of the text encoder's graph.
    pub encoder: String,
}

/// What the unconditional logits are computed on when a request has no negative prompt (docs/bundle.md).
#[derive(Debug, Clone, PartialEq)]
pub enum Unconditional {
    /// The embedding of the empty prompt.
    EmptyText,
    /// The prompt's own embedding with every position masked.
    MaskedText,
    /// A learned embedding, `[length, D]`.
    NullEmbedding(Embedding),
}

/// One stage.
#[derive(Debug, Clone, PartialEq)]
pub struct StageSpec {
    /// Which.
    pub stage: Stage,
    /// Rows of the token grid.
    pub rows: u32,
    /// Columns of the token grid.
    pub columns: u32,
    /// V: ids below this are image tokens; only these are sampled.
    pub codebook_size: u32,
    /// Ids that the step graph accepts are below this.
    pub vocab_size: u32,
    /// Last axis of the step graph's output, at least the codebook's size.
    pub logits_size: usize,
    /// Stands at masked positions.
    pub mask_id: u32,
    /// The form of the unconditional input.
    pub unconditional: Unconditional,
    /// File of the `condition` graph.
    pub condition: String,
    /// File of the `step` graph.
    pub step: String,
    /// Outputs of `condition` that `step` takes; `None`: all.
    pub conditioning: Option<Vec<String>>,
    /// File of the `decoder` graph, tokens to pixels.
    pub decoder: Option<String>,
    /// File of the `encoder` graph, pixels to tokens.
    pub encoder: Option<String>,
    /// Size of the decoder's pictures.
    pub image_size: ImageSize,
    /// Used where a request is silent.
    pub defaults: Sampling,
}

// === impl Stage ===

impl Stage {
    /// Every stage, in the order in which they run.
    pub const ALL: [Stage; 2] = [Stage::Base, Stage::Superres];

    /// `base` or `superres`.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Base => "base",
            Stage::Superres => "superres",
        }
    }

    /// Fourth word of the random counter (docs/decoding.md).
    pub fn code(self) -> u32 {
        match self {
            Stage::Base => 0,
            Stage::Superres => 1,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Stage {
    type Err = String;

    fn from_str(text: &str) -> Result<Stage, String> {
        Stage::ALL
            .into_iter()
            .find(|stage| stage.as_str() == text)
            .ok_or_else(|| format!("\"{text}\" is no stage; use base or superres"))
    }
}

// === impl TextSpec ===

impl TextSpec {
    /// The length to which a prompt of `tokens` tokens is padded; `None` if it is too long.
    pub fn bucket(&self, tokens: usize) -> Option<usize> {
        self.length_buckets
            .iter()
            .copied()
            .find(|bucket| *bucket >= tokens)
    }
}

// === impl StageSpec ===

impl StageSpec {
    /// S: positions of the grid.
    pub fn positions(&self) -> usize {
        self.rows as usize * self.columns as usize
    }

    /// Whether the caller must supply the embedding of `""` for unconditional inputs.
    pub fn needs_empty_text(&self) -> bool {
        self.unconditional == Unconditional::EmptyText
    }
}

// === impl Unconditional ===

impl Unconditional {
    /// Whether it is the same for every prompt.
    pub fn is_constant(&self) -> bool {
        match self {
            Unconditional::EmptyText | Unconditional::NullEmbedding(_) => true,
            Unconditional::MaskedText => false,
        }
    }
}

// === impl ImageSize ===

impl fmt::Display for ImageSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}x{}", self.width, self.height)
    }
}
