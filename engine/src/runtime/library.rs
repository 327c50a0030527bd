//! The shared library and its environment: once a process.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::{RuntimeError, native, one_line};

/// Found by the system's loader when no path is configured.
const DEFAULT_LIBRARY: &str = "libonnxruntime.so";

static RUNTIME: OnceLock<Runtime> = OnceLock::new();

/// ONNX Runtime, loaded. There is one a process, and it stays until the process ends.
pub struct Runtime {
    environment: ort::environment::Environment,
    library: PathBuf,
}

// === impl Runtime ===

impl Runtime {
    /// Loads the shared library, or gives the one that is already loaded. `None` leaves the search to the system's loader.
    ///
    /// Fails if it cannot be loaded, is older than 1.24, or another one is loaded already.
    pub fn initialise(library: Option<&Path>) -> Result<&'static Runtime, RuntimeError> {
        // Two threads at once would both try to create the process's only environment.
        static LOADING: Mutex<()> = Mutex::new(());
        let _loading = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = match library {
            Some(path) => path.canonicalize().map_err(|error| RuntimeError::Library {
                library: path.to_owned(),
                reason: error.to_string(),
            })?,
            None => PathBuf::from(DEFAULT_LIBRARY),
        };
        if let Some(runtime) = RUNTIME.get() {
            return match library {
                Some(_) if wanted != runtime.library => Err(RuntimeError::OtherLibrary {
                    loaded: runtime.library.clone(),
                }),
                _ => Ok(runtime),
            };
        }
        let failed = |reason: String| RuntimeError::Library {
            library: wanted.clone(),
            reason: one_line(&reason),
        };
        let builder = ort::init_from(&wanted).map_err(|error| failed(error.to_string()))?;
        let environment = builder
            .with_name("muse")
            .with_telemetry(false)
            .build()
            .map_err(|error| failed(error.message().to_owned()))?;
        // Its own default would hand every verbose line to `tracing`, to be dropped there.
        environment.set_log_level(ort::logging::LogLevel::Warning);
        native::share_arena(&environment).map_err(|error| failed(error.message().to_owned()))?;
        tracing::debug!(library = %wanted.display(), build = ort::info(), "ONNX Runtime loaded");
        Ok(RUNTIME.get_or_init(|| Runtime {
            environment,
            library: wanted,
        }))
    }

    /// The one that is loaded.
    pub(super) fn current() -> Result<&'static Runtime, RuntimeError> {
        RUNTIME.get().ok_or(RuntimeError::NotInitialised)
    }

    pub(super) fn environment(&self) -> &ort::environment::Environment {
        &self.environment
    }

    /// Where it was loaded from.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// ONNX Runtime's own description of its build.
    pub fn build_info(&self) -> &'static str {
        ort::info()
    }

    /// For unit tests: the workspace's root, and the library that is fetched there or named by the environment, loaded.
    #[cfg(test)]
    pub(crate) fn of_the_workspace() -> (PathBuf, &'static Runtime) {
        let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let library = std::env::var_os("MUSE__RUNTIME__ONNXRUNTIME")
            .map_or_else(|| root.join(".deps/onnxruntime/libonnxruntime.so"), PathBuf::from);
        let loaded = Runtime::initialise(Some(&library)).expect("ONNX Runtime loads");
        (root, loaded)
    }
}
