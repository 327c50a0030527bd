//! Measures the engine alone, the cluster around it, and peers, side by side in one run. `bench/README.md` says what each
//! figure means.
//!
//! Machines are noisy and drift, so nothing is measured once: what is compared takes turns, round by round, and the verdict is
//! the ratio within a round. Medians and their spread are printed, never the best run.

mod arguments;
mod arithmetic;
mod bare;
mod closed_loop;
mod cluster;
mod compare;
mod encoder;
mod engine;
mod inner_loops;
mod invariance;
mod loops;
mod machine;
mod measure;
mod memory;
mod mixed;
mod open_loop;
mod overhead;
mod paper;
mod priority;
mod processor;
mod queue;
mod report;
mod resident;
mod saturation;
mod server;
mod stats;
mod weights;
mod workload;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;

use self::{
    arguments::{Arguments, Command},
    machine::Machine,
    report::{Report, Section},
};

/// Runs one command. Its report goes to stdout, or into the files that were named.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let ran = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")
        .and_then(|runtime| runtime.block_on(measured(&arguments)));
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("muse-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measured(arguments: &Arguments) -> anyhow::Result<()> {
    if let Command::Compare { old, new } = &arguments.command {
        return compare::compare(old, new);
    }
    let bundle = muse_engine::Bundle::load(&arguments.bundle)?;
    let mut machine = Machine::look(&bundle, &arguments.session()?).await;
    let sections = sections(arguments, &bundle).await?;
    machine.look_again().await;
    let report = Report {
        command: std::env::args().collect::<Vec<_>>().join(" "),
        machine,
        sections,
    };
    report.write(arguments.out.as_deref(), arguments.json.as_deref())
}

async fn sections(arguments: &Arguments, bundle: &muse_engine::Bundle) -> anyhow::Result<Vec<Section>> {
    let settings = arguments.settings();
    Ok(match &arguments.command {
        Command::Engine => engine::measure(arguments, &settings, bundle)?.sections,
        Command::Arithmetic => arithmetic::measure(arguments, &settings, bundle)?,
        Command::Encoder => vec![encoder::measure(arguments, &settings, bundle).await?],
        Command::Peers => loops::measure(arguments, &settings, bundle)?,
        Command::Server => server::measure(arguments, &settings).await?,
        Command::Overhead => vec![overhead::measure(arguments, &settings, bundle).await?],
        Command::Saturation => {
            let engine = engine::measure(arguments, &settings, bundle)?;
            vec![
                saturation::measure(arguments, &settings, bundle, engine.best_batch).await?,
                mixed::measure(arguments, &settings, &engine.curves).await?,
            ]
        }
        Command::Invariance { pictures } => {
            vec![invariance::measure(arguments, &settings, bundle, *pictures)?]
        }
        Command::Paper(options) => paper::measure(arguments, &settings, options)?,
        Command::OpenLoop => {
            let window = arguments.open_loop_window(false);
            vec![open_loop::measure(arguments, &settings, window).await?]
        }
        Command::Priority => vec![priority::measure(arguments, &settings).await?],
        Command::Memory { jobs } => {
            let jobs = jobs.unwrap_or_else(|| arguments.memory_jobs(false));
            vec![memory::measure(arguments, bundle, jobs).await?]
        }
        Command::Queue { depths } => queue::measure(arguments, &settings, &arguments.depths(depths)).await?,
        Command::Scale => vec![queue::scale(arguments, &settings).await?],
        // Needs nothing that is measured, and ran before.
        Command::Compare { .. } => Vec::new(),
        Command::All { criterion } => {
            let engine = engine::measure(arguments, &settings, bundle)?;
            let mut sections = engine.sections;
            sections.extend(arithmetic::measure(arguments, &settings, bundle)?);
            sections.push(encoder::measure(arguments, &settings, bundle).await?);
            sections.push(overhead::measure(arguments, &settings, bundle).await?);
            sections.push(saturation::measure(arguments, &settings, bundle, engine.best_batch).await?);
            sections.push(mixed::measure(arguments, &settings, &engine.curves).await?);
            let window = arguments.open_loop_window(true);
            sections.push(open_loop::measure(arguments, &settings, window).await?);
            sections.push(priority::measure(arguments, &settings).await?);
            sections.push(memory::measure(arguments, bundle, arguments.memory_jobs(true)).await?);
            sections.extend(loops::measure(arguments, &settings, bundle)?);
            sections.extend(server::measure(arguments, &settings).await?);
            sections.extend(queue::measure(arguments, &settings, &arguments.depths(&[])).await?);
            sections.push(queue::scale(arguments, &settings).await?);
            if let Some(folder) = criterion {
                sections.push(inner_loops::read(folder)?);
            }
            sections
        }
    })
}
