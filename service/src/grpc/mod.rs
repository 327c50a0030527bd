//! The gRPC port that every service opens: limits, identity, tracing, metrics, health, reflection, and an end.
//!
//! tonic's own defaults have no limit on streams, none on a peer's errors, none on a handshake that never comes, and wait
//! without limit for the last connection; all four are set here.

mod accept;
mod call;
mod deadline;
mod methods;
mod server;

pub use self::{
    deadline::Deadline,
    server::{Bound, ServeError, Server},
};
