//! How sessions are opened: the `[runtime]` section of a service's configuration.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread;

use serde::{Deserialize, Serialize};

use super::{CudaOptions, Lanes, OpenVinoOptions, Provider, RuntimeError};

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
    /// Threads that compute on the CPU; 0: one for each core.
    pub threads: usize,
    /// How many parts of a stage's pass, or of the texts that are embedded together, the threads compute side by side, each lane with its share of them. Threads of one operator
    /// wait for each other after each, lanes only at the end of the pass. 0: two, where there are two threads, since a guided row
    /// counts twice; one with [`WidenWeights::InEachPass`]. One unguided row or text alone is computed by one lane. More than one is for the CPU alone.
    pub lanes: usize,
    /// Most rows of a part of a stage's pass, an unconditional one counted as its own: what it works on should stay in a core's cache. Only
    /// where there are lanes.
    pub lane_rows: NonZeroUsize,
    /// How long a thread of an operator on the CPU waits awake for its next part, in microseconds, before it sleeps; 0: it sleeps
    /// at once. Waking takes longer than many an operator of a small pass, so 50 makes passes a tenth faster where the cores are
    /// the session's own; where processes share them it takes the time from the others.
    pub spin_us: u32,
    /// Where TensorRT keeps compiled engines; absent: nowhere, and every start compiles again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensorrt_cache: Option<PathBuf>,
    /// When weights that are stored in f16 or int8 become f32, as which they are multiplied.
    pub widen_weights: WidenWeights,
    /// What the CUDA provider is told beyond its device.
    pub cuda: CudaOptions,
    /// What the OpenVINO provider is told.
    pub openvino: OpenVinoOptions,
}

/// Rows of a part by default: on the CPUs where it was measured (docs/performance.md), 2 are 4 % slower, 16 are 3 %.
const LANE_ROWS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(3);

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

impl SessionOptions {
    /// Threads that compute on the CPU.
    pub fn cpu_threads(&self) -> usize {
        match self.threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }

    /// How a stage's passes are divided on the first provider.
    ///
    /// # Errors
    /// [`RuntimeError::Lanes`] where that provider computes one pass at a time and more lanes are wanted.
    pub fn lanes(&self) -> Result<Lanes, RuntimeError> {
        let threads = self.cpu_threads();
        let count = match (self.providers.first(), self.lanes) {
            // Each part would widen all weights again.
            (Some(Provider::Cpu), 0) if self.widen_weights == WidenWeights::InEachPass => 1,
            (Some(Provider::Cpu), 0) => threads.min(2),
            (Some(Provider::Cpu), lanes) => lanes,
            (_, 0 | 1) => 1,
            (None, _) => return Err(RuntimeError::NoProvider),
            (Some(provider), lanes) => {
                return Err(RuntimeError::Lanes {
                    lanes,
                    provider: *provider,
                });
            }
        };
        Ok(match count {
            // All rows at once, as a device wants it.
            1 => Lanes {
                count,
                rows: usize::MAX,
                threads: self.threads,
            },
            _ => Lanes {
                count,
                rows: self.lane_rows.get(),
                threads: (threads / count).max(1),
            },
        })
    }
}

impl SessionOptions {
    /// How many rows of a pass are drawn side by side: one in each lane; where one lane computes the pass, one in each thread, as
    /// none of them has anything else to do then.
    ///
    /// # Errors
    /// As [`SessionOptions::lanes`].
    pub fn samplers(&self) -> Result<usize, RuntimeError> {
        Ok(match self.lanes()?.count {
            0 | 1 => self.cpu_threads(),
            lanes => lanes,
        })
    }
}

impl Default for SessionOptions {
    fn default() -> SessionOptions {
        SessionOptions {
            onnxruntime: None,
            providers: vec![Provider::Cpu],
            allow_cpu_operators: true,
            device_id: 0,
            threads: 0,
            lanes: 0,
            lane_rows: LANE_ROWS,
            spin_us: 0,
            tensorrt_cache: None,
            widen_weights: WidenWeights::default(),
            cuda: CudaOptions::default(),
            openvino: OpenVinoOptions::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(provider: Provider, threads: usize, lanes: usize) -> Result<Lanes, RuntimeError> {
        let options = SessionOptions {
            providers: vec![provider],
            threads,
            lanes,
            ..SessionOptions::default()
        };
        options.lanes()
    }

    #[test]
    fn lanes_share_the_threads() {
        for (threads, wanted, count, each) in [
            (1, 0, 1, 1),
            (2, 0, 2, 1),
            (8, 0, 2, 4),
            (8, 3, 3, 2),
            (8, 1, 1, 8),
            (2, 4, 4, 1),
        ] {
            let found = lanes(Provider::Cpu, threads, wanted).unwrap();
            assert_eq!((found.count, found.threads), (count, each), "{threads} {wanted}");
        }
    }

    #[test]
    fn weights_are_widened_once_a_pass() {
        let options = SessionOptions {
            threads: 2,
            widen_weights: WidenWeights::InEachPass,
            ..SessionOptions::default()
        };
        assert_eq!(options.lanes().unwrap().count, 1);
    }

    #[test]
    fn a_device_computes_a_pass_whole() {
        let found = lanes(Provider::Cuda, 8, 0).unwrap();
        assert_eq!((found.count, found.rows), (1, usize::MAX));
        let told = lanes(Provider::Cuda, 8, 2).unwrap_err().to_string();
        assert!(
            told.contains("runtime.lanes = 2") && told.contains("cuda"),
            "{told}"
        );
    }
}
