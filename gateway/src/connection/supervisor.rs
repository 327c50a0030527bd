//! Keeps one good connection for commands.
//!
//! A multiplexed connection stays usable in the library's eyes after a time-out or a READONLY, so the supervisor owns
//! that decision: any error that leaves the state of the connection or the role of the server in doubt retires it, and
//! calls wait (for a bounded time) for the next one. Every new connection is checked again, because a failover may have
//! put another server behind the address.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{
    Client, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisResult, ScriptInvocation, ServerErrorKind,
    aio::MultiplexedConnection,
};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use super::{
    RedisError, StartupError,
    checks::parse_info,
    dial::{self, DialError},
};
use crate::config::{self, Durability};

/// The commands' connection; cloning is cheap.
#[derive(Clone)]
pub struct Redis(Arc<Inner>);

struct Inner {
    client: Client,
    config: config::Redis,
    durability: Durability,
    link: watch::Sender<Link>,
    // Per mille of maxmemory in use; 0 without maxmemory.
    memory: AtomicU64,
}

#[derive(Clone)]
enum Link {
    Up {
        generation: u64,
        connection: MultiplexedConnection,
    },
    Down {
        reason: String,
    },
}

// === impl Redis ===

impl Redis {
    /// Connects and checks the server, waiting up to `startup_timeout_ms` for it to answer. The supervisor then runs
    /// until the last clone is dropped.
    ///
    /// # Errors
    /// [`StartupError`] says in one line what to do.
    pub async fn connect(config: &config::Redis, durability: Durability) -> Result<Self, StartupError> {
        let client = dial::client(config)?;
        let (link, _) = watch::channel(Link::Down {
            reason: "not connected yet".to_owned(),
        });
        let inner = Inner {
            client,
            config: config.clone(),
            durability,
            link,
            memory: AtomicU64::new(0),
        };
        let redis = Self(Arc::new(inner));
        let limit = Instant::now() + Duration::from_millis(config.startup_timeout_ms);
        loop {
            match redis.0.establish().await {
                Ok(connection) => {
                    redis.0.link.send_replace(Link::Up {
                        generation: 1,
                        connection,
                    });
                    break;
                }
                Err(DialError::Unfit(unfit)) => return Err(unfit.into()),
                Err(DialError::Io(reason)) if Instant::now() >= limit => {
                    return Err(StartupError::Unreachable {
                        url: config.url.clone(),
                        reason,
                    });
                }
                Err(DialError::Io(_)) => {
                    tokio::time::sleep(Duration::from_millis(config.reconnect_delay_ms)).await;
                }
            }
        }
        redis.supervise();
        Ok(redis)
    }

    /// Whether a connection is up now.
    pub fn is_up(&self) -> bool {
        matches!(*self.0.link.borrow(), Link::Up { .. })
    }

    /// The share of the server's maxmemory in use at the last ping, 0 to 1; 0 without maxmemory.
    pub fn memory_share(&self) -> f64 {
        self.0.memory.load(Ordering::Relaxed) as f64 / 1000.0
    }

