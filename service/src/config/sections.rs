//! The sections that services embed in their configuration. Every limit is a number here.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::Cpus;

/// Logs and traces.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// How log lines look; they go to stderr.
    pub log_format: LogFormat,
    /// A level, or directives such as `info,muse_gateway=debug`. ONNX Runtime itself is silent unless `ort=info` is among
    /// them.
    pub log_level: String,
    /// Where traces go, OTLP over gRPC, such as `http://127.0.0.1:4317`. Absent: nowhere.
    pub otlp_endpoint: Option<String>,
    /// The share of traces recorded that a client did not decide about itself, 0 to 1.
    pub trace_ratio: f64,
    /// Spans that wait for the collector; more are dropped.
    pub trace_queue: usize,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// The gRPC port, with the limits that keep one peer from taking all of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrpcServer {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Without authentication only loopback is served, unless this says that the network itself is trusted.
    pub insecure_allow_remote: bool,
    /// Connections at once; more are closed at once.
    pub max_connections: usize,
    /// Streams at once on one connection.
    pub max_concurrent_streams: u32,
    /// Streams that this side reset for the peer's errors, after which the connection is closed.
    pub max_local_error_reset_streams: usize,
    /// Streams that the peer opened and reset before they were accepted, after which the connection is closed.
    pub max_pending_accept_reset_streams: usize,
    /// Bytes of metadata of one call.
    pub max_header_bytes: u32,
    /// Bytes in flight on one stream.
    pub stream_window_bytes: u32,
    /// Bytes in flight on one connection.
    pub connection_window_bytes: u32,
    /// Bytes that wait on one connection for what others have to say at the same time, so that it goes out in one write; a larger
    /// message goes by itself. 0: each goes by itself.
    pub write_buffer_bytes: usize,
    /// A connection that has not said HTTP/2 after this long is closed.
    pub handshake_timeout_ms: u64,
    /// A silent connection is pinged this often.
    pub keepalive_interval_seconds: u64,
    /// A ping that is not answered for this long closes the connection.
    pub keepalive_timeout_seconds: u64,
    /// After this long a connection takes no new call, so that clients spread over new instances; running calls go on.
    pub max_connection_age_seconds: u64,
}

/// The HTTP port for metrics and probes. It has no authentication, as is usual for probes, and gives nothing but figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ops {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
}

/// The end of the process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Drain {
    /// After a request to stop, running work has this long before it is cut.
    pub timeout_seconds: u64,
}

/// Where the process runs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Process {
    /// CPUs that it stays on, such as `0-15,32`, or `node:0`: those of a NUMA node. Absent: all that it is started with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Threads for calls and messages, at most [`Process::MOST_THREADS`]; those that compute are apart (`runtime.threads`). 0:
    /// as many as there are CPUs.
    pub threads: usize,
}

impl Process {
    /// More than any machine has use for; far more, and the system would refuse them in the middle of the start.
    pub const MOST_THREADS: usize = 1024;

    /// Checks what the type does not.
    ///
    /// # Errors
    /// The key, and what it may be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.threads > Self::MOST_THREADS {
            let reason = format!("must be at most {}, it is {}", Self::MOST_THREADS, self.threads);
            return Err(ConfigError::invalid("process.threads", reason));
        }
        Ok(())
    }
}

/// Calls to another service.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrpcClient {
    /// For a new connection.
    pub connect_timeout_ms: u64,
    /// A silent connection is pinged this often, also while no call runs.
    pub keepalive_interval_seconds: u64,
    /// A ping that is not answered for this long closes the connection.
    pub keepalive_timeout_seconds: u64,
    /// Bytes in flight on one stream.
    pub stream_window_bytes: u32,
    /// Bytes in flight on one connection.
    pub connection_window_bytes: u32,
    /// Bytes that wait on one connection for what others have to say at the same time, so that it goes out in one write; a larger
    /// message goes by itself. 0: each goes by itself.
    pub write_buffer_bytes: usize,
}

// === impl ===

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            log_format: LogFormat::Human,
            log_level: "info".to_owned(),
            otlp_endpoint: None,
            trace_ratio: 1.0,
            // The exporter's own 2048 is full in under a second of small jobs.
            trace_queue: 32_768,
        }
    }
}

impl GrpcServer {
    /// The defaults, on loopback and `port`.
    pub fn on_port(port: u16) -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            ..Self::default()
        }
    }
}

impl Default for GrpcServer {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            insecure_allow_remote: false,
            max_connections: 4096,
            max_concurrent_streams: 128,
            max_local_error_reset_streams: 256,
            max_pending_accept_reset_streams: 20,
            max_header_bytes: 16 * 1024,
            // 64 KiB, the protocol's default, would hold up pictures and embeddings.
            stream_window_bytes: 1024 * 1024,
            connection_window_bytes: 4 * 1024 * 1024,
            write_buffer_bytes: 32 * 1024,
            handshake_timeout_ms: 5_000,
            keepalive_interval_seconds: 20,
            keepalive_timeout_seconds: 10,
            max_connection_age_seconds: 1_800,
        }
    }
}

impl Ops {
    /// The defaults, on loopback and `port`.
    pub fn on_port(port: u16) -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        }
    }
}

impl Default for Ops {
    fn default() -> Self {
        Self::on_port(0)
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { timeout_seconds: 30 }
    }
}

impl Default for GrpcClient {
    fn default() -> Self {
        Self {
            connect_timeout_ms: 2_000,
            keepalive_interval_seconds: 20,
            keepalive_timeout_seconds: 10,
            stream_window_bytes: 1024 * 1024,
            connection_window_bytes: 4 * 1024 * 1024,
            write_buffer_bytes: 32 * 1024,
        }
    }
}
