//! The services as programs, for tests of how they start and stop.

use std::{ffi::OsStr, path::PathBuf, process::Stdio, time::Duration};

use tokio::process::Command;

/// Where cargo put the services: beside this test's own folder.
pub fn folder() -> PathBuf {
    let test = std::env::current_exe().expect("this test's own path");
    test.ancestors()
        .nth(2)
        .expect("target/debug above target/debug/deps")
        .to_path_buf()
}

/// What a program said before it ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

/// Runs a service until it ends by itself, with nothing of `MUSE__…` in its environment but what is given.
pub async fn run_to_end<S: AsRef<OsStr>>(
    program: &str,
    arguments: &[S],
    environment: &[(&str, &str)],
) -> Ended {
    let path = folder().join(program);
    assert!(
        path.exists(),
        "{} is not built: cargo build --workspace",
        path.display()
    );
    let mut command = Command::new(path);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MUSE__") {
            command.env_remove(name);
        }
    }
    command.envs(environment.iter().copied());
    let output = tokio::time::timeout(Duration::from_secs(120), command.output())
        .await
        .unwrap_or_else(|_| panic!("{program} did not end by itself"))
        .expect("the program can be run");
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// ONNX Runtime's library, as the Makefile names it.
pub fn onnxruntime() -> String {
    std::env::var("MUSE__RUNTIME__ONNXRUNTIME").unwrap_or_else(|_| {
        crate::repository()
            .join(".deps/onnxruntime/libonnxruntime.so")
            .to_string_lossy()
            .into_owned()
    })
}
