//! A row: one picture's token grid in one stage, between two steps. Pure: a model gives it logits, it takes a step.

use std::sync::Arc;

use crate::bundle::{Stage, StageSpec};
use crate::halton::shared_halton_order;
use crate::random::StepKey;
use crate::sampler::{self, DrawSettings, Scratch};
use crate::sampling::{InvalidSettings, Sampling, Scheduler};
use crate::stage::Conditioning;
use crate::{guidance, schedule};

/// What decides a row's tokens, along with its conditioning and its initial grid.
#[derive(Debug, Clone, PartialEq)]
pub struct RowSettings {
    /// The request's seed.
    pub seed: u64,
    /// Which of the request's pictures; picture k is the same whatever their count.
    pub image_index: u32,
    /// The stage.
    pub stage: Stage,
    /// Every setting resolved.
    pub sampling: Sampling,
}

/// A row's conditioning, shared with other rows of the same prompt.
#[derive(Debug, Clone)]
pub struct RowConditioning {
    /// On the prompt.
    pub conditional: Arc<Conditioning>,
    /// On the negative prompt or the unconditional input; needed if guidance is above 0.
    pub unconditional: Option<Arc<Conditioning>>,
}

/// A row between two passes, without what its job already says: its checkpoint (docs/decoding.md).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowState {
    /// `[S]`; masked positions hold the stage's mask id.
    pub tokens: Vec<u32>,
    /// The next step to run.
    pub step: u32,
    /// N: steps in all.
    pub of: u32,
    /// U: positions masked at the start.
    pub initially_masked: u32,
    /// Positions known at the start, one bit each, little-endian; empty: none.
    pub initially_known: Vec<u8>,
}

/// Why a row cannot be built from what was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Settings out of range.
    #[error(transparent)]
    Settings(#[from] InvalidSettings),
    /// The settings are for another stage.
    #[error("settings of stage {settings} do not fit a grid of stage {stage}")]
    Stage {
        /// The settings' stage.
        settings: Stage,
        /// The grid's stage.
        stage: Stage,
    },
    /// Guidance is above 0, but there is no unconditional conditioning.
    #[error("guidance is above 0, but there is no unconditional conditioning")]
    NoUnconditional,
    /// A grid, mask or checkpoint does not fit the stage.
    #[error("the {what} does not fit stage {stage}: {reason}")]
    Grid {
        /// `grid`, `mask` or `checkpoint`.
        what: &'static str,
        /// The stage.
        stage: Stage,
        /// What is wrong.
        reason: String,
    },
}

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

/// One picture's token grid in one stage, with its place in the schedule.
#[derive(Debug, Clone)]
pub struct Row {
    settings: RowSettings,
    conditioning: RowConditioning,
    codebook_size: u32,
    mask_id: u32,
    /// `[S]`, masked positions hold the mask id.
    tokens: Vec<u32>,
    /// Positions masked now, ascending.
    masked: Vec<u32>,
    /// One bit each, little-endian; empty: none.
    initially_known: Vec<u8>,
    initially_masked: u32,
    step: u32,
    of: u32,
    /// Only for the Halton scheduler.
    order: Option<Arc<[u32]>>,
}

// === impl RowError ===

impl RowError {
    fn grid(what: &'static str, stage: Stage, reason: String) -> RowError {
        RowError::Grid { what, stage, reason }
    }
}

// === impl RowSettings ===

impl RowSettings {
    /// Whether any step needs unconditional logits, so that the row needs an unconditional conditioning.
    pub fn needs_unconditional(&self) -> bool {
        self.sampling.guidance > 0.0
    }
}

// === impl Row ===

impl Row {
    /// A row with every position masked: text to image.
    pub fn text_to_image(
        spec: &StageSpec,
        settings: RowSettings,
        conditioning: RowConditioning,
    ) -> Result<Row, RowError> {
        let mask = vec![true; spec.positions()];
        Row::from_grid(
            spec,
            settings,
            &vec![spec.mask_id; spec.positions()],
            &mask,
            conditioning,
        )
    }

    /// A row that fills the positions where `mask` is true and leaves `tokens` elsewhere; both `[S]`, row-major. What
    /// `tokens` holds at masked positions does not matter.
    pub fn from_grid(
        spec: &StageSpec,
        settings: RowSettings,
        tokens: &[u32],
        mask: &[bool],
        conditioning: RowConditioning,
    ) -> Result<Row, RowError> {
        let positions = spec.positions();
        for (what, found) in [("grid", tokens.len()), ("mask", mask.len())] {
            if found != positions {
                return Err(RowError::grid(
                    what,
                    spec.stage,
                    format!("{found} positions instead of {positions}"),
                ));
            }
        }
        let masked: Vec<u32> = (0u32..)
            .zip(mask)
            .filter_map(|(position, masked)| masked.then_some(position))
            .collect();
        let initially_masked = masked.len() as u32;
        let mut initially_known = Vec::new();
        if masked.len() < positions {
            initially_known.resize(positions.div_ceil(8), 0u8);
            for (position, _) in mask.iter().enumerate().filter(|(_, masked)| !**masked) {
                initially_known[position / 8] |= 1 << (position % 8);
            }
        }
        let state = RowState {
            tokens: tokens
                .iter()
                .zip(mask)
                .map(|(token, mask)| if *mask { spec.mask_id } else { *token })
                .collect(),
            step: 0,
            of: schedule::steps_taken(settings.sampling.steps, initially_masked),
            initially_masked,
            initially_known,
        };
        Row::build(spec, settings, state, conditioning, "grid")
    }

