//! The one thread that starts processes.
//!
//! The kernel ties a child to the *thread* that forked it ([`super::guard`]), and threads of an async runtime come and go:
//! so all children come from a thread that lives exactly as long as somebody holds a [`Spawner`].

use std::{io, path::PathBuf, sync::mpsc, thread};

use tokio::{
    process::{Child, Command},
    runtime::Handle,
    sync::oneshot,
};

use super::error::ClusterError;

/// Starts processes that die with this one. Clones share the thread.
#[derive(Clone, Debug)]
pub(super) struct Spawner {
    requests: mpsc::SyncSender<Request>,
    guard: PathBuf,
}

struct Request {
    command: Command,
    answer: oneshot::Sender<io::Result<Child>>,
}

/// Requests that wait for the thread; each takes about a millisecond.
const WAITING_REQUESTS: usize = 64;

impl Spawner {
    /// `guard` is the musectl program; children report to the runtime of `handle`.
    pub(super) fn new(guard: PathBuf, handle: Handle) -> Result<Self, ClusterError> {
        let (requests, received) = mpsc::sync_channel::<Request>(WAITING_REQUESTS);
        thread::Builder::new()
            .name("muse-spawner".to_owned())
            .spawn(move || {
                let _context = handle.enter();
                for mut request in received {
                    // When nobody waits any more the child is dropped here, and killed by `kill_on_drop`.
                    let _ = request.answer.send(request.command.spawn());
                }
            })
            .map_err(ClusterError::system("cannot start a thread"))?;
        Ok(Self { requests, guard })
    }

    /// A command that becomes `program` under the guard, in a process group of its own, so that a Ctrl-C at the terminal
    /// reaches only the supervisor.
    pub(super) fn command(&self, program: &std::path::Path) -> Command {
        let mut command = Command::new(&self.guard);
        command
            .arg("guard")
            .arg("--parent")
            .arg(std::process::id().to_string())
            .arg(program)
            .arg("--");
        command.process_group(0).kill_on_drop(true);
        // Those are for a service that is started by hand; a part gets a file, and refuses a stranger's keys.
        for (name, _) in std::env::vars_os() {
            if name
                .to_str()
                .is_some_and(|name| name.starts_with("MUSE__") || name == "MUSE_CONFIG")
            {
                command.env_remove(name);
            }
        }
        command
    }

    /// Starts it.
    pub(super) async fn spawn(&self, command: Command) -> io::Result<Child> {
        let (answer, answered) = oneshot::channel();
        self.requests
            .try_send(Request { command, answer })
            .map_err(|_| io::Error::other("the thread that starts processes is gone or stuck"))?;
        answered
            .await
            .map_err(|_| io::Error::other("the thread that starts processes is gone"))?
    }
}
