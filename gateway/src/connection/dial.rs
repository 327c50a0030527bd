//! A way to the server: its address, one new connection, and the questions that it has to answer before it is used.

use std::time::Duration;

use redis::{Client, RedisResult, aio::MultiplexedConnection};

use super::checks::{Facts, SETTINGS, Unfit, check, parse_info};
use crate::config::{self, Durability};

/// Why the gateway cannot start with this Redis.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// `redis.url` or `redis.password_file` is wrong.
    #[error("{key}: {reason}")]
    Configuration {
        /// The key at fault.
        key: &'static str,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Nothing answered.
    #[error("no Redis answers at {url}: {reason}; start one, or set redis.url")]
    Unreachable {
        /// `redis.url`.
        url: String,
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

/// The client for `redis.url`, with the password from its file.
pub(super) fn client(config: &config::Redis) -> Result<Client, StartupError> {
    let invalid = |key, reason: String| StartupError::Configuration { key, reason };
    let info = redis::IntoConnectionInfo::into_connection_info(config.url.as_str()).map_err(|error| {
        invalid(
            "redis.url",
            format!("{error}; use redis://host:port, rediss:// or unix:///path"),
        )
    })?;
    if info.redis_settings().password().is_some() {
        let reason = "must not hold a password: put it into a file and set redis.password_file".to_owned();
        return Err(invalid("redis.url", reason));
    }
    let Some(path) = &config.password_file else {
        return Client::open(info).map_err(|error| invalid("redis.url", error.to_string()));
    };
    let password = std::fs::read_to_string(path).map_err(|error| {
        invalid(
            "redis.password_file",
            format!("cannot read {}: {error}", path.display()),
        )
    })?;
    let settings = info.redis_settings().clone().set_password(password.trim());
    Client::open(info.set_redis_settings(settings)).map_err(|error| invalid("redis.url", error.to_string()))
}

/// A new connection to a server that passed the checks, within `redis.connect_timeout_ms`.
pub(super) async fn connect(
    client: &Client,
    config: &config::Redis,
    durability: Durability,
) -> Result<MultiplexedConnection, DialError> {
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
        check(&facts, durability).map_err(DialError::Unfit)?;
        let truncated = facts
            .settings
            .as_ref()
            .and_then(|settings| settings.get("aof-load-truncated"));
        if durability == Durability::Always && truncated.is_some_and(|value| value == "yes") {
            tracing::warn!("Redis would drop a cut end of its log in silence: set `aof-load-truncated no`");
        }
        Ok(connection)
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
        settings,
    })
}
