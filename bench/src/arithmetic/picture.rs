//! What the passes of one picture come to, in operations, with a stage's default settings: no server of these graphs makes more
//! pictures in f32 than the machine's peak has room for.

use muse_engine::{Sampling, StageSpec, guidance, schedule};

/// Operations of one row of a pass, by how many of its positions have their logits computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowOperations {
    /// Of all positions.
    pub(super) whole: f64,
    /// With so many of them, where the graph can leave positions out; what lies between is on a line.
    pub(super) part: Option<(usize, f64)>,
}

/// The passes of a picture in one stage.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Passes {
    /// In all its steps, those without guidance included.
    pub(super) rows: usize,
    pub(super) operations: f64,
}

impl RowOperations {
    fn at(&self, wanted: usize, positions: usize) -> f64 {
        match self.part {
            Some((part, operations)) if part < positions => {
                let each = (self.whole - operations) / (positions - part) as f64;
                self.whole - each * (positions - wanted) as f64
            }
            _ => self.whole,
        }
    }
}

impl Passes {
    pub(super) fn of(spec: &StageSpec, row: RowOperations) -> Passes {
        Self::with(&spec.defaults, spec.positions(), row)
    }

    fn with(sampling: &Sampling, positions: usize, row: RowOperations) -> Passes {
        let initially = u32::try_from(positions).unwrap_or(u32::MAX);
        let steps = schedule::steps_taken(sampling.steps, initially);
        let (mut unknown, mut passes) = (initially, Passes::default());
        for step in 0..steps {
            let guided = guidance::weight(sampling.guidance, sampling.guidance_schedule, step, steps) != 0.0;
            let rows = 1 + usize::from(guided);
            passes.rows += rows;
            passes.operations += rows as f64 * row.at(unknown as usize, positions);
            unknown = schedule::masked_after(sampling.mask_schedule, initially, unknown, step, steps);
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use muse_engine::{GuidanceSchedule, MaskSchedule, Scheduler};

    use super::*;

    fn sampling(guidance: f32, guidance_schedule: GuidanceSchedule) -> Sampling {
        Sampling {
            steps: 4,
            guidance,
            guidance_schedule,
            temperature: 1.0,
            top_k: 0,
            choice_temperature: 1.0,
            mask_schedule: MaskSchedule::Linear,
            scheduler: Scheduler::Confidence,
        }
    }

    #[test]
    fn every_step_counts_its_rows_and_the_positions_that_are_masked() {
        // 8, 6, 4 and 2 of 8 positions are masked; a position costs 1, and a row without any 10.
        let row = RowOperations {
            whole: 18.0,
            part: Some((2, 12.0)),
        };
        let found = |sampling: &Sampling, row| {
            let Passes { rows, operations } = Passes::with(sampling, 8, row);
            (rows, operations)
        };
        let unguided = sampling(0.0, GuidanceSchedule::Constant);
        assert_eq!(found(&unguided, row), (4, 18.0 + 16.0 + 14.0 + 12.0));
        // The first step of a linear schedule has no guidance.
        let rising = sampling(2.0, GuidanceSchedule::Linear);
        assert_eq!(found(&rising, row), (7, 18.0 + 2.0 * (16.0 + 14.0 + 12.0)));
        let constant = sampling(2.0, GuidanceSchedule::Constant);
        assert_eq!(found(&constant, row), (8, 2.0 * (18.0 + 16.0 + 14.0 + 12.0)));
        let everything = RowOperations { part: None, ..row };
        assert_eq!(found(&unguided, everything), (4, 4.0 * 18.0));
    }
}
