//! Logs to stderr, spans to a collector.
//!
//! Spans get ids even where no collector is configured, so that a client's trace is carried on to services that have one.

mod init;
pub mod trace_context;

pub use self::init::{TelemetryGuard, init};
