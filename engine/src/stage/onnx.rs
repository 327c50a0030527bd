//! A stage's `condition` and `step` graphs on ONNX Runtime.

use std::sync::Arc;

use super::condition_graph::ConditionGraph;
use super::conditioning::Conditioning;
use super::pass::Passes;
use super::step_graph::{StepGraph, StepInputs};
use super::{ConditioningInput, StageError, StageModel};
use crate::bundle::{Bundle, BundleFault, Stage, StageSpec};
use crate::row::Row;
use crate::runtime::{LaneThreads, Lanes, Provider, RuntimeError, SessionOptions, release_memory};

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
        self.step.run(&inputs).map(drop).map_err(|error| {
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

    fn release_memory(&mut self) -> Result<(), StageError> {
        self.passes = Passes::default();
        Ok(release_memory()?)
    }

    fn pass(&mut self, rows: &mut [&mut Row]) -> Result<(), StageError> {
        self.passes
            .run(&self.step, self.lanes, (&self.threads, &self.samplers), rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{RowConditioning, RowSettings};
    use crate::runtime::Runtime;

    /// A stage of the tiny bundle, and rows of four texts that share the unconditional one.
    fn open(stage: Stage, on_device: bool) -> (OnnxStage, Vec<Row>) {
        let (root, _) = Runtime::of_the_workspace();
        let options = SessionOptions {
            threads: 2,
            lanes: 1,
            ..SessionOptions::default()
        };
        let bundle = Bundle::load(&root.join("tests/bundles/tiny")).unwrap();
        let mut model = OnnxStage::open(&bundle, stage, &options).unwrap();
        if on_device {
            let taken = model.condition.outputs().to_vec();
            model.step.join_as_on_a_device(&taken, &options).unwrap();
        }
        let inputs: Vec<_> = (0..5_u8)
            .map(|text| {
                let mut input = model.condition.largest_input();
                input.text.fill(f32::from(text) / 4.0 - 0.5);
                input
            })
            .collect();
        let mut made = model.condition(&inputs).unwrap();
        let unconditional = made.pop();
        let rows = made.into_iter().zip(0..).map(|(conditional, seed)| {
            let settings = RowSettings {
                seed,
                image_index: 0,
                stage,
                sampling: model.spec().defaults.clone(),
            };
            let conditioning = RowConditioning {
                conditional,
                unconditional: unconditional.clone(),
            };
            Row::text_to_image(model.spec(), settings, conditioning).unwrap()
        });
        let rows = rows.collect();
        (model, rows)
    }

    #[test]
    fn rows_take_the_same_steps_where_a_device_joins_their_conditioning() {
        for stage in [Stage::Base, Stage::Superres] {
            let (mut plain, mut expected) = open(stage, false);
            let (mut joined, mut found) = open(stage, true);
            let companies: [&[usize]; 5] = [&[0, 1, 2], &[0, 2], &[3, 2, 0], &[1], &[1, 3]];
            for company in companies.into_iter().cycle().take(200) {
                for (model, rows) in [(&mut plain, &mut expected), (&mut joined, &mut found)] {
                    let mut pass: Vec<&mut Row> = rows
                        .iter_mut()
                        .enumerate()
                        .filter(|(index, row)| company.contains(index) && !row.is_done())
                        .map(|(_, row)| row)
                        .collect();
                    if !pass.is_empty() {
                        model.pass(&mut pass).unwrap();
                    }
                }
                for (found, expected) in found.iter().zip(&expected) {
                    assert_eq!(found.tokens(), expected.tokens(), "{stage} {company:?}");
                }
            }
            assert!(found.iter().all(Row::is_done), "{stage}");
        }
    }
}
