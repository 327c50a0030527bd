//! A stage's `condition` and `step` graphs on ONNX Runtime.

use std::sync::Arc;

use ort::value::{Outlet, ValueType};

use super::conditioning::{Conditioning, Tensor, TensorData};
use super::pass::Passes;
use super::step_graph::{StepGraph, StepInputs};
use super::{ConditioningInput, StageError, StageModel};
use crate::bundle::{Bundle, BundleError, BundleFault, Stage, StageSpec, TextSpec};
use crate::row::Row;
use crate::runtime::signature::{Dimension, Signature, TensorSignature, describe};
use crate::runtime::{Element, Outputs, Provider, RuntimeError, Session, SessionOptions};

/// A stage of a bundle, opened.
#[derive(Debug)]
pub struct OnnxStage {
    spec: StageSpec,
    text: TextSpec,
    /// The stage whose tokens super-resolution is conditioned on.
    low: Option<StageSpec>,
    condition: Session,
    step: StepGraph,
    passes: Passes,
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
        let condition = Session::open(bundle, &spec.condition, options)?.shrinking();
        condition.check(bundle, &condition_signature(bundle.text(), low.as_ref()))?;
        let conditioning = conditioning_outputs(bundle, spec, condition.outputs())?;
        let lanes = options.lanes()?;
        let of_a_lane = SessionOptions {
            threads: lanes.threads,
            ..options.clone()
        };
        let step = StepGraph::open(bundle, spec, conditioning, &of_a_lane)?;
        let mut stage = OnnxStage {
            spec: spec.clone(),
            text: bundle.text().clone(),
            low,
            condition,
            step,
            passes: Passes::start(lanes)?,
        };
        stage.probe(bundle)?;
        Ok(stage)
    }

    /// Runs both graphs once on the largest ids that the manifest allows: an embedding table that is too small would only
    /// fail on the row that first uses the id.
    fn probe(&mut self, bundle: &Bundle) -> Result<(), StageError> {
        let (text, positions) = (&self.text, self.spec.positions());
        let input = ConditioningInput {
            text: vec![0.0; text.max_length * text.width],
            text_mask: vec![1; text.max_length],
            low_tokens: self
                .low
                .as_ref()
                .map(|low| vec![low.codebook_size - 1; low.positions()]),
        };
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
        self.step.shrink_at_next_run();
        self.probe(bundle)
    }
}

impl StageModel for OnnxStage {
    fn spec(&self) -> &StageSpec {
        &self.spec
    }

    fn condition(&mut self, inputs: &[ConditioningInput]) -> Result<Vec<Arc<Conditioning>>, StageError> {
        for input in inputs {
            input.check(&self.text, self.low.as_ref())?;
        }
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let (batch, length) = (inputs.len(), self.text.max_length);
        let text: Vec<f32> = inputs.iter().flat_map(|input| &input.text).copied().collect();
        let mask: Vec<i64> = inputs
            .iter()
            .flat_map(|input| &input.text_mask)
            .copied()
            .collect();
        let low: Vec<i64> = inputs
            .iter()
            .filter_map(|input| input.low_tokens.as_ref())
            .flatten()
            .map(|token| i64::from(*token))
            .collect();
        let mut values = vec![
            ("text", Session::view(&[batch, length, self.text.width], &text)?),
            ("text_mask", Session::view(&[batch, length], &mask)?),
        ];
        if let Some(stage) = &self.low {
            values.push(("low_tokens", Session::view(&[batch, stage.positions()], &low)?));
        }
        let names = self.step.conditioning();
        self.condition.run(values, |outputs| {
            let mut rows: Vec<Conditioning> = (0..batch)
                .map(|_| Conditioning {
                    tensors: Vec::with_capacity(names.len()),
                })
                .collect();
            for (name, element) in names {
                split(&outputs, name, *element, &mut rows)?;
            }
            Ok(rows.into_iter().map(Arc::new).collect())
        })
    }

    fn pass(&mut self, rows: &mut [&mut Row]) -> Result<(), StageError> {
        self.passes.run(&self.step, rows)
    }
}

