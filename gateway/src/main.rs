//! `muse-gateway`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    muse_service::command::main::<muse_gateway::Config, _, _, _>("muse-gateway", muse_gateway::run)
}
