//! One graph, opened on the best provider that can be had.

use std::ffi::CString;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{RunOptions, SessionInputValue};
use ort::value::{DynValue, Outlet, PrimitiveTensorElementType, TensorRef};

use super::signature::Signature;
use super::{Provider, Runtime, RuntimeError, SessionOptions, WidenWeights, native, one_line};
use crate::bundle::{Bundle, BundleError, BundleFault};

/// ONNX Runtime's names of the optimisations that replace stored weights, and the nodes that widen them, by f32 constants: what
/// computes all that depends on constants alone, and what else does so for f16 on the CPU.
const WIDENING: &str = "ConstantFolding;FuseFp16InitializerToFp32NodeTransformer";

/// ONNX Runtime's run option that gives unused blocks of the named devices' arenas back to the system.
const SHRINK: &str = "memory.enable_memory_arena_shrinkage";

/// ONNX Runtime's session option (from 1.32 on; earlier ones spin as long as they see fit).
const SPIN_DURATION: &str = "session.intra_op.spin_duration_us";

/// An open graph. On the CPU several threads may run it at once; on other providers they take turns.
#[derive(Debug)]
pub(crate) struct Session {
    inner: ort::session::Session,
    file: String,
    provider: Provider,
    output_names: Vec<CString>,
    /// Every run gives back what it does not use, or the next one alone does.
    shrinks_always: bool,
    shrinks: AtomicBool,
    /// Held by a run where only one may run at a time.
    turn: Option<Mutex<()>>,
}

/// The outputs of a run.
pub(crate) struct Outputs<'run> {
    session: &'run Session,
    /// As the session's outputs.
    values: Vec<DynValue>,
}

