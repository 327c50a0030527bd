//! The commands' way to one server: calls go over its connection, and are repeated while it is looked after.

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use redis::{Cmd, FromRedisValue, Pipeline, RedisResult, aio::MultiplexedConnection};
use tokio::{sync::watch, time::Instant};

use super::{
    Call, Confirmed, Guarantee, RedisError, StartupError, Unfit,
    dial::{DialError, Way},
    link::{Line, Link},
    supervisor::Supervised,
    verdict::{Verdict, classify, is_unknown_script},
};
use crate::config;

/// The commands' connection; cloning is cheap.
#[derive(Clone)]
pub(super) struct Server(Arc<Supervised>);

impl Server {
    /// Connects and checks the server, waiting up to `startup_timeout_ms` for it to answer. The supervisor then runs
    /// until the last clone is dropped.
    ///
    /// # Errors
    /// [`StartupError`] says in one line what to do.
    pub(super) async fn connect(
        config: &config::Redis,
        guarantee: Guarantee,
        way: Way,
    ) -> Result<Self, StartupError> {
        let server = Self(Arc::new(Supervised::new(config, guarantee, way)));
        let limit = Instant::now() + Duration::from_millis(config.startup_timeout_ms);
        loop {
            let late = Instant::now() >= limit;
            match server.0.first().await {
                Ok(line) => {
                    server.0.link.send_replace(Link::Up(Box::new(line)));
                    break;
                }
                // A primary and its replicas are started in any order, and Sentinels may be about to name another.
                Err(DialError::Unfit(Unfit::Replicas { .. })) if !late => {}
                Err(DialError::Unfit(Unfit::Replica)) if !late && server.0.way.moves() => {}
                Err(DialError::Unfit(unfit)) => return Err(unfit.into()),
                Err(DialError::Io(reason)) if late => {
                    let (key, place) = if !config.cluster_nodes.is_empty() {
                        ("redis.cluster_nodes", config.cluster_nodes.join(", "))
                    } else if !config.sentinels.is_empty() {
                        ("redis.sentinels", config.sentinels.join(", "))
                    } else {
                        ("redis.url", config.url.clone())
                    };
                    return Err(StartupError::Unreachable { key, place, reason });
                }
                Err(DialError::Io(_)) => {}
            }
            tokio::time::sleep(Duration::from_millis(config.reconnect_delay_ms)).await;
        }
        server.0.supervise();
        Ok(server)
    }

    /// Whether a connection is up now.
    pub(super) fn is_up(&self) -> bool {
        matches!(*self.0.link.borrow(), Link::Up(_))
    }

    /// The share of the server's maxmemory in use at the last ping, 0 to 1; 0 without maxmemory.
    pub(super) fn memory_share(&self) -> f64 {
        self.0.memory.load(Ordering::Relaxed) as f64 / 1000.0
    }

    /// Runs one command.
    ///
    /// # Errors
    /// [`RedisError`].
    pub(super) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        self.call(|mut connection| async move { command.query_async(&mut connection).await })
            .await
    }

    /// Runs a pipeline.
    ///
    /// # Errors
    /// [`RedisError`].
    pub(super) async fn pipe<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, RedisError> {
        self.call(|mut connection| async move { pipeline.query_async(&mut connection).await })
            .await
    }

    /// Runs a script, loading it where the server does not know it.
    ///
    /// # Errors
    /// [`RedisError`].
    pub(super) async fn eval<T: FromRedisValue>(&self, call: &Call) -> Result<T, RedisError> {
        let transaction = call.transaction();
        let transaction = transaction.as_ref();
        let ask = async |connection: &mut MultiplexedConnection| match transaction {
            None => call.command().query_async(connection).await,
            Some(transaction) => {
                let (answer,): (T,) = transaction.query_async(connection).await?;
                Ok(answer)
            }
        };
        let ask = &ask;
        self.call(|mut connection| async move {
            match ask(&mut connection).await {
                Err(error) if is_unknown_script(&error) => {
                    call.script().prepare_invoke().load_async(&mut connection).await?;
                    ask(&mut connection).await
                }
                answer => answer,
            }
        })
        .await
    }

    /// Waits until what is stored under `key` is as safe as was promised. Those who wait at the same time share the question.
    ///
    /// # Errors
    /// [`RedisError::NotConfirmed`] when too few copies answered in time, [`RedisError::Unavailable`] also when the key is
    /// not there (any more): what stored it was lost in a failover, and can be repeated.
    pub(super) async fn confirm(&self, key: &str) -> Result<Confirmed, RedisError> {
        self.0.barrier.confirm(key).await
    }

    /// For how long calls are repeated.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_millis(self.0.config.retry_ms)
    }

    /// The state of the connection, for the doorbells, which follow it.
    pub(super) fn links(&self) -> watch::Receiver<Link> {
        self.0.link.subscribe()
    }

    pub(super) fn config(&self) -> &config::Redis {
        &self.0.config
    }

    // Everything sent here can be repeated: reads, and scripts that are idempotent.
    async fn call<T, F, Fut>(&self, run: F) -> Result<T, RedisError>
    where
        F: Fn(MultiplexedConnection) -> Fut,
        Fut: Future<Output = RedisResult<T>>,
    {
        let limit = Instant::now() + Duration::from_millis(self.0.config.retry_ms);
        loop {
            let Line {
                generation,
                connection,
                ..
            } = self.0.wait_up(limit).await?;
            let error = match run(connection).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            match classify(&error) {
                Verdict::Broken => {
                    self.0.retire(generation, &error.to_string());
                    if Instant::now() >= limit {
                        return Err(RedisError::Unavailable(error.to_string()));
                    }
                }
                Verdict::Unable => {
                    if Instant::now() >= limit {
                        return Err(RedisError::Unavailable(error.to_string()));
                    }
                    tokio::time::sleep(Duration::from_millis(self.0.config.reconnect_delay_ms)).await;
                }
                Verdict::OutOfMemory => return Err(RedisError::OutOfMemory),
                Verdict::Refused => return Err(RedisError::Refused(error.to_string())),
            }
        }
    }
}
