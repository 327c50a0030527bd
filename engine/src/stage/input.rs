//! What the `condition` graph is given: a padded text, and the low tokens in super-resolution.

use crate::bundle::{Stage, StageSpec, TextSpec, Unconditional};
use crate::text::Embedding;

/// One input of [`StageModel::condition`](super::StageModel::condition).
#[derive(Debug, Clone, PartialEq)]
pub struct ConditioningInput {
    /// f32 `[L, D]`, zero beyond the text's own length.
    pub text: Vec<f32>,
    /// `[L]`: 1 = token, 0 = pad.
    pub text_mask: Vec<i64>,
    /// The base stage's tokens, `[S of base]`; exactly for super-resolution.
    pub low_tokens: Option<Vec<u32>>,
}

/// What the unconditional input is made of.
#[derive(Debug, Clone, Copy)]
pub struct UnconditionalSource<'embedding> {
    /// The prompt's own embedding.
    pub prompt: &'embedding Embedding,
    /// The negative prompt's, if there is one: it replaces the manifest's form.
    pub negative: Option<&'embedding Embedding>,
    /// The empty text's; needed where [`StageSpec::needs_empty_text`] says so and there is no negative prompt.
    pub empty: Option<&'embedding Embedding>,
}

/// An input that does not fit the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// An embedding of another model.
    #[error(
        "an embedding of {length} vectors of {width} does not fit a text of at most {max_length} vectors of {expected}"
    )]
    Embedding {
        /// Its length.
        length: usize,
        /// Its width.
        width: usize,
        /// L.
        max_length: usize,
        /// D.
        expected: usize,
    },
    /// The bundle's unconditional input is the embedding of `""`, which was not given.
    #[error("the unconditional input is the embedding of the empty text, which is missing")]
    NoEmptyText,
    /// Low tokens are missing, too many, too few or out of range.
    #[error("the low tokens do not fit: {0}")]
    LowTokens(String),
    /// Conditioning of another stage or model.
    #[error("the conditioning is not of this stage")]
    Conditioning,
    /// A ready-made input has the wrong size.
    #[error(
        "a text of {values} values and {mask} mask entries does not fit; the model takes {expected} and {length}"
    )]
    Size {
        /// Values found.
        values: usize,
        /// Mask entries found.
        mask: usize,
        /// L·D.
        expected: usize,
        /// L.
        length: usize,
    },
}

// === impl ConditioningInput ===

impl ConditioningInput {
    /// The conditional input of a prompt. `low_tokens` `[S of base]` exactly for super-resolution.
    pub fn conditional(
        text: &TextSpec,
        prompt: &Embedding,
        low_tokens: Option<&[u32]>,
    ) -> Result<ConditioningInput, InputError> {
        let mut text_mask = vec![0; text.max_length];
        text_mask
            .iter_mut()
            .take(prompt.length)
            .for_each(|present| *present = 1);
        Ok(ConditioningInput {
            text: padded(text, prompt)?,
            text_mask,
            low_tokens: low_tokens.map(<[u32]>::to_vec),
        })
    }

    /// The unconditional input in the form that `stage` names, or the negative prompt's. Only the text is replaced; the
    /// low tokens stay (Muse §2.7).
    pub fn unconditional(
        text: &TextSpec,
        stage: &StageSpec,
        source: UnconditionalSource<'_>,
        low_tokens: Option<&[u32]>,
    ) -> Result<ConditioningInput, InputError> {
        let embedding = match (source.negative, &stage.unconditional) {
            (Some(negative), _) => negative,
            (None, Unconditional::EmptyText) => source.empty.ok_or(InputError::NoEmptyText)?,
            (None, Unconditional::NullEmbedding(null)) => null,
            (None, Unconditional::MaskedText) => {
                let mut input = ConditioningInput::conditional(text, source.prompt, low_tokens)?;
                input.text_mask.fill(0);
                return Ok(input);
            }
        };
        ConditioningInput::conditional(text, embedding, low_tokens)
    }

