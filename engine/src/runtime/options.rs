//! How sessions are opened: the `[runtime]` section of a service's configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Provider;

/// Settings of ONNX Runtime and its sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionOptions {
    /// ONNX Runtime's shared library, for [`Runtime::initialise`](super::Runtime::initialise). Absent: the system's loader
    /// looks for `libonnxruntime.so`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub onnxruntime: Option<PathBuf>,
    /// Execution providers in order of preference. The first must be had, unless a later one may take over:
    /// `["cuda", "cpu"]` says that falling back to the CPU is fine.
    pub providers: Vec<Provider>,
    /// Whether ONNX Runtime may put single operators that the provider lacks, or would rather not compute, on the CPU, also
    /// where `cpu` is not among the providers. The CUDA provider leaves the arithmetic on shapes to the CPU, which costs
    /// nothing and which most graphs have; so `false` is for graphs that were made without.
    pub allow_cpu_operators: bool,
    /// Which device of the provider.
    pub device_id: u32,
    /// Threads of one operator on the CPU; 0: one for each core.
    pub intra_threads: usize,
    /// How long a thread of an operator on the CPU waits awake for its next part, in microseconds, before it sleeps; 0: it sleeps
    /// at once. Waking takes longer than many an operator of a small pass, so 50 makes passes a tenth faster where the cores are
    /// the session's own; where processes share them it takes the time from the others.
    pub spin_us: u32,
    /// Where TensorRT keeps compiled engines; absent: nowhere, and every start compiles again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensorrt_cache: Option<PathBuf>,
    /// What OpenVINO computes on.
    pub openvino_device: String,
    /// When weights that are stored in f16 or int8 become f32, as which they are multiplied.
    pub widen_weights: WidenWeights,
}

/// When weights that are stored smaller than f32 are widened. The values are the same, and so are the results but for the
/// last bits: kernels may sum in another order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WidenWeights {
    /// Once, when a graph is opened: a session holds its weights in f32.
    #[default]
    AtLoad,
    /// Again in every pass, a tensor at a time: a session holds them as they are stored, and each pass is slower by the
    /// widening. For models whose f32 form does not fit. Weights in a graph's external data stay in the file, mapped.
    InEachPass,
}

// === impl SessionOptions ===

impl Default for SessionOptions {
    fn default() -> SessionOptions {
        SessionOptions {
            onnxruntime: None,
            providers: vec![Provider::Cpu],
            allow_cpu_operators: true,
            device_id: 0,
            intra_threads: 0,
            spin_us: 0,
            tensorrt_cache: None,
            openvino_device: "CPU".to_owned(),
            widen_weights: WidenWeights::default(),
        }
    }
}
