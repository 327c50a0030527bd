//! Rows of tensors in a device's memory. They are put together there, so that a row crosses the bus once and not for every pass that
//! it takes part in.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use ort::editor::{Graph, Model, Node, ONNX_DOMAIN, Opset};
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::{DynValue, Outlet, Shape, SymbolicDimensions, TensorElementType, ValueType};

use super::binding::{Binding, Input, Place};
use super::opening::{OpenFailure, open_model};
use super::signature::{Dimension, TensorSignature};
use super::{Provider, Runtime, RuntimeError, SessionOptions, one_line};

const ROWS: &str = "rows";
/// Of the operators used, which have not changed since.
const OPSET: u32 = 13;

/// Several tensors whose first axis counts the same rows, on the device.
pub(crate) struct DeviceRows {
    values: Vec<DynValue>,
}

/// Makes [`DeviceRows`] of others and of rows that the device does not have yet.
#[derive(Debug)]
pub(crate) struct RowGatherer {
    /// From rows that all lie in one place.
    from_one: Gather,
    /// From rows that are there and new ones.
    from_both: Gather,
}

/// A graph that takes rows of its inputs.
#[derive(Debug)]
struct Gather {
    session: Session,
    binding: Mutex<Binding>,
    held: Vec<String>,
    new: Vec<String>,
}

// === impl DeviceRows ===

impl DeviceRows {
    /// The tensors, in order.
    pub(crate) fn tensors(&self) -> &[DynValue] {
        &self.values
    }
}

impl fmt::Debug for DeviceRows {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DeviceRows")
            .field("tensors", &self.values.len())
            .finish()
    }
}

// === impl RowGatherer ===

impl RowGatherer {
    /// For sets of `tensors`, on the device of `provider`.
    pub(crate) fn open(
        tensors: &[TensorSignature],
        provider: Provider,
        options: &SessionOptions,
    ) -> Result<RowGatherer, RuntimeError> {
        Ok(RowGatherer {
            from_one: Gather::open(tensors, false, provider, options)?,
            from_both: Gather::open(tensors, true, provider, options)?,
        })
    }

    /// Row `rows[i]` of `held` followed by `new` becomes row i. `new` are the tensors of the new rows, each with at least one; empty:
    /// there is no new row.
    pub(crate) fn gather(
        &self,
        held: Option<&DeviceRows>,
        new: Vec<SessionInputValue<'_>>,
        rows: &[i64],
    ) -> Result<DeviceRows, RuntimeError> {
        let there = held.map_or(&[][..], DeviceRows::tensors);
        let there = there.iter().map(SessionInputValue::from);
        match (held.is_some(), new.is_empty()) {
            (true, false) => self.from_both.run(there.chain(new), rows),
            (true, true) => self.from_one.run(there, rows),
            (false, _) => self.from_one.run(new.into_iter(), rows),
        }
    }
}

// === impl Gather ===

impl Gather {
    fn open(
        tensors: &[TensorSignature],
        both: bool,
        provider: Provider,
        options: &SessionOptions,
    ) -> Result<Gather, RuntimeError> {
        let failed = |reason: String| RuntimeError::Open {
            file: "rows on the device".into(),
            reason,
        };
        let name = |what: &str| -> Vec<String> {
            (0..tensors.len())
                .map(|index| format!("{what}.{index}"))
                .collect()
        };
        let (held, new) = (name("held"), if both { name("new") } else { Vec::new() });
        let model = model(tensors, &held, &new).map_err(|error| failed(one_line(error.message())))?;
        let session =
            open_model(Runtime::current()?, model, provider, options).map_err(|failure| match failure {
                OpenFailure::Provider(provider, reason) => RuntimeError::Provider {
                    provider,
                    reason: provider.explain(&reason),
                },
                OpenFailure::Graph(reason) => failed(reason),
            })?;
        let binding = Binding::new(&session, Place::device(provider), options.device_id)
            .map_err(|error| failed(one_line(error.message())))?;
        Ok(Gather {
            session,
            binding: Mutex::new(binding),
            held,
            new,
        })
    }

    fn run<'data>(
        &self,
        values: impl Iterator<Item = SessionInputValue<'data>>,
        rows: &[i64],
    ) -> Result<DeviceRows, RuntimeError> {
        let failed = |error: ort::Error| RuntimeError::Run {
            file: "rows on the device".to_owned(),
            reason: one_line(error.message()),
        };
        let names = self.held.iter().chain(&self.new);
        let mut inputs: Vec<Input<'_>> = names
            .zip(values)
            .map(|(name, value)| Input { name, value })
            .collect();
        inputs.push(super::Session::input(ROWS, &[rows.len()], rows)?);
        if inputs.len() != self.held.len() + self.new.len() + 1 {
            return Err(failed(ort::Error::new(format!(
                "it needs {} tensors",
                self.held.len()
            ))));
        }
        let options = RunOptions::new().map_err(failed)?;
        let values = self
            .binding
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .run(&self.session, &options, &inputs)
            .map_err(failed)?;
        Ok(DeviceRows { values })
    }
}

/// For each tensor: `Gather` along the first axis by `rows`, of `held`, or of `held` and `new` one after the other.
fn model(tensors: &[TensorSignature], held: &[String], new: &[String]) -> ort::Result<Model> {
    let index = ValueType::Tensor {
        ty: TensorElementType::Int64,
        shape: Shape::new([-1]),
        dimension_symbols: SymbolicDimensions::empty(1),
    };
    let mut graph = Graph::new()?;
    let names = held.iter().zip(tensors).chain(new.iter().zip(tensors));
    let inputs = names.map(|(name, tensor)| Outlet::new(name.as_str(), value_type(tensor)));
    graph.set_inputs(inputs.chain([Outlet::new(ROWS, index)]))?;
    let output = |place: usize| format!("gathered.{place}");
    let outputs = tensors.iter().enumerate();
    graph.set_outputs(outputs.map(|(place, tensor)| Outlet::new(output(place), value_type(tensor))))?;
    let axis = || ort::operator::Attribute::new("axis", 0_i64);
    for (place, held) in held.iter().enumerate() {
        let all = match new.get(place) {
            None => held.clone(),
            Some(new) => {
                let all = format!("all.{place}");
                let inputs = [held.as_str(), new.as_str()];
                graph.add_node(Node::new(
                    "Concat",
                    ONNX_DOMAIN,
                    format!("concat.{place}"),
                    inputs,
                    [&all],
                    [axis()?],
                )?)?;
                all
            }
        };
        graph.add_node(Node::new(
            "Gather",
            ONNX_DOMAIN,
            format!("gather.{place}"),
            [all.as_str(), ROWS],
            [output(place)],
            [axis()?],
        )?)?;
    }
    let mut model = Model::new([Opset::new(ONNX_DOMAIN, OPSET)?])?;
    model.set_graph(graph)?;
    Ok(model)
}

fn value_type(tensor: &TensorSignature) -> ValueType {
    let sides = tensor.dimensions.iter().map(|dimension| match dimension {
        Dimension::Fixed(size) => i64::try_from(*size).unwrap_or(i64::MAX),
        Dimension::Batch | Dimension::Dynamic | Dimension::Named(_) | Dimension::Any => -1,
    });
    ValueType::Tensor {
        ty: tensor.element.to_onnx(),
        shape: Shape::new(sides),
        dimension_symbols: SymbolicDimensions::empty(tensor.dimensions.len()),
    }
}
