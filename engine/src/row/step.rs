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

/// A row's logits from a pass, f32, as many as the model gives at a position (`width`) one position after another.
#[derive(Debug, Clone, Copy)]
pub struct Logits<'pass> {
    values: &'pass [f32],
    width: usize,
    everywhere: bool,
}

// === impl Logits ===

impl<'pass> Logits<'pass> {
    /// Of every position of the grid: `[S, width]`, row-major.
    pub fn everywhere(values: &'pass [f32], width: usize) -> Logits<'pass> {
        Logits {
            values,
            width,
            everywhere: true,
        }
    }

    /// Of the positions that are masked: `[M, width]`, in the order of [`Row::masked`].
    pub fn at_masked(values: &'pass [f32], width: usize) -> Logits<'pass> {
        Logits {
            values,
            width,
            everywhere: false,
        }
    }

    /// The logits of the `nth` masked position, which is `position` of the grid; of those the first `codes`.
    fn of(self, nth: usize, position: u32, codes: usize) -> Option<&'pass [f32]> {
        let at = if self.everywhere { position as usize } else { nth };
        let start = at.checked_mul(self.width)?;
        let end = start.checked_add(self.width)?;
        self.values.get(start..end)?.get(..codes)
    }
}

// === impl Row ===

impl Row {
    /// Takes the next step with this pass's logits. On an error the row is as before.
    ///
    /// `unconditional` is needed exactly if [`needs_unconditional`](Row::needs_unconditional) says so.
    pub fn advance(
        &mut self,
        conditional: Logits<'_>,
        unconditional: Option<Logits<'_>>,
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
        let codes = self.codebook_size as usize;
        for (nth, position) in self.masked.iter().enumerate() {
            let conditional = conditional.of(nth, *position, codes);
            let unconditional = unconditional.map(|logits| logits.of(nth, *position, codes));
            let logits = match (conditional, unconditional) {
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
