//! How a graph is opened: ONNX Runtime's session options from ours.

use std::path::Path;

use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use super::{Provider, Runtime, RuntimeError, SessionOptions, WidenWeights, one_line};

/// ONNX Runtime's names of the optimisations that replace stored weights, and the nodes that widen them, by f32 constants: what
/// computes all that depends on constants alone, and what else does so for f16 on the CPU.
const WIDENING: &str = "ConstantFolding;FuseFp16InitializerToFp32NodeTransformer";

/// ONNX Runtime's session option (from 1.32 on; earlier ones spin as long as they see fit).
const SPIN_DURATION: &str = "session.intra_op.spin_duration_us";

/// Why opening on some providers failed.
pub(super) enum OpenFailure {
    /// A provider could not be registered.
    Provider(Provider, String),
    /// The graph could not be opened with the providers that were registered.
    Graph(String),
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

/// The graph at `path` with `providers` registered in order, of which the first must be had.
pub(super) fn open(
    runtime: &Runtime,
    path: &Path,
    providers: &[Provider],
    options: &SessionOptions,
) -> Result<ort::session::Session, OpenFailure> {
    builder(runtime, providers, options)?
        .commit_from_file(path)
        .map_err(|error| OpenFailure::Graph(one_line(error.message())))
}

/// `model`, made in this process, on `provider`.
pub(super) fn open_model(
    runtime: &Runtime,
    model: ort::editor::Model,
    provider: Provider,
    options: &SessionOptions,
) -> Result<ort::session::Session, OpenFailure> {
    model
        .into_session(&builder(runtime, &[provider], options)?)
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
        // Said even where it is one for each core: left to itself ONNX Runtime counts cores that the process may not use, and
        // pins its threads to them.
        .with_intra_threads(options.cpu_threads())
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn root() -> PathBuf {
        Runtime::of_the_workspace().0
    }

    fn runtime() -> &'static Runtime {
        Runtime::of_the_workspace().1
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
