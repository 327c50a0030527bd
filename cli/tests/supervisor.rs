//! `musectl` as a process: the guard, the exit codes, and a cluster whose parts are played by scripts.
//!
//! The parts are real processes under the real supervisor; only what they serve is played, so that these tests need no
//! model. The end-to-end tests in `tests/` run the real services.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test says what it saw by panicking"
)]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use musectl::cluster::{ClusterError, ClusterOptions, LocalCluster, PartState, Programs, RestartPolicy};
use tempfile::TempDir;
use tokio::time::timeout;

const MUSECTL: &str = env!("CARGO_BIN_EXE_musectl");
/// The end of a hopeless wait, not a verdict on speed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A service that announces itself, serves `/readyz`, and ends at SIGTERM. `$1 $2` are `--config FILE`.
const SERVICE: &str = r#"#!/usr/bin/env python3
import http.server, re, signal, sys
settings = open(sys.argv[2]).read()
listen = re.search(r'\[ops\]\s+listen = "127.0.0.1:(\d+)"', settings)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *arguments):
        pass
server = http.server.HTTPServer(("127.0.0.1", int(listen.group(1))), Handler)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print(f"listening grpc=127.0.0.1:1 ops=127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"#;

/// A server that answers PING on the socket that its configuration names.
const REDIS: &str = r#"#!/usr/bin/env python3
import os, re, signal, socket, sys
path = re.search(r'unixsocket "(.*)"', open(sys.argv[1]).read()).group(1)
if os.path.exists(path):
    os.unlink(path)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    connection, _ = listener.accept()
    connection.recv(100)
    connection.sendall(b"+PONG\r\n")
    connection.close()
"#;

struct Stage {
    folder: TempDir,
}

impl Stage {
    fn new() -> Self {
        let stage = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        for service in ["muse-gateway", "muse-encoder", "muse-worker"] {
            stage.script(service, SERVICE);
        }
        stage.script("redis-server", REDIS);
        fs::write(stage.path("bundle.toml"), "").unwrap();
        fs::write(stage.path("libonnxruntime.so"), "").unwrap();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn script(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn options(&self, restart: RestartPolicy) -> ClusterOptions {
        let programs = Programs {
            guard: PathBuf::from(MUSECTL),
            gateway: self.path("muse-gateway"),
            encoder: self.path("muse-encoder"),
            worker: self.path("muse-worker"),
            redis_server: self.path("redis-server"),
            onnxruntime: self.path("libonnxruntime.so"),
        };
        let mut options = ClusterOptions::new(self.folder.path(), programs);
        options.restart = restart;
        options
    }

    async fn start(&self, restart: RestartPolicy) -> LocalCluster {
        match timeout(PATIENCE, LocalCluster::start(self.options(restart)))
            .await
            .expect("it starts or fails")
        {
            Ok(cluster) => cluster,
            Err(error) => panic!("{error}"),
        }
    }
}

fn is_alive(pid: u32) -> bool {
    // A zombie has ended; it only has not been waited for.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .trim_start()
            .starts_with('Z')
    })
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn every_part_starts_and_stop_leaves_nothing() {
    let stage = Stage::new();
    let cluster = stage.start(RestartPolicy::default()).await;
    assert_eq!(
        cluster.parts(),
        ["base-0", "encoder-0", "gateway-0", "superres-0", "valkey"]
    );
    let pids: Vec<u32> = cluster
        .parts()
        .iter()
        .map(|part| cluster.pid(part).unwrap())
        .collect();
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    let folder = cluster.directory().to_owned();
    timeout(PATIENCE, cluster.stop()).await.unwrap();
    assert!(!pids.iter().any(|pid| is_alive(*pid)), "{pids:?}");
    assert!(!folder.exists(), "the temporary folder is gone");
}

#[tokio::test]
async fn a_part_that_dies_is_started_again_at_the_same_address() {
    let stage = Stage::new();
    let cluster = stage.start(RestartPolicy::default()).await;
    let (pid, before) = (cluster.pid("base-0").unwrap(), cluster.ops_endpoints());
    cluster.kill("base-0").await.unwrap();
    assert!(!is_alive(pid));
    cluster.wait_ready("base-0", PATIENCE).await.unwrap();
    assert_ne!(cluster.pid("base-0").unwrap(), pid);
    assert_eq!(cluster.ops_endpoints(), before);
    cluster.stop().await;
}

#[tokio::test]
async fn with_restarts_off_a_killed_part_stays_down_until_it_is_started() {
    let stage = Stage::new();
    let cluster = stage.start(RestartPolicy::Never).await;
    cluster.kill("valkey").await.unwrap();
    assert_eq!(
        cluster.state("valkey").unwrap(),
        PartState::Dead {
            reason: "was killed by SIGKILL".to_owned()
        }
    );
    let refused = cluster.kill("valkey").await.unwrap_err();
    assert!(matches!(refused, ClusterError::NotRunning { .. }), "{refused}");
    cluster.start_part("valkey").await.unwrap();
    cluster.stop_part("gateway-0").await.unwrap();
    assert_eq!(cluster.state("gateway-0").unwrap(), PartState::Stopped);
    cluster.start_part("gateway-0").await.unwrap();
    assert!(is_alive(cluster.pid("gateway-0").unwrap()));
    cluster.stop().await;
}

#[tokio::test]
async fn a_part_that_cannot_start_fails_the_cluster_and_shows_its_log() {
    let stage = Stage::new();
    stage.script(
        "muse-encoder",
        "#!/bin/sh\necho 'muse-encoder: the bundle is broken' >&2\nexit 3\n",
    );
    let error = timeout(
        PATIENCE,
        LocalCluster::start(stage.options(RestartPolicy::default())),
    )
    .await
    .unwrap()
    .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("encoder-0 ended with exit code 3"), "{text}");
    assert!(text.contains("the bundle is broken"), "{text}");
}

#[tokio::test]
async fn dropping_the_cluster_kills_its_parts() {
    let stage = Stage::new();
    let cluster = stage.start(RestartPolicy::default()).await;
    let pids: Vec<u32> = cluster
        .parts()
        .iter()
        .map(|part| cluster.pid(part).unwrap())
        .collect();
    drop(cluster);
    until("all parts are gone", || !pids.iter().any(|pid| is_alive(*pid))).await;
}

#[tokio::test]
async fn a_guarded_program_dies_with_its_parent_even_if_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("pid");
    // The shell is the parent: it waits for its child, and is then killed without a chance to do anything about it.
    let line = format!(
        "{MUSECTL} guard --parent $$ sh -- -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000'; true",
        note.display()
    );
    let mut parent = Command::new("sh").arg("-c").arg(line).spawn().unwrap();
    until("the child runs", || note.exists()).await;
    let child: u32 = fs::read_to_string(&note).unwrap().trim().parse().unwrap();
    assert!(is_alive(child));
    parent.kill().unwrap();
    parent.wait().unwrap();
    until("the child is gone", || !is_alive(child)).await;
}