    /// The row that [`checkpoint`](Row::checkpoint) was taken of; it goes on with the same result to the bit.
    pub fn resume(
        spec: &StageSpec,
        settings: RowSettings,
        state: RowState,
        conditioning: RowConditioning,
    ) -> Result<Row, RowError> {
        Row::build(spec, settings, state, conditioning, "checkpoint")
    }

    fn build(
        spec: &StageSpec,
        settings: RowSettings,
        state: RowState,
        conditioning: RowConditioning,
        what: &'static str,
    ) -> Result<Row, RowError> {
        settings.sampling.validate(spec.stage.as_str())?;
        if settings.stage != spec.stage {
            return Err(RowError::Stage {
                settings: settings.stage,
                stage: spec.stage,
            });
        }
        if settings.needs_unconditional() && conditioning.unconditional.is_none() {
            return Err(RowError::NoUnconditional);
        }
        let masked = check_state(spec, &settings.sampling, &state)
            .map_err(|reason| RowError::grid(what, spec.stage, reason))?;
        let order = match settings.sampling.scheduler {
            Scheduler::Halton => Some(shared_halton_order(spec.rows, spec.columns)),
            Scheduler::Confidence => None,
        };
        Ok(Row {
            settings,
            conditioning,
            codebook_size: spec.codebook_size,
            mask_id: spec.mask_id,
            tokens: state.tokens,
            masked,
            initially_known: state.initially_known,
            initially_masked: state.initially_masked,
            step: state.step,
            of: state.of,
            order,
        })
    }

    /// What another shard needs, besides settings and conditioning, to go on.
    pub fn checkpoint(&self) -> RowState {
        RowState {
            tokens: self.tokens.clone(),
            step: self.step,
            of: self.of,
            initially_masked: self.initially_masked,
            initially_known: self.initially_known.clone(),
        }
    }

    /// `[S]`, row-major; masked positions hold the mask id.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The settings.
    pub fn settings(&self) -> &RowSettings {
        &self.settings
    }

    /// The conditioning.
    pub fn conditioning(&self) -> &RowConditioning {
        &self.conditioning
    }

    /// Steps done, which is also the next step's index.
    pub fn step(&self) -> u32 {
        self.step
    }

    /// N: steps in all.
    pub fn of(&self) -> u32 {
        self.of
    }

    /// Positions still masked, ascending.
    pub fn masked(&self) -> &[u32] {
        &self.masked
    }

    /// Whether every step is done.
    pub fn is_done(&self) -> bool {
        self.step >= self.of
    }

    /// t of the next step (docs/decoding.md).
    pub fn guidance_weight(&self) -> f32 {
        let sampling = &self.settings.sampling;
        guidance::weight(sampling.guidance, sampling.guidance_schedule, self.step, self.of)
    }

    /// Whether the next step needs unconditional logits.
    pub fn needs_unconditional(&self) -> bool {
        !self.is_done() && self.guidance_weight() != 0.0
    }

    /// Rows of a pass that the next step takes: 2 with guidance, else 1; 0 when done.
    pub fn cost(&self) -> usize {
        if self.is_done() {
            0
        } else {
            1 + usize::from(self.needs_unconditional())
        }
    }

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

/// Checks a state against its stage and settings and gives the masked positions. Checkpoints come from outside.
fn check_state(spec: &StageSpec, sampling: &Sampling, state: &RowState) -> Result<Vec<u32>, String> {
    let positions = spec.positions();
    if state.tokens.len() != positions {
        return Err(format!("{} positions instead of {positions}", state.tokens.len()));
    }
    if let Some(token) = state
        .tokens
        .iter()
        .find(|token| **token >= spec.codebook_size && **token != spec.mask_id)
    {
        return Err(format!(
            "token {token} is neither below the codebook's size {} nor the mask id",
            spec.codebook_size
        ));
    }
    let masked: Vec<u32> = (0u32..)
        .zip(&state.tokens)
        .filter_map(|(position, token)| (*token == spec.mask_id).then_some(position))
        .collect();
    if !state.initially_known.is_empty() && state.initially_known.len() != positions.div_ceil(8) {
        return Err(format!(
            "{} bytes of known positions for {positions} positions",
            state.initially_known.len()
        ));
    }
    let known = |position: u32| {
        state
            .initially_known
            .get(position as usize / 8)
            .is_some_and(|byte| byte >> (position % 8) & 1 == 1)
    };
    let initially_masked = positions - (0..positions as u32).filter(|position| known(*position)).count();
    if state.initially_masked as usize != initially_masked {
        return Err(format!(
            "{} positions were masked at the start, not {}",
            initially_masked, state.initially_masked
        ));
    }
    if let Some(position) = masked.iter().find(|position| known(**position)) {
        return Err(format!(
            "position {position} was known at the start and is masked now"
        ));
    }
    if state.of != schedule::steps_taken(sampling.steps, state.initially_masked) {
        return Err(format!("{} steps in all do not fit the settings", state.of));
    }
    if state.step > state.of {
        return Err(format!("step {} of {}", state.step, state.of));
    }
    // Every step before this one masked a number of positions that the schedule fixes.
    let mut unknown = state.initially_masked;
    for step in 0..state.step {
        unknown = schedule::masked_after(
            sampling.mask_schedule,
            state.initially_masked,
            unknown,
            step,
            state.of,
        );
    }
    if masked.len() != unknown as usize {
        return Err(format!(
            "{} positions are masked before step {}, not {unknown}",
            masked.len(),
            state.step
        ));
    }
    Ok(masked)
}

#[cfg(test)]
#[path = "row_tests.rs"]
mod tests;
