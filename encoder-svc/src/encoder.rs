//! One request: checked, tokenized, answered from the cache or from a pass.

use std::sync::Arc;

use futures::future::{join_all, try_join_all};
use muse_engine::Embedding;

use crate::{
    admission::Admission,
    cache::{EmbeddingCache, Outcome, Stored},
    config::Request as RequestLimits,
    error::{EmbedError, Fault},
    model::{Tokenize, TokenizeError, Tokenized},
    passes::Passes,
};

/// Shared by all calls.
pub(crate) struct Encoder<T: Tokenize> {
    pub(crate) tokenizer: Arc<T>,
    pub(crate) cache: EmbeddingCache,
    pub(crate) admission: Admission,
    pub(crate) passes: Passes<T::Tokens>,
    pub(crate) limits: RequestLimits,
}

// === impl Encoder ===

impl<T: Tokenize> Encoder<T> {
    /// The embedding of each text, in order. Either all texts are good, or the error names every bad one.
    pub(crate) async fn embed(&self, texts: &[String]) -> Result<Vec<(Stored, Outcome)>, EmbedError> {
        self.check_count(texts)?;
        // What is kept was good when it came, and needs no tokens any more.
        let kept = join_all(texts.iter().map(|text| self.cache.get(text))).await;
        let tokenized = self.tokenize(texts, &kept)?;
        let answers = texts.iter().zip(kept).zip(tokenized);
        try_join_all(
            answers.map(async |((text, kept), tokenized)| match (kept, tokenized) {
                (Some(stored), _) => Ok((stored, Outcome::Hit)),
                (None, Some(tokenized)) => self.embed_one(text, tokenized).await,
                (None, None) => Err(EmbedError::Model("a text was not tokenized".to_owned())),
            }),
        )
        .await
    }

    async fn embed_one(
        &self,
        text: &str,
        tokenized: Tokenized<T::Tokens>,
    ) -> Result<(Stored, Outcome), EmbedError> {
        let compute = async {
            let permit = self.admission.admit(tokenized.bucket).map_err(EmbedError::Full)?;
            self.passes
                .embed(tokenized, permit)
                .await
                .map(|embedding| store(&embedding))
        };
        self.cache.get_or_compute(text, compute).await
    }

    fn check_count(&self, texts: &[String]) -> Result<(), EmbedError> {
        let max_texts = self.limits.max_texts;
        if texts.is_empty() || texts.len() > max_texts {
            let description = format!("has {} texts; give 1 to {max_texts}", texts.len());
            return Err(EmbedError::Request(vec![Fault {
                field: "texts".to_owned(),
                description,
            }]));
        }
        Ok(())
    }

    /// The tokens of each text that is not kept.
    fn tokenize(
        &self,
        texts: &[String],
        kept: &[Option<Stored>],
    ) -> Result<Vec<Option<Tokenized<T::Tokens>>>, EmbedError> {
        let max_text_bytes = self.limits.max_text_bytes;
        let mut good = Vec::with_capacity(texts.len());
        let mut faults = Vec::new();
        for (index, (text, kept)) in texts.iter().zip(kept).enumerate() {
            if kept.is_some() {
                good.push(None);
                continue;
            }
            let description = if text.len() > max_text_bytes {
                format!("has {} bytes; at most {max_text_bytes} are taken", text.len())
            } else {
                match self.tokenizer.tokenize(text) {
                    Ok(tokenized) => {
                        good.push(Some(tokenized));
                        continue;
                    }
                    Err(TokenizeError::TooLong { tokens, limit }) => {
                        format!("has {tokens} tokens; the model takes at most {limit}, shorten it")
                    }
                    Err(TokenizeError::Other(reason)) => reason,
                }
            };
            faults.push(Fault {
                field: format!("texts[{index}]"),
                description,
            });
        }
        if faults.is_empty() {
            Ok(good)
        } else {
            Err(EmbedError::Request(faults))
        }
    }
}

fn store(embedding: &Embedding) -> Stored {
    let mut data = vec![0; embedding.values.len() * size_of::<f32>()];
    for (bytes, value) in data.chunks_exact_mut(size_of::<f32>()).zip(&*embedding.values) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    Stored {
        data: data.into(),
        // Bounded by the manifest's own u32s.
        tokens: u32::try_from(embedding.length).unwrap_or(u32::MAX),
        width: u32::try_from(embedding.width).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
#[path = "encoder_tests.rs"]
mod tests;
