//! One part over its life: started, watched, started again when it dies, stopped.
//!
//! A keeper is a task that alone holds the process; everyone else holds a [`Part`]. An order is handled while the process is
//! not yet reaped, so that a signal never reaches a stranger with the same id.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::Pid};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStdout},
    sync::{broadcast, mpsc, oneshot, watch},
    time::{sleep, timeout},
};

use super::{
    options::{ClusterOptions, Limits, RestartPolicy},
    part::{Order, Part, Status},
    plan::{PartPlan, Ready},
    probe,
    spawner::Spawner,
    state::{PartEvent, PartState, Running},
};

/// Orders to one part that may wait.
const WAITING_ORDERS: usize = 16;

/// Why a process is gone.
enum End {
    Asked,
    Died(String),
    /// Nobody holds the [`Part`] any more.
    Abandoned,
}

pub(super) struct Keeper {
    plan: PartPlan,
    limits: Limits,
    restart: RestartPolicy,
    spawner: Spawner,
    status: watch::Sender<Status>,
    events: broadcast::Sender<PartEvent>,
    orders: mpsc::Receiver<Order>,
}

// === impl Keeper ===

impl Keeper {
    /// Starts a part and keeps it.
    pub(super) fn launch(
        plan: PartPlan,
        options: &ClusterOptions,
        spawner: Spawner,
        events: broadcast::Sender<PartEvent>,
    ) -> Part {
        let first = Status {
            state: PartState::Starting,
            running: None,
            starts: 0,
            ends: 0,
        };
        let (status, seen) = watch::channel(first);
        let (sender, orders) = mpsc::channel(WAITING_ORDERS);
        let part = Part::new(plan.name.clone(), plan.log.clone(), seen, sender);
        let (limits, restart) = (options.limits, options.restart);
        let keeper = Self {
            plan,
            limits,
            restart,
            spawner,
            status,
            events,
            orders,
        };
        tokio::spawn(keeper.keep());
        part
    }

    async fn keep(mut self) {
        let mut deaths_in_a_row = 0;
        loop {
            self.publish(PartState::Starting);
            let was_running = self.status.borrow().running.is_some();
            let mut became_ready = false;
            let end = self.live(&mut became_ready).await;
            deaths_in_a_row = if became_ready { 1 } else { deaths_in_a_row + 1 };
            let again = match end {
                End::Abandoned => return,
                End::Asked => {
                    self.publish(PartState::Stopped);
                    self.wait_for_start(None).await
                }
                // A part that never ran has a fault that another attempt does not cure.
                End::Died(reason) if !was_running && !became_ready => {
                    self.publish(PartState::Dead { reason });
                    self.wait_for_start(None).await
                }
                End::Died(reason) => {
                    let delay = self.restart.delay(deaths_in_a_row);
                    self.publish(match delay {
                        Some(delay) => PartState::Restarting { reason, delay },
                        None => PartState::Dead { reason },
                    });
                    self.wait_for_start(delay).await
                }
            };
            if !again {
                return;
            }
        }
    }

    /// One life of the process, from its start to its end.
    async fn live(&mut self, became_ready: &mut bool) -> End {
        let (mut child, stdout) = match self.spawn().await {
            Ok(started) => started,
            Err(error) => return End::Died(format!("cannot be started: {error}")),
        };
        let (listening, listened) = oneshot::channel();
        tokio::spawn(copy_output(stdout, self.plan.log.clone(), listening));
        let pid = child.id().unwrap_or_default();

        let readiness = ready(self.plan.ready.clone(), pid, listened);
        tokio::pin!(readiness);
        loop {
            tokio::select! {
                status = child.wait() => return End::Died(describe(status)),
                order = self.orders.recv() => match order {
                    Some(Order::Signal(signal, answer)) => {
                        let _ = answer.send(send(&child, signal));
                    }
                    Some(Order::Stop) => {
                        self.stop(&mut child).await;
                        return End::Asked;
                    }
                    Some(Order::Start) => {}
                    None => {
                        let _ = child.kill().await;
                        return End::Abandoned;
                    }
                },
                running = &mut readiness, if !*became_ready => {
                    *became_ready = true;
                    if let Some(configuration) = &mut self.plan.configuration {
                        configuration.pin(&running);
                    }
                    self.status.send_modify(|status| status.running = Some(running));
                    self.publish(PartState::Running(running));
                }
            }
        }
    }

