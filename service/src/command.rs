//! What happens around a service's `run(config, shutdown)`: arguments, configuration, telemetry, runtime, signals, and one
//! line when it fails.

use std::{future::Future, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser};

use crate::{
    Shutdown,
    config::{self, ConfigError, ServiceConfig},
    telemetry,
};

/// What a service takes on its command line; everything else is configuration.
#[derive(Clone, Debug, Default, Args)]
pub struct ServiceArgs {
    /// Configuration file (TOML). Environment variables MUSE__SECTION__KEY override it.
    #[arg(long, value_name = "FILE", env = "MUSE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print the resolved configuration as TOML and exit.
    #[arg(long)]
    pub check: bool,
}

#[derive(Debug, Parser)]
#[command(version)]
struct Command {
    #[command(flatten)]
    args: ServiceArgs,
}

/// Exit code for a configuration that is refused.
pub const EXIT_CONFIG: u8 = 2;
/// Exit code for every other failure.
pub const EXIT_FAILURE: u8 = 1;

/// Parts of a service have the drain's limit each; the process has this much more before it is ended.
const LAST_GRACE: Duration = Duration::from_secs(5);

/// A service's whole `main`. `run` binds, announces, serves until `Shutdown`, drains, and returns. Failures are one line on
/// stderr, `muse-gateway: …`, with exit code 2 for the configuration and 1 for anything else.
pub fn main<T, F, Fut, E>(name: &'static str, run: F) -> ExitCode
where
    T: ServiceConfig,
    F: FnOnce(T, Shutdown) -> Fut,
    Fut: Future<Output = Result<(), E>>,
    E: Into<anyhow::Error>,
{
    let matches = Command::command().name(name).get_matches();
    let args = match Command::from_arg_matches(&matches) {
        Ok(command) => command.args,
        Err(error) => error.exit(),
    };
    match start(name, &args, run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {}", one_line(&error));
            let refused = error.chain().any(|cause| cause.is::<ConfigError>());
            ExitCode::from(if refused { EXIT_CONFIG } else { EXIT_FAILURE })
        }
    }
}

fn start<T, F, Fut, E>(name: &'static str, args: &ServiceArgs, run: F) -> anyhow::Result<()>
where
    T: ServiceConfig,
    F: FnOnce(T, Shutdown) -> Fut,
    Fut: Future<Output = Result<(), E>>,
    E: Into<anyhow::Error>,
{
    let config: T = config::load(args.config.as_deref())?;
    config.validate()?;
    config.process().validate()?;
    if args.check {
        print!("{}", config::check(&config)?);
        return Ok(());
    }
    if let Some(cpus) = &config.process().cpus {
        // Before there are other threads.
        cpus.stay()?;
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if config.process().threads > 0 {
        runtime.worker_threads(config.process().threads);
    }
    let runtime = runtime.enable_all().build()?;
    let entered = runtime.enter();
    let telemetry = telemetry::init(name, config.telemetry())?;
    let drain = Duration::from_secs(config.drain().timeout_seconds);
    let shutdown = Shutdown::from_signals(drain)?;
    let result = runtime.block_on(until_overdue(
        Box::pin(run(config, shutdown.clone())),
        shutdown,
        LAST_GRACE,
    ));
    telemetry.flush();
    drop(entered);
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn until_overdue<E: Into<anyhow::Error>>(
    run: impl Future<Output = Result<(), E>>,
    shutdown: Shutdown,
    grace: Duration,
) -> anyhow::Result<()> {
    let overdue = async {
        shutdown.requested().await;
        tokio::time::sleep(shutdown.drain() + grace).await;
    };
    tokio::select! {
        result = run => result.map_err(Into::into),
        () = overdue => anyhow::bail!("the drain did not end within its {} s; ended by force", shutdown.drain().as_secs()),
    }
}

/// The whole chain of causes on one line, so that it survives log collectors and can be told in a test.
fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_with_its_causes() {
        let error = anyhow::anyhow!("no such\nprovider").context("cannot start");
        assert_eq!(one_line(&error), "cannot start: no such provider");
    }

    #[test]
    fn more_threads_than_a_system_has_are_refused() {
        let process = |threads| config::Process { cpus: None, threads };
        assert!(process(config::Process::MOST_THREADS).validate().is_ok());
        let refused = process(1_000_000).validate().unwrap_err().to_string();
        assert!(
            refused.contains("process.threads") && refused.contains("1024"),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn a_service_that_does_not_end_is_ended() {
        let (trigger, shutdown) = Shutdown::manual_with_drain(Duration::ZERO);
        trigger.shut_down();
        let never = std::future::pending::<anyhow::Result<()>>();
        let error = until_overdue(never, shutdown, Duration::ZERO).await.unwrap_err();
        assert!(error.to_string().contains("0 s"), "{error}");
    }
}
