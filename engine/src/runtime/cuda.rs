//! What the CUDA provider is told beyond its device: `[runtime.cuda]`.

use ort::ep::{self, ArenaExtendStrategy, ExecutionProviderDispatch};
use serde::{Deserialize, Serialize};

/// Settings of the CUDA provider. Each graph of a service has an arena and a stream of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CudaOptions {
    /// Most bytes of the device that a graph's arena takes, weights included; 0: as many as there are. What cuDNN takes for
    /// convolutions comes on top.
    pub arena_bytes: usize,
    /// By how much an arena grows.
    pub arena_growth: ArenaGrowth,
    /// How cuDNN chooses a convolution's algorithm.
    pub convolution_search: ConvolutionSearch,
    /// Products and convolutions in TF32: f32 with a mantissa of 10 bits, on tensor cores. Several times as fast, and further from what
    /// the CPU computes.
    pub tf32: bool,
}

/// By how much an arena on the device grows when it must.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArenaGrowth {
    /// By what is asked for: for devices that processes share.
    #[default]
    AsAskedFor,
    /// To the next power of two: fewer allocations, up to twice the memory.
    Doubling,
}

/// How cuDNN chooses the algorithm of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConvolutionSearch {
    /// By what cuDNN expects.
    #[default]
    Heuristic,
    /// By trying all, again for every size of a batch: the first pictures of each size are late.
    Exhaustive,
    /// The default algorithm, which takes least memory.
    Fixed,
}

// === impl CudaOptions ===

impl CudaOptions {
    /// The provider on device `device`. Failure is an error.
    pub(super) fn provider(self, device: i32) -> ExecutionProviderDispatch {
        let provider = ep::CUDA::default()
            .with_device_id(device)
            .with_tf32(self.tf32)
            .with_arena_extend_strategy(match self.arena_growth {
                ArenaGrowth::AsAskedFor => ArenaExtendStrategy::SameAsRequested,
                ArenaGrowth::Doubling => ArenaExtendStrategy::NextPowerOfTwo,
            })
            .with_conv_algorithm_search(match self.convolution_search {
                ConvolutionSearch::Heuristic => ep::cuda::ConvAlgorithmSearch::Heuristic,
                ConvolutionSearch::Exhaustive => ep::cuda::ConvAlgorithmSearch::Exhaustive,
                ConvolutionSearch::Fixed => ep::cuda::ConvAlgorithmSearch::Default,
            });
        match self.arena_bytes {
            0 => provider.build(),
            bytes => provider.with_memory_limit(bytes).build(),
        }
    }
}
