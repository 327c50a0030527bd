//! A way to the primary: where it is, one new connection, and the questions that it has to answer before it is used.

use std::time::Duration;

use redis::{Client, RedisResult, aio::MultiplexedConnection};

use super::{
    Guarantee,
    address::Addresses,
    checks::{Facts, SETTINGS, Unfit, check, check_mode, online_replicas, parse_info},
    cluster::Slot,
    sentinel::Sentinels,
};
use crate::config::{self, Durability};

/// Why the gateway cannot start with this Redis.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// An address, or a file with a password or a certificate, is wrong.
    #[error("{key}: {reason}")]
    Configuration {
        /// The key at fault.
        key: &'static str,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Nothing answered.
    #[error("no Redis answers at {place}: {reason}; start one, or set {key}")]
    Unreachable {
        /// `redis.url`, `redis.sentinels` or `redis.cluster_nodes`.
        key: &'static str,
        /// Its value.
        place: String,
        /// The last failure.
        reason: String,
    },
    /// It answers, but must not be used.
    #[error(transparent)]
    Unfit(#[from] Unfit),
}

/// Why there is no connection.
pub(super) enum DialError {
    /// Nothing answered in time.
    Io(String),
    /// It answers, but must not be used.
    Unfit(Unfit),
}

/// How the primary is found.
pub(super) enum Way {
    /// It has an address of its own.
    Server(Client),
    /// Sentinels know it.
    Sentinels(Sentinels),
    /// It is the owner of a slot of a cluster's.
    Cluster(Slot),
}

impl Way {
    /// As `redis.url` or `redis.sentinels` say.
    pub(super) fn new(config: &config::Redis) -> Result<Self, StartupError> {
        let addresses = Addresses::new(config)?;
        if config.sentinels.is_empty() {
            return Ok(Self::Server(addresses.server()?));
        }
        let limit = Duration::from_millis(config.connect_timeout_ms);
        let grace = Duration::from_millis(config.reconnect_delay_ms);
        let clients = addresses.sentinels(config)?;
        let service = config.service_name.clone();
        Ok(Self::Sentinels(Sentinels::new(
            clients,
            service,
            addresses,
            (limit, grace),
        )))
    }

    /// As `redis.cluster_nodes` say of the keys with `tag`.
    pub(super) fn cluster(config: &config::Redis, tag: &str) -> Result<Self, StartupError> {
        let addresses = Addresses::new(config)?;
        let limit = Duration::from_millis(config.connect_timeout_ms);
        let seeds = addresses.cluster_nodes(config)?;
        Ok(Self::Cluster(Slot::new(seeds, addresses, tag, limit)))
    }

    /// A client for the server that is the primary now.
    pub(super) async fn primary(&self) -> Result<Client, DialError> {
        match self {
            Self::Server(client) => Ok(client.clone()),
            Self::Sentinels(sentinels) => sentinels.primary().await,
            Self::Cluster(slot) => slot.owner().await,
        }
    }

    /// Whether a server that turns out to be a replica may be another one at the next look.
    pub(super) fn moves(&self) -> bool {
        matches!(self, Self::Sentinels(_) | Self::Cluster(_))
    }
}

/// A new connection to a server that passed the checks, within `redis.connect_timeout_ms`.
pub(super) async fn connect(
    client: &Client,
    config: &config::Redis,
    guarantee: &Guarantee,
) -> Result<(MultiplexedConnection, Facts), DialError> {
    let limit = Duration::from_millis(config.connect_timeout_ms);
    let options = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(limit))
        .set_response_timeout(Some(Duration::from_millis(config.response_timeout_ms)));
    let attempt = async {
        let mut connection = client
            .get_multiplexed_async_connection_with_config(&options)
            .await
            .map_err(|error| DialError::Io(error.to_string()))?;
        let facts = facts(&mut connection)
            .await
            .map_err(|error| DialError::Io(error.to_string()))?;
        check_mode(&facts, !config.cluster_nodes.is_empty()).map_err(DialError::Unfit)?;
        check(&facts, guarantee).map_err(DialError::Unfit)?;
        let truncated = facts
            .settings
            .as_ref()
            .and_then(|settings| settings.get("aof-load-truncated"));
        let on_disk = matches!(guarantee.durability, Durability::Always | Durability::Synced);
        if on_disk && truncated.is_some_and(|value| value == "yes") {
            tracing::warn!("Redis would drop a cut end of its log in silence: set `aof-load-truncated no`");
        }
        Ok((connection, facts))
    };
    match tokio::time::timeout(limit, attempt).await {
        Ok(outcome) => outcome,
        Err(_) => Err(DialError::Io(format!(
            "no answer within {} ms",
            limit.as_millis()
        ))),
    }
}

async fn facts(connection: &mut MultiplexedConnection) -> RedisResult<Facts> {
    let text: String = redis::cmd("INFO").query_async(connection).await?;
    let info = parse_info(&text);
    let get = |name: &str| {
        info.get(name)
            .map(|value| (*value).to_owned())
            .unwrap_or_default()
    };
    let mut command = redis::cmd("CONFIG");
    command.arg("GET").arg(&SETTINGS);
    let settings = match command.query_async(connection).await {
        Ok(settings) => Some(settings),
        Err(error) if error.is_io_error() || error.is_timeout() => return Err(error),
        Err(_) => None,
    };
    Ok(Facts {
        version: get("redis_version"),
        role: get("role"),
        cluster: info.get("cluster_enabled") == Some(&"1"),
        replicas: online_replicas(&info),
        settings,
    })
}
