//! Keeps one good connection for commands.
//!
//! A multiplexed connection stays usable in the library's eyes after a time-out or a READONLY, so the supervisor owns
//! that decision: any error that leaves the state of the connection or the role of the server in doubt retires it, and
//! calls wait (for a bounded time) for the next one. Before every new connection the primary is looked for, and it is
//! checked again, because a failover may have made another server the primary. A server that was demoted, or that the
//! Sentinels do not name any more, is left without waiting for it to fail.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{
    Client, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisResult, ServerErrorKind,
    aio::MultiplexedConnection,
};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use super::{
    Call, Confirmed, Guarantee, RedisError, StartupError, Unfit,
    barrier::Barrier,
    checks::{Facts, check_replicas, parse_info},
    dial::{self, DialError, Way},
};
use crate::config;

/// The commands' connection; cloning is cheap.
#[derive(Clone)]
pub(super) struct Server(Arc<Inner>);

struct Inner {
    way: Way,
    config: config::Redis,
    guarantee: Guarantee,
    link: watch::Sender<Link>,
    barrier: Barrier,
    // Per mille of maxmemory in use; 0 without maxmemory.
    memory: AtomicU64,
}

/// The state of the connection.
#[derive(Clone)]
pub(super) enum Link {
    /// There is one.
    Up(Box<Line>),
    /// There is none.
    Down { reason: String },
}

/// A connection to the primary.
#[derive(Clone)]
pub(super) struct Line {
    /// Counts connections.
    pub(super) generation: u64,
    /// For commands.
    pub(super) connection: MultiplexedConnection,
    /// For other connections to the same server.
    pub(super) client: Client,
}

