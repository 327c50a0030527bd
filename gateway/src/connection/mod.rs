//! The way to Redis: supervised connections for commands, another for the doorbells, and the checks that a server must
//! pass before anything is entrusted to it. Nothing here knows what a job is.

mod address;
mod barrier;
mod bells;
mod checks;
mod cluster;
mod dial;
mod guarantee;
mod link;
mod redis;
mod sentinel;
mod server;
mod supervisor;
mod verdict;

pub use self::{
    bells::{Bells, Expected, JobBell, PoolBell, Revocation, Revocations, Ring},
    checks::{Facts, Unfit, check},
    dial::StartupError,
    guarantee::{Confirmed, Guarantee},
    redis::{Call, Redis},
};

/// Why a call to Redis failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RedisError {
    /// Not reachable, or not usable, for longer than a call waits. Whether the call took effect is unknown, which is why
    /// every script can be repeated.
    #[error("Redis is not available: {0}")]
    Unavailable(String),
    /// It took effect on the primary, but too few replicas said in time that they have it too.
    #[error("only {got} of {wanted} copies were confirmed in time")]
    NotConfirmed {
        /// Disks and replicas that were waited for.
        wanted: u32,
        /// Those that answered.
        got: u32,
    },
    /// The server's maxmemory is reached.
    #[error("Redis is out of memory")]
    OutOfMemory,
    /// The server refused the call: a fault of ours, or foreign data under our keys.
    #[error("Redis refused a call: {0}")]
    Refused(String),
}