    /// Checks sizes and ranges against the model. `low` is the base stage where `stage` is super-resolution.
    pub(crate) fn check(&self, text: &TextSpec, low: Option<&StageSpec>) -> Result<(), InputError> {
        let (expected, length) = (text.max_length * text.width, text.max_length);
        if self.text.len() != expected || self.text_mask.len() != length {
            let (values, mask) = (self.text.len(), self.text_mask.len());
            return Err(InputError::Size {
                values,
                mask,
                expected,
                length,
            });
        }
        match (&self.low_tokens, low) {
            (None, None) => Ok(()),
            (None, Some(_)) => Err(InputError::LowTokens(format!(
                "stage {} needs them",
                Stage::Superres
            ))),
            (Some(_), None) => Err(InputError::LowTokens(format!("stage {} takes none", Stage::Base))),
            (Some(tokens), Some(low)) if tokens.len() != low.positions() => Err(InputError::LowTokens(
                format!("{} instead of {}", tokens.len(), low.positions()),
            )),
            (Some(tokens), Some(low)) => match tokens.iter().find(|token| **token >= low.codebook_size) {
                Some(token) => Err(InputError::LowTokens(format!(
                    "token {token} is not below the base codebook's size {}",
                    low.codebook_size
                ))),
                None => Ok(()),
            },
        }
    }
}

/// f32 `[L, D]`, zero beyond the embedding.
fn padded(text: &TextSpec, embedding: &Embedding) -> Result<Vec<f32>, InputError> {
    let Embedding {
        values,
        length,
        width,
    } = embedding;
    let fits =
        *width == text.width && (1..=text.max_length).contains(length) && values.len() == length * width;
    if !fits {
        return Err(InputError::Embedding {
            length: *length,
            width: *width,
            max_length: text.max_length,
            expected: text.width,
        });
    }
    let mut padded = values.to_vec();
    padded.resize(text.max_length * text.width, 0.0);
    Ok(padded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::tests::{embedding, stage_spec, text_spec};

    fn source<'a>(
        prompt: &'a Embedding,
        negative: Option<&'a Embedding>,
        empty: Option<&'a Embedding>,
    ) -> UnconditionalSource<'a> {
        UnconditionalSource {
            prompt,
            negative,
            empty,
        }
    }

    #[test]
    fn a_prompt_is_padded_with_zeros_and_masked_beyond_its_length() {
        let input = ConditioningInput::conditional(&text_spec(), &embedding(2, 0.5), None).unwrap();
        assert_eq!(input.text, [[0.5; 6].as_slice(), &[0.0; 6]].concat());
        assert_eq!(input.text_mask, [1, 1, 0, 0]);
    }

    #[test]
    fn each_form_of_the_unconditional_input_is_what_the_format_says() {
        let (prompt, empty) = (embedding(3, 0.5), embedding(1, 0.25));
        let negative = embedding(4, 9.0);
        let make = |form: Unconditional, negative| {
            let stage = StageSpec {
                unconditional: form,
                ..stage_spec(Stage::Base)
            };
            ConditioningInput::unconditional(
                &text_spec(),
                &stage,
                source(&prompt, negative, Some(&empty)),
                None,
            )
            .unwrap()
        };
        let of =
            |embedding: &Embedding| ConditioningInput::conditional(&text_spec(), embedding, None).unwrap();
        assert_eq!(make(Unconditional::EmptyText, None), of(&empty));
        assert_eq!(
            make(Unconditional::MaskedText, None),
            ConditioningInput {
                text_mask: vec![0; 4],
                ..of(&prompt)
            }
        );
        let null = embedding(2, -1.0);
        assert_eq!(make(Unconditional::NullEmbedding(null.clone()), None), of(&null));
        for form in [
            Unconditional::EmptyText,
            Unconditional::MaskedText,
            Unconditional::NullEmbedding(null),
        ] {
            assert_eq!(make(form, Some(&negative)), of(&negative));
        }
    }

    #[test]
    fn low_tokens_must_be_there_exactly_for_super_resolution_and_in_range() {
        let (text, base) = (text_spec(), stage_spec(Stage::Base));
        let input = |tokens: Option<Vec<u32>>| {
            ConditioningInput::conditional(&text, &embedding(1, 0.0), tokens.as_deref()).unwrap()
        };
        input(Some(vec![0; base.positions()]))
            .check(&text, Some(&base))
            .unwrap();
        input(None).check(&text, None).unwrap();
        for (tokens, low) in [
            (None, Some(&base)),
            (Some(vec![0; base.positions()]), None),
            (Some(vec![0; 3]), Some(&base)),
            (Some(vec![base.mask_id; base.positions()]), Some(&base)),
        ] {
            let error = input(tokens).check(&text, low).unwrap_err();
            assert!(matches!(error, InputError::LowTokens(_)), "{error}");
        }
    }

    #[test]
    fn an_embedding_of_another_model_is_refused() {
        let other = Embedding {
            values: vec![0.0; 8].into(),
            length: 2,
            width: 4,
        };
        let error = ConditioningInput::conditional(&text_spec(), &other, None).unwrap_err();
        assert!(matches!(error, InputError::Embedding { .. }), "{error}");
    }
}
