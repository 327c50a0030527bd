//! The T5 encoder on ONNX Runtime.

use std::collections::BTreeMap;

use super::{Embedding, TextError, TokenIds, Tokenizer};
use crate::bundle::{Bundle, BundleFault};
use crate::runtime::signature::{Dimension, Signature, TensorSignature};
use crate::runtime::{Element, LaneThreads, Lanes, Provider, RuntimeError, Session, SessionOptions};

/// Texts to embeddings. A text is padded to its own length bucket and shares a batch only with that bucket, so that its
/// embedding does not depend on its batch mates.
#[derive(Debug)]
pub struct TextEncoder {
    session: Session,
    lanes: Lanes,
    threads: LaneThreads,
    tokenizer: Tokenizer,
    pad_id: i64,
    width: usize,
}

/// Texts that one lane computes in one run.
struct Part<'texts> {
    /// Tokens that each is padded to.
    bucket: usize,
    /// Indices into the texts of the call.
    members: Vec<usize>,
    texts: Vec<&'texts TokenIds>,
    embedded: Result<Vec<Embedding>, TextError>,
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
        // A text is so much less than a row of a stage that parts need no limit to stay in a core's cache.
        let lanes = Lanes {
            rows: usize::MAX,
            ..options.lanes()?
        };
        let of_a_lane = SessionOptions {
            threads: lanes.threads,
            ..options.clone()
        };
        let session = Session::open(bundle, &spec.encoder, &of_a_lane)?;
        session.check(bundle, &signature)?;
        let tokenizer = Tokenizer::open(bundle)?;
        let encoder = TextEncoder {
            session,
            lanes,
            threads: LaneThreads::start(lanes)?,
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

    /// Embeds each text, in order. Texts of different buckets go in separate runs, those of one bucket in one for each lane
    /// ([`SessionOptions::lanes`]).
    pub fn embed(&mut self, texts: &[TokenIds]) -> Result<Vec<Embedding>, TextError> {
        let mut parts = self.divide(texts);
        self.threads.each(&mut parts, |part| {
            part.embedded = self.embed_bucket(&part.texts, part.bucket);
        });
        let mut embeddings: Vec<Option<Embedding>> = vec![None; texts.len()];
        for part in parts {
            let embedded = part.embedded.map_err(|error| match error {
                TextError::NotFinite { index } => TextError::NotFinite {
                    index: part.members[index],
                },
                other => other,
            })?;
            for (index, embedding) in part.members.into_iter().zip(embedded) {
                embeddings[index] = Some(embedding);
            }
        }
        Ok(embeddings.into_iter().flatten().collect())
    }

    /// The longest texts first, so that no lane begins them last.
    fn divide<'texts>(&self, texts: &'texts [TokenIds]) -> Vec<Part<'texts>> {
        let mut by_bucket: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, text) in texts.iter().enumerate() {
            by_bucket
                .entry(self.tokenizer.bucket(text))
                .or_default()
                .push(index);
        }
        let mut parts = Vec::new();
        for (bucket, mut left) in by_bucket.into_iter().rev() {
            for size in self.lanes.parts(left.len()) {
                let members: Vec<usize> = left.drain(..size).collect();
                parts.push(Part {
                    bucket,
                    texts: members.iter().map(|index| &texts[*index]).collect(),
                    members,
                    embedded: Ok(Vec::new()),
                });
            }
        }
        parts
    }

    /// Runs the largest token id that the manifest allows: an embedding table that is too small would only fail on the
    /// prompt that first uses the id.
    fn probe(&self, bundle: &Bundle) -> Result<(), TextError> {
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
    fn embed_bucket(&self, texts: &[&TokenIds], bucket: usize) -> Result<Vec<Embedding>, TextError> {
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
            &[
                Session::input("input_ids", &shape, &ids)?,
                Session::input("attention_mask", &shape, &mask)?,
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
