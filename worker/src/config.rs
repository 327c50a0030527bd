//! The worker's configuration. Every limit is a number here.

use std::path::PathBuf;

use muse_engine::{SessionOptions, Stage};
use muse_service::config::{ConfigError, Drain, GrpcClient, Ops, Process, ServiceConfig, Telemetry};
use serde::{Deserialize, Serialize};

/// All of it: defaults, then the file, then `MUSE__SECTION__KEY`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerConfig {
    /// The pool that this shard belongs to.
    pub stage: Stage,
    /// Folder of the bundle.
    pub bundle: PathBuf,
    /// Logs and traces.
    pub telemetry: Telemetry,
    /// Metrics and probes.
    pub ops: Ops,
    /// The end of the process.
    pub drain: Drain,
    /// Where it runs.
    pub process: Process,
    /// Gateways.
    pub hub: Hub,
    /// Text encoders.
    pub encoder: Encoder,
    /// ONNX Runtime and the device that it runs on.
    pub runtime: SessionOptions,
    /// Which rows run when.
    pub batcher: Batcher,
    /// From tokens to pictures.
    pub pixels: Pixels,
}

/// Where leases come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hub {
    /// Gateways' gRPC endpoints; the shard is attached to one of them, and to another when that one is lost.
    pub endpoints: Vec<String>,
    /// The connection.
    pub client: GrpcClient,
    /// Connecting and being welcomed may take this long.
    pub attach_timeout_ms: u64,
    /// First limit of the back-off between attempts; it doubles, and the wait is drawn below it.
    pub backoff_initial_ms: u64,
    /// Last limit of the back-off.
    pub backoff_max_ms: u64,
    /// Refused for a reason that asking again does not change, such as another bundle under its model's name, the worker tries
    /// this long, in which what is in the way may leave; then it ends with the reason.
    pub refusal_patience_ms: u64,
    /// A report that is not acknowledged for this long is sent again.
    pub resend_after_ms: u64,
    /// With progress to tell, a heartbeat goes out this soon after the last one; 0: only at the gateway's interval.
    pub progress_interval_ms: u64,
    /// Bytes of one message from the gateway.
    pub max_message_bytes: usize,
}

/// Where embeddings come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Encoder {
    /// Encoders' gRPC endpoints. List the same names everywhere: they decide which encoder caches which prompt.
    pub endpoints: Vec<String>,
    /// The connection.
    pub client: GrpcClient,
    /// One call may take this long.
    pub timeout_ms: u64,
    /// A job waits this long for any encoder to answer; then it is given up for this attempt.
    pub patience_ms: u64,
    /// Pause between two rounds over all encoders; it doubles up to 10 times this.
    pub retry_pause_ms: u64,
    /// An encoder that failed is asked last for this long.
    pub cool_down_ms: u64,
    /// Embeddings kept here, in bytes.
    pub cache_bytes: u64,
    /// Texts of jobs on their way here that are asked for at once, before the lease is there; 0: none.
    pub ahead: usize,
    /// Bytes of one answer.
    pub max_message_bytes: usize,
}

/// Which rows run when.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Batcher {
    /// Most rows in a pass, a guided row counted twice; at least 2. Absent: found at warm-up.
    pub row_budget: Option<usize>,
    /// Largest pass that warm-up tries.
    pub warm_up_max_rows: usize,
    /// Passes measured at each size, after one that fills buffers; the fastest counts.
    pub warm_up_passes: usize,
    /// Warm-up tries no larger pass once one took this long.
    pub warm_up_max_pass_ms: u64,
    /// The row budget is the smallest batch whose rows a second are within this share of the best, or what fills the lanes
    /// (`runtime.lanes` × `runtime.lane_rows`) where that is more and within `warm_up_max_pass_ms`.
    pub knee_tolerance: f64,
    /// Rows leased ahead, as a multiple of the row budget: 1 takes only what runs at once, more hides the hub's latency.
    pub queue_ahead: f64,
    /// Leases above this multiple of the rows leased ahead are given back at once.
    pub overcommit: f64,
    /// Waiting this long is worth one level of priority.
    pub ageing_seconds: f64,
    /// A job is dropped as overdue this long after its deadline: clocks differ.
    pub deadline_grace_ms: u64,
    /// After this many passes in a row in which no row could be computed, the device is taken for broken and the process
    /// ends.
    pub max_failed_passes: u32,
    /// Most pictures of one job.
    pub max_pictures: u32,
    /// A shard that had no job for this long gives back memory that only work needs; 0: never.
    pub rest_after_ms: u64,
}

/// From tokens to pictures; only the last stage's shards use it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pixels {
    /// Grids that wait for the pixel thread; jobs wait when it is full, passes do not.
    pub queue: usize,
    /// Threads inside an operator of the decoder; 0: one for each core.
    pub threads: usize,
    /// JPEG's quality, 1 to 100.
    pub jpeg_quality: u8,
}

// === impl ===

/// Where metrics and probes are when nothing else is configured. A second worker on a machine needs another.
const DEFAULT_OPS_PORT: u16 = 7720;

