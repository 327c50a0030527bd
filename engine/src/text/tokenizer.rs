//! The bundle's tokenizer, in the form of Hugging Face's `tokenizers`.

use std::path::Path;

use super::TextError;
use crate::bundle::{Bundle, BundleError, BundleFault, TextSpec};

/// A text as token ids, the end token included: at least 1 and at most `text.max_length` of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TokenIds(Box<[u32]>);

/// Text to token ids. Needs no ONNX Runtime.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    spec: TextSpec,
}

// === impl TokenIds ===

impl TokenIds {
    /// One id, not checked against any vocabulary.
    pub(super) fn single(id: u32) -> TokenIds {
        TokenIds([id].into())
    }

    /// The ids.
    pub fn as_slice(&self) -> &[u32] {
        &self.0
    }

    /// How many.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

// === impl Tokenizer ===

impl Tokenizer {
    /// The tokenizer of `bundle`.
    pub fn open(bundle: &Bundle) -> Result<Tokenizer, BundleError> {
        let file = &bundle.text().tokenizer;
        Tokenizer::from_file(&bundle.path(file), bundle.text())
            .map_err(|error| bundle.fault(file, BundleFault::Tokenizer(error.to_string())))
    }

    /// The tokenizer in the file at `path`, checked against `spec`.
    pub(crate) fn from_file(path: &Path, spec: &TextSpec) -> Result<Tokenizer, String> {
        let mut inner = tokenizers::Tokenizer::from_file(path)
            .map_err(|error| format!("is not a tokenizer: {}", error.to_string().replace('\n', " ")))?;
        let vocabulary = inner.get_vocab_size(true);
        if vocabulary != spec.vocab_size {
            return Err(format!(
                "its vocabulary has {vocabulary} entries, but text.vocab_size of bundle.toml says {}",
                spec.vocab_size
            ));
        }
        // Ids need not be dense; the embedding table has vocab_size rows.
        if let Some((token, id)) = inner
            .get_vocab(true)
            .into_iter()
            .find(|(_, id)| *id as usize >= spec.vocab_size)
        {
            return Err(format!(
                "its token {token:?} has id {id}, but text.vocab_size of bundle.toml says {}",
                spec.vocab_size
            ));
        }
        // Length and padding are the engine's: a prompt is never cut, and padded to its bucket.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| format!("cannot be set up: {error}"))?;
        let tokenizer = Tokenizer {
            inner,
            spec: spec.clone(),
        };
        match tokenizer.tokenize("") {
            Ok(_) => Ok(tokenizer),
            Err(error) => Err(format!("it cannot tokenise the empty text: {error}")),
        }
    }

    /// Ids of `text`. A text of too many tokens is refused, never cut.
    pub fn tokenize(&self, text: &str) -> Result<TokenIds, TextError> {
        let encoding = self
            .inner
            .encode_fast(text, true)
            .map_err(|error| TextError::Tokenizer(error.to_string()))?;
        let ids = encoding.get_ids();
        if ids.is_empty() {
            return Err(TextError::Tokenizer(
                "it gives no token; the tokenizer must append its end token".to_owned(),
            ));
        }
        if ids.len() > self.spec.max_length {
            return Err(TextError::TooLong {
                tokens: ids.len(),
                limit: self.spec.max_length,
            });
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.spec.vocab_size) {
            let size = self.spec.vocab_size;
            return Err(TextError::Tokenizer(format!(
                "it gives the id {id}, but the vocabulary has {size}"
            )));
        }
        Ok(TokenIds(ids.into()))
    }

    /// The length to which a text is padded; texts are only batched with others of the same bucket.
    pub fn bucket(&self, ids: &TokenIds) -> usize {
        // TokenIds never exceed max_length, which is the last bucket.
        self.spec.bucket(ids.len()).unwrap_or(self.spec.max_length)
    }
}
