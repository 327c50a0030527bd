//! ONNX Runtime: the shared library, execution providers, sessions.

mod binding;
mod cuda;
mod lanes;
mod library;
mod memory;
mod native;
mod opening;
mod openvino;
mod options;
mod provider;
mod rows;
mod session;
pub(crate) mod signature;

use std::path::PathBuf;

pub(crate) use binding::Input;
pub use cuda::{ArenaGrowth, ConvolutionSearch, CudaOptions};
pub(crate) use lanes::LaneThreads;
pub use lanes::Lanes;
pub use library::Runtime;
pub use memory::release_memory;
pub use opening::open_graph;
pub use openvino::{OpenVinoOptions, OpenVinoPrecision};
pub use options::{SessionOptions, WidenWeights};
pub use provider::Provider;
pub(crate) use rows::{DeviceRows, RowGatherer};
pub(crate) use session::{Outputs, Session};
pub(crate) use signature::Element;

/// What goes wrong with ONNX Runtime. Each prints as one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The shared library cannot be loaded.
    #[error(
        "ONNX Runtime cannot be loaded from {}: {reason}; run scripts/fetch-deps, or set runtime.onnxruntime \
         (MUSE__RUNTIME__ONNXRUNTIME) to a libonnxruntime.so of 1.24 or newer", .library.display()
    )]
    Library {
        /// What was tried.
        library: PathBuf,
        /// Why it failed.
        reason: String,
    },
    /// A session was opened before the library was loaded.
    #[error("ONNX Runtime is not loaded; call Runtime::initialise first")]
    NotInitialised,
    /// A second, different library was asked for.
    #[error("ONNX Runtime is already loaded from {}; a process has one", .loaded.display())]
    OtherLibrary {
        /// The one in use.
        loaded: PathBuf,
    },
    /// `providers` is empty.
    #[error("runtime.providers is empty; name at least one of cuda, tensorrt, openvino, cpu")]
    NoProvider,
    /// An execution provider that was asked for cannot be had, and no later one in the list can take over.
    #[error("provider {provider} cannot be used: {reason}")]
    Provider {
        /// The one.
        provider: Provider,
        /// Why, and what to do.
        reason: String,
    },
    /// More lanes than one on a provider that computes one pass at a time.
    #[error(
        "runtime.lanes = {lanes} is for the CPU alone, and {provider} comes first in runtime.providers; set it to 0 or 1"
    )]
    Lanes {
        /// As configured.
        lanes: usize,
        /// The first one.
        provider: Provider,
    },
    /// The threads of the lanes cannot be started.
    #[error("the {lanes} lanes of runtime.lanes cannot be started: {reason}")]
    Threads {
        /// As configured.
        lanes: usize,
        /// The system's words.
        reason: String,
    },
    /// A graph cannot be opened.
    #[error("{}: ONNX Runtime cannot open it: {reason}", .file.display())]
    Open {
        /// The ONNX file.
        file: PathBuf,
        /// ONNX Runtime's words, on one line.
        reason: String,
    },
    /// A forward pass failed.
    #[error("{file}: ONNX Runtime cannot run it: {reason}")]
    Run {
        /// The ONNX file.
        file: String,
        /// ONNX Runtime's words, on one line.
        reason: String,
    },
}

/// ONNX Runtime's messages as one line.
pub(crate) fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
