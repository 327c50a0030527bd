//! A stage's `step` graph: which of the two optional inputs it has (docs/bundle.md, "Less work in a step"), and a run of it.

use std::sync::Arc;

use super::conditioning::{Conditioning, JoinedConditioning, Tensor, TensorData, for_each_type};
use super::device_conditioning::DeviceConditioning;
use super::{InputError, StageError};
use crate::bundle::{Bundle, StageSpec};
use crate::row::{Logits, Row};
use crate::runtime::signature::{Dimension, Signature, TensorSignature};
use crate::runtime::{
    DeviceRows, Element, Input, Outputs, Provider, RowGatherer, RuntimeError, Session, SessionOptions,
};

const GRIDS: &str = "grids";
const POSITIONS: &str = "positions";
const LOGITS: &str = "logits";

/// The graph, opened. The lanes of a stage run it side by side, each with inputs of its own.
#[derive(Debug)]
pub(super) struct StepGraph {
    session: Session,
    /// The conditioning tensors, in the order in which [`Conditioning`] holds them.
    conditioning: Vec<String>,
    /// Joins conditioning on the device, where the graph runs on one with a memory of its own.
    gatherer: Option<RowGatherer>,
    /// Whether rows may share a grid: it has the input `grids`.
    shares_grids: bool,
    form: LogitsForm,
}

/// The inputs of a run, gathered row by row in buffers that are reused.
#[derive(Debug, Default)]
pub(super) struct StepInputs {
    /// Rows gathered.
    rows: usize,
    /// `[G, S]`.
    tokens: Vec<i64>,
    /// `[B]`.
    grids: Vec<i64>,
    /// `[M]`.
    positions: Vec<i64>,
    joined: JoinedConditioning,
    /// In its place where the device joins it.
    on_device: DeviceConditioning,
}

/// The logits of a run, where ONNX Runtime has put them.
pub(super) struct StepLogits<'run> {
    outputs: Outputs<'run>,
    /// As a [`LogitsForm`] tells them apart.
    shape: Vec<usize>,
}

/// How a pass's logits lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogitsForm {
    /// S.
    positions: usize,
    /// Logits of a position.
    width: usize,
    /// Whether there are logits at masked positions alone: the graph has the input `positions`.
    packed: bool,
}

// === impl StepGraph ===

impl StepGraph {
    /// Opens the graph and checks it against the manifest and `conditioning`, what the `condition` graph makes.
    pub(super) fn open(
        bundle: &Bundle,
        spec: &StageSpec,
        conditioning: &[TensorSignature],
        options: &SessionOptions,
    ) -> Result<StepGraph, StageError> {
        let session = Session::open(bundle, &spec.step, options)?;
        let has = |name| session.inputs().iter().any(|input| input.name() == name);
        let shares_grids = has(GRIDS);
        let form = LogitsForm {
            positions: spec.positions(),
            width: spec.logits_size,
            packed: has(POSITIONS),
        };
        session.check(bundle, &signature(form, shares_grids, conditioning))?;
        let gatherer = match session.provider() {
            Provider::Cpu | Provider::OpenVino => None,
            Provider::Cuda | Provider::TensorRt => {
                Some(RowGatherer::open(conditioning, Provider::Cuda, options)?)
            }
        };
        Ok(StepGraph {
            session,
            gatherer,
            conditioning: conditioning
                .iter()
                .map(|signature| signature.name.clone())
                .collect(),
            shares_grids,
            form,
        })
    }

    /// What it runs on.
    pub(super) fn provider(&self) -> Provider {
        self.session.provider()
    }

    /// Joins conditioning as on a device, in the CPU's memory.
    #[cfg(test)]
    pub(super) fn join_as_on_a_device(
        &mut self,
        conditioning: &[TensorSignature],
        options: &SessionOptions,
    ) -> Result<(), RuntimeError> {
        self.gatherer = Some(RowGatherer::open(conditioning, Provider::Cpu, options)?);
        Ok(())
    }

    /// How its logits lie.
    pub(super) fn form(&self) -> LogitsForm {
        self.form
    }

    /// Adds a row whose logits are wanted at the positions `masked` of `tokens`. `grid` is the index of the first row with
    /// those tokens, which may be this one; the first rows must all have grids of their own.
    pub(super) fn push(&self, inputs: &mut StepInputs, grid: usize, tokens: &[u32], masked: &[u32]) {
        if grid == inputs.rows || !self.shares_grids {
            inputs.tokens.extend(tokens.iter().map(|token| i64::from(*token)));
        }
        inputs.grids.push(grid as i64);
        let start = (inputs.rows * self.form.positions) as i64;
        inputs
            .positions
            .extend(masked.iter().map(|position| start + i64::from(*position)));
        inputs.rows += 1;
    }

