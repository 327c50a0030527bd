//! `musectl up`: the local cluster for people.

use std::{
    ffi::OsString,
    process::{ExitCode, ExitStatus},
    time::{Duration, Instant},
};

use muse_engine::Stage;
use tokio::{
    process::{Child, Command},
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

use crate::{
    arguments::UpArguments,
    cluster::{ClusterOptions, Limits, LocalCluster, PartEvent, PartState, Programs, RestartPolicy},
    failure::{FAILED, Failure, INTERRUPTED},
    view,
};

/// Where a gateway listens that people start by hand.
const USUAL_PORT: u16 = 7700;
/// A command that was asked to end has this long, each time it is asked.
const COMMAND_LIMIT: Duration = Duration::from_secs(5);

pub(crate) async fn run(arguments: UpArguments) -> Result<ExitCode, Failure> {
    let options = options(&arguments)?;
    // Before anything is started: from now on nothing is left behind.
    let mut signals = Signals::listen()?;
    let begun = Instant::now();
    let cluster = tokio::select! {
        started = LocalCluster::start(options) => started?,
        _ = signals.any() => return Err(Failure::Interrupted(" while the cluster was starting".to_owned())),
    };
    eprintln!(
        "the cluster is up after {}",
        view::span(begun.elapsed().as_secs_f64())
    );
    if !arguments.quiet {
        eprintln!("{}", describe(&cluster));
    }
    tokio::spawn(tell(cluster.events()));

    let code = if arguments.command.is_empty() {
        eprintln!("Ctrl-C stops all of it");
        signals.any().await;
        Ok(ExitCode::SUCCESS)
    } else {
        run_command(&arguments.command, &cluster, &mut signals).await
    };
    let stopping = Instant::now();
    tokio::select! {
        () = cluster.stop() => eprintln!("the cluster is stopped after {}", view::span(stopping.elapsed().as_secs_f64())),
        // Impatience: what is left is killed as this process ends.
        _ = signals.any() => eprintln!("killed what was left"),
    }
    code
}

fn options(arguments: &UpArguments) -> Result<ClusterOptions, Failure> {
    let programs = match &arguments.bin_dir {
        Some(folder) => Programs::beside(folder)?,
        None => Programs::discover()?,
    };
    let bundle =
        muse_engine::Bundle::load(&arguments.bundle).map_err(|error| Failure::Failed(error.to_string()))?;
    let port = if arguments.command.is_empty() {
        USUAL_PORT
    } else {
        0
    };
    Ok(ClusterOptions {
        bundle: arguments.bundle.clone(),
        sizes: arguments.sizes(bundle.stage(Stage::Superres).is_some()),
        gateway_port: arguments.port.unwrap_or(port),
        directory: arguments.data_dir.clone(),
        programs,
        redis_socket: None,
        other_workers: Vec::new(),
        restart: if arguments.no_restart {
            RestartPolicy::Never
        } else {
            RestartPolicy::default()
        },
        limits: Limits::default(),
        overrides: arguments.overrides.clone(),
    })
}

/// Every part with its process and addresses.
fn describe(cluster: &LocalCluster) -> String {
    let mut rows = view::table(&["PART", "PROCESS", "GRPC", "OPS"]);
    for part in cluster.parts() {
        if let Ok(PartState::Running(running)) = cluster.state(part) {
            rows.add_row([
                part.to_owned(),
                running.pid.to_string(),
                view::or_dash(running.grpc.map(|address| format!("http://{address}"))),
                view::or_dash(running.ops.map(|address| format!("http://{address}"))),
            ]);
        }
    }
    let folder = cluster.directory().display();
    format!(
        "{}\nlogs: {folder}/logs\nexport MUSE_ENDPOINTS={}",
        view::render(&rows),
        cluster.endpoints().join(",")
    )
}

/// Says what happens to parts that nobody asked for.
async fn tell(mut events: tokio::sync::broadcast::Receiver<PartEvent>) {
    use tokio::sync::broadcast::error::RecvError;

    loop {
        match events.recv().await {
            Ok(PartEvent { part, state }) if !matches!(state, PartState::Starting | PartState::Stopped) => {
                eprintln!("{part} {state}");
            }
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

async fn run_command(
    line: &[OsString],
    cluster: &LocalCluster,
    signals: &mut Signals,
) -> Result<ExitCode, Failure> {
    let Some((program, arguments)) = line.split_first() else {
        return Ok(ExitCode::SUCCESS);
    };
    let ops: Vec<String> = cluster
        .ops_endpoints()
        .into_iter()
        .map(|(part, url)| format!("{part}={url}"))
        .collect();
    let mut child = Command::new(program)
        .args(arguments)
        .env("MUSE_ENDPOINT", cluster.endpoint())
        .env("MUSE_ENDPOINTS", cluster.endpoints().join(","))
        .env("MUSE_ENCODER_ENDPOINTS", cluster.encoder_endpoints().join(","))
        .env("MUSE_OPS_ENDPOINTS", ops.join(","))
        .env("MUSE_CLUSTER_DIRECTORY", cluster.directory())
        .kill_on_drop(true)
        .spawn()
        .map_err(Failure::io(format!("cannot run {}", program.display())))?;
    let ended = tokio::select! {
        status = child.wait() => status,
        signal = signals.any() => end(&mut child, signal).await,
    };
    match ended {
        Ok(status) => Ok(ExitCode::from(exit_code(status))),
        Err(error) => Err(Failure::io(format!("cannot wait for {}", program.display()))(
            error,
        )),
    }
}

/// A Ctrl-C at the terminal has reached the command as well; a SIGTERM has not, and some commands are deaf to either.
async fn end(child: &mut Child, signal: Which) -> std::io::Result<ExitStatus> {
    if signal == Which::Interrupt
        && let Ok(status) = timeout(COMMAND_LIMIT, child.wait()).await
    {
        return status;
    }
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()) {
        // An error means that it is gone already.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
    }
    if let Ok(status) = timeout(COMMAND_LIMIT, child.wait()).await {
        return status;
    }
    child.kill().await?;
    child.wait().await
}

/// As a shell reports it: 128 + n for a command killed by signal n.
fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;

    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(FAILED),
        (None, Some(signal)) => u8::try_from(128 + signal).unwrap_or(INTERRUPTED),
        (None, None) => FAILED,
    }
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Interrupt,
    Terminate,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(Failure::io("cannot listen for signals"));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn any(&mut self) -> Which {
        tokio::select! {
            _ = self.interrupt.recv() => Which::Interrupt,
            _ = self.terminate.recv() => Which::Terminate,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn a_commands_code_is_passed_on_and_a_signal_is_told_as_a_shell_does() {
        assert_eq!(exit_code(ExitStatus::from_raw(0)), 0);
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
        assert_eq!(exit_code(ExitStatus::from_raw(2)), 130);
    }
}
