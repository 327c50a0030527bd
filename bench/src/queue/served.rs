//! A Valkey and a gateway, real and without workers, and what they cost.

use std::time::Duration;

use anyhow::Context as _;
use musectl::cluster::{ClusterOptions, LocalCluster, Override};
use redis::aio::MultiplexedConnection;

use super::load::Client;
use crate::{arguments::Arguments, processor::Cpu};

/// Over the defaults. Deeper than a gateway takes by default; and the server's mode is changed while it runs, so that the
/// gateway must not insist on the stricter one.
const SETTINGS: [&str; 2] = [
    "gateway.queue.max_waiting=100000000",
    "gateway.queue.durability=everysec",
];

/// When the server's log of writes is synced; a write is answered after it in the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fsync {
    Everysec,
    Always,
}

impl Fsync {
    pub(super) const ALL: [Self; 2] = [Self::Everysec, Self::Always];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Everysec => "everysec",
            Self::Always => "always",
        }
    }
}

/// See the module.
pub(super) struct Served {
    cluster: LocalCluster,
    redis: MultiplexedConnection,
}

impl Served {
    pub(super) async fn start(arguments: &Arguments) -> anyhow::Result<Self> {
        let mut options = ClusterOptions::new(&arguments.bundle, arguments.programs()?);
        options.sizes.encoders = 0;
        options.sizes.base_workers = 0;
        options.sizes.superres_workers = 0;
        for text in SETTINGS {
            options.overrides.push(text.parse::<Override>()?);
        }
        // A person's own settings have the last word.
        options.overrides.extend(arguments.overrides.iter().cloned());
        let cluster = LocalCluster::start(options).await?;
        let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
        let mut redis = redis::Client::open(cluster.redis_url())?
            .get_multiplexed_async_connection_with_config(&patient)
            .await?;
        // Rewriting the log in the middle of a measurement would be somebody's bad luck.
        set(&mut redis, "auto-aof-rewrite-percentage", "0").await?;
        Ok(Self { cluster, redis })
    }

    pub(super) async fn stop(self) {
        self.cluster.stop().await;
    }

    pub(super) fn endpoint(&self) -> String {
        self.cluster.endpoint()
    }

    /// The server's Unix socket.
    pub(super) fn socket(&self) -> &str {
        self.cluster.redis_url().trim_start_matches("unix://")
    }

    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        Client::connect(&self.endpoint()).await
    }

    pub(super) async fn set_fsync(&mut self, fsync: Fsync) -> anyhow::Result<()> {
        set(&mut self.redis, "appendfsync", fsync.name()).await
    }

    /// Bytes that the server has allocated for data.
    pub(super) async fn memory(&mut self) -> anyhow::Result<f64> {
        let info: String = redis::cmd("INFO")
            .arg("memory")
            .query_async(&mut self.redis)
            .await?;
        let used = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
        used.and_then(|bytes| bytes.trim().parse().ok())
            .context("the server does not tell its memory")
    }

    pub(super) fn cpu(&self) -> anyhow::Result<Cpu> {
        Cpu::of(&self.cluster)
    }
}

async fn set(redis: &mut MultiplexedConnection, name: &str, value: &str) -> anyhow::Result<()> {
    let mut command = redis::cmd("CONFIG");
    command.arg("SET").arg(name).arg(value);
    Ok(command.query_async(redis).await?)
}
