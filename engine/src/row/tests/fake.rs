//! A model and conditionings that need no ONNX Runtime.

use std::sync::Arc;

use crate::bundle::{Stage, StageSpec};
use crate::row::{Logits, Row, RowConditioning, RowSettings};
use crate::sampler::Scratch;
use crate::sampling::Sampling;
use crate::stage::tests::stage_spec;
use crate::stage::{Conditioning, ConditioningInput, RowFailure, StageError, StageModel, Tensor, TensorData};

/// A model without a model: logits are a hash of the row's tokens and its conditioning.
pub(super) struct FakeModel {
    spec: StageSpec,
    scratch: Scratch,
    /// Rows of every pass, unconditional ones counted.
    pub(super) passes: Vec<usize>,
}

fn hash(words: impl IntoIterator<Item = u32>) -> u32 {
    words.into_iter().fold(0x811c_9dc5, |hash, word| {
        (hash ^ word).wrapping_mul(0x0100_0193).rotate_left(13)
    })
}

impl FakeModel {
    pub(super) fn new(stage: Stage) -> FakeModel {
        FakeModel {
            spec: stage_spec(stage),
            scratch: Scratch::default(),
            passes: Vec::new(),
        }
    }

    fn logits(&self, tokens: &[u32], conditioning: &Conditioning) -> Vec<f32> {
        let TensorData::F32(values) = &conditioning.tensors[0].data else {
            panic!("{conditioning:?}")
        };
        let seed = hash(
            tokens
                .iter()
                .copied()
                .chain(values.iter().map(|value| value.to_bits())),
        );
        let count = self.spec.positions() * self.spec.logits_size;
        (0..count as u32)
            .map(|n| (hash([seed, n]) >> 8) as f32 / (1 << 21) as f32 - 4.0)
            .collect()
    }
}

impl StageModel for FakeModel {
    fn spec(&self) -> &StageSpec {
        &self.spec
    }

    fn condition(&mut self, _: &[ConditioningInput]) -> Result<Vec<Arc<Conditioning>>, StageError> {
        unreachable!("these tests make their conditioning")
    }

    fn pass(&mut self, rows: &mut [&mut Row]) -> Result<(), StageError> {
        self.passes.push(rows.iter().map(|row| row.cost()).sum());
        let mut failures = Vec::new();
        for (index, row) in rows.iter_mut().enumerate() {
            let conditional = self.logits(row.tokens(), &row.conditioning().conditional);
            let unconditional = row
                .needs_unconditional()
                .then(|| self.logits(row.tokens(), row.conditioning().unconditional.as_ref().unwrap()));
            let width = self.spec.logits_size;
            let conditional = Logits::everywhere(&conditional, width);
            let unconditional = unconditional
                .as_deref()
                .map(|values| Logits::everywhere(values, width));
            if let Err(error) = row.advance(conditional, unconditional, &mut self.scratch) {
                failures.push(RowFailure { row: index, error });
            }
        }
        if failures.is_empty() {
            Ok(())
        } else {
            Err(StageError::Rows(failures))
        }
    }
}

fn conditioning(value: f32) -> Arc<Conditioning> {
    Arc::new(Conditioning {
        tensors: vec![Tensor {
            shape: vec![1],
            data: TensorData::F32(vec![value]),
        }],
    })
}

pub(super) fn both(value: f32) -> RowConditioning {
    RowConditioning {
        conditional: conditioning(value),
        unconditional: Some(conditioning(-value)),
    }
}

pub(super) fn settings(sampling: Sampling, seed: u64) -> RowSettings {
    RowSettings {
        seed,
        image_index: 0,
        stage: Stage::Base,
        sampling,
    }
}

pub(super) fn defaults() -> Sampling {
    stage_spec(Stage::Base).defaults
}

pub(super) fn run(row: &mut Row) -> Vec<Vec<u32>> {
    let mut model = FakeModel::new(Stage::Base);
    let mut history = Vec::new();
    while !row.is_done() {
        model.pass(&mut [row]).unwrap();
        history.push(row.tokens().to_vec());
    }
    history
}
