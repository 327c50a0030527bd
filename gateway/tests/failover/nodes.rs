//! Servers that can reach each other, and Sentinels that watch them.
#![allow(unreachable_pub, reason = "a module of a test binary, not a crate")]

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use redis::FromRedisValue;
use tempfile::TempDir;

use crate::support::{redis_server, redis_server::RedisServer, until};

/// What the Sentinels call the primary.
pub const SERVICE: &str = "muse";

/// A server with a port.
pub struct Node {
    pub server: RedisServer,
    pub port: u16,
    /// Where nodes of a cluster speak with it; 0 for other servers.
    pub bus: u16,
}

/// A primary, and the replicas that follow it.
pub struct Group {
    pub nodes: Vec<Node>,
}

/// Ends with this value.
pub struct Sentinel {
    process: Child,
    folder: TempDir,
    pub port: u16,
    password: Option<String>,
}

/// Who may speak to servers and to Sentinels, and they to each other.
#[derive(Clone, Copy)]
pub struct Passwords {
    pub servers: &'static str,
    pub sentinels: &'static str,
}

/// A port that nobody has now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}

/// One command to a server at a port.
pub async fn ask<T: FromRedisValue>(port: u16, password: Option<&str>, words: &[&str]) -> Option<T> {
    let client = redis_server::client(&format!("redis://127.0.0.1:{port}"), password);
    let mut connection = client.get_multiplexed_async_connection().await.ok()?;
    let (name, arguments) = words.split_first().expect("a command");
    redis::cmd(name)
        .arg(arguments)
        .query_async(&mut connection)
        .await
        .ok()
}

// === impl Node ===

impl Node {
    /// A primary with these settings, or a replica of the server at a port.
    pub async fn start(primary: Option<u16>, settings: &[&str]) -> Self {
        let port = free_port();
        let (own, of) = (port.to_string(), primary.unwrap_or(0).to_string());
        let mut all = vec!["--port", &own, "--bind", "127.0.0.1", "--appendonly", "yes"];
        all.extend(["--appendfsync", "everysec", "--repl-diskless-sync-delay", "0"]);
        all.extend(["--enable-debug-command", "yes"]);
        if primary.is_some() {
            all.extend(["--replicaof", "127.0.0.1", &of]);
        }
        all.extend(settings);
        Self {
            server: RedisServer::start_with(&all).await,
            port,
            bus: 0,
        }
    }

    /// Waits until it follows a primary.
    pub async fn follows(&self) {
        until("the replica to follow", async || {
            let info: String = self.server.ask(&["INFO", "replication"]).await;
            info.contains("master_link_status:up").then_some(())
        })
        .await;
    }

    /// How often the server ran a command.
    pub async fn calls(&self, command: &str) -> u64 {
        let info: String = self.server.ask(&["INFO", "commandstats"]).await;
        let line = info
            .lines()
            .find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.and_then(|line| line.split(',').next()?.parse().ok())
            .unwrap_or(0)
    }
}

// === impl Group ===

impl Group {
    /// A primary and `replicas` that follow it.
    pub async fn start(replicas: usize) -> Self {
        Self::start_with(replicas, None).await
    }

    /// The same, with a password where there is one.
    pub async fn start_with(replicas: usize, passwords: Option<Passwords>) -> Self {
        let settings = match passwords {
            // Any of them may become the primary, or follow another.
            Some(Passwords { servers, .. }) => vec!["--requirepass", servers, "--masterauth", servers],
            None => Vec::new(),
        };
        let mut nodes = vec![Node::start(None, &settings).await];
        for _ in 0..replicas {
            nodes.push(Node::start(Some(nodes[0].port), &settings).await);
        }
        for node in &nodes[1..] {
            node.follows().await;
        }
        let group = Self { nodes };
        until("the primary to have its replicas", async || {
            let info: String = group.nodes[0].server.ask(&["INFO", "replication"]).await;
            (info.matches("state=online").count() == replicas).then_some(())
        })
        .await;
        group
    }

    /// The primary's address.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.nodes[0].port)
    }
}

// === impl Sentinel ===

impl Sentinel {
    /// Watches the server at a port; `quorum` of them must agree that it is gone.
    pub async fn start(primary: u16, quorum: u32) -> Self {
        Self::start_with(primary, quorum, None).await
    }

    /// The same, with passwords where there are some.
    pub async fn start_with(primary: u16, quorum: u32, passwords: Option<Passwords>) -> Self {
        let port = free_port();
        let folder = TempDir::with_prefix("muse-sentinel-").expect("a temporary folder");
        let path = folder.path().display().to_string();
        let mut text = format!(
            "port {port}\nbind 127.0.0.1\ndir {path}\nsentinel monitor {SERVICE} 127.0.0.1 {primary} {quorum}\n\
             sentinel down-after-milliseconds {SERVICE} 1000\nsentinel failover-timeout {SERVICE} 10000\n"
        );
        if let Some(Passwords { servers, sentinels }) = passwords {
            text += &format!(
                "requirepass {sentinels}\nsentinel sentinel-pass {sentinels}\nsentinel auth-pass {SERVICE} {servers}\n"
            );
        }
        let file = folder.path().join("sentinel.conf");
        std::fs::write(&file, text).expect("a file");
        let log = std::fs::File::create(folder.path().join("log")).expect("a log file");
        let process = Command::new(redis_server::binary())
            .arg(&file)
            .arg("--sentinel")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(Stdio::null())
            .spawn()
            .expect("the server binary can be a Sentinel");
        let sentinel = Self {
            process,
            folder,
            port,
            password: passwords.map(|passwords| passwords.sentinels.to_owned()),
        };
        until("the Sentinel to answer", async || {
            sentinel.names().await.filter(|port| *port == primary)
        })
        .await;
        sentinel
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The port of what it takes for the primary.
    pub async fn names(&self) -> Option<u16> {
        let words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE];
        let (_, port): (String, u16) = self.ask(&words).await?;
        Some(port)
    }

    /// Waits until it knows so many replicas and other Sentinels.
    pub async fn knows(&self, replicas: usize, sentinels: usize) {
        until("the Sentinel to know everybody", async || {
            let state: Vec<String> = self.ask(&["SENTINEL", "MASTER", SERVICE]).await?;
            let number = |name: &str| {
                let place = state.iter().position(|field| field == name)?;
                state.get(place + 1)?.parse::<usize>().ok()
            };
            let known = (number("num-slaves")?, number("num-other-sentinels")?);
            (known == (replicas, sentinels)).then_some(())
        })
        .await;
    }

    /// From now on another server is the primary.
    pub async fn name(&self, primary: u16) {
        let port = primary.to_string();
        let _: String = self
            .ask(&["SENTINEL", "REMOVE", SERVICE])
            .await
            .expect("an answer");
        let words = ["SENTINEL", "MONITOR", SERVICE, "127.0.0.1", &port, "9"];
        let _: String = self.ask(&words).await.expect("an answer");
    }

    async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> Option<T> {
        ask(self.port, self.password.as_deref(), words).await
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
