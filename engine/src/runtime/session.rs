//! One graph, opened on the best provider that can be had.

use std::ffi::CString;
use std::sync::{Mutex, PoisonError};

use ort::session::{RunOptions, SessionInputValue};
use ort::value::{DynValue, Outlet, PrimitiveTensorElementType, TensorRef};

use super::binding::{Binding, Input, Place};
use super::opening::{OpenFailure, open};
use super::signature::Signature;
use super::{Provider, Runtime, RuntimeError, SessionOptions, native, one_line};
use crate::bundle::{Bundle, BundleError, BundleFault};

/// An open graph. On the CPU several threads may run it at once; on other providers they take turns.
#[derive(Debug)]
pub(crate) struct Session {
    inner: ort::session::Session,
    file: String,
    provider: Provider,
    output_names: Vec<CString>,
    turns: Turns,
}

/// Who may run a session at once.
#[derive(Debug)]
enum Turns {
    /// Anyone.
    Free,
    /// One at a time.
    Single(Mutex<()>),
    /// One at a time, on a device with a memory of its own.
    Bound(Box<Mutex<Binding>>),
}

/// The outputs of a run.
pub(crate) struct Outputs<'run> {
    session: &'run Session,
    /// As the session's outputs.
    values: Vec<DynValue>,
}

// === impl Session ===

impl Session {
    /// Opens `file` of `bundle` on the first provider that can be had. Skipped providers are logged as warnings.
    pub(crate) fn open(
        bundle: &Bundle,
        file: &str,
        options: &SessionOptions,
    ) -> Result<Session, RuntimeError> {
        let runtime = Runtime::current()?;
        let path = bundle.path(file);
        let mut providers = options.providers.as_slice();
        loop {
            let Some((first, later)) = providers.split_first() else {
                return Err(RuntimeError::NoProvider);
            };
            // Those after the first serve the operators that it lacks, so they are registered along with it.
            let (provider, reason) = match open(runtime, &path, providers, options) {
                Ok(inner) => {
                    tracing::debug!(file, provider = %first, "graph opened");
                    let output_names =
                        c_strings(inner.outputs().iter().map(Outlet::name)).map_err(|reason| {
                            RuntimeError::Open {
                                file: path.clone(),
                                reason,
                            }
                        })?;
                    let turns =
                        Turns::of(&inner, *first, options.device_id).map_err(|error| RuntimeError::Open {
                            file: path.clone(),
                            reason: one_line(error.message()),
                        })?;
                    return Ok(Session {
                        inner,
                        file: file.to_owned(),
                        provider: *first,
                        output_names,
                        turns,
                    });
                }
                Err(OpenFailure::Graph(reason)) if *first == Provider::Cpu => {
                    return Err(RuntimeError::Open { file: path, reason });
                }
                // A device is first touched when the graph is opened, so this may be the provider's fault too.
                Err(OpenFailure::Graph(reason)) => (*first, reason),
                Err(OpenFailure::Provider(provider, reason)) => (provider, reason),
            };
            let reason = provider.explain(&reason);
            if later.is_empty() {
                return Err(RuntimeError::Provider { provider, reason });
            }
            let next = later
                .iter()
                .map(|provider| provider.as_str())
                .collect::<Vec<_>>()
                .join(", ");
            tracing::warn!(file, %provider, reason, next, "provider cannot be used, falling back as configured");
            providers = later;
        }
    }

    /// What it runs on.
    pub(crate) fn provider(&self) -> Provider {
        self.provider
    }

    /// The graph's inputs.
    pub(crate) fn inputs(&self) -> &[Outlet] {
        self.inner.inputs()
    }

    /// The graph's outputs.
    pub(crate) fn outputs(&self) -> &[Outlet] {
        self.inner.outputs()
    }

    /// Compares the graph's inputs and outputs with what they must be.
    pub(crate) fn check(&self, bundle: &Bundle, signature: &Signature) -> Result<(), BundleError> {
        signature
            .check(self.inputs(), self.outputs())
            .map_err(|message| bundle.fault(&self.file, BundleFault::Graph(message)))
    }

