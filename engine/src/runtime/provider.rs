//! Execution providers: their names, how they are registered, and what their failures mean to a person.

use std::fmt;
use std::str::FromStr;

use ort::ep::{self, ExecutionProviderDispatch};
use serde::{Deserialize, Serialize};

use super::{SessionOptions, one_line};

/// What a session computes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// NVIDIA CUDA.
    Cuda,
    /// NVIDIA TensorRT.
    TensorRt,
    /// Intel OpenVINO.
    OpenVino,
    /// ONNX Runtime's own kernels.
    Cpu,
}

// === impl Provider ===

impl Provider {
    /// Every provider that can be asked for.
    pub const ALL: [Provider; 4] = [
        Provider::Cuda,
        Provider::TensorRt,
        Provider::OpenVino,
        Provider::Cpu,
    ];

    /// As it is written in configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Provider::Cuda => "cuda",
            Provider::TensorRt => "tensorrt",
            Provider::OpenVino => "openvino",
            Provider::Cpu => "cpu",
        }
    }

    /// How it is registered. Failure is an error: ONNX Runtime's own default is to run on the CPU in silence.
    pub(super) fn registration(self, options: &SessionOptions) -> ExecutionProviderDispatch {
        let device = i32::try_from(options.device_id).unwrap_or(i32::MAX);
        let registration = match self {
            Provider::Cuda => options.cuda.provider(device),
            Provider::TensorRt => {
                let provider = ep::TensorRT::default().with_device_id(device);
                match &options.tensorrt_cache {
                    Some(folder) => provider
                        .with_engine_cache(true)
                        .with_engine_cache_path(folder.display())
                        .build(),
                    None => provider.build(),
                }
            }
            Provider::OpenVino => options.openvino.provider(options.cpu_threads()),
            // Its default is no arena: then every pass takes its buffers from the system and gives them back.
            Provider::Cpu => ep::CPU::default().with_arena_allocator(true).build(),
        };
        registration.error_on_failure()
    }

    /// ONNX Runtime's failure to provide it, as one line that says what to do.
    pub(super) fn explain(self, message: &str) -> String {
        let message = one_line(message);
        let wheel = match self {
            Provider::Cuda | Provider::TensorRt => "onnxruntime-gpu",
            Provider::OpenVino => "onnxruntime-openvino",
            Provider::Cpu => "onnxruntime",
        };
        let not_built_in = message.contains("is not enabled in this build")
            || message.contains("not supported in this build");
        let advice = if not_built_in {
            format!(
                "this build of ONNX Runtime does not have it; point runtime.onnxruntime to the library of the \
                 {wheel} wheel"
            )
        } else if message.contains("assigned to the default CPU EP") {
            "it lacks operators of the graph, and runtime.allow_cpu_operators = false keeps them off the CPU; set it to \
             true"
                .to_owned()
        } else if message.contains("Failed to load library")
            || message.contains("Failed to load shared library")
        {
            match self {
                Provider::Cuda => {
                    "its libraries cannot be loaded; install the NVIDIA driver, CUDA and cuDNN that this \
                                   build of ONNX Runtime needs"
                        .to_owned()
                }
                Provider::TensorRt => {
                    "its libraries cannot be loaded; install the NVIDIA driver, CUDA and TensorRT that \
                                       this build of ONNX Runtime needs"
                        .to_owned()
                }
                Provider::OpenVino | Provider::Cpu => {
                    format!("its libraries cannot be loaded; install what the {wheel} wheel needs")
                }
            }
        } else {
            "ONNX Runtime could not start it".to_owned()
        };
        let fallback = match self {
            Provider::Cpu => String::new(),
            _ => format!(", or set runtime.providers to [\"{self}\", \"cpu\"] to let the CPU take over"),
        };
        format!("{advice}{fallback} ({message})")
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Provider {
    type Err = String;

    fn from_str(text: &str) -> Result<Provider, String> {
        Provider::ALL
            .into_iter()
            .find(|provider| provider.as_str() == text)
            .ok_or_else(|| format!("\"{text}\" is no provider; use cuda, tensorrt, openvino or cpu"))
    }
}
