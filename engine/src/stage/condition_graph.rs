//! A stage's `condition` graph: what its steps reuse, made of a text (and low tokens).

use std::sync::Arc;

use ort::value::{Outlet, ValueType};

use super::conditioning::{Conditioning, Tensor, TensorData};
use super::{ConditioningInput, StageError};
use crate::bundle::{Bundle, BundleError, BundleFault, StageSpec, TextSpec};
use crate::runtime::signature::{Dimension, Signature, TensorSignature, describe};
use crate::runtime::{Element, Outputs, RuntimeError, Session, SessionOptions};

/// The graph, opened. The lanes of a stage run it side by side.
#[derive(Debug)]
pub(super) struct ConditionGraph {
    session: Session,
    text: TextSpec,
    /// The stage whose tokens super-resolution is conditioned on.
    low: Option<StageSpec>,
    /// The conditioning tensors, in the order in which [`Conditioning`] holds them.
    outputs: Vec<TensorSignature>,
}

// === impl ConditionGraph ===

impl ConditionGraph {
    /// Opens the graph and checks it against the manifest. `low`: the stage whose tokens it takes.
    pub(super) fn open(
        bundle: &Bundle,
        spec: &StageSpec,
        low: Option<StageSpec>,
        options: &SessionOptions,
    ) -> Result<ConditionGraph, StageError> {
        let session = Session::open(bundle, &spec.condition, options)?;
        session.check(bundle, &signature(bundle.text(), low.as_ref()))?;
        let outputs = outputs(bundle, spec, session.outputs())?;
        Ok(ConditionGraph {
            session,
            text: bundle.text().clone(),
            low,
            outputs,
        })
    }

    /// The tensors that the steps take, as the inputs of `step` that they must be.
    pub(super) fn outputs(&self) -> &[TensorSignature] {
        &self.outputs
    }

    /// The largest input that the manifest allows: an embedding table that is too small fails on it.
    pub(super) fn largest_input(&self) -> ConditioningInput {
        ConditioningInput {
            text: vec![0.0; self.text.max_length * self.text.width],
            text_mask: vec![1; self.text.max_length],
            low_tokens: self
                .low
                .as_ref()
                .map(|low| vec![low.codebook_size - 1; low.positions()]),
        }
    }

    /// Whether `input` has the sizes of this bundle, and tokens that exist.
    pub(super) fn check(&self, input: &ConditioningInput) -> Result<(), StageError> {
        Ok(input.check(&self.text, self.low.as_ref())?)
    }

    /// The conditioning of each of `inputs`, which were checked, in one run.
    pub(super) fn run(&self, inputs: &[ConditioningInput]) -> Result<Vec<Arc<Conditioning>>, StageError> {
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
            Session::input("text", &[batch, length, self.text.width], &text)?,
            Session::input("text_mask", &[batch, length], &mask)?,
        ];
        if let Some(stage) = &self.low {
            values.push(Session::input("low_tokens", &[batch, stage.positions()], &low)?);
        }
        self.session.run(&values, |outputs| {
            let mut rows: Vec<Conditioning> = (0..batch)
                .map(|_| Conditioning {
                    tensors: Vec::with_capacity(self.outputs.len()),
                })
                .collect();
            for TensorSignature { name, element, .. } in &self.outputs {
                split(&outputs, name, *element, &mut rows)?;
            }
            Ok(rows.into_iter().map(Arc::new).collect())
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

fn signature(text: &TextSpec, low: Option<&StageSpec>) -> Signature {
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
fn outputs(
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
