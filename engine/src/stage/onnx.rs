//! A stage's `condition` and `step` graphs on ONNX Runtime.

use std::sync::Arc;

use super::condition_graph::ConditionGraph;
use super::conditioning::Conditioning;
use super::pass::Passes;
use super::step_graph::{StepGraph, StepInputs};
use super::{ConditioningInput, StageError, StageModel};
use crate::bundle::{Bundle, BundleFault, Stage, StageSpec};
use crate::row::Row;
use crate::runtime::{LaneThreads, Lanes, Provider, RuntimeError, SessionOptions};

/// A stage of a bundle, opened.
#[derive(Debug)]
pub struct OnnxStage {
    spec: StageSpec,
    /// Before the graphs, so that what it holds of theirs goes before them.
    passes: Passes,
    condition: ConditionGraph,
    step: StepGraph,
    lanes: Lanes,
    threads: LaneThreads,
    /// Who draws the tokens of a pass that one lane computes as a whole, a share of its rows each.
    samplers: LaneThreads,
}

// === impl OnnxStage ===

impl OnnxStage {
    /// Opens the graphs of `stage` and checks their inputs and outputs against the manifest and each other.
    pub fn open(bundle: &Bundle, stage: Stage, options: &SessionOptions) -> Result<OnnxStage, StageError> {
        let spec = bundle.stage(stage).ok_or_else(|| {
            bundle.fault(
                crate::bundle::MANIFEST,
                BundleFault::Manifest(format!("has no stage [{stage}]")),
            )
        })?;
        let low = match stage {
            Stage::Base => None,
            Stage::Superres => Some(bundle.base().clone()),
        };
        let lanes = options.lanes()?;
        let of_a_lane = SessionOptions {
            threads: lanes.threads,
            ..options.clone()
        };
        let condition = ConditionGraph::open(bundle, spec, low, &of_a_lane)?;
        let step = StepGraph::open(bundle, spec, condition.outputs(), &of_a_lane)?;
        let mut stage = OnnxStage {
            spec: spec.clone(),
            condition,
            step,
            lanes,
            threads: LaneThreads::start(lanes)?,
            samplers: LaneThreads::start(Lanes {
                // Lanes draw what they compute.
                count: if lanes.count > 1 { 1 } else { options.samplers()? },
                rows: usize::MAX,
                threads: 1,
            })?,
            passes: Passes::default(),
        };
        stage.probe(bundle)?;
        Ok(stage)
    }

    /// Runs both graphs once on the largest ids that the manifest allows: an embedding table that is too small would only
    /// fail on the row that first uses the id.
    fn probe(&mut self, bundle: &Bundle) -> Result<(), StageError> {
        let positions = self.spec.positions();
        let input = self.condition.largest_input();
        let fault = |file: &str, what: &str, error: StageError| match error {
            StageError::Runtime(RuntimeError::Run { reason, .. }) => {
                let message = format!("fails on {what}: {reason}");
                StageError::from(bundle.fault(file, BundleFault::Graph(message)))
            }
            other => other,
        };
        let made = self.condition(&[input]).map_err(|error| {
            fault(
                &self.spec.condition,
                "the largest low token that bundle.toml allows",
                error,
            )
        })?;
        let largest = self.spec.vocab_size - 1;
        let everywhere: Vec<u32> = (0u32..).take(positions).collect();
        let mut inputs = StepInputs::default();
        self.step
            .push(&mut inputs, 0, &vec![largest; positions], &everywhere);
        self.step.join(&mut inputs, made.iter())?;
        self.step.run(&inputs, |_| Ok(())).map_err(|error| {
            let what = format!(
                "the id {largest}, the largest that {}.vocab_size allows",
                self.spec.stage
            );
            fault(&self.spec.step, &what, error)
        })
    }

    /// What the step graph runs on.
    pub fn provider(&self) -> Provider {
        self.step.provider()
    }

    /// Gives back the memory that larger passes than any to come have used, as those of a warm-up. The next passes take what
    /// they need, and keep it.
    ///
    /// # Errors
    /// When a graph cannot run any more.
    pub fn release_memory(&mut self, bundle: &Bundle) -> Result<(), StageError> {
        self.passes.release_memory();
        self.step.shrink_at_next_run();
        self.probe(bundle)
    }
}

impl StageModel for OnnxStage {
    fn spec(&self) -> &StageSpec {
        &self.spec
    }

    fn full_rows(&self) -> usize {
        self.lanes.full_rows()
    }

    fn condition(&mut self, inputs: &[ConditioningInput]) -> Result<Vec<Arc<Conditioning>>, StageError> {
        for input in inputs {
            self.condition.check(input)?;
        }
        let mut left = inputs;
        let mut parts: Vec<_> = self
            .lanes
            .parts(inputs.len())
            .into_iter()
            .map(|size| {
                let (own, others) = left.split_at(size);
                left = others;
                (own, Ok(Vec::new()))
            })
            .collect();
        self.threads
            .each(&mut parts, |(own, made)| *made = self.condition.run(own));
        let mut all = Vec::with_capacity(inputs.len());
        for (_, made) in parts {
            all.extend(made?);
        }
        Ok(all)
    }

    fn pass(&mut self, rows: &mut [&mut Row]) -> Result<(), StageError> {
        self.passes
            .run(&self.step, self.lanes, (&self.threads, &self.samplers), rows)
    }
}
