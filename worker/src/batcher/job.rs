//! A job in the batcher: its rows, and what the policy asks about it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use muse_engine::{
    Conditioning, ConditioningInput, Row, RowConditioning, RowError, RowSettings, RowState, StageSpec,
    guidance,
};

use super::{
    curve::PassCurve,
    policy::{Chosen, Standing},
};
use crate::hub::Ticket;

/// A job as it is admitted.
#[derive(Debug)]
pub struct NewJob {
    /// The lease that it runs under.
    pub ticket: Ticket,
    /// 1 low, 2 normal, 3 high.
    pub priority: u8,
    /// When it was queued, by this shard's clock.
    pub queued_at: Instant,
    /// When it is given up.
    pub deadline: Option<Instant>,
    /// What its rows are conditioned on, each once: rows of one prompt share it.
    pub inputs: Vec<ConditioningInput>,
    /// Index of the input that is the same for every job of this shard, if it has it.
    pub common_input: Option<usize>,
    /// One row for each picture.
    pub rows: Vec<RowPlan>,
}

/// A row that has not begun here.
#[derive(Debug, Clone)]
pub struct RowPlan {
    /// How it is sampled.
    pub settings: RowSettings,
    /// Index of the input of its conditional logits.
    pub conditional: usize,
    /// Index of the input of its unconditional ones; `None` without guidance.
    pub unconditional: Option<usize>,
    /// Where it starts: all masked, or where an earlier shard left off.
    pub start: RowState,
}

/// A row on its way. It holds conditioning, which is large, only while it is live.
enum Slot {
    Planned(Box<RowPlan>),
    Live(Box<Row>),
    Done(RowState),
}

pub(super) struct Job {
    pub(super) ticket: Ticket,
    pub(super) deadline: Option<Instant>,
    /// When its decoding began: conditioning, then the first pass.
    pub(super) begun_at: Option<Instant>,
    priority: u8,
    queued_at: Instant,
    arrival: u64,
    inputs: Vec<ConditioningInput>,
    common_input: Option<usize>,
    slots: Vec<Slot>,
    /// Which rows' grids have been told.
    told: Vec<bool>,
}

impl RowPlan {
    fn is_done(&self) -> bool {
        self.start.step >= self.start.of
    }

    /// Rows that its next pass computes.
    fn cost(&self) -> usize {
        if self.is_done() {
            return 0;
        }
        let sampling = &self.settings.sampling;
        let t = guidance::weight(
            sampling.guidance,
            sampling.guidance_schedule,
            self.start.step,
            self.start.of,
        );
        1 + usize::from(t != 0.0)
    }
}

impl Slot {
    fn cost(&self) -> usize {
        match self {
            Slot::Planned(plan) => plan.cost(),
            Slot::Live(row) => row.cost(),
            Slot::Done(_) => 0,
        }
    }

    /// Steps done, and in all.
    fn steps(&self) -> (u32, u32) {
        match self {
            Slot::Planned(plan) => (plan.start.step, plan.start.of),
            Slot::Live(row) => (row.step(), row.of()),
            Slot::Done(state) => (state.step, state.of),
        }
    }

    fn state(&self) -> RowState {
        match self {
            Slot::Planned(plan) => plan.start.clone(),
            Slot::Live(row) => row.checkpoint(),
            Slot::Done(state) => state.clone(),
        }
    }
}

impl Job {
    pub(super) fn new(job: NewJob, arrival: u64) -> Self {
        Job {
            ticket: job.ticket,
            deadline: job.deadline,
            begun_at: None,
            priority: job.priority,
            queued_at: job.queued_at,
            arrival,
            inputs: job.inputs,
            common_input: job.common_input,
            told: vec![false; job.rows.len()],
            slots: job
                .rows
                .into_iter()
                .map(|plan| Slot::Planned(Box::new(plan)))
                .collect(),
        }
    }

