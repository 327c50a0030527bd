//! A stage's model: conditioning once for a prompt, then forward passes over any mix of rows.
//!
//! The batcher sees [`StageModel`] and not a session, so that one model may later lie on several devices.

mod condition_graph;
mod conditioning;
mod device_conditioning;
mod input;
mod onnx;
mod parts;
mod pass;
mod step_graph;

use std::sync::Arc;

pub use conditioning::{Conditioning, Tensor, TensorData};
pub use input::{ConditioningInput, InputError, UnconditionalSource};
pub use onnx::OnnxStage;

use crate::bundle::{BundleError, StageSpec};
use crate::row::{Row, StepError};
use crate::runtime::RuntimeError;

/// What a stage's model can do.
pub trait StageModel: Send {
    /// The stage as the bundle describes it.
    fn spec(&self) -> &StageSpec;

    /// Rows of the smallest pass that gives all that computes side by side as much as it is best given; a row budget below leaves
    /// something idle. 1 where the model does not know.
    fn full_rows(&self) -> usize {
        1
    }

    /// What the steps reuse, for each input, in order.
    fn condition(&mut self, inputs: &[ConditioningInput]) -> Result<Vec<Arc<Conditioning>>, StageError>;

    /// One forward pass over the conditional and the needed unconditional rows; each row takes one step.
    ///
    /// The rows may belong to any jobs, steps, seeds and settings; what a row becomes depends on itself alone. None may be
    /// done. [`StageError::Rows`] says which rows failed: these are as before, all others have taken their step. After any
    /// other error each row is as before or has taken its step, which [`Row::step`] tells.
    fn pass(&mut self, rows: &mut [&mut Row]) -> Result<(), StageError>;

    /// Gives memory back that conditioning and passes so far needed and the model itself does not. The next ones take what they
    /// need anew and keep it, so this is for when none is near.
    fn release_memory(&mut self) -> Result<(), StageError> {
        Ok(())
    }
}

/// Why a stage failed.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The graphs are not what the bundle says.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// ONNX Runtime failed; the rows whose part of the pass it computed before have taken their step.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// An input for [`StageModel::condition`] does not fit the model.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Some rows could not take their step.
    #[error("{}", .0.iter().map(|failure| format!("row {}: {}", failure.row, failure.error)).collect::<Vec<_>>().join("; "))]
    Rows(Vec<RowFailure>),
}

/// A row that could not take its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowFailure {
    /// Index into the rows of the pass.
    pub row: usize,
    /// Why.
    pub error: StepError,
}

#[cfg(test)]
pub(crate) mod tests {
    //! Small specs that several modules' tests use.

    use super::*;
    use crate::bundle::{ImageSize, Stage, TextSpec, Unconditional};
    use crate::sampling::{GuidanceSchedule, MaskSchedule, Sampling, Scheduler};
    use crate::text::Embedding;

    /// L = 4, D = 3.
    pub(crate) fn text_spec() -> TextSpec {
        TextSpec {
            tokenizer: "tokenizer.json".to_owned(),
            max_length: 4,
            pad_id: 0,
            vocab_size: 16,
            width: 3,
            length_buckets: vec![2, 4],
            encoder: "text_encoder.onnx".to_owned(),
        }
    }

    /// An embedding of `length` vectors, every value the same.
    pub(crate) fn embedding(length: usize, value: f32) -> Embedding {
        Embedding {
            values: vec![value; length * 3].into(),
            length,
            width: 3,
        }
    }

    /// 3 x 5 positions, 7 codes, mask id 8.
    pub(crate) fn stage_spec(stage: Stage) -> StageSpec {
        StageSpec {
            stage,
            rows: 3,
            columns: 5,
            codebook_size: 7,
            vocab_size: 9,
            logits_size: 8,
            mask_id: 8,
            unconditional: Unconditional::EmptyText,
            condition: "condition.onnx".to_owned(),
            step: "step.onnx".to_owned(),
            conditioning: None,
            decoder: None,
            encoder: None,
            image_size: ImageSize {
                height: 12,
                width: 20,
            },
            defaults: Sampling {
                steps: 4,
                guidance: 2.0,
                guidance_schedule: GuidanceSchedule::Linear,
                temperature: 1.0,
                top_k: 0,
                choice_temperature: 4.5,
                mask_schedule: MaskSchedule::Cosine,
                scheduler: Scheduler::Confidence,
            },
        }
    }
}
