//! One step of a row: from a pass's logits to tokens, some of which are masked again (docs/decoding.md).

use super::{Row, RowSettings};
use crate::random::StepKey;
use crate::sampler::{self, DrawSettings, Scratch};
use crate::{guidance, schedule};

/// A step failed on this row alone. The row is as it was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The model's logits are NaN or infinite, or become so by guidance or temperature.
    #[error("the model gave logits that are not finite at position {position} of the grid, step {step}")]
    NotFinite {
        /// Row-major.
        position: u32,
        /// From 0.
        step: u32,
    },
    /// Too few logits, or no unconditional ones where guidance needs them.
    #[error("the model gave too few logits")]
    TooFewLogits,
    /// The row has no step left.
    #[error("the row is done")]
    Done,
}

impl Row {
    /// Takes the next step with this pass's logits, f32 `[S, width]` row-major. On an error the row is as before.
    ///
    /// `unconditional` is needed exactly if [`needs_unconditional`](Row::needs_unconditional) says so.
    pub fn advance(
        &mut self,
        conditional: &[f32],
        unconditional: Option<&[f32]>,
        width: usize,
        scratch: &mut Scratch,
    ) -> Result<(), StepError> {
        if self.is_done() {
            return Err(StepError::Done);
        }
        let t = self.guidance_weight();
        let unconditional = match (t != 0.0, unconditional) {
            (true, None) => return Err(StepError::TooFewLogits),
            (true, some) => some,
            (false, _) => None,
        };
        let sampling = &self.settings.sampling;
        let draw_settings = DrawSettings {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
        };
        let key = self.step_key();
        let mut drawn = std::mem::take(&mut scratch.drawn);
        let mut guided = std::mem::take(&mut scratch.guided);
        drawn.clear();
        let mut result = Ok(());
        for position in &self.masked {
            let conditional = self.logits_at(conditional, *position, width);
            let logits = match (
                conditional,
                unconditional.map(|all| self.logits_at(all, *position, width)),
            ) {
                (Some(conditional), None) => conditional,
                (Some(conditional), Some(Some(unconditional))) => {
                    guidance::guide(conditional, unconditional, t, &mut guided);
                    &guided
                }
                _ => {
                    result = Err(StepError::TooFewLogits);
                    break;
                }
            };
            let Some(draw) = sampler::draw(logits, draw_settings, key.uniforms(*position).token, scratch)
            else {
                result = Err(StepError::NotFinite {
                    position: *position,
                    step: self.step,
                });
                break;
            };
            drawn.push((draw.token, draw.log_probability));
        }
        if result.is_ok() {
            self.take(&drawn, key, scratch);
        }
        (scratch.drawn, scratch.guided) = (drawn, guided);
        result
    }

    fn step_key(&self) -> StepKey {
        let RowSettings {
            seed,
            image_index,
            stage,
            ..
        } = self.settings;
        StepKey {
            seed,
            image_index,
            stage,
            step: self.step,
        }
    }

    /// The codebook's logits at a position.
    fn logits_at<'logits>(&self, all: &'logits [f32], position: u32, width: usize) -> Option<&'logits [f32]> {
        let start = (position as usize).checked_mul(width)?;
        all.get(start..start + width)?.get(..self.codebook_size as usize)
    }

    /// Puts the drawn tokens in place and masks some again. `drawn` goes along with `masked`.
    fn take(&mut self, drawn: &[(u32, f32)], key: StepKey, scratch: &mut Scratch) {
        let sampling = &self.settings.sampling;
        for (position, (token, _)) in self.masked.iter().zip(drawn) {
            self.tokens[*position as usize] = *token;
        }
        let unknown = self.masked.len() as u32;
        let again = schedule::masked_after(
            sampling.mask_schedule,
            self.initially_masked,
            unknown,
            self.step,
            self.of,
        ) as usize;
        let tokens = &mut self.tokens;
        let mask_id = self.mask_id;
        match &self.order {
            None => {
                let tau = sampler::choice_temperature(sampling.choice_temperature, self.step, self.of);
                let confidences = self
                    .masked
                    .iter()
                    .zip(drawn)
                    .map(|(position, (_, log_probability))| {
                        (
                            sampler::confidence(*log_probability, tau, key.uniforms(*position).confidence),
                            *position,
                        )
                    });
                sampler::least_confident(confidences, again, scratch, |position| {
                    tokens[position as usize] = mask_id;
                });
            }
            Some(order) => {
                // `masked` is ascending, so membership is a binary search.
                let last = order
                    .iter()
                    .rev()
                    .filter(|position| self.masked.binary_search(position).is_ok());
                last.take(again)
                    .for_each(|position| tokens[*position as usize] = mask_id);
            }
        }
        self.masked
            .retain(|position| tokens[*position as usize] == mask_id);
        self.step += 1;
        if self.masked.is_empty() {
            self.step = self.of;
        }
    }
}
