//! The text encoder's process; everything is in [`muse_encoder_svc::run`].

use std::process::ExitCode;

fn main() -> ExitCode {
    muse_service::command::main("muse-encoder", muse_encoder_svc::run)
}
