//! A worker that computes nothing, as a process of its own: it can be killed, stopped and drained like a real one.

use std::process::ExitCode;

fn main() -> ExitCode {
    muse_service::command::main("muse-noop-worker", muse_tests::noop_worker::run)
}
