//! The encoder's configuration. Every limit is a number here.

use std::path::PathBuf;

use muse_engine::SessionOptions;
use muse_service::config::{ConfigError, Drain, GrpcServer, Ops, Process, ServiceConfig, Telemetry};
use serde::{Deserialize, Serialize};

/// All of it: defaults, then the file, then `MUSE__SECTION__KEY`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EncoderConfig {
    /// Folder of the bundle.
    pub bundle: PathBuf,
    /// Logs and traces.
    pub telemetry: Telemetry,
    /// The port that workers call.
    pub grpc: GrpcServer,
    /// Metrics and probes.
    pub ops: Ops,
    /// The end of the process.
    pub drain: Drain,
    /// Where it runs.
    pub process: Process,
    /// ONNX Runtime and the device that it runs on.
    pub runtime: SessionOptions,
    /// Which prompts share a pass.
    pub batch: Batch,
    /// Embeddings kept.
    pub cache: Cache,
    /// What is taken on.
    pub admission: Admission,
    /// What one request may hold.
    pub request: Request,
}

/// Which prompts share a pass.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Batch {
    /// Most padded tokens of a pass: prompts × the length that they are padded to.
    pub max_tokens: usize,
    /// The first prompt after a pause waits this long for company; 0 to 2. Under load nothing waits.
    pub max_wait_ms: u64,
}

/// Embeddings kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// Bytes, keys included; the least recently used go first. 0 keeps nothing.
    pub max_bytes: u64,
}

/// What is taken on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admission {
    /// Padded tokens that wait or run; a prompt over it is refused with RESOURCE_EXHAUSTED.
    pub max_queued_tokens: usize,
}

/// What one request may hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Request {
    /// Texts.
    pub max_texts: usize,
    /// Bytes of one text, before it is tokenized.
    pub max_text_bytes: usize,
    /// Bytes of the message.
    pub max_message_bytes: usize,
}

// === impl ===

/// Where workers look for an encoder when nothing else is configured.
pub const DEFAULT_PORT: u16 = 7710;

/// Where metrics and probes are when nothing else is configured.
const DEFAULT_OPS_PORT: u16 = 7711;

impl Default for EncoderConfig {
    fn default() -> Self {
        Self {
            bundle: PathBuf::new(),
            telemetry: Telemetry::default(),
            grpc: GrpcServer::on_port(DEFAULT_PORT),
            ops: Ops::on_port(DEFAULT_OPS_PORT),
            drain: Drain::default(),
            process: Process::default(),
            runtime: SessionOptions::default(),
            batch: Batch::default(),
            cache: Cache::default(),
            admission: Admission::default(),
            request: Request::default(),
        }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            max_tokens: 1024,
            // Alone, a prompt would only lose it; under load companions gather during the pass before.
            max_wait_ms: 0,
        }
    }
}

impl Default for Cache {
    fn default() -> Self {
        // About 800 prompts of 40 tokens at the 4096 values of T5-XXL, or 65,000 of 8 tokens at 256.
        Self {
            max_bytes: 512 * 1024 * 1024,
        }
    }
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            max_queued_tokens: 32 * 1024,
        }
    }
}

impl Default for Request {
    fn default() -> Self {
        Self {
            max_texts: 64,
            max_text_bytes: 16 * 1024,
            max_message_bytes: 1024 * 1024,
        }
    }
}

impl ServiceConfig for EncoderConfig {
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
        let faults = [
            (
                self.runtime.providers.is_empty(),
                "runtime.providers",
                "name at least one provider, such as \"cpu\"",
            ),
            (
                self.batch.max_tokens == 0,
                "batch.max_tokens",
                "must be at least 1",
            ),
            (
                self.batch.max_wait_ms > 2,
                "batch.max_wait_ms",
                "must be at most 2: load, not time, fills a pass",
            ),
            (
                self.admission.max_queued_tokens == 0,
                "admission.max_queued_tokens",
                "must be at least 1",
            ),
            (
                self.request.max_texts == 0,
                "request.max_texts",
                "must be at least 1",
            ),
            (
                self.request.max_text_bytes == 0,
                "request.max_text_bytes",
                "must be at least 1",
            ),
            (
                self.request.max_message_bytes == 0,
                "request.max_message_bytes",
                "must be at least 1",
            ),
        ];
        match faults.into_iter().find(|(fault, _, _)| *fault) {
            Some((_, key, reason)) => Err(ConfigError::invalid(key, reason)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_cannot_work_is_refused_with_its_key() {
        EncoderConfig::default().validate().unwrap();
        let slow = EncoderConfig {
            batch: Batch {
                max_wait_ms: 50,
                ..Batch::default()
            },
            ..EncoderConfig::default()
        };
        let error = slow.validate().unwrap_err().to_string();
        assert!(error.contains("batch.max_wait_ms"), "{error}");
    }

    #[test]
    fn what_check_prints_is_a_configuration() {
        let printed = muse_service::config::check(&EncoderConfig::default()).unwrap();
        let environment = [("MUSE__BATCH__MAX_TOKENS".to_owned(), "7".to_owned())];
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), printed).unwrap();
        let config: EncoderConfig = muse_service::config::load_from(Some(file.path()), environment).unwrap();
        assert_eq!(config.batch.max_tokens, 7);
    }
}