    /// Joins the conditioning of the rows that were pushed.
    pub(super) fn join<'row>(
        &self,
        inputs: &mut StepInputs,
        conditioning: impl ExactSizeIterator<Item = &'row Arc<Conditioning>>,
    ) -> Result<(), StageError> {
        if conditioning.len() != inputs.rows {
            return Err(InputError::Conditioning.into());
        }
        if let Some(gatherer) = &self.gatherer {
            let rows: Vec<_> = conditioning.collect();
            return inputs.on_device.join(gatherer, &rows);
        }
        match inputs.joined.join(conditioning) {
            Some(joined) if joined.len() == self.conditioning.len() => Ok(()),
            _ => Err(InputError::Conditioning.into()),
        }
    }

    /// Computes the rows that were pushed and joined.
    pub(super) fn run(&self, inputs: &StepInputs) -> Result<StepLogits<'_>, StageError> {
        let LogitsForm {
            positions,
            width,
            packed,
        } = self.form;
        let mut values = Vec::with_capacity(3 + self.conditioning.len());
        let grids = inputs.tokens.len() / positions;
        values.push(Session::input("tokens", &[grids, positions], &inputs.tokens)?);
        if self.shares_grids {
            values.push(Session::input(GRIDS, &[inputs.rows], &inputs.grids)?);
        }
        let wanted = inputs.positions.len();
        if packed {
            values.push(Session::input(POSITIONS, &[wanted], &inputs.positions)?);
        }
        let on_device = inputs.on_device.rows().map_or(&[][..], DeviceRows::tensors);
        for (name, tensor) in self.conditioning.iter().zip(on_device) {
            values.push(Input::new(name, tensor.into()));
        }
        for (name, tensor) in self.conditioning.iter().zip(inputs.joined.tensors()) {
            values.push(input(name, tensor)?);
        }
        let shape = if packed {
            vec![wanted, width]
        } else {
            vec![inputs.rows, positions, width]
        };
        self.session.run(&values, |outputs| {
            outputs.f32(LOGITS, &shape)?;
            Ok(StepLogits { outputs, shape })
        })
    }
}

// === impl StepLogits ===

impl StepLogits<'_> {
    /// All of them.
    pub(super) fn values(&self) -> Result<&[f32], RuntimeError> {
        self.outputs.f32(LOGITS, &self.shape)
    }
}

// === impl StepInputs ===

impl StepInputs {
    /// Forgets the rows that were gathered.
    pub(super) fn clear(&mut self) {
        self.rows = 0;
        self.tokens.clear();
        self.grids.clear();
        self.positions.clear();
    }
}

// === impl LogitsForm ===

impl LogitsForm {
    /// How many numbers are `row`'s.
    pub(super) fn size(self, row: &Row) -> usize {
        let positions = if self.packed {
            row.masked().len()
        } else {
            self.positions
        };
        positions * self.width
    }

    /// Takes `size` numbers, all those of a row, off the front of `values`; `None` if there are too few.
    pub(super) fn take<'run>(self, values: &mut &'run [f32], size: usize) -> Option<Logits<'run>> {
        let (own, rest) = values.split_at_checked(size)?;
        *values = rest;
        Some(self.view(own))
    }

    /// All numbers of a row.
    pub(super) fn view(self, own: &[f32]) -> Logits<'_> {
        if self.packed {
            Logits::at_masked(own, self.width)
        } else {
            Logits::everywhere(own, self.width)
        }
    }
}

fn input<'data>(name: &'data str, tensor: &'data Tensor) -> Result<Input<'data>, RuntimeError> {
    for_each_type!(&tensor.data, values => Session::input(name, &tensor.shape, values))
}

fn signature(form: LogitsForm, shares_grids: bool, conditioning: &[TensorSignature]) -> Signature {
    let positions = Dimension::Fixed(form.positions);
    let width = Dimension::Fixed(form.width);
    let grids = if shares_grids {
        Dimension::Named("G")
    } else {
        Dimension::Batch
    };
    let mut inputs = vec![TensorSignature::new("tokens", Element::I64, [grids, positions])];
    if shares_grids {
        inputs.push(TensorSignature::new(GRIDS, Element::I64, [Dimension::Batch]));
    }
    let wanted = Dimension::Named("M");
    if form.packed {
        inputs.push(TensorSignature::new(POSITIONS, Element::I64, [wanted]));
    }
    inputs.extend(conditioning.iter().cloned());
    let logits = if form.packed {
        vec![wanted, width]
    } else {
        vec![Dimension::Batch, positions, width]
    };
    Signature {
        inputs,
        outputs: Some(vec![TensorSignature::new(LOGITS, Element::F32, logits)]),
    }
}