impl Default for WorkerConfig {
    fn default() -> Self {
        WorkerConfig {
            stage: Stage::Base,
            bundle: PathBuf::new(),
            telemetry: Telemetry::default(),
            ops: Ops::on_port(DEFAULT_OPS_PORT),
            drain: Drain::default(),
            process: Process::default(),
            hub: Hub::default(),
            encoder: Encoder::default(),
            runtime: SessionOptions::default(),
            batcher: Batcher::default(),
            pixels: Pixels::default(),
        }
    }
}

impl Default for Hub {
    fn default() -> Self {
        Hub {
            endpoints: vec!["http://127.0.0.1:7700".to_owned()],
            client: GrpcClient::default(),
            attach_timeout_ms: 5_000,
            backoff_initial_ms: 100,
            backoff_max_ms: 5_000,
            // Longer than workers that are being replaced need to drain and to be forgotten.
            refusal_patience_ms: 60_000,
            resend_after_ms: 10_000,
            progress_interval_ms: 250,
            max_message_bytes: 4 * 1024 * 1024,
        }
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Encoder {
            endpoints: vec!["http://127.0.0.1:7710".to_owned()],
            client: GrpcClient::default(),
            timeout_ms: 10_000,
            patience_ms: 30_000,
            retry_pause_ms: 200,
            cool_down_ms: 2_000,
            cache_bytes: 32 * 1024 * 1024,
            ahead: 8,
            max_message_bytes: 16 * 1024 * 1024,
        }
    }
}

impl Default for Batcher {
    fn default() -> Self {
        Batcher {
            row_budget: None,
            warm_up_max_rows: 16,
            warm_up_passes: 5,
            warm_up_max_pass_ms: 1_000,
            knee_tolerance: 0.02,
            queue_ahead: 1.5,
            overcommit: 2.0,
            ageing_seconds: 60.0,
            deadline_grace_ms: 1_000,
            max_failed_passes: 5,
            max_pictures: 64,
            // Long against the pauses of a shard that is in use: memory that is given back is taken again page by page.
            rest_after_ms: 5_000,
        }
    }
}

impl Default for Pixels {
    fn default() -> Self {
        Pixels {
            queue: 16,
            // As the passes: on an idle shard one thread alone takes half as long again.
            threads: 0,
            jpeg_quality: 92,
        }
    }
}

impl ServiceConfig for WorkerConfig {
    fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    fn drain(&self) -> &Drain {
        &self.drain
    }

    fn process(&self) -> &Process {
        &self.process
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let batcher = &self.batcher;
        let checks = [
            (
                !self.hub.endpoints.is_empty(),
                "hub.endpoints",
                "name at least one gateway, such as http://127.0.0.1:7700",
            ),
            (
                !self.encoder.endpoints.is_empty(),
                "encoder.endpoints",
                "name at least one encoder, such as http://127.0.0.1:7710",
            ),
            (
                !self.runtime.providers.is_empty(),
                "runtime.providers",
                "name at least one provider, such as \"cpu\"",
            ),
            (
                batcher.row_budget.is_none_or(|budget| budget >= 2),
                "batcher.row_budget",
                "must be at least 2: a guided row counts twice",
            ),
            (
                batcher.warm_up_max_rows >= 2,
                "batcher.warm_up_max_rows",
                "must be at least 2: a guided row counts twice",
            ),
            (
                batcher.warm_up_passes > 0,
                "batcher.warm_up_passes",
                "must be at least 1",
            ),
            (
                (0.0..1.0).contains(&batcher.knee_tolerance),
                "batcher.knee_tolerance",
                "must be at least 0 and below 1",
            ),
            (
                (1.0..=1000.0).contains(&batcher.queue_ahead),
                "batcher.queue_ahead",
                "must be between 1 and 1000",
            ),
            (
                (1.0..=1000.0).contains(&batcher.overcommit),
                "batcher.overcommit",
                "must be between 1 and 1000",
            ),
            (
                (0.001..=1e6).contains(&batcher.ageing_seconds),
                "batcher.ageing_seconds",
                "must be between 0.001 and 1000000",
            ),
            (
                batcher.max_failed_passes > 0,
                "batcher.max_failed_passes",
                "must be at least 1",
            ),
            (
                batcher.max_pictures > 0,
                "batcher.max_pictures",
                "must be at least 1",
            ),
            (self.pixels.queue > 0, "pixels.queue", "must be at least 1"),
            (
                (1..=100).contains(&self.pixels.jpeg_quality),
                "pixels.jpeg_quality",
                "must be between 1 and 100",
            ),
        ];
        match checks.into_iter().find(|(holds, _, _)| !holds) {
            Some((_, key, fault)) => Err(ConfigError::invalid(key, fault)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert!(WorkerConfig::default().validate().is_ok());
    }

    #[test]
    fn a_value_that_cannot_be_is_named_with_its_key() {
        let mut config = WorkerConfig::default();
        config.batcher.row_budget = Some(1);
        let error = config.validate().unwrap_err().to_string();
        assert!(
            error.contains("batcher.row_budget") && error.contains("at least 2"),
            "{error}"
        );
        config.batcher.row_budget = None;
        config.batcher.knee_tolerance = f64::NAN;
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("batcher.knee_tolerance"), "{error}");
    }
}
