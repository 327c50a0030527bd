//! The way to the keys: one server for all of them, or with Redis Cluster for each group of keys the one that has it.
//!
//! A group is a hash tag (`{g}`, `{s0}`, `{s1}` …), so all of it is in one slot and on one server; every command, pipeline and
//! script keeps to one. Each group has a connection of its own with a supervisor of its own, which looks the slot's owner up
//! again when that one breaks, was demoted, or says that the slot has moved.

use std::{sync::Arc, time::Duration};

use redis::{Arg, Cmd, FromRedisValue, Pipeline, Script, ToRedisArgs};
use tokio::sync::watch;

use super::{Confirmed, Guarantee, RedisError, StartupError, dial::Way, link::Link, server::Server};
use crate::config;

/// The commands' connections; cloning is cheap.
#[derive(Clone)]
pub struct Redis(Arc<Servers>);

struct Servers {
    /// The registry's, and everybody's without a cluster.
    first: Server,
    /// With a cluster: those of the shards, in order.
    shards: Vec<Server>,
}

/// A script, the key that says where it runs, and what is written in the same transaction.
pub struct Call {
    key: String,
    script: &'static Script,
    command: Cmd,
    writes: Vec<Cmd>,
}

// === impl Redis ===

impl Redis {
    /// Connects to the server that `redis.url` or the Sentinels name, and checks it, waiting up to `startup_timeout_ms` for it
    /// to answer. The supervisor then runs until the last clone is dropped.
    ///
    /// # Errors
    /// [`StartupError`] says in one line what to do.
    pub async fn connect(
        config: &config::Redis,
        guarantee: impl Into<Guarantee>,
    ) -> Result<Self, StartupError> {
        let servers = Servers {
            first: Server::connect(config, guarantee.into(), Way::new(config)?).await?,
            shards: Vec::new(),
        };
        Ok(Self(Arc::new(servers)))
    }

    /// The same, or with `redis.cluster_nodes` to the servers that have the registry and each of the queue's shards.
    ///
    /// # Errors
    /// [`StartupError`] says in one line what to do.
    pub async fn open(config: &config::Redis, queue: &config::Queue) -> Result<Self, StartupError> {
        if config.cluster_nodes.is_empty() {
            return Self::connect(config, queue).await;
        }
        let server =
            async |tag: &str| Server::connect(config, queue.into(), Way::cluster(config, tag)?).await;
        let first = server("g").await?;
        let mut shards = Vec::new();
        for shard in 0..queue.shards {
            shards.push(server(&format!("s{shard}")).await?);
        }
        Ok(Self(Arc::new(Servers { first, shards })))
    }

    /// Whether every connection is up now.
    pub fn is_up(&self) -> bool {
        self.all().all(Server::is_up)
    }

    /// The share of a server's maxmemory in use at the last ping, 0 to 1, of the fullest; 0 without maxmemory.
    pub fn memory_share(&self) -> f64 {
        self.all().map(Server::memory_share).fold(0.0, f64::max)
    }

    /// Runs one command, where the first key in it is.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        self.server(tag_of(command)).query(command).await
    }

    /// Runs a pipeline, all of whose keys are in one group.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn pipe<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, RedisError> {
        let tag = pipeline.cmd_iter().find_map(tag_of);
        self.server(tag).pipe(pipeline).await
    }

    /// Runs a script, loading it where the server does not know it.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn eval<T: FromRedisValue>(&self, call: &Call) -> Result<T, RedisError> {
        self.server(tag_in(call.key.as_bytes())).eval(call).await
    }

    /// Waits until what is stored under `key` is as safe as was promised. Those who wait at the same time share the question.
    ///
    /// # Errors
    /// [`RedisError::NotConfirmed`] when too few copies answered in time, [`RedisError::Unavailable`] also when the key is
    /// not there (any more): what stored it was lost in a failover, and can be repeated.
    pub async fn confirm(&self, key: &str) -> Result<Confirmed, RedisError> {
        self.server(tag_in(key.as_bytes())).confirm(key).await
    }

    /// For how long calls are repeated.
    pub fn patience(&self) -> Duration {
        self.0.first.patience()
    }

    /// The longest that a call takes, the wait for its last answer included.
    pub fn longest_call(&self) -> Duration {
        self.patience() + Duration::from_millis(self.config().response_timeout_ms)
    }

    /// Between two attempts at what a server does not give.
    pub fn reconnect_delay(&self) -> Duration {
        Duration::from_millis(self.config().reconnect_delay_ms)
    }

    /// The state of a connection, for the doorbells, which follow it: a cluster rings on all of its nodes.
    pub(super) fn links(&self) -> watch::Receiver<Link> {
        self.0.first.links()
    }

    pub(super) fn config(&self) -> &config::Redis {
        self.0.first.config()
    }

    fn all(&self) -> impl Iterator<Item = &Server> {
        std::iter::once(&self.0.first).chain(&self.0.shards)
    }

    fn server(&self, tag: Option<&[u8]>) -> &Server {
        shard_of(tag)
            .and_then(|shard| self.0.shards.get(shard))
            .unwrap_or(&self.0.first)
    }
}

