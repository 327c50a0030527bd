//! What the OpenVINO provider is told: `[runtime.openvino]`.

use ort::ep::{self, ArbitrarilyConfigurableExecutionProvider as _, ExecutionProviderDispatch};
use serde::{Deserialize, Serialize};

/// Settings of the OpenVINO provider. It computes one pass of a graph at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpenVinoOptions {
    /// What it computes on, by OpenVINO's names.
    pub device: String,
    /// In what it multiplies. OpenVINO's own default is the fastest that the device has, which would be other pictures on other
    /// machines.
    pub precision: OpenVinoPrecision,
}

/// In what products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpenVinoPrecision {
    /// As the graph says.
    #[default]
    F32,
    /// bf16, a mantissa of 7 bits, for CPUs with AMX: others are slower with it (docs/openvino.md). Where AMX is, a row's logits were
    /// seen to depend a little on its company.
    Bf16,
    /// f16, for Intel's GPUs.
    F16,
}

// === impl OpenVinoOptions ===

impl OpenVinoOptions {
    /// The provider with `threads` on the CPU. Failure is an error.
    pub(super) fn provider(&self, threads: usize) -> ExecutionProviderDispatch {
        ep::OpenVINO::default()
            .with_device_type(&self.device)
            .with_arbitrary_config("load_config", self.properties(threads))
            .build()
    }

    /// OpenVINO's properties by device, as the provider takes them.
    fn properties(&self, threads: usize) -> String {
        // `GPU.0` is a device of the kind `GPU`, `HETERO:GPU,CPU` one that is put together of both.
        let devices = self
            .device
            .split_once(':')
            .map_or(&*self.device, |(_, devices)| devices);
        let kinds = devices
            .split(',')
            .map(|device| device.split('.').next().unwrap_or(device));
        let of_each: serde_json::Map<String, serde_json::Value> = kinds
            .map(|kind| {
                let mut properties = serde_json::json!({
                    "INFERENCE_PRECISION_HINT": self.precision.as_str(),
                    // More streams are for requests side by side, and a pass has all threads.
                    "NUM_STREAMS": "1",
                });
                if kind == CPU {
                    properties["INFERENCE_NUM_THREADS"] = threads.to_string().into();
                    // Threads that stay on the first cores would stay on those of the next service on the machine.
                    properties["ENABLE_CPU_PINNING"] = "NO".into();
                }
                (kind.to_owned(), properties)
            })
            .collect();
        serde_json::Value::Object(of_each).to_string()
    }
}

const CPU: &str = "CPU";

impl Default for OpenVinoOptions {
    fn default() -> OpenVinoOptions {
        OpenVinoOptions {
            device: CPU.to_owned(),
            precision: OpenVinoPrecision::default(),
        }
    }
}

// === impl OpenVinoPrecision ===

impl OpenVinoPrecision {
    /// OpenVINO's name.
    fn as_str(self) -> &'static str {
        match self {
            OpenVinoPrecision::F32 => "f32",
            OpenVinoPrecision::Bf16 => "bf16",
            OpenVinoPrecision::F16 => "f16",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(device: &str, precision: OpenVinoPrecision) -> serde_json::Value {
        let options = OpenVinoOptions {
            device: device.to_owned(),
            precision,
        };
        serde_json::from_str(&options.properties(3)).unwrap()
    }

    #[test]
    fn precision_is_always_said() {
        let told = properties("CPU", OpenVinoPrecision::default());
        assert_eq!(told["CPU"]["INFERENCE_PRECISION_HINT"], "f32");
        assert_eq!(told["CPU"]["INFERENCE_NUM_THREADS"], "3");
        let told = properties("CPU", OpenVinoPrecision::Bf16);
        assert_eq!(told["CPU"]["INFERENCE_PRECISION_HINT"], "bf16");
    }

    #[test]
    fn a_gpu_has_no_threads_of_the_cpu() {
        let told = properties("GPU.1", OpenVinoPrecision::F16);
        assert_eq!(told["GPU"]["INFERENCE_PRECISION_HINT"], "f16");
        assert!(told["GPU"].get("INFERENCE_NUM_THREADS").is_none());
        let told = properties("HETERO:GPU.0,CPU", OpenVinoPrecision::F32);
        assert_eq!(told["GPU"]["NUM_STREAMS"], told["CPU"]["NUM_STREAMS"]);
        assert_eq!(told.as_object().unwrap().len(), 2);
    }
}
