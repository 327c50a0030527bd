//! Runs on a device that has a memory of its own: an input that is there already is not sent again, and outputs come back through
//! memory that the device writes to by itself.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::sync::atomic::{AtomicU64, Ordering};

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, RunOptions, Session, SessionInputValue};
use ort::value::DynValue;

use super::{Provider, native};

/// Stands for what an input holds: two inputs of one version hold the same. No two versions of a process are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version(u64);

/// An input of a run.
pub(crate) struct Input<'data> {
    pub(super) name: &'data str,
    pub(super) value: SessionInputValue<'data>,
    version: Option<Version>,
}

/// What a session's runs leave on the device.
#[derive(Debug)]
pub(super) struct Binding {
    binding: IoBinding,
    outputs: Vec<String>,
    /// Where outputs are wanted.
    memory: MemoryInfo<'static>,
    sent: Sent,
}

/// Which inputs are on the device.
#[derive(Debug, Default)]
struct Sent {
    /// Inputs that the device has in a memory of its own. Others are read where they are, so nothing of them stays.
    held: HashSet<String>,
    versions: HashMap<String, Version>,
}

// === impl Version ===

impl Version {
    /// One that nothing has yet.
    pub(crate) fn next() -> Version {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Version(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

// === impl Input ===

impl<'data> Input<'data> {
    /// An input whose contents are new.
    pub(crate) fn new(name: &'data str, value: SessionInputValue<'data>) -> Input<'data> {
        Input {
            name,
            value,
            version: None,
        }
    }

    /// Says what its contents are, so that they are not sent again.
    pub(crate) fn of_version(self, version: Version) -> Input<'data> {
        Input {
            version: Some(version),
            ..self
        }
    }
}

// === impl Binding ===

impl Binding {
    /// For runs of `session` on device `device` of `provider`.
    pub(super) fn new(session: &Session, provider: Provider, device: u32) -> ort::Result<Binding> {
        // CUDA copies to pinned memory at the speed of the bus, and to any other through a buffer of its own.
        let (place, device) = match provider {
            Provider::Cuda | Provider::TensorRt => (
                AllocationDevice::CUDA_PINNED,
                i32::try_from(device).unwrap_or(i32::MAX),
            ),
            Provider::OpenVino | Provider::Cpu => (AllocationDevice::CPU, 0),
        };
        Ok(Binding {
            binding: session.create_binding()?,
            outputs: session
                .outputs()
                .iter()
                .map(|output| output.name().to_owned())
                .collect(),
            memory: MemoryInfo::new(place, device, AllocatorType::Device, MemoryType::CPUOutput)?,
            sent: Sent {
                held: session
                    .inputs()
                    .iter()
                    .zip(native::inputs_on_device(session)?)
                    .filter(|(_, on_device)| *on_device)
                    .map(|(input, _)| input.name().to_owned())
                    .collect(),
                versions: HashMap::new(),
            },
        })
    }

