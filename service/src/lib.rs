//! What every Muse service shares: configuration, telemetry, health, shutdown, errors.
//!
//! A service's `main.rs` is [`command::main`] around its own `run(config, shutdown)`. `run` binds first ([`grpc::Server::bind`],
//! [`ops::Ops::bind`]), announces where it listens ([`Addresses::announce`]), serves until [`Shutdown`], and drains.
//!
//! Nothing here knows a model, a queue or a job.

mod addresses;
pub mod client;
pub mod command;
pub mod config;
mod corked;
mod cpus;
pub mod error;
pub mod grpc;
pub mod health;
pub mod identity;
pub mod metrics;
pub mod ops;
mod redact;
mod shutdown;
pub mod telemetry;

pub use self::{
    addresses::Addresses,
    command::ServiceArgs,
    cpus::Cpus,
    error::Error,
    health::Readiness,
    identity::Tenant,
    redact::Redacted,
    shutdown::{Shutdown, ShutdownTrigger},
};
