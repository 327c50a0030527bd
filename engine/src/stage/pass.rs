//! A pass: its rows divided into parts, each computed and sampled by a lane.

use std::ops::Range;
use std::sync::Arc;

use super::conditioning::Conditioning;
use super::parts::{Share, divide};
use super::step_graph::{LogitsForm, StepGraph, StepInputs, StepLogits};
use super::{InputError, RowFailure, StageError};
use crate::row::{Logits, Row, StepError};
use crate::runtime::{LaneThreads, Lanes};
use crate::sampler::Scratch;

/// Runs a stage's passes: what they use again and again.
#[derive(Debug, Default)]
pub(super) struct Passes {
    /// One for each part of a pass, reused.
    buffers: Vec<Buffers>,
    /// For rows that lie in two parts.
    scratch: Scratch,
}

/// What a part needs while it is computed.
#[derive(Debug, Default)]
struct Buffers {
    inputs: StepInputs,
    /// One for each sampler of the part.
    scratches: Vec<Scratch>,
}

/// A row that takes its step, and its logits.
struct Drawing<'part, 'pass> {
    /// Index into the rows of the pass.
    index: usize,
    row: &'part mut &'pass mut Row,
    conditional: Option<Logits<'part>>,
    unconditional: Option<Logits<'part>>,
}

/// The rows of a part that one sampler draws, one after another.
struct Portion<'part, 'pass> {
    drawings: Vec<Drawing<'part, 'pass>>,
    scratch: &'part mut Scratch,
    failures: Vec<RowFailure>,
}

/// A part of a pass that is under way.
struct Part<'pass> {
    buffers: &'pass mut Buffers,
    shares: Vec<Share>,
    /// How many numbers the logits of each share's row are.
    sizes: Vec<usize>,
    /// The rows that lie in this part alone, in order. They take their step here.
    rows: Vec<&'pass mut Row>,
    outcome: Result<Sampled<'pass>, StageError>,
}

/// What became of a part's logits.
#[derive(Default)]
struct Sampled<'pass> {
    failures: Vec<RowFailure>,
    /// Of rows that lie in another part too.
    halves: Vec<Half>,
    /// Kept for the halves.
    logits: Option<StepLogits<'pass>>,
}

/// Which of a part's logits are half of a row's.
struct Half {
    row: usize,
    unconditional: bool,
    range: Range<usize>,
}

// === impl Passes ===

impl Passes {
    /// See [`StageModel::pass`](super::StageModel::pass). `threads` compute the parts; each part is drawn by as many as there are
    /// `samplers`.
    pub(super) fn run(
        &mut self,
        step: &StepGraph,
        lanes: Lanes,
        (threads, samplers): (&LaneThreads, &LaneThreads),
        rows: &mut [&mut Row],
    ) -> Result<(), StageError> {
        let guided: Vec<bool> = rows.iter().map(|row| row.needs_unconditional()).collect();
        let divided = divide(&guided, lanes);
        self.buffers
            .resize_with(self.buffers.len().max(divided.len()), Buffers::default);
        let mut parts = Vec::with_capacity(divided.len());
        for (shares, buffers) in divided.into_iter().zip(&mut self.buffers) {
            parts.push(Part::gather(step, buffers, shares, rows)?);
        }
        let divided = share_out(&mut parts, rows);

        threads.each(&mut parts, |part| part.run(step, samplers));

        let outcomes = parts.into_iter().map(|part| part.outcome);
        let mut sampled = outcomes.collect::<Result<Vec<Sampled<'_>>, StageError>>()?;
        let mut failures: Vec<RowFailure> = sampled
            .iter_mut()
            .flat_map(|part| part.failures.drain(..))
            .collect();
        failures.extend(join(divided, &sampled, step.form(), &mut self.scratch));
        if failures.is_empty() {
            return Ok(());
        }
        failures.sort_unstable_by_key(|failure| failure.row);
        Err(StageError::Rows(failures))
    }
}

/// Gives each part the rows that lie in it alone, and returns those that lie in two.
fn share_out<'pass>(parts: &mut [Part<'pass>], rows: &'pass mut [&mut Row]) -> Vec<(usize, &'pass mut Row)> {
    let mut owner: Vec<Option<usize>> = vec![None; rows.len()];
    for (index, part) in parts.iter().enumerate() {
        for share in part.shares.iter().filter(|share| share.whole) {
            owner[share.row] = Some(index);
        }
    }
    let mut divided = Vec::new();
    for (index, (row, owner)) in rows.iter_mut().zip(owner).enumerate() {
        match owner {
            Some(part) => parts[part].rows.push(row),
            None => divided.push((index, &mut **row)),
        }
    }
    divided
}

/// Has the rows that lie in two parts take their step, with the halves of their logits.
fn join(
    divided: Vec<(usize, &mut Row)>,
    parts: &[Sampled<'_>],
    form: LogitsForm,
    scratch: &mut Scratch,
) -> Vec<RowFailure> {
    let find = |index, unconditional| {
        let own = parts.iter().find_map(|part| part.half(index, unconditional));
        own.map(|logits| form.view(logits)).ok_or(StepError::TooFewLogits)
    };
    let step = |index, row: &mut Row, scratch: &mut Scratch| {
        row.advance(find(index, false)?, Some(find(index, true)?), scratch)
    };
    divided
        .into_iter()
        .filter_map(|(row, own)| {
            let error = step(row, own, scratch).err()?;
            Some(RowFailure { row, error })
        })
        .collect()
}

// === impl Sampled ===

impl Sampled<'_> {
    /// The logits of a row's conditional or unconditional half, if they are here.
    fn half(&self, row: usize, unconditional: bool) -> Option<&[f32]> {
        let own = |half: &&Half| (half.row, half.unconditional) == (row, unconditional);
        let half = self.halves.iter().find(own)?;
        self.logits.as_ref()?.values().ok()?.get(half.range.clone())
    }
}

