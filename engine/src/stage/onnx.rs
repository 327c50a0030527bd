//! A stage's `condition` and `step` graphs on ONNX Runtime.

use std::sync::Arc;

use ort::session::SessionInputValue;
use ort::value::{Outlet, ValueType};

use super::conditioning::{Conditioning, JoinedConditioning, Tensor, TensorData, for_each_type};
use super::{ConditioningInput, InputError, RowFailure, StageError, StageModel};
use crate::bundle::{Bundle, BundleError, BundleFault, Stage, StageSpec, TextSpec};
use crate::row::Row;
use crate::runtime::signature::{Dimension, Signature, TensorSignature, describe};
use crate::runtime::{Element, Outputs, Provider, RuntimeError, Session, SessionOptions};
use crate::sampler::Scratch;

/// A stage of a bundle, opened.
#[derive(Debug)]
pub struct OnnxStage {
    spec: StageSpec,
    text: TextSpec,
    /// The stage whose tokens super-resolution is conditioned on.
    low: Option<StageSpec>,
    condition: Session,
    step: Session,
    /// The conditioning tensors, in the order in which [`Conditioning`] holds them.
    conditioning: Vec<(String, Element)>,
    // Buffers that are reused from pass to pass.
    tokens: Vec<i64>,
    joined: JoinedConditioning,
    scratch: Scratch,
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
        let condition = Session::open(bundle, &spec.condition, options)?;
        condition.check(bundle, &condition_signature(bundle.text(), low.as_ref()))?;
        let conditioning = conditioning_outputs(bundle, spec, condition.outputs())?;
        let step = Session::open(bundle, &spec.step, options)?;
        step.check(bundle, &step_signature(spec, &conditioning))?;
        let names = conditioning
            .into_iter()
            .map(|signature| (signature.name, signature.element))
            .collect();
        let mut stage = OnnxStage {
            spec: spec.clone(),
            text: bundle.text().clone(),
            low,
            condition,
            step,
            conditioning: names,
            tokens: Vec::new(),
            joined: JoinedConditioning::default(),
            scratch: Scratch::default(),
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
        let largest = i64::from(self.spec.vocab_size) - 1;
        self.tokens.clear();
        self.tokens.resize(positions, largest);
        let width = self.spec.logits_size;
        let mut run = || {
            let inputs = step_inputs(
                &self.conditioning,
                &self.tokens,
                &mut self.joined,
                made.iter(),
                positions,
            )?;
            self.step.run(inputs, |outputs| {
                Ok(outputs.f32("logits", &[1, positions, width]).map(|_| ())?)
            })
        };
        run().map_err(|error| {
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
        let names = &self.conditioning;
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
        if rows.is_empty() {
            return Ok(());
        }
        // Conditional rows first, then the unconditional ones in the same order.
        let guided: Vec<usize> = (0..rows.len())
            .filter(|index| rows[*index].needs_unconditional())
            .collect();
        let batch = rows.len() + guided.len();
        let positions = self.spec.positions();
        self.tokens.clear();
        for row in (0..rows.len()).chain(guided.iter().copied()) {
            self.tokens
                .extend(rows[row].tokens().iter().map(|token| i64::from(*token)));
        }
        let conditionings: Vec<&Arc<Conditioning>> = rows
            .iter()
            .map(|row| Some(&row.conditioning().conditional))
            .chain(
                guided
                    .iter()
                    .map(|index| rows[*index].conditioning().unconditional.as_ref()),
            )
            .flatten()
            .collect();
        let inputs = step_inputs(
            &self.conditioning,
            &self.tokens,
            &mut self.joined,
            conditionings.into_iter(),
            positions,
        )?;
        let width = self.spec.logits_size;
        let scratch = &mut self.scratch;
        self.step.run(inputs, |outputs| {
            let logits = outputs.f32("logits", &[batch, positions, width])?;
            let (conditional, unconditional) = logits.split_at(rows.len() * positions * width);
            let mut unconditional = unconditional.chunks_exact(positions * width);
            let mut failures = Vec::new();
            for (index, (row, conditional)) in rows
                .iter_mut()
                .zip(conditional.chunks_exact(positions * width))
                .enumerate()
            {
                let unconditional = if row.needs_unconditional() {
                    unconditional.next()
                } else {
                    None
                };
                if let Err(error) = row.advance(conditional, unconditional, width, scratch) {
                    failures.push(RowFailure { row: index, error });
                }
            }
            if failures.is_empty() {
                Ok(())
            } else {
                Err(StageError::Rows(failures))
            }
        })
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

/// The `step` graph's inputs for a batch of one row for each of `rows`.
fn step_inputs<'pass, 'row>(
    names: &'pass [(String, Element)],
    tokens: &'pass [i64],
    joined: &'pass mut JoinedConditioning,
    rows: impl ExactSizeIterator<Item = &'row Arc<Conditioning>>,
    positions: usize,
) -> Result<Vec<(&'pass str, SessionInputValue<'pass>)>, StageError> {
    let batch = rows.len();
    let joined = match joined.join(rows) {
        Some(joined) if joined.len() == names.len() => joined,
        _ => return Err(InputError::Conditioning.into()),
    };
    let mut inputs = Vec::with_capacity(1 + joined.len());
    inputs.push(("tokens", Session::view(&[batch, positions], tokens)?));
    for ((name, _), tensor) in names.iter().zip(joined) {
        inputs.push((name.as_str(), tensor_view(tensor)?));
    }
    Ok(inputs)
}

fn tensor_view(tensor: &Tensor) -> Result<SessionInputValue<'_>, RuntimeError> {
    for_each_type!(&tensor.data, values => Session::view(&tensor.shape, values))
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

fn step_signature(spec: &StageSpec, conditioning: &[TensorSignature]) -> Signature {
    let positions = Dimension::Fixed(spec.positions());
    let mut inputs = vec![TensorSignature::new(
        "tokens",
        Element::I64,
        [Dimension::Batch, positions],
    )];
    inputs.extend(conditioning.iter().cloned());
    let logits = [Dimension::Batch, positions, Dimension::Fixed(spec.logits_size)];
    Signature {
        inputs,
        outputs: Some(vec![TensorSignature::new("logits", Element::F32, logits)]),
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
