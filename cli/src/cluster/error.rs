//! Why a local cluster, or a part of it, does not run.

use std::{io, path::PathBuf};

use thiserror::Error;

/// Each message says what to do, where something can be done.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// A program of ours was not built, or lies elsewhere.
    #[error(
        "{program} is not in {directory}: build it (`cargo build --workspace`), or name its folder with --bin-dir"
    )]
    MissingProgram {
        /// File name.
        program: String,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// No Redis or Valkey server.
    #[error("no Redis server found: `make runtime` fetches Valkey, or name one in MUSE_REDIS_SERVER")]
    MissingServer,
    /// No ONNX Runtime library.
    #[error(
        "no ONNX Runtime found: `make runtime` fetches it, or name libonnxruntime.so in MUSE__RUNTIME__ONNXRUNTIME"
    )]
    MissingOnnxRuntime,
    /// Not a bundle.
    #[error("{path} is not a bundle: it has no bundle.toml (docs/bundle.md)")]
    MissingBundle {
        /// The folder.
        path: PathBuf,
    },
    /// Two clusters cannot share a folder.
    #[error("{path} is in use by another local cluster")]
    DirectoryInUse {
        /// The folder.
        path: PathBuf,
    },
    /// A path that a Unix socket cannot have.
    #[error("the path {path} is too long for a socket: set TMPDIR to a shorter folder")]
    SocketPath {
        /// The socket's path.
        path: PathBuf,
    },
    /// The operating system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Its word.
        source: io::Error,
    },
    /// A part ended before it was ready.
    #[error("{part} {reason}; the end of its log:\n{log}")]
    PartFailed {
        /// Its name.
        part: String,
        /// How it ended.
        reason: String,
        /// The last lines.
        log: String,
    },
    /// A part runs but did not become ready.
    #[error("{part} is not ready after {seconds} s; the end of its log:\n{log}")]
    NotReady {
        /// Its name.
        part: String,
        /// The limit.
        seconds: u64,
        /// The last lines.
        log: String,
    },
    /// A part that should run does not.
    #[error("{part} does not run: it {state}")]
    NotRunning {
        /// Its name.
        part: String,
        /// What it does instead.
        state: String,
    },
    /// A name that no part has.
    #[error("no part is called {part}; there are {known}")]
    UnknownPart {
        /// The name.
        part: String,
        /// Those there are.
        known: String,
    },
}

impl ClusterError {
    pub(super) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}