    /// Runs `session`, whose binding this is, and returns its outputs, in order. All of its inputs must be given.
    pub(super) fn run(
        &mut self,
        session: &Session,
        options: &RunOptions,
        inputs: &[Input<'_>],
    ) -> ort::Result<Vec<DynValue>> {
        for input in inputs {
            if self.sent.has(input) {
                continue;
            }
            self.sent.forget(input);
            let name = CString::new(input.name).map_err(|error| ort::Error::new(error.to_string()))?;
            native::bind(&mut self.binding, &name, &input.value)?;
            self.sent.note(input);
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

// === impl Sent ===

impl Sent {
    fn has(&self, input: &Input<'_>) -> bool {
        input.version.is_some() && self.versions.get(input.name) == input.version.as_ref()
    }

    fn forget(&mut self, input: &Input<'_>) {
        self.versions.remove(input.name);
    }

    fn note(&mut self, input: &Input<'_>) {
        if let Some(version) = input.version
            && self.held.contains(input.name)
        {
            self.versions.insert(input.name.to_owned(), version);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use ort::value::TensorRef;

    use super::*;
    use crate::runtime::{Runtime, SessionOptions, open_graph};

    /// The tiny bundle's image decoder: one input, one output.
    fn decoder() -> Session {
        let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let library = std::env::var_os("MUSE__RUNTIME__ONNXRUNTIME")
            .map_or_else(|| root.join(".deps/onnxruntime/libonnxruntime.so"), PathBuf::from);
        Runtime::initialise(Some(&library)).unwrap();
        let graph = root.join("tests/bundles/tiny/superres_decoder.onnx");
        open_graph(&graph, &SessionOptions::default(), None).unwrap()
    }

    fn positions(session: &Session) -> usize {
        match session.inputs()[0].dtype() {
            ort::value::ValueType::Tensor { shape, .. } => shape[1] as usize,
            other => panic!("{other:?}"),
        }
    }

    fn pixels(
        binding: &mut Binding,
        session: &Session,
        tokens: &[i64],
        rows: usize,
        version: Option<Version>,
    ) -> Vec<f32> {
        let shape = vec![rows, tokens.len() / rows];
        let value = TensorRef::from_array_view((shape, tokens)).unwrap();
        let input = Input {
            name: "tokens",
            value: SessionInputValue::from(value),
            version,
        };
        let options = RunOptions::new().unwrap();
        let outputs = binding.run(session, &options, &[input]).unwrap();
        let (_, values) = outputs[0].try_extract_tensor::<f32>().unwrap();
        values.to_vec()
    }

    #[test]
    fn an_input_is_sent_again_when_its_version_is_another_and_only_then() {
        // Tensors need the library.
        drop(decoder());
        let mut sent = Sent {
            held: ["k0".to_owned()].into(),
            versions: HashMap::new(),
        };
        let mut is_sent = |name, version| {
            let value = TensorRef::from_array_view((vec![1], [0_i64].as_slice())).unwrap();
            let input = Input {
                name,
                value: SessionInputValue::from(value),
                version,
            };
            let sends = !sent.has(&input);
            if sends {
                sent.forget(&input);
                sent.note(&input);
            }
            sends
        };
        let (one, other) = (Some(Version::next()), Some(Version::next()));
        assert!(is_sent("k0", one));
        assert!(!is_sent("k0", one));
        assert!(is_sent("k0", other));
        assert!(!is_sent("k0", other));
        assert!(is_sent("k0", one));
        // Without a version nothing is known of what is there.
        assert!(is_sent("k0", None));
        assert!(is_sent("k0", one));
        // What stays in the CPU's memory may be gone by the next run.
        assert!(is_sent("tokens", one));
        assert!(is_sent("tokens", one));
    }

    #[test]
    fn an_input_in_the_cpus_memory_is_read_again_whatever_its_version() {
        let session = decoder();
        assert_eq!(native::inputs_on_device(&session).unwrap(), [false]);
        let mut binding = Binding::new(&session, Provider::Cpu, 0).unwrap();
        let positions = positions(&session);
        let (first, second) = (vec![0; positions], vec![1; positions]);
        let version = Some(Version::next());
        let of_first = pixels(&mut binding, &session, &first, 1, version);
        assert_ne!(pixels(&mut binding, &session, &second, 1, version), of_first);
        assert_eq!(pixels(&mut binding, &session, &first, 1, version), of_first);
    }

    #[test]
    fn outputs_of_other_shapes_follow_each_other_and_earlier_ones_stay_as_they_are() {
        let session = decoder();
        let mut binding = Binding::new(&session, Provider::Cpu, 0).unwrap();
        let positions = positions(&session);
        let one = pixels(&mut binding, &session, &vec![0; positions], 1, None);
        let both: Vec<i64> = [vec![0; positions], vec![1; positions]].concat();
        let two = pixels(&mut binding, &session, &both, 2, None);
        assert_eq!(two[..one.len()], one);
        assert_eq!(pixels(&mut binding, &session, &vec![0; positions], 1, None), one);
    }
}