    /// A tensor over borrowed data; `data` must have as many elements as `shape`.
    pub(crate) fn view<'data, T: PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static>(
        shape: &[usize],
        data: &'data [T],
    ) -> Result<SessionInputValue<'data>, RuntimeError> {
        TensorRef::from_array_view((shape.to_vec(), data))
            .map(SessionInputValue::from)
            .map_err(|error| RuntimeError::Run {
                file: "input tensor".to_owned(),
                reason: one_line(error.message()),
            })
    }

    /// The input `name` over borrowed data, as [`Session::view`].
    pub(crate) fn input<'data, T: PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static>(
        name: &'data str,
        shape: &[usize],
        data: &'data [T],
    ) -> Result<Input<'data>, RuntimeError> {
        Ok(Input::new(name, Session::view(shape, data)?))
    }

    /// Runs the graph and hands the outputs to `read`, which may keep them.
    pub(crate) fn run<'run, T, E: From<RuntimeError>>(
        &'run self,
        inputs: &[Input<'_>],
        read: impl FnOnce(Outputs<'run>) -> Result<T, E>,
    ) -> Result<T, E> {
        let ort_failed = |error: ort::Error| self.failed(one_line(error.message()));
        let options = RunOptions::new().map_err(ort_failed)?;
        let run = || -> Result<Vec<DynValue>, RuntimeError> {
            let names =
                c_strings(inputs.iter().map(|input| input.name)).map_err(|reason| self.failed(reason))?;
            native::run(&self.inner, &options, &names, inputs, &self.output_names).map_err(ort_failed)
        };
        let values = match &self.turns {
            Turns::Free => run(),
            Turns::Single(turn) => {
                let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                run()
            }
            Turns::Bound(binding) => binding
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .run(&self.inner, &options, inputs)
                .map_err(ort_failed),
        }?;
        read(Outputs {
            session: self,
            values,
        })
    }

    fn failed(&self, reason: String) -> RuntimeError {
        RuntimeError::Run {
            file: self.file.clone(),
            reason,
        }
    }
}

// === impl Turns ===

impl Turns {
    fn of(session: &ort::session::Session, provider: Provider, device: u32) -> ort::Result<Turns> {
        Ok(match provider {
            Provider::Cpu => Turns::Free,
            // What is bound would be copied, since its memory is the CPU's.
            Provider::OpenVino => Turns::Single(Mutex::default()),
            Provider::Cuda | Provider::TensorRt => Turns::Bound(Box::new(Mutex::new(Binding::new(
                session,
                Place::Pinned,
                device,
            )?))),
        })
    }
}

/// Names as ONNX Runtime takes them.
fn c_strings<'name>(names: impl Iterator<Item = &'name str>) -> Result<Vec<CString>, String> {
    names
        .map(|name| CString::new(name).map_err(|_| format!("the name {name:?} holds a zero byte")))
        .collect()
}

// === impl Outputs ===

impl Outputs<'_> {
    /// An f32 output of exactly this shape.
    pub(crate) fn f32(&self, name: &str, shape: &[usize]) -> Result<&[f32], RuntimeError> {
        let (found, values) = self.tensor::<f32>(name)?;
        if found != shape {
            return Err(self.failed(format!("its output `{name}` is {found:?} instead of {shape:?}")));
        }
        Ok(values)
    }

    /// Shape and elements of an output.
    pub(crate) fn tensor<T: PrimitiveTensorElementType>(
        &self,
        name: &str,
    ) -> Result<(Vec<usize>, &[T]), RuntimeError> {
        let value = self
            .session
            .outputs()
            .iter()
            .zip(&self.values)
            .find_map(|(output, value)| (output.name() == name).then_some(value))
            .ok_or_else(|| self.failed(format!("it gave no output `{name}`")))?;
        let (shape, values) = value
            .try_extract_tensor::<T>()
            .map_err(|error| self.failed(one_line(error.message())))?;
        Ok((
            shape
                .iter()
                .map(|side| usize::try_from(*side).unwrap_or(0))
                .collect(),
            values,
        ))
    }

    pub(crate) fn failed(&self, reason: String) -> RuntimeError {
        self.session.failed(reason)
    }
}