fn musectl(stage: &Stage, arguments: &[&str]) -> Output {
    Command::new(MUSECTL)
        .args(arguments)
        .env_remove("MUSE_ENDPOINT")
        .env_remove("MUSE_ENDPOINTS")
        .current_dir(stage.folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn exit_codes_tell_usage_from_a_cluster_that_is_not_there() {
    let stage = Stage::new();
    // Bound but not listened on: refused, and nobody else can take it.
    let socket = refused_port();
    let nobody = format!("http://127.0.0.1:{}", socket.1);
    let unreachable = musectl(&stage, &["--endpoint", &nobody, "queue", "status"]);
    let said = String::from_utf8_lossy(&unreachable.stderr);
    assert_eq!(unreachable.status.code(), Some(3), "{said}");
    assert!(said.contains(&nobody), "{said}");
    assert_eq!(musectl(&stage, &["generate"]).status.code(), Some(2));
    assert_eq!(
        musectl(&stage, &["generate", "x", "-o", "x.gif"]).status.code(),
        Some(2)
    );
    assert_eq!(
        musectl(&stage, &["bundle", "inspect", "/nowhere"]).status.code(),
        Some(1)
    );
    let completions = musectl(&stage, &["completions", "bash"]);
    assert!(completions.status.success() && Path::new(MUSECTL).exists());
    assert!(String::from_utf8_lossy(&completions.stdout).contains("musectl"));
}

fn refused_port() -> (tokio::net::TcpSocket, u16) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}
