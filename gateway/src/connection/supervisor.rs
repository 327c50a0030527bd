//! Keeps one good connection for commands.
//!
//! A multiplexed connection stays usable in the library's eyes after a time-out or a READONLY, so the supervisor owns
//! that decision: any error that leaves the state of the connection or the role of the server in doubt retires it, and
//! calls wait (for a bounded time) for the next one. Before every new connection the primary is looked for, and it is
//! checked again, because a failover may have made another server the primary. A server that was demoted, or that the
//! Sentinels do not name any more, is left without waiting for it to fail.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, task::JoinHandle, time::Instant};

use super::{
    Guarantee, RedisError, Unfit,
    barrier::Barrier,
    checks::{Facts, check_replicas, parse_info},
    dial::{self, DialError, Way},
    link::{Line, Link, wait_up},
};
use crate::config;

/// What a server's users and its supervisor share.
pub(super) struct Supervised {
    pub(super) way: Way,
    pub(super) config: config::Redis,
    guarantee: Guarantee,
    pub(super) link: watch::Sender<Link>,
    pub(super) barrier: Barrier,
    // Per mille of maxmemory in use; 0 without maxmemory.
    pub(super) memory: AtomicU64,
}

impl Supervised {
    /// Not connected yet.
    pub(super) fn new(config: &config::Redis, guarantee: Guarantee, way: Way) -> Self {
        let (link, links) = watch::channel(Link::Down {
            reason: "not connected yet".to_owned(),
        });
        Self {
            way,
            config: config.clone(),
            guarantee,
            link,
            barrier: Barrier::start(links, config, guarantee),
            memory: AtomicU64::new(0),
        }
    }

    /// Begins to keep the connection that is there.
    pub(super) fn supervise(self: &Arc<Self>) -> JoinHandle<()> {
        // A weak reference: the supervisor ends with the last user.
        let weak = Arc::downgrade(self);
        let mut link = self.link.subscribe();
        let ping = Duration::from_millis(self.config.ping_ms);
        let delay = Duration::from_millis(self.config.reconnect_delay_ms);
        let check = Duration::from_millis(self.config.sentinel_check_ms);
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

    pub(super) async fn wait_up(&self, limit: Instant) -> Result<Line, RedisError> {
        wait_up(&mut self.link.subscribe(), limit).await
    }

    /// Gives a connection up, if it still is the one in use.
    pub(super) fn retire(&self, generation: u64, reason: &str) {
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
    pub(super) async fn first(&self) -> Result<Line, DialError> {
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