    /// Runs one command.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        self.call(|mut connection| async move { command.query_async(&mut connection).await })
            .await
    }

    /// Runs a pipeline.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn pipe<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, RedisError> {
        self.call(|mut connection| async move { pipeline.query_async(&mut connection).await })
            .await
    }

    /// Runs a script, loading it where the server does not know it.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn eval<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, RedisError> {
        self.call(|mut connection| async move { script.invoke_async(&mut connection).await })
            .await
    }

    /// The client, for the doorbells' own connection.
    pub(super) fn client(&self) -> &Client {
        &self.0.client
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
            let (generation, connection) = self.0.wait_up(limit).await?;
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
                Verdict::OutOfMemory => return Err(RedisError::OutOfMemory),
                Verdict::Refused => return Err(RedisError::Refused(error.to_string())),
            }
        }
    }

    fn supervise(&self) -> JoinHandle<()> {
        // A weak reference: the supervisor ends with the last user.
        let weak = Arc::downgrade(&self.0);
        let mut link = self.0.link.subscribe();
        let ping = Duration::from_millis(self.0.config.ping_ms);
        let delay = Duration::from_millis(self.0.config.reconnect_delay_ms);
        tokio::spawn(async move {
            let mut generation = 1;
            loop {
                // Wakes at each ping, and at once when a call has retired the connection.
                let _ =
                    tokio::time::timeout(ping, link.wait_for(|link| matches!(link, Link::Down { .. }))).await;
                let Some(inner) = weak.upgrade() else { return };
                let state = link.borrow_and_update().clone();
                match state {
                    Link::Up {
                        generation,
                        connection,
                    } => inner.ping(generation, connection).await,
                    Link::Down { .. } => match inner.establish().await {
                        Ok(connection) => {
                            generation += 1;
                            tracing::info!(generation, "connected to Redis again");
                            inner.link.send_replace(Link::Up {
                                generation,
                                connection,
                            });
                        }
                        Err(DialError::Io(reason)) => {
                            inner.down(&reason);
                            drop(inner);
                            tokio::time::sleep(delay).await;
                        }
                        Err(DialError::Unfit(unfit)) => {
                            tracing::error!(%unfit, "Redis answers but cannot be used");
                            inner.down(&unfit.to_string());
                            drop(inner);
                            tokio::time::sleep(delay.max(ping)).await;
                        }
                    },
                }
            }
        })
    }
}

// === impl Inner ===

impl Inner {
    async fn wait_up(&self, limit: Instant) -> Result<(u64, MultiplexedConnection), RedisError> {
        let mut link = self.link.subscribe();
        let up = link.wait_for(|link| matches!(link, Link::Up { .. }));
        let state = match tokio::time::timeout_at(limit, up).await {
            Ok(Ok(state)) => state.clone(),
            _ => self.link.borrow().clone(),
        };
        match state {
            Link::Up {
                generation,
                connection,
            } => Ok((generation, connection)),
            Link::Down { reason } => Err(RedisError::Unavailable(reason)),
        }
    }

    fn retire(&self, generation: u64, reason: &str) {
        self.link.send_if_modified(|link| {
            let current = matches!(link, Link::Up { generation: current, .. } if *current == generation);
            if current {
                tracing::warn!(reason, "the connection to Redis broke");
                *link = Link::Down {
                    reason: reason.to_owned(),
                };
            }
            current
        });
    }

    fn down(&self, why: &str) {
        self.link.send_if_modified(|link| {
            if let Link::Down { reason } = link {
                why.clone_into(reason);
            }
            false
        });
    }

    async fn establish(&self) -> Result<MultiplexedConnection, DialError> {
        dial::connect(&self.client, &self.config, self.durability).await
    }

    async fn ping(&self, generation: u64, mut connection: MultiplexedConnection) {
        match redis::cmd("INFO")
            .arg("memory")
            .query_async::<String>(&mut connection)
            .await
        {
            Ok(text) => {
                let info = parse_info(&text);
                let number = |name| {
                    info.get(name)
                        .and_then(|value: &&str| value.parse::<u64>().ok())
                        .unwrap_or(0)
                };
                let (used, most) = (number("used_memory"), number("maxmemory"));
                let share = used.saturating_mul(1000).checked_div(most).unwrap_or(0);
                self.memory.store(share, Ordering::Relaxed);
            }
            Err(error) => self.retire(generation, &error.to_string()),
        }
    }
}

enum Verdict {
    /// The connection, or the server's role, is in doubt.
    Broken,
    OutOfMemory,
    Refused,
}

fn classify(error: &redis::RedisError) -> Verdict {
    // What a transaction was aborted for has no code of its own: it is told in words.
    let says = |code: &str| error.code() == Some(code) || error.to_string().contains(code);
    match error.kind() {
        ErrorKind::Server(
            ServerErrorKind::ReadOnly
            | ServerErrorKind::BusyLoading
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::TryAgain,
        ) => Verdict::Broken,
        _ if says("OOM") => Verdict::OutOfMemory,
        // A full disk: the server takes writes again as soon as it can save.
        _ if says("MISCONF") => Verdict::Broken,
        _ if error.is_io_error() || error.is_timeout() || error.is_connection_dropped() => Verdict::Broken,
        _ if error.is_unrecoverable_error() => Verdict::Broken,
        _ => Verdict::Refused,
    }
}
