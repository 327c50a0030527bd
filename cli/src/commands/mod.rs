//! The commands, a file each.

mod audit;
mod batch;
mod bundle;
mod dead;
mod generate;
mod job;
mod local;
mod model;
mod queue;
mod tenant;
mod up;
mod worker;

use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::{
    arguments::{Arguments, Command, endpoints},
    client::Gateways,
    failure::Failure,
    output,
};

/// Runs the command. `Ok` carries a code only for `up -- COMMAND`, whose code it is.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let global = arguments.global;
    let gateways = || Gateways::new(&endpoints(&global.endpoints, |name| std::env::var(name).ok()));
    match arguments.command {
        Command::Generate(generate) if generate.local => local::run(&generate, global.output)?,
        Command::Generate(generate) => generate::run(&generate, gateways()?, global.output).await?,
        Command::Batch(batch) => batch::run(&batch, gateways()?, global.output).await?,
        Command::Job(job) => job::run(job, gateways()?, global.output).await?,
        Command::Queue(queue) => queue::run(&queue, gateways()?, global.output).await?,
        Command::Dead(dead) => dead::run(dead, gateways()?, global.output).await?,
        Command::Tenant(tenant) => tenant::run(tenant, gateways()?, global.output).await?,
        Command::Audit { repair } => audit::run(repair, gateways()?, global.output).await?,
        Command::Worker(worker) => worker::run(&worker, gateways()?, global.output).await?,
        Command::Model(model) => model::run(&model, gateways()?, global.output).await?,
        Command::Bundle(bundle) => bundle::run(bundle, global.output)?,
        Command::Up(up) => return up::run(up).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "musectl", &mut script);
            output::bytes(&script)?;
        }
        Command::Guard(_) => return Err(Failure::Usage("guard runs before anything else".to_owned())),
    }
    Ok(ExitCode::SUCCESS)
}
