//! musectl as a library: its commands, and the local cluster that `musectl up` and the end-to-end tests run.

mod arguments;
mod client;
pub mod cluster;
mod commands;
mod failure;
mod generation;
mod output;
mod pictures;
mod progress;
mod terminal;
mod view;

use std::process::ExitCode;

use clap::Parser as _;

use self::{
    arguments::{Arguments, Command},
    failure::Failure,
};

/// Runs one command, and returns its exit code (see `musectl --help`).
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    // Before any thread is started: this process is about to become another program.
    if let Command::Guard(guard) = &arguments.command {
        let error = cluster::guard::become_program(guard.parent, &guard.program, &guard.arguments);
        return Failure::Failed(format!("cannot run {}: {error}", guard.program.display())).report();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::Failed(format!("cannot start the async runtime: {error}")).report(),
    };
    match runtime.block_on(commands::run(arguments)) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}