/// Takes an output apart along the batch axis and gives each row its part.
fn split(
    outputs: &Outputs<'_>,
    name: &str,
    element: Element,
    rows: &mut [Conditioning],
) -> Result<(), RuntimeError> {
    fn push<T: Clone>(
        (shape, values): (Vec<usize>, &[T]),
        wrap: fn(Vec<T>) -> TensorData,
        rows: &mut [Conditioning],
    ) -> Option<()> {
        let (batch, shape) = shape.split_first()?;
        let size: usize = shape.iter().product();
        if *batch != rows.len() || values.len() != batch * size {
            return None;
        }
        for (index, row) in rows.iter_mut().enumerate() {
            let values = values.get(index * size..(index + 1) * size)?.to_vec();
            row.tensors.push(Tensor {
                shape: shape.to_vec(),
                data: wrap(values),
            });
        }
        Some(())
    }
    let done = match element {
        Element::F32 => push(outputs.tensor(name)?, TensorData::F32, rows),
        Element::F16 => push(outputs.tensor(name)?, TensorData::F16, rows),
        Element::I64 => push(outputs.tensor(name)?, TensorData::I64, rows),
        Element::I32 => push(outputs.tensor(name)?, TensorData::I32, rows),
        Element::Bool => push(outputs.tensor(name)?, TensorData::Bool, rows),
    };
    done.ok_or_else(|| {
        outputs.failed(format!(
            "its output `{name}` has no leading batch axis of {}",
            rows.len()
        ))
    })
}

fn condition_signature(text: &TextSpec, low: Option<&StageSpec>) -> Signature {
    let length = Dimension::Fixed(text.max_length);
    let mut inputs = vec![
        TensorSignature::new(
            "text",
            Element::F32,
            [Dimension::Batch, length, Dimension::Fixed(text.width)],
        ),
        TensorSignature::new("text_mask", Element::I64, [Dimension::Batch, length]),
    ];
    if let Some(low) = low {
        let positions = Dimension::Fixed(low.positions());
        inputs.push(TensorSignature::new(
            "low_tokens",
            Element::I64,
            [Dimension::Batch, positions],
        ));
    }
    Signature {
        inputs,
        outputs: None,
    }
}

/// The outputs of `condition` that the steps take, as the inputs of `step` that they must be.
fn conditioning_outputs(
    bundle: &Bundle,
    spec: &StageSpec,
    outputs: &[Outlet],
) -> Result<Vec<TensorSignature>, BundleError> {
    let fault = |message| bundle.fault(&spec.condition, BundleFault::Graph(message));
    let wanted: Vec<&str> = match &spec.conditioning {
        Some(names) => names.iter().map(String::as_str).collect(),
        None => outputs.iter().map(Outlet::name).collect(),
    };
    if wanted.is_empty() {
        return Err(fault("has no outputs".to_owned()));
    }
    wanted
        .into_iter()
        .map(|name| {
            let outlet = outputs
                .iter()
                .find(|outlet| outlet.name() == name)
                .ok_or_else(|| {
                    fault(format!(
                        "has no output `{name}`, which {}.conditioning of bundle.toml names",
                        spec.stage
                    ))
                })?;
            signature_of(outlet).map_err(fault)
        })
        .collect()
}

fn signature_of(outlet: &Outlet) -> Result<TensorSignature, String> {
    let (name, found) = (outlet.name(), outlet.dtype());
    let refused = |what: &str| {
        format!(
            "its output `{name}` is {}, but conditioning must {what}",
            describe(found)
        )
    };
    let ValueType::Tensor { ty, shape, .. } = found else {
        return Err(refused("be a tensor"));
    };
    let element = Element::from_onnx(*ty).ok_or_else(|| refused("be f32, f16, i64, i32 or bool"))?;
    let mut dimensions: Vec<Dimension> = shape
        .iter()
        .map(|side| usize::try_from(*side).map_or(Dimension::Any, Dimension::Fixed))
        .collect();
    match dimensions.first_mut() {
        Some(first @ Dimension::Any) => *first = Dimension::Batch,
        _ => return Err(refused("have a dynamic batch axis first")),
    }
    Ok(TensorSignature {
        name: name.to_owned(),
        element,
        dimensions,
    })
}
