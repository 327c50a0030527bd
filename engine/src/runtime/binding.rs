//! Runs with inputs and outputs in a device's memory, or on their way there and back.

use std::ffi::CString;

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, RunOptions, Session, SessionInputValue};
use ort::value::DynValue;

use super::{Provider, native};

/// An input of a run.
pub(crate) struct Input<'data> {
    pub(super) name: &'data str,
    pub(super) value: SessionInputValue<'data>,
}

/// A memory that outputs are wanted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Cpu,
    /// The CPU's, where a device writes to it by itself: at the speed of the bus, and not through a buffer of the driver.
    Pinned,
    /// The device's own.
    Device,
}

/// A session's inputs and outputs, for runs one after another.
#[derive(Debug)]
pub(super) struct Binding {
    binding: IoBinding,
    outputs: Vec<String>,
    memory: MemoryInfo<'static>,
}

// === impl Input ===

impl<'data> Input<'data> {
    /// The input `name`.
    pub(crate) fn new(name: &'data str, value: SessionInputValue<'data>) -> Input<'data> {
        Input { name, value }
    }
}

// === impl Place ===

impl Place {
    /// Where outputs of `provider` stay for its next run.
    pub(super) fn device(provider: Provider) -> Place {
        match provider {
            Provider::Cuda | Provider::TensorRt => Place::Device,
            Provider::OpenVino | Provider::Cpu => Place::Cpu,
        }
    }
}

// === impl Binding ===

impl Binding {
    /// For runs of `session`, with outputs in `place` of device `device`.
    pub(super) fn new(session: &Session, place: Place, device: u32) -> ort::Result<Binding> {
        let device = i32::try_from(device).unwrap_or(i32::MAX);
        let (place, device, kind) = match place {
            Place::Cpu => (AllocationDevice::CPU, 0, MemoryType::CPUOutput),
            Place::Pinned => (AllocationDevice::CUDA_PINNED, device, MemoryType::CPUOutput),
            Place::Device => (AllocationDevice::CUDA, device, MemoryType::Default),
        };
        Ok(Binding {
            binding: session.create_binding()?,
            outputs: session
                .outputs()
                .iter()
                .map(|output| output.name().to_owned())
                .collect(),
            memory: MemoryInfo::new(place, device, AllocatorType::Device, kind)?,
        })
    }

    /// Runs `session`, whose binding this is, and returns its outputs, in order. All of its inputs must be given.
    pub(super) fn run(
        &mut self,
        session: &Session,
        options: &RunOptions,
        inputs: &[Input<'_>],
    ) -> ort::Result<Vec<DynValue>> {
        let made = self.bind_and_run(session, options, inputs);
        // Borrowed memory may be gone by the next run, and what lies on the device would be kept for it.
        self.binding.clear_inputs();
        made
    }

    fn bind_and_run(
        &mut self,
        session: &Session,
        options: &RunOptions,
        inputs: &[Input<'_>],
    ) -> ort::Result<Vec<DynValue>> {
        for Input { name, value } in inputs {
            let name = CString::new(*name).map_err(|error| ort::Error::new(error.to_string()))?;
            native::bind(&mut self.binding, &name, value)?;
        }
        // Again for every run: else it would write over the last one's outputs, which may be of another shape.
        for output in &self.outputs {
            self.binding
                .bind_output_to_device(output.as_str(), &self.memory)?;
        }
        self.binding.synchronize_inputs()?;
        native::run_bound(session, options, &self.binding)
    }
}

#[cfg(test)]
mod tests {
    use ort::value::TensorRef;

    use super::*;
    use crate::runtime::{Runtime, SessionOptions, open_graph};

    /// The tiny bundle's image decoder: one input, one output.
    fn decoder() -> Session {
        let (root, _) = Runtime::of_the_workspace();
        let graph = root.join("tests/bundles/tiny/superres_decoder.onnx");
        open_graph(&graph, &SessionOptions::default(), None).unwrap()
    }

    fn positions(session: &Session) -> usize {
        match session.inputs()[0].dtype() {
            ort::value::ValueType::Tensor { shape, .. } => shape[1] as usize,
            other => panic!("{other:?}"),
        }
    }

    fn pixels(binding: &mut Binding, session: &Session, tokens: &[i64], rows: usize) -> Vec<f32> {
        let shape = vec![rows, tokens.len() / rows];
        let value = TensorRef::from_array_view((shape, tokens)).unwrap();
        let input = Input {
            name: "tokens",
            value: SessionInputValue::from(value),
        };
        let options = RunOptions::new().unwrap();
        let outputs = binding.run(session, &options, &[input]).unwrap();
        let (_, values) = outputs[0].try_extract_tensor::<f32>().unwrap();
        values.to_vec()
    }

    #[test]
    fn an_input_is_what_it_holds_when_the_run_begins() {
        let session = decoder();
        let mut binding = Binding::new(&session, Place::Cpu, 0).unwrap();
        let mut tokens = vec![0; positions(&session)];
        let of_zeros = pixels(&mut binding, &session, &tokens, 1);
        tokens.fill(1);
        assert_ne!(pixels(&mut binding, &session, &tokens, 1), of_zeros);
        tokens.fill(0);
        assert_eq!(pixels(&mut binding, &session, &tokens, 1), of_zeros);
    }

    #[test]
    fn outputs_of_other_shapes_follow_each_other_and_earlier_ones_stay_as_they_are() {
        let session = decoder();
        let mut binding = Binding::new(&session, Place::Cpu, 0).unwrap();
        let positions = positions(&session);
        let one = pixels(&mut binding, &session, &vec![0; positions], 1);
        let both: Vec<i64> = [vec![0; positions], vec![1; positions]].concat();
        let two = pixels(&mut binding, &session, &both, 2);
        assert_eq!(two[..one.len()], one);
        assert_eq!(pixels(&mut binding, &session, &vec![0; positions], 1), one);
    }
}
