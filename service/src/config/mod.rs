//! Layered configuration: the defaults in the code, a TOML file, then the environment (`MUSE__SECTION__KEY`).
//!
//! Unknown keys are refused in every layer, so that a typing error cannot pass for a setting.

mod environment;
mod load;
mod sections;

use serde::{Serialize, de::DeserializeOwned};

pub use self::{
    environment::PREFIX,
    load::{ConfigError, check, load, load_from},
    sections::{Drain, GrpcClient, GrpcServer, LogFormat, Ops, Process, Telemetry},
};

/// The configuration of one service: a struct of sections, every one with `#[serde(default, deny_unknown_fields)]`.
pub trait ServiceConfig: Serialize + DeserializeOwned + Default {
    /// Logs and traces.
    fn telemetry(&self) -> &Telemetry;

    /// How long a shutdown may take.
    fn drain(&self) -> &Drain;

    /// Where the process runs.
    fn process(&self) -> &Process;

    /// Checks what types cannot say, such as a limit that must not be 0.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the key, the value and what to do.
    fn validate(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}