/// The shard that a tag names; `None` is the registry.
fn shard_of(tag: Option<&[u8]>) -> Option<usize> {
    std::str::from_utf8(tag?).ok()?.strip_prefix('s')?.parse().ok()
}

fn tag_of(command: &Cmd) -> Option<&[u8]> {
    command.args_iter().find_map(|argument| match argument {
        Arg::Simple(bytes) => tag_in(bytes),
        _ => None,
    })
}

/// What stands in a key's first braces.
fn tag_in(key: &[u8]) -> Option<&[u8]> {
    let start = key.iter().position(|byte| *byte == b'{')? + 1;
    let rest = key.get(start..)?;
    let end = rest.iter().position(|byte| *byte == b'}')?;
    rest.get(..end).filter(|tag| !tag.is_empty())
}

// === impl Call ===

impl Call {
    /// `script` with `key`, which is all that it is told of where things are.
    pub fn new(script: &'static Script, key: String) -> Self {
        let mut command = redis::cmd("EVALSHA");
        command.arg(script.get_hash()).arg(1).arg(&key);
        Self {
            key,
            script,
            command,
            writes: Vec::new(),
        }
    }

    /// Writes more keys of the group just before the script, in one transaction with it: none where memory is short, also of
    /// what the script may write then.
    pub fn writing(&mut self, commands: &[Cmd]) -> &mut Self {
        self.writes.extend_from_slice(commands);
        self
    }

    /// One more argument, or several.
    pub fn arg(&mut self, argument: impl ToRedisArgs) -> &mut Self {
        self.command.arg(argument);
        self
    }

    /// All arguments of `list`, which is a command without a name.
    pub fn args_of(&mut self, list: &Cmd) -> &mut Self {
        for argument in list.args_iter() {
            if let Arg::Simple(bytes) = argument {
                self.command.arg(bytes);
            }
        }
        self
    }

    /// What loads the script, where the server does not know it.
    pub(super) fn script(&self) -> &'static Script {
        self.script
    }

    /// What runs it.
    pub(super) fn command(&self) -> &Cmd {
        &self.command
    }

    /// What runs it together with what is written before it; `None`: nothing is.
    pub(super) fn transaction(&self) -> Option<Pipeline> {
        if self.writes.is_empty() {
            return None;
        }
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        for write in &self.writes {
            pipeline.add_command(write.clone()).ignore();
        }
        pipeline.add_command(self.command.clone());
        Some(pipeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_go_where_their_first_key_is() {
        let mut scan = redis::cmd("SCAN");
        scan.arg(0).arg("MATCH").arg("muse:{s12}:*");
        assert_eq!(shard_of(tag_of(&scan)), Some(12));
        let mut set = redis::cmd("HSET");
        set.arg("muse:{s3}:img:a").arg(0).arg("{s4}");
        assert_eq!(shard_of(tag_of(&set)), Some(3));
        for registry in ["muse:{g}:meta", "muse:{}:x", "muse", "{", "{s", "a:{sx}:b"] {
            assert_eq!(shard_of(tag_in(registry.as_bytes())), None, "{registry}");
        }
    }
}
