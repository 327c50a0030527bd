//! The T5 encoder on ONNX Runtime.

use super::{Embedding, TextError, TokenIds, Tokenizer};
use crate::bundle::{Bundle, BundleFault};
use crate::runtime::signature::{Dimension, Signature, TensorSignature};
use crate::runtime::{Element, Provider, RuntimeError, Session, SessionOptions};

/// Texts to embeddings. A text is padded to its own length bucket and shares a batch only with that bucket, so that its
/// embedding does not depend on its batch mates.
#[derive(Debug)]
pub struct TextEncoder {
    session: Session,
    tokenizer: Tokenizer,
    pad_id: i64,
    width: usize,
}

// === impl TextEncoder ===

impl TextEncoder {
    /// Opens tokenizer and text encoder of `bundle` and checks the graph's inputs and outputs.
    pub fn open(bundle: &Bundle, options: &SessionOptions) -> Result<TextEncoder, TextError> {
        let spec = bundle.text();
        let length = Dimension::Dynamic;
        let signature = Signature {
            inputs: vec![
                TensorSignature::new("input_ids", Element::I64, [Dimension::Batch, length]),
                TensorSignature::new("attention_mask", Element::I64, [Dimension::Batch, length]),
            ],
            outputs: Some(vec![TensorSignature::new(
                "embedding",
                Element::F32,
                [Dimension::Batch, length, Dimension::Fixed(spec.width)],
            )]),
        };
        let session = Session::open(bundle, &spec.encoder, options)?;
        session.check(bundle, &signature)?;
        let tokenizer = Tokenizer::open(bundle)?;
        let mut encoder = TextEncoder {
            session,
            tokenizer,
            pad_id: i64::from(spec.pad_id),
            width: spec.width,
        };
        encoder.probe(bundle)?;
        Ok(encoder)
    }

    /// The tokenizer, which needs no session and can be cloned for other threads.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What the encoder runs on.
    pub fn provider(&self) -> Provider {
        self.session.provider()
    }

    /// Ids of `text`; see [`Tokenizer::tokenize`].
    pub fn tokenize(&self, text: &str) -> Result<TokenIds, TextError> {
        self.tokenizer.tokenize(text)
    }

    /// Embeds each text, in order. Texts of different buckets go in separate passes.
    pub fn embed(&mut self, texts: &[TokenIds]) -> Result<Vec<Embedding>, TextError> {
        let mut buckets: Vec<usize> = texts.iter().map(|ids| self.tokenizer.bucket(ids)).collect();
        buckets.sort_unstable();
        buckets.dedup();
        let mut embeddings: Vec<Option<Embedding>> = vec![None; texts.len()];
        for bucket in buckets {
            let members: Vec<usize> = (0..texts.len())
                .filter(|index| self.tokenizer.bucket(&texts[*index]) == bucket)
                .collect();
            let ids: Vec<&TokenIds> = members.iter().map(|index| &texts[*index]).collect();
            let embedded = self.embed_bucket(&ids, bucket).map_err(|error| match error {
                TextError::NotFinite { index } => TextError::NotFinite {
                    index: members[index],
                },
                other => other,
            })?;
            for (index, embedding) in members.into_iter().zip(embedded) {
                embeddings[index] = Some(embedding);
            }
        }
        Ok(embeddings.into_iter().flatten().collect())
    }

    /// Runs the largest token id that the manifest allows: an embedding table that is too small would only fail on the
    /// prompt that first uses the id.
    fn probe(&mut self, bundle: &Bundle) -> Result<(), TextError> {
        let spec = bundle.text();
        let largest = spec.vocab_size.saturating_sub(1);
        let ids = TokenIds::single(u32::try_from(largest).unwrap_or(u32::MAX));
        let bucket = spec.length_buckets.first().copied().unwrap_or(spec.max_length);
        match self.embed_bucket(&[&ids], bucket) {
            Err(TextError::Runtime(RuntimeError::Run { reason, .. })) => {
                let message = format!(
                    "fails on the token id {largest}, the largest that text.vocab_size allows: {reason}"
                );
                Err(bundle.fault(&spec.encoder, BundleFault::Graph(message)).into())
            }
            other => other.map(|_| ()),
        }
    }

    /// One pass over texts that are all padded to `bucket` tokens.
    fn embed_bucket(&mut self, texts: &[&TokenIds], bucket: usize) -> Result<Vec<Embedding>, TextError> {
        let shape = [texts.len(), bucket];
        let mut ids = vec![self.pad_id; texts.len() * bucket];
        let mut mask = vec![0i64; texts.len() * bucket];
        for (text, (ids, mask)) in texts
            .iter()
            .zip(ids.chunks_exact_mut(bucket).zip(mask.chunks_exact_mut(bucket)))
        {
            for ((id, present), token) in ids.iter_mut().zip(mask).zip(text.as_slice()) {
                *id = i64::from(*token);
                *present = 1;
            }
        }
        let width = self.width;
        self.session.run(
            vec![
                ("input_ids", Session::view(&shape, &ids)?),
                ("attention_mask", Session::view(&shape, &mask)?),
            ],
            |outputs| {
                let values = outputs.f32("embedding", &[texts.len(), bucket, width])?;
                let mut embeddings = Vec::with_capacity(texts.len());
                for (index, (text, row)) in texts.iter().zip(values.chunks_exact(bucket * width)).enumerate()
                {
                    let kept = &row[..text.len() * width];
                    if kept.iter().any(|value| !value.is_finite()) {
                        return Err(TextError::NotFinite { index });
                    }
                    embeddings.push(Embedding {
                        values: kept.into(),
                        length: text.len(),
                        width,
                    });
                }
                Ok(embeddings)
            },
        )
    }
}
