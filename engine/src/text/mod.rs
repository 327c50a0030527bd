//! From a prompt to its embedding: tokenizer, length buckets, T5 encoder (Muse §2.1).

mod encoder;
mod tokenizer;

use std::sync::Arc;

pub use encoder::TextEncoder;
pub use tokenizer::{TokenIds, Tokenizer};

use crate::bundle::BundleError;
use crate::runtime::RuntimeError;

/// A prompt's embedding, padding left out.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// f32 `[length, width]`, row-major.
    pub values: Arc<[f32]>,
    /// Text tokens, the end token included.
    pub length: usize,
    /// D.
    pub width: usize,
}

/// Why a text has no embedding.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// It has more tokens than the model takes. It is never cut.
    #[error("the text has {tokens} tokens, but the model takes at most {limit}; shorten it")]
    TooLong {
        /// The end token included.
        tokens: usize,
        /// `text.max_length` of the bundle.
        limit: usize,
    },
    /// The tokenizer failed on it, or gave ids outside of the vocabulary.
    #[error("the text cannot be tokenised: {0}")]
    Tokenizer(String),
    /// The encoder's graph is not what the bundle says.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// ONNX Runtime failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The encoder gave values that are not finite.
    #[error("the text encoder gave values that are not finite for text {index} of the batch")]
    NotFinite {
        /// Index into the batch.
        index: usize,
    },
}

// === impl Embedding ===

impl Embedding {
    /// An embedding of `values`, f32 `[length, width]`; `None` if their number is not `length · width`, or either is 0.
    pub fn new(values: Arc<[f32]>, length: usize, width: usize) -> Option<Embedding> {
        let fits = length > 0 && width > 0 && length.checked_mul(width) == Some(values.len());
        fits.then_some(Embedding {
            values,
            length,
            width,
        })
    }
}