/// Why opening on some providers failed.
enum OpenFailure {
    /// A provider could not be registered.
    Provider(Provider, String),
    /// The graph could not be opened with the providers that were registered.
    Graph(String),
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
                    return Ok(Session {
                        inner,
                        file: file.to_owned(),
                        provider: *first,
                        output_names,
                        shrinks_always: false,
                        shrinks: AtomicBool::new(false),
                        turn: (*first != Provider::Cpu).then(Mutex::default),
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

    /// Every run gives the memory that the arena does not use then back to the system, as [`Session::shrink_at_next_run`]: for
    /// graphs that run rarely and use much. Their time does not change measurably.
    pub(crate) fn shrinking(mut self) -> Session {
        self.shrinks_always = self.provider == Provider::Cpu;
        self
    }

    /// The next run gives the memory of larger ones before it back to the system. Only on the CPU: memory of a device is
    /// nobody else's, and is kept.
    pub(crate) fn shrink_at_next_run(&self) {
        self.shrinks
            .store(self.provider == Provider::Cpu, Ordering::Relaxed);
    }

    /// Runs the graph and hands the outputs to `read`.
    pub(crate) fn run<T, E: From<RuntimeError>>(
        &self,
        inputs: Vec<(&str, SessionInputValue<'_>)>,
        read: impl FnOnce(Outputs<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let ort_failed = |error: ort::Error| self.failed(one_line(error.message()));
        let names = c_strings(inputs.iter().map(|(name, _)| *name)).map_err(|reason| self.failed(reason))?;
        let inputs: Vec<(CString, SessionInputValue<'_>)> = names
            .into_iter()
            .zip(inputs.into_iter().map(|(_, value)| value))
            .collect();
        let mut options = RunOptions::new().map_err(ort_failed)?;
        if self.shrinks.swap(false, Ordering::Relaxed) || self.shrinks_always {
            options.set(SHRINK, "cpu:0").map_err(ort_failed)?;
        }
        let _turn = self
            .turn
            .as_ref()
            .map(|turn| turn.lock().unwrap_or_else(PoisonError::into_inner));
        let values = native::run(&self.inner, &options, &inputs, &self.output_names).map_err(ort_failed)?;
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

/// Names as ONNX Runtime takes them.
fn c_strings<'name>(names: impl Iterator<Item = &'name str>) -> Result<Vec<CString>, String> {
    names
        .map(|name| CString::new(name).map_err(|_| format!("the name {name:?} holds a zero byte")))
        .collect()
}

/// The ONNX file at `path` by itself, opened with `options` as the engine opens those of a bundle, but only on the first provider:
/// for benchmarks and tools. With `profile`, ONNX Runtime writes how long each operator takes into a file of that name and
/// a time stamp, once the session's profiling ends.
///
/// # Errors
/// The provider cannot be had, or the file is no graph that ONNX Runtime can open.
pub fn open_graph(
    path: &Path,
    options: &SessionOptions,
    profile: Option<&Path>,
) -> Result<ort::session::Session, RuntimeError> {
    let runtime = Runtime::current()?;
    let opened = builder(runtime, &options.providers, options).and_then(|builder| {
        let builder = match profile {
            Some(profile) => builder.with_profiling(profile),
            None => Ok(builder),
        };
        let graph = |message: &str| OpenFailure::Graph(one_line(message));
        let mut builder = builder.map_err(|error| graph(error.message()))?;
        builder
            .commit_from_file(path)
            .map_err(|error| graph(error.message()))
    });
    opened.map_err(|failure| match failure {
        OpenFailure::Provider(provider, reason) => RuntimeError::Provider {
            provider,
            reason: provider.explain(&reason),
        },
        OpenFailure::Graph(reason) => RuntimeError::Open {
            file: path.to_owned(),
            reason,
        },
    })
}

fn open(
    runtime: &Runtime,
    path: &Path,
    providers: &[Provider],
    options: &SessionOptions,
) -> Result<ort::session::Session, OpenFailure> {
    builder(runtime, providers, options)?
        .commit_from_file(path)
        .map_err(|error| OpenFailure::Graph(one_line(error.message())))
}

// Builder errors are neither Send nor Sync, so they are turned into text before they leave this function.
fn builder(
    runtime: &Runtime,
    providers: &[Provider],
    options: &SessionOptions,
) -> Result<SessionBuilder, OpenFailure> {
    let graph = |message: &str| OpenFailure::Graph(one_line(message));
    let mut builder = ort::session::Session::builder(runtime.environment())
        .map_err(|error| graph(error.message()))?
        .with_optimization_level(GraphOptimizationLevel::All)
        .map_err(|error| graph(error.message()))?
        .with_intra_threads(options.threads)
        .map_err(|error| graph(error.message()))?
        .with_inter_threads(1)
        .map_err(|error| graph(error.message()))?
        .with_intra_op_spinning(options.spin_us > 0)
        .map_err(|error| graph(error.message()))?
        .with_config_entry(SPIN_DURATION, options.spin_us.to_string())
        .map_err(|error| graph(error.message()))?
        .with_inter_op_spinning(false)
        .map_err(|error| graph(error.message()))?
        .with_log_level(ort::logging::LogLevel::Warning)
        .map_err(|error| graph(error.message()))?
        .with_env_allocators()
        .map_err(|error| graph(error.message()))?
        // A pattern is kept for every shape of the inputs, and no two passes have as many masked positions.
        .with_memory_pattern(false)
        .map_err(|error| graph(error.message()))?;
    if options.widen_weights == WidenWeights::InEachPass {
        builder = builder
            .with_disabled_optimizers(WIDENING)
            .map_err(|error| graph(error.message()))?;
    }
    if !options.allow_cpu_operators && !providers.contains(&Provider::Cpu) {
        builder = builder
            .with_disable_cpu_fallback()
            .map_err(|error| graph(error.message()))?;
    }
    for provider in providers {
        builder = match builder.with_execution_providers([provider.registration(options)]) {
            Ok(builder) => builder,
            // Only the first must be had here: when it fails, the rest is tried without it.
            Err(error) if Some(provider) == providers.first() => {
                return Err(OpenFailure::Provider(*provider, one_line(error.message())));
            }
            Err(error) => {
                tracing::warn!(%provider, reason = one_line(error.message()), "provider cannot be used");
                error.recover()
            }
        };
    }
    Ok(builder)
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn root() -> PathBuf {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
    }

    fn runtime() -> &'static Runtime {
        let library = std::env::var_os("MUSE__RUNTIME__ONNXRUNTIME").map_or_else(
            || root().join(".deps/onnxruntime/libonnxruntime.so"),
            PathBuf::from,
        );
        Runtime::initialise(Some(&library)).unwrap()
    }

    #[test]
    fn weights_stay_as_small_as_they_are_stored_where_each_pass_widens_them() {
        let folder = tempfile::tempdir().unwrap();
        // The first has int8 weights, the second f16.
        for graph in ["base_step.onnx", "superres_step.onnx"] {
            let optimised_size = |widen_weights| {
                let options = SessionOptions {
                    widen_weights,
                    ..SessionOptions::default()
                };
                let optimised = folder.path().join("optimised.onnx");
                builder(runtime(), &[Provider::Cpu], &options)
                    .unwrap_or_else(|_| panic!("no builder"))
                    .with_optimized_model_path(&optimised)
                    .unwrap()
                    .commit_from_file(root().join("tests/bundles/tiny").join(graph))
                    .unwrap();
                optimised.metadata().unwrap().len()
            };
            let at_load = optimised_size(WidenWeights::AtLoad);
            let in_each_pass = optimised_size(WidenWeights::InEachPass);
            assert!(
                in_each_pass * 3 < at_load * 2,
                "{graph}: {in_each_pass} bytes, and {at_load} widened"
            );
        }
    }

    #[test]
    fn operators_stay_off_the_cpu_where_the_options_say_so() {
        let runtime = runtime();
        let graph = root().join("tests/bundles/tiny/base_step.onnx");
        // No provider at all stands for one that has none of the graph's operators: the library's own CPU kernels remain.
        let open = |allow_cpu_operators| {
            let options = SessionOptions {
                allow_cpu_operators,
                ..SessionOptions::default()
            };
            super::open(runtime, &graph, &[], &options)
        };
        assert!(open(true).is_ok());
        let Err(OpenFailure::Graph(reason)) = open(false) else {
            panic!("opened on the CPU")
        };
        let told = Provider::Cuda.explain(&reason);
        assert!(told.contains("runtime.allow_cpu_operators"), "{told}");
    }
}
