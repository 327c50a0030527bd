//! The peers: programs of their own in their own languages, which are told what to do and say how long it took.

use std::{path::Path, process::Stdio};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::load::REQUEST_BYTES;
use crate::arguments::Arguments;

const BULLMQ: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/node/bullmq_flow.mjs");
const CELERY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/celery_chain.py");
/// Of the server's 16 databases, one that nobody else uses.
const CELERY_DATABASE: &str = "9";

/// One that is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    BullMq,
    Celery,
}

impl Peer {
    pub(super) const ALL: [Self; 2] = [Self::BullMq, Self::Celery];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::BullMq => "BullMQ",
            Self::Celery => "Celery",
        }
    }

    /// What fetches it.
    pub(super) fn fetch(self) -> &'static str {
        match self {
            Self::BullMq => "scripts/fetch_deps.py node-peers",
            Self::Celery => "scripts/fetch_deps.py python-peers",
        }
    }

    fn is_fetched(self, arguments: &Arguments) -> bool {
        match self {
            Self::BullMq => arguments.node_modules.join("bullmq/package.json").is_file(),
            Self::Celery => arguments.python_peers.is_file(),
        }
    }

    fn command(self, arguments: &Arguments, socket: &str) -> Command {
        let mut command = match self {
            Self::BullMq => {
                let mut command = Command::new("node");
                command
                    .arg(BULLMQ)
                    .arg("--modules")
                    .arg(absolute(&arguments.node_modules));
                command
            }
            Self::Celery => {
                // Not resolved: a virtual environment is known by the path that it is called by.
                let mut command = Command::new(absolute(&arguments.python_peers));
                command.arg(CELERY).arg("--database").arg(CELERY_DATABASE);
                command
            }
        };
        command.arg("--redis").arg(socket);
        command
    }
}

fn absolute(path: &Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// What a peer is asked to do, a line of JSON.
#[derive(Serialize)]
struct Task {
    r#do: What,
    jobs: u64,
    in_flight: usize,
    bytes: usize,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum What {
    /// Submissions alone.
    Adds,
    /// From the first submission to the last end, with workers at work.
    Flow,
}

/// What it answers, a line of JSON.
#[derive(Deserialize)]
struct Answer {
    seconds: f64,
}

/// What it says when it is ready.
#[derive(Deserialize)]
struct Hello {
    versions: String,
}

/// A peer at work.
pub(super) struct Running {
    pub(super) peer: Peer,
    pub(super) versions: String,
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// `None` when it was not fetched.
    pub(super) async fn start(
        peer: Peer,
        arguments: &Arguments,
        socket: &str,
    ) -> anyhow::Result<Option<Self>> {
        if !peer.is_fetched(arguments) {
            return Ok(None);
        }
        let mut child = peer
            .command(arguments, socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| {
                format!(
                    "cannot run {}; {} says what is missing",
                    peer.name(),
                    peer.fetch()
                )
            })?;
        let stdin = child.stdin.take().context("no stdin")?;
        let mut stdout = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        let hello: Hello = answer(peer, &mut stdout).await?;
        Ok(Some(Self {
            peer,
            versions: hello.versions,
            child,
            stdin,
            stdout,
        }))
    }

    /// Jobs a second, by its own clock.
    pub(super) async fn rate(&mut self, what: What, jobs: u64, in_flight: usize) -> anyhow::Result<f64> {
        let task = Task {
            r#do: what,
            jobs,
            in_flight,
            bytes: REQUEST_BYTES,
        };
        let line = serde_json::to_string(&task)? + "\n";
        self.stdin.write_all(line.as_bytes()).await?;
        let answer: Answer = answer(self.peer, &mut self.stdout).await?;
        Ok(jobs as f64 / answer.seconds)
    }

    /// It ends when there is nothing more to read.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        let Self {
            peer,
            mut child,
            stdin,
            ..
        } = self;
        drop(stdin);
        let status = child.wait().await?;
        if !status.success() {
            bail!("{} ended with {status}", peer.name());
        }
        Ok(())
    }
}

async fn answer<T: for<'de> Deserialize<'de>>(
    peer: Peer,
    stdout: &mut Lines<BufReader<ChildStdout>>,
) -> anyhow::Result<T> {
    let name = peer.name();
    let line = stdout
        .next_line()
        .await?
        .with_context(|| format!("{name} has ended; what it said is above"))?;
    serde_json::from_str(&line).with_context(|| format!("{name} said {line:?}"))
}