    async fn spawn(&self) -> std::io::Result<(Child, Option<ChildStdout>)> {
        if let Some(configuration) = &self.plan.configuration {
            configuration.write()?;
        }
        let stderr = open_log(&self.plan.log)?;
        let mut command = self.spawner.command(&self.plan.program);
        command
            .args(&self.plan.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr);
        for (name, value) in self.plan.environment {
            if std::env::var_os(name).is_none() {
                command.env(name, value);
            }
        }
        let mut child = self.spawner.spawn(command).await?;
        let stdout = child.stdout.take();
        Ok((child, stdout))
    }

    async fn stop(&self, child: &mut Child) {
        // A stopped process (SIGSTOP) would never see SIGTERM.
        send(child, Signal::SIGCONT);
        send(child, Signal::SIGTERM);
        if timeout(self.limits.stop, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
    }

    /// Waits while no process is there. False: nobody holds the part any more.
    async fn wait_for_start(&mut self, delay: Option<Duration>) -> bool {
        let mut delay = delay;
        loop {
            let expired = async {
                match delay {
                    Some(delay) => sleep(delay).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = expired => return true,
                order = self.orders.recv() => match order {
                    Some(Order::Start) => return true,
                    Some(Order::Stop) => {
                        delay = None;
                        self.publish(PartState::Stopped);
                    }
                    Some(Order::Signal(_, answer)) => {
                        let _ = answer.send(false);
                    }
                    None => return false,
                }
            }
        }
    }

    fn publish(&self, state: PartState) {
        // Without listeners an event is nobody's loss.
        let _ = self.events.send(PartEvent {
            part: self.plan.name.clone(),
            state: state.clone(),
        });
        self.status.send_modify(|status| {
            status.starts += u64::from(state == PartState::Starting);
            status.ends += u64::from(state.is_down());
            status.state = state;
        });
    }
}

/// Resolves once the part is ready; never, if it does not become so.
async fn ready(how: Ready, pid: u32, listened: oneshot::Receiver<probe::Listening>) -> Running {
    match how {
        Ready::Ping(socket) => {
            while !probe::answers_ping(&socket).await {
                sleep(probe::INTERVAL).await;
            }
            Running {
                pid,
                grpc: None,
                ops: None,
            }
        }
        Ready::Announced => {
            let Ok(listening) = listened.await else {
                return std::future::pending().await;
            };
            if let Some(ops) = listening.ops {
                while !probe::is_ready(ops).await {
                    sleep(probe::INTERVAL).await;
                }
            }
            Running {
                pid,
                grpc: listening.grpc,
                ops: listening.ops,
            }
        }
    }
}

/// Copies stdout to the log, and tells of the line that names the addresses.
async fn copy_output(
    stdout: Option<ChildStdout>,
    path: PathBuf,
    listening: oneshot::Sender<probe::Listening>,
) {
    let (Some(stdout), Ok(mut log)) = (stdout, open_log(&path)) else {
        return;
    };
    let mut listening = Some(listening);
    let mut lines = BufReader::new(stdout).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        if let Some(found) = probe::parse_listening(&String::from_utf8_lossy(&line))
            && let Some(listening) = listening.take()
        {
            let _ = listening.send(found);
        }
        // A full disk must not stop a part that only wants to talk.
        let _ = log.write_all(&[&line, b"\n".as_slice()].concat());
    }
}

fn open_log(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// False: it is gone already.
fn send(child: &Child, signal: Signal) -> bool {
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    pid.is_some_and(|pid| nix::sys::signal::kill(Pid::from_raw(pid), signal).is_ok())
}

fn describe(status: std::io::Result<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt as _;

    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with exit code {code}"),
            (None, Some(signal)) => match Signal::try_from(signal) {
                Ok(name) => format!("was killed by {name}"),
                Err(_) => format!("was killed by signal {signal}"),
            },
            (None, None) => format!("ended: {status}"),
        },
        Err(error) => format!("cannot be waited for: {error}"),
    }
}
