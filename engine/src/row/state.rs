//! A row between two passes: what a checkpoint holds, and whether one can be true.

use crate::bundle::StageSpec;
use crate::sampling::Sampling;
use crate::schedule;

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

// === impl RowState ===

impl RowState {
    /// Every position masked: where text to image begins.
    pub fn masked(spec: &StageSpec, sampling: &Sampling) -> RowState {
        let positions = spec.positions();
        // A grid's sides are at most 2^14 (bundle/verify.rs).
        let initially_masked = positions as u32;
        RowState {
            tokens: vec![spec.mask_id; positions],
            step: 0,
            of: schedule::steps_taken(sampling.steps, initially_masked),
            initially_masked,
            initially_known: Vec::new(),
        }
    }

    /// Checks it against its stage and settings and gives the masked positions. Checkpoints come from outside.
    pub(super) fn check(&self, spec: &StageSpec, sampling: &Sampling) -> Result<Vec<u32>, String> {
        let positions = spec.positions();
        if self.tokens.len() != positions {
            return Err(format!("{} positions instead of {positions}", self.tokens.len()));
        }
        if let Some(token) = self
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
            .zip(&self.tokens)
            .filter_map(|(position, token)| (*token == spec.mask_id).then_some(position))
            .collect();
        if !self.initially_known.is_empty() && self.initially_known.len() != positions.div_ceil(8) {
            return Err(format!(
                "{} bytes of known positions for {positions} positions",
                self.initially_known.len()
            ));
        }
        let known = |position: u32| {
            self.initially_known
                .get(position as usize / 8)
                .is_some_and(|byte| byte >> (position % 8) & 1 == 1)
        };
        let initially_masked = positions - (0..positions as u32).filter(|position| known(*position)).count();
        if self.initially_masked as usize != initially_masked {
            return Err(format!(
                "{} positions were masked at the start, not {}",
                initially_masked, self.initially_masked
            ));
        }
        if let Some(position) = masked.iter().find(|position| known(**position)) {
            return Err(format!(
                "position {position} was known at the start and is masked now"
            ));
        }
        if self.of != schedule::steps_taken(sampling.steps, self.initially_masked) {
            return Err(format!("{} steps in all do not fit the settings", self.of));
        }
        if self.step > self.of {
            return Err(format!("step {} of {}", self.step, self.of));
        }
        // Every step before this one masked a number of positions that the schedule fixes.
        let mut unknown = self.initially_masked;
        for step in 0..self.step {
            unknown = schedule::masked_after(
                sampling.mask_schedule,
                self.initially_masked,
                unknown,
                step,
                self.of,
            );
        }
        if masked.len() != unknown as usize {
            return Err(format!(
                "{} positions are masked before step {}, not {unknown}",
                masked.len(),
                self.step
            ));
        }
        Ok(masked)
    }
}
