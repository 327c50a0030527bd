//! A row: one picture's token grid in one stage, between two steps. Pure: a model gives it logits, it takes a step.

mod state;
mod step;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use self::state::RowState;
pub use self::step::{Logits, StepError};
use crate::bundle::{Stage, StageSpec};
use crate::halton::shared_halton_order;
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
        let state = RowState::masked(spec, &settings.sampling);
        Row::build(spec, settings, state, conditioning, "grid")
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
        let masked = state
            .check(spec, &settings.sampling)
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
}
