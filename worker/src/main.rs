//! `muse-worker`: a shard.

use std::process::ExitCode;

fn main() -> ExitCode {
    muse_service::command::main("muse-worker", muse_worker::run)
}
