//! What the queue's server is started through, so that its disk can be filled and its clock set; and how it is spoken to
//! without the gateways.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    process::Command,
    time::timeout,
};

use super::resp::{self, Value};
use crate::repository;

/// An answer that takes longer is none.
const ANSWER: Duration = Duration::from_secs(5);

/// A server's program under a wrapper: a write beyond a limit on file sizes is an error and not a signal, as on a full disk,
/// and where a C compiler is there, its time of day can be shifted.
#[derive(Debug)]
pub struct Wrapped {
    /// To be run in the program's place.
    pub program: PathBuf,
    real: PathBuf,
    /// What [`Wrapped::shift_clock`] writes; `None`: no compiler, or it could not build the shim.
    clock: Option<PathBuf>,
}

/// The server's own socket.
#[derive(Clone, Debug)]
pub struct Direct {
    socket: PathBuf,
}

// === impl Wrapped ===

impl Wrapped {
    /// Writes the wrapper into `folder`.
    pub async fn around(real: &Path, folder: &Path) -> io::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;

        let library = folder.join("shift.so");
        let compiled = Command::new(std::env::var_os("CC").unwrap_or("cc".into()))
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(repository().join("tests/clock/shift.c"))
            .stdin(Stdio::null())
            .output()
            .await;
        let clock = match compiled {
            Ok(output) if output.status.success() => Some(folder.join("clock")),
            Ok(output) => {
                println!(
                    "no clock jumps: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                );
                None
            }
            Err(error) => {
                println!("no clock jumps, for there is no C compiler: {error}");
                None
            }
        };
        let preload = clock.as_ref().map_or(String::new(), |clock| {
            format!(
                "export LD_PRELOAD='{}' MUSE_CLOCK_FILE='{}'\n",
                library.display(),
                clock.display()
            )
        });
        let program = folder.join("server");
        let text = format!(
            "#!/bin/sh\ntrap '' XFSZ\n{preload}exec '{}' \"$@\"\n",
            real.display()
        );
        fs::write(&program, text)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let wrapped = Self {
            program,
            real: real.to_owned(),
            clock,
        };
        wrapped.shift_clock(0)?;
        Ok(wrapped)
    }

    /// Whether the clock can be set.
    pub fn has_clock(&self) -> bool {
        self.clock.is_some()
    }

    /// The server's time of day is this machine's and so many milliseconds more, from now on.
    pub fn shift_clock(&self, ms: i64) -> io::Result<()> {
        use std::io::Write as _;

        let Some(path) = &self.clock else { return Ok(()) };
        // In place: the server has it mapped.
        let mut file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        file.write_all(&ms.to_ne_bytes())
    }

    /// Cuts what cannot be read off the end of a log, as the handbook says: the server's program under the name of its own
    /// repair tool. `log` is the file that is appended to: of the manifest's first file, a snapshot, Valkey 9.1's tool says that it
    /// is none. Gives what it said.
    pub async fn repair(&self, log: &Path, folder: &Path) -> io::Result<String> {
        let name = self.real.file_name().unwrap_or_default().to_string_lossy();
        let tool = folder.join(name.replace("-server", "-check-aof"));
        if !tool.exists() {
            std::os::unix::fs::symlink(&self.real, &tool)?;
        }
        let mut child = Command::new(&tool)
            .arg("--fix")
            .arg(log)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(b"y\n").await?;
        }
        let output = child.wait_with_output().await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            return Err(io::Error::other(format!(
                "{}: {said}{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            )));
        }
        Ok(said)
    }
}

/// Whether [`limit_files`] can be had.
pub async fn can_limit_files() -> bool {
    let asked = Command::new("prlimit")
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .await;
    asked.is_ok_and(|output| output.status.success())
}

/// Files of this process may not grow beyond so many bytes; `None`: they may.
pub async fn limit_files(pid: u32, bytes: Option<u64>) -> io::Result<()> {
    let limit = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
    // The soft limit alone: a hard one could not be lifted again.
    let output = Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &format!("--fsize={limit}:unlimited")])
        .stdin(Stdio::null())
        .output()
        .await?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}

// === impl Direct ===

impl Direct {
    /// Of the server at `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// One command on a connection of its own.
    pub async fn ask(&self, words: &[&str]) -> io::Result<Value> {
        let ask = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            stream.write_all(&resp::command(words)).await?;
            let mut buffer = BytesMut::new();
            loop {
                if stream.read_buf(&mut buffer).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let taken = resp::take(&mut buffer).map_err(|error| io::Error::other(error.0))?;
                match taken {
                    Some((_, Value::Error(error))) => return Err(io::Error::other(error)),
                    Some((_, value)) => return Ok(value),
                    None => {}
                }
            }
        };
        timeout(ANSWER, ask)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// A number of INFO, such as `used_memory`.
    pub async fn info(&self, name: &str) -> io::Result<u64> {
        let text = self.ask(&["INFO"]).await?.text();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|number| number.trim().parse().ok())
            .ok_or_else(|| io::Error::other(format!("INFO has no {name}")))
    }
}