    /// Its unfinished rows with what each costs in the next pass, in order: the first that is chosen stays the first, so that
    /// pictures finish one after the other.
    pub(super) fn costs(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.slots
            .iter()
            .map(Slot::cost)
            .enumerate()
            .filter(|(_, cost)| *cost > 0)
    }

    pub(super) fn rows_left(&self) -> usize {
        self.costs().count()
    }

    pub(super) fn is_done(&self) -> bool {
        self.rows_left() == 0
    }

    pub(super) fn standing(&self, curve: &PassCurve, row_budget: usize) -> Standing {
        Standing {
            priority: self.priority,
            queued_at: self.queued_at,
            deadline: self.deadline,
            remaining: self.remaining(curve, row_budget),
            arrival: self.arrival,
        }
    }

    /// Estimated time of its remaining steps, if it had the passes to itself.
    pub(super) fn remaining(&self, curve: &PassCurve, row_budget: usize) -> Duration {
        let (mut longest, mut row_steps, mut rows) = (0u32, 0usize, 0usize);
        for slot in &self.slots {
            let (step, of) = slot.steps();
            let left = of.saturating_sub(step);
            // What the next step costs stands for the rest: guidance rises from 0 only at the very first.
            let cost = slot.cost().max(1);
            longest = longest.max(left);
            row_steps += left as usize * cost;
            rows += if left > 0 { cost } else { 0 };
        }
        let budget = row_budget.max(1);
        let passes = (longest as usize).max(row_steps.div_ceil(budget));
        curve.time(rows.min(budget)) * u32::try_from(passes).unwrap_or(u32::MAX)
    }

    /// Steps of its least advanced row, done and in all.
    pub(super) fn progress(&self) -> (u32, u32) {
        self.slots
            .iter()
            .map(Slot::steps)
            .max_by_key(|(step, of)| of.saturating_sub(*step))
            .unwrap_or((0, 0))
    }

    pub(super) fn checkpoint(&self) -> Vec<RowState> {
        self.slots.iter().map(Slot::state).collect()
    }

    /// What it still has to be conditioned on; empty once it is.
    pub(super) fn inputs(&self) -> &[ConditioningInput] {
        &self.inputs
    }

    /// Which of [`Job::inputs`] is the same for every job.
    pub(super) fn common_input(&self) -> Option<usize> {
        self.common_input
    }

    /// Turns its planned rows into live ones; `conditioning` goes along with [`Job::inputs`].
    pub(super) fn condition(
        &mut self,
        spec: &StageSpec,
        conditioning: &[Arc<Conditioning>],
    ) -> Result<(), RowError> {
        for slot in &mut self.slots {
            let Slot::Planned(plan) = slot else { continue };
            if plan.is_done() {
                continue;
            }
            let get = |index: usize| conditioning.get(index).cloned();
            let unconditional = plan.unconditional.and_then(get);
            let conditional = get(plan.conditional).ok_or(RowError::NoUnconditional)?;
            let row = Row::resume(
                spec,
                plan.settings.clone(),
                plan.start.clone(),
                RowConditioning {
                    conditional,
                    unconditional,
                },
            )?;
            *slot = Slot::Live(Box::new(row));
        }
        self.inputs = Vec::new();
        Ok(())
    }

    /// The live rows among `wanted` (ascending).
    pub(super) fn live(&mut self, wanted: &[Chosen]) -> impl Iterator<Item = &mut Row> {
        self.slots
            .iter_mut()
            .enumerate()
            .filter_map(|(index, slot)| match slot {
                Slot::Live(row) if wanted.iter().any(|chosen| chosen.row == index) => Some(&mut **row),
                _ => None,
            })
    }

    /// Rows that became done since the last call, with their grids. Their conditioning is let go.
    pub(super) fn newly_done(&mut self) -> Vec<(usize, Vec<u32>)> {
        let mut done = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.cost() == 0 && !self.told[index] {
                self.told[index] = true;
                let state = slot.state();
                done.push((index, state.tokens.clone()));
                *slot = Slot::Done(state);
            }
        }
        done
    }
}