// === impl Server ===

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
        let (link, links) = watch::channel(Link::Down {
            reason: "not connected yet".to_owned(),
        });
        let inner = Inner {
            way,
            config: config.clone(),
            guarantee,
            link,
            barrier: Barrier::start(links, config, guarantee),
            memory: AtomicU64::new(0),
        };
        let server = Self(Arc::new(inner));
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
        server.supervise();
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
        let unknown = ErrorKind::Server(ServerErrorKind::NoScript);
        self.call(|mut connection| async move {
            match call.command().query_async(&mut connection).await {
                Err(error) if error.kind() == unknown => {
                    call.script().prepare_invoke().load_async(&mut connection).await?;
                    call.command().query_async(&mut connection).await
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

    fn supervise(&self) -> JoinHandle<()> {
        // A weak reference: the supervisor ends with the last user.
        let weak = Arc::downgrade(&self.0);
        let mut link = self.0.link.subscribe();
        let ping = Duration::from_millis(self.0.config.ping_ms);
        let delay = Duration::from_millis(self.0.config.reconnect_delay_ms);
        let check = Duration::from_millis(self.0.config.sentinel_check_ms);
        tokio::spawn(async move {
            let mut generation = 1;
            let mut checked = Instant::now();
            let mut connected = Instant::now();
            loop {
                // Wakes at each ping, and at once when a call has retired the connection.
                let down = link.wait_for(|link| matches!(link, Link::Down { .. }));
                let _ = tokio::time::timeout(ping, down).await;
                let Some(inner) = weak.upgrade() else { return };
                let state = link.borrow_and_update().clone();
                let failure = match state {
                    Link::Up(line) => {
                        inner.ping(&line).await;
                        if checked.elapsed() >= check {
                            checked = Instant::now();
                            inner.ask_others(&line).await;
                        }
                        continue;
                    }
                    // A server that takes connections and no commands, such as one that loads its log, is not dialled as
                    // fast as it answers.
                    Link::Down { .. } if connected.elapsed() < delay => {
                        drop(inner);
                        tokio::time::sleep(delay).await;
                        continue;
                    }
                    Link::Down { .. } => match inner.establish(generation + 1).await {
                        Ok((line, _)) => {
                            generation += 1;
                            connected = Instant::now();
                            let server = line.client.get_connection_info().addr();
                            tracing::info!(generation, %server, "connected to Redis again");
                            inner.link.send_replace(Link::Up(Box::new(line)));
                            continue;
                        }
                        Err(failure) => failure,
                    },
                };
                let pause = match failure {
                    DialError::Io(reason) => {
                        inner.down(&reason);
                        delay
                    }
                    // In the middle of a failover: the next look may find another one, or this one promoted.
                    DialError::Unfit(Unfit::Replica) => {
                        inner.down("the server is a replica now");
                        delay
                    }
                    DialError::Unfit(unfit) => {
                        tracing::error!(%unfit, "Redis answers but cannot be used");
                        inner.down(&unfit.to_string());
                        delay.max(ping)
                    }
                };
                drop(inner);
                tokio::time::sleep(pause).await;
            }
        })
    }
}

// === impl Inner ===

impl Inner {
    async fn wait_up(&self, limit: Instant) -> Result<Line, RedisError> {
        wait_up(&mut self.link.subscribe(), limit).await
    }

    fn retire(&self, generation: u64, reason: &str) {
        self.link.send_if_modified(|link| {
            let current = matches!(link, Link::Up(line) if line.generation == generation);
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

    async fn establish(&self, generation: u64) -> Result<(Line, Facts), DialError> {
        let client = self.way.primary().await?;
        let (connection, facts) = dial::connect(&client, &self.config, &self.guarantee).await?;
        let line = Line {
            generation,
            connection,
            client,
        };
        Ok((line, facts))
    }

    /// The first connection, for which also the replicas must be there.
    async fn first(&self) -> Result<Line, DialError> {
        let (line, facts) = self.establish(1).await?;
        check_replicas(&facts, &self.guarantee).map_err(DialError::Unfit)?;
        Ok(line)
    }

    async fn ping(&self, line: &Line) {
        let mut info = redis::cmd("INFO");
        info.arg("memory").arg("replication");
        match info.query_async::<String>(&mut line.connection.clone()).await {
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
                if info.get("role") == Some(&"slave") {
                    self.retire(line.generation, "the server was demoted to a replica");
                }
            }
            Err(error) => self.retire(line.generation, &error.to_string()),
        }
    }

    /// Leaves a server that was cut off from the others and does not know yet that it is the primary no more.
    async fn ask_others(&self, line: &Line) {
        if !self.way.moves() {
            return;
        }
        match self.way.primary().await {
            Ok(primary) => {
                let (named, used) = (primary.get_connection_info(), line.client.get_connection_info());
                if named.addr() != used.addr() {
                    let why = format!("{} is named as the primary", named.addr());
                    self.retire(line.generation, &why);
                }
            }
            Err(DialError::Io(reason)) => tracing::warn!(reason, "nobody names the primary"),
            Err(DialError::Unfit(_)) => {}
        }
    }
}

/// The connection, as soon as there is one.
pub(super) async fn wait_up(link: &mut watch::Receiver<Link>, limit: Instant) -> Result<Line, RedisError> {
    let up = link.wait_for(|link| matches!(link, Link::Up(_)));
    // What it is waited for is not looked at: it is read again below.
    let _ = tokio::time::timeout_at(limit, up).await.map(drop);
    match link.borrow().clone() {
        Link::Up(line) => Ok(*line),
        Link::Down { reason } => Err(RedisError::Unavailable(reason)),
    }
}

pub(super) enum Verdict {
    /// The connection, or the server's role, is in doubt.
    Broken,
    /// The right server, which cannot take it just now.
    Unable,
    OutOfMemory,
    Refused,
}

pub(super) fn classify(error: &redis::RedisError) -> Verdict {
    // What a transaction was aborted for, or a script stopped at, is inside: the error itself only says that it was.
    let inside = error.clone().into_server_errors();
    let says = |code: &str| {
        let mut errors = inside.iter().flat_map(|errors| errors.iter());
        errors.any(|(_, error)| {
            error.code() == code || error.details().is_some_and(|details| details.contains(code))
        })
    };
    match error.kind() {
        ErrorKind::Server(
            ServerErrorKind::ReadOnly
            | ServerErrorKind::BusyLoading
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ClusterDown
            // The slot has another owner, who is looked up for the next connection.
            | ServerErrorKind::Moved,
        ) => Verdict::Broken,
        // A script that was forgotten again, by SCRIPT FLUSH or a restart, between its loading and its call. A slot that is
        // on its way.
        ErrorKind::Server(
            ServerErrorKind::TryAgain | ServerErrorKind::NoScript | ServerErrorKind::Ask,
        ) => Verdict::Unable,
        // An answer that was understood, and is not the one that belongs to the question.
        ErrorKind::UnexpectedReturnType => Verdict::Refused,
        // A write inside a script, or anything inside a transaction.
        _ if ["READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN"]
            .into_iter()
            .any(says) =>
        {
            Verdict::Broken
        }
        _ if says("OOM") => Verdict::OutOfMemory,
        // A full disk: the server takes writes again as soon as it can save. And min-replicas-to-write.
        _ if ["MISCONF", "NOREPLICAS", "TRYAGAIN"].into_iter().any(says) => Verdict::Unable,
        // A slot that moved while a script ran.
        _ if says("non local key") => Verdict::Broken,
        _ if error.is_io_error() || error.is_timeout() || error.is_connection_dropped() => Verdict::Broken,
        _ if error.is_unrecoverable_error() => Verdict::Broken,
        _ => Verdict::Refused,
    }
}

#[cfg(test)]
mod tests {
    use redis::make_extension_error;
    use tokio::{
        io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
        net::TcpListener,
    };

    use super::*;

    /// What a transaction gives at a server that answers each of its commands so.
    async fn transaction_refused_with(refusal: &'static str) -> redis::RedisError {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (from, mut to) = stream.into_split();
            let mut lines = BufReader::new(from).lines();
            let mut in_transaction = false;
            // *<words>, and for each word its length and itself.
            while let Some(count) = lines.next_line().await.unwrap() {
                let mut words = vec![];
                for _ in 0..count.trim_start_matches('*').parse().unwrap() {
                    lines.next_line().await.unwrap();
                    words.push(lines.next_line().await.unwrap().unwrap());
                }
                let answer = match words[0].as_str() {
                    "EXEC" => "-EXECABORT Transaction discarded because of previous errors.",
                    _ if in_transaction => refusal,
                    _ => "+OK",
                };
                in_transaction |= words[0] == "MULTI";
                to.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
            }
        });
        let client = Client::open(url).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut set = redis::pipe();
        set.atomic().set("key", "value");
        set.query_async::<()>(&mut connection).await.unwrap_err()
    }

    #[test]
    fn a_server_in_doubt_is_told_from_a_call_that_is_wrong() {
        let loading = (ErrorKind::Server(ServerErrorKind::BusyLoading), "LOADING").into();
        assert!(matches!(classify(&loading), Verdict::Broken));
        let again = (ErrorKind::Server(ServerErrorKind::TryAgain), "TRYAGAIN").into();
        assert!(matches!(classify(&again), Verdict::Unable));
        let forgotten = (ErrorKind::Server(ServerErrorKind::NoScript), "NOSCRIPT").into();
        assert!(matches!(classify(&forgotten), Verdict::Unable));
        let full = make_extension_error("OOM".to_owned(), Some("command not allowed".to_owned()));
        assert!(matches!(classify(&full), Verdict::OutOfMemory));
        let disk = make_extension_error(
            "MISCONF".to_owned(),
            Some("Errors writing to the AOF file".to_owned()),
        );
        assert!(matches!(classify(&disk), Verdict::Unable));
        let wrong = make_extension_error("WRONGTYPE".to_owned(), None);
        assert!(matches!(classify(&wrong), Verdict::Refused));
    }

    /// As pictures are stored: a report that is refused for good is thrown away by its worker.
    #[tokio::test]
    async fn what_a_transaction_was_aborted_for_decides() {
        let verdict = |refusal| async move { classify(&transaction_refused_with(refusal).await) };
        let loading = verdict("-LOADING Valkey is loading the dataset in memory").await;
        assert!(matches!(loading, Verdict::Broken));
        let replica = verdict("-READONLY You can't write against a read only replica.").await;
        assert!(matches!(replica, Verdict::Broken));
        let full = verdict("-OOM command not allowed when used memory > 'maxmemory'.").await;
        assert!(matches!(full, Verdict::OutOfMemory));
        let disk = verdict("-MISCONF Errors writing to the AOF file: No space left on device").await;
        assert!(matches!(disk, Verdict::Unable));
        let wrong = verdict("-ERR unknown command 'HSTE'").await;
        assert!(matches!(wrong, Verdict::Refused));
    }
}