// === impl Part ===

impl<'pass> Part<'pass> {
    /// Gathers the inputs of `shares`.
    fn gather(
        step: &StepGraph,
        buffers: &'pass mut Buffers,
        shares: Vec<Share>,
        rows: &[&mut Row],
    ) -> Result<Part<'pass>, StageError> {
        let inputs = &mut buffers.inputs;
        inputs.clear();
        let mut conditioning: Vec<&Arc<Conditioning>> = Vec::with_capacity(2 * shares.len());
        // One row of each share first, so that all grids come first; then the unconditional rows of those that have both.
        for (index, share) in shares.iter().enumerate() {
            let row = &rows[share.row];
            step.push(inputs, index, row.tokens(), row.masked());
            conditioning.push(conditioning_of(row, !share.conditional)?);
        }
        for (index, share) in shares.iter().enumerate().filter(|(_, share)| share.has_both()) {
            let row = &rows[share.row];
            step.push(inputs, index, row.tokens(), row.masked());
            conditioning.push(conditioning_of(row, true)?);
        }
        step.join(inputs, conditioning.into_iter())?;
        let form = step.form();
        Ok(Part {
            buffers,
            sizes: shares.iter().map(|share| form.size(rows[share.row])).collect(),
            shares,
            rows: Vec::new(),
            outcome: Ok(Sampled::default()),
        })
    }

    /// Computes the part; its own rows take their step, a share of them in each of `samplers`.
    fn run(&mut self, step: &'pass StepGraph, samplers: &LaneThreads) {
        self.outcome = self.compute(step, samplers);
    }

    fn compute(
        &mut self,
        step: &'pass StepGraph,
        samplers: &LaneThreads,
    ) -> Result<Sampled<'pass>, StageError> {
        let form = step.form();
        let Buffers { inputs, scratches } = &mut *self.buffers;
        let logits = step.run(inputs)?;
        let values = logits.values()?;
        let all_first = self.sizes.iter().sum::<usize>().min(values.len());
        let (mut first, mut second) = values.split_at(all_first);
        let mut rows = self.rows.iter_mut();
        let mut sampled = Sampled::default();
        let mut drawings = Vec::with_capacity(self.shares.len());
        for (share, size) in self.shares.iter().zip(self.sizes.iter().copied()) {
            if !share.whole {
                let start = all_first - first.len();
                let (own, rest) = first.split_at(size.min(first.len()));
                first = rest;
                sampled.halves.push(Half {
                    row: share.row,
                    unconditional: share.unconditional,
                    range: start..start + own.len(),
                });
                continue;
            }
            let conditional = form.take(&mut first, size);
            let unconditional = if share.has_both() {
                form.take(&mut second, size)
            } else {
                None
            };
            match rows.next() {
                Some(row) => drawings.push(Drawing {
                    index: share.row,
                    row,
                    conditional,
                    unconditional,
                }),
                None => sampled.failures.push(RowFailure {
                    row: share.row,
                    error: StepError::TooFewLogits,
                }),
            }
        }
        sampled.failures.extend(draw(drawings, scratches, samplers));
        sampled.logits = Some(logits).filter(|_| !sampled.halves.is_empty());
        Ok(sampled)
    }
}

/// Has each row take its step. `scratches` are reused.
fn draw(
    mut drawings: Vec<Drawing<'_, '_>>,
    scratches: &mut Vec<Scratch>,
    samplers: &LaneThreads,
) -> Vec<RowFailure> {
    let each = drawings.len().div_ceil(samplers.count()).max(1);
    let count = drawings.len().div_ceil(each);
    scratches.resize_with(scratches.len().max(count), Scratch::default);
    let mut portions: Vec<Portion<'_, '_>> = scratches
        .iter_mut()
        .take(count)
        .map(|scratch| Portion {
            drawings: drawings.drain(..each.min(drawings.len())).collect(),
            scratch,
            failures: Vec::new(),
        })
        .collect();
    samplers.each(&mut portions, Portion::draw);
    portions
        .into_iter()
        .flat_map(|portion| portion.failures)
        .collect()
}

// === impl Portion ===

impl Portion<'_, '_> {
    fn draw(&mut self) {
        for drawing in &mut self.drawings {
            let drawn = match drawing.conditional.take() {
                Some(conditional) => {
                    drawing
                        .row
                        .advance(conditional, drawing.unconditional.take(), self.scratch)
                }
                None => Err(StepError::TooFewLogits),
            };
            if let Err(error) = drawn {
                self.failures.push(RowFailure {
                    row: drawing.index,
                    error,
                });
            }
        }
    }
}

/// What a row's conditional or unconditional logits depend on.
fn conditioning_of(row: &Row, unconditional: bool) -> Result<&Arc<Conditioning>, InputError> {
    let conditioning = row.conditioning();
    if unconditional {
        conditioning
            .unconditional
            .as_ref()
            .ok_or(InputError::Conditioning)
    } else {
        Ok(&conditioning.conditional)
    }
}
