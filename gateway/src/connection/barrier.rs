//! Group confirmation: everybody who waits for replicas, or for the disk, shares one question.
//!
//! WAIT speaks of the writes of its own connection, and blocks it. So it has a connection of its own, on which a round is:
//! is everything there that is to be confirmed? A write, which is the barrier. WAIT. Whatever was there before the barrier
//! is on a replica that has the barrier. A round says nothing of what it did not find: that went with a failover between the
//! write and the round, and a WAIT on the new primary would have confirmed something that is gone. While a round is under
//! way the next one gathers, so that a thousand submissions wait as long as one.

use std::time::Duration;

use redis::{Value, aio::MultiplexedConnection};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{
    Confirmed, Guarantee, RedisError,
    link::{Link, wait_up},
    verdict::{Verdict, classify},
};
use crate::config;

/// The way to the rounds.
pub(super) struct Barrier {
    guarantee: Guarantee,
    waiting: Option<mpsc::Sender<Waiting>>,
}

/// Somebody who waits.
struct Waiting {
    key: String,
    answer: oneshot::Sender<Result<Confirmed, RedisError>>,
}

/// Keys of one round; also those that may wait for the next before others wait to wait.
const ROUND: usize = 1024;

struct Rounds {
    links: watch::Receiver<Link>,
    connection: Option<(u64, MultiplexedConnection)>,
    guarantee: Guarantee,
    barrier: String,
    connect_limit: Duration,
    response_limit: Duration,
    patience: Duration,
}

// === impl Barrier ===

impl Barrier {
    /// Begins the rounds, which end with this value.
    pub(super) fn start(links: watch::Receiver<Link>, config: &config::Redis, guarantee: Guarantee) -> Self {
        let waiting = guarantee.waits().then(|| {
            let (sender, receiver) = mpsc::channel(ROUND);
            let asked = guarantee.questions().len() as u64;
            let rounds = Rounds {
                links,
                connection: None,
                guarantee,
                barrier: format!("{}:{{g}}:barrier", config.prefix),
                connect_limit: Duration::from_millis(config.connect_timeout_ms),
                response_limit: Duration::from_millis(
                    (guarantee.timeout_ms.saturating_mul(asked)).saturating_add(config.response_timeout_ms),
                ),
                patience: Duration::from_millis(config.retry_ms),
            };
            tokio::spawn(rounds.run(receiver));
            sender
        });
        Self { guarantee, waiting }
    }

    /// Waits until what is under `key` is confirmed.
    pub(super) async fn confirm(&self, key: &str) -> Result<Confirmed, RedisError> {
        let Some(waiting) = &self.waiting else {
            return Ok(Confirmed {
                primary: self.guarantee.durability,
                replicas: 0,
                replicas_on_disk: false,
            });
        };
        let gone = |_| RedisError::Unavailable("the connection to Redis is being closed".to_owned());
        let (answer, answered) = oneshot::channel();
        let key = key.to_owned();
        let begun = Instant::now();
        waiting
            .send(Waiting { key, answer })
            .await
            .map_err(|_| gone(()))?;
        let outcome = answered.await.map_err(|_| gone(()))?;
        metrics::histogram!("muse_confirm_seconds").record(begun.elapsed().as_secs_f64());
        outcome
    }
}

// === impl Rounds ===

impl Rounds {
    async fn run(mut self, mut receiver: mpsc::Receiver<Waiting>) {
        let mut round = Vec::new();
        while receiver.recv_many(&mut round, ROUND).await > 0 {
            let outcome = self.round(&round).await;
            if outcome.is_err() {
                // Whatever happened to it, the next round must not wait for this one's answers.
                self.connection = None;
            }
            for (index, waiting) in round.drain(..).enumerate() {
                let answer = match &outcome {
                    Ok((there, confirmed)) if there.get(index).copied().unwrap_or(false) => confirmed.clone(),
                    Ok(_) => Err(RedisError::Unavailable(
                        "what was written went with a failover".to_owned(),
                    )),
                    Err(error) => Err(error.clone()),
                };
                // A client that left needs no answer.
                let _ = waiting.answer.send(answer);
            }
        }
    }

    /// Which keys were there, and what became of the barrier.
    async fn round(
        &mut self,
        waiting: &[Waiting],
    ) -> Result<(Vec<bool>, Result<Confirmed, RedisError>), RedisError> {
        let mut connection = self.connect().await?;
        let mut pipeline = redis::pipe();
        for Waiting { key, .. } in waiting {
            pipeline.cmd("EXISTS").arg(key);
        }
        pipeline.cmd("SET").arg(&self.barrier).arg(1).ignore();
        for question in self.guarantee.questions() {
            pipeline.add_command(question);
        }
        let mut there: Vec<Value> =
            pipeline
                .query_async(&mut connection)
                .await
                .map_err(|error| match classify(&error) {
                    Verdict::OutOfMemory => RedisError::OutOfMemory,
                    Verdict::Refused => RedisError::Refused(error.to_string()),
                    Verdict::Broken | Verdict::Unable => RedisError::Unavailable(error.to_string()),
                })?;
        let answers = there.split_off(waiting.len().min(there.len()));
        let there = there.into_iter().map(|value| value == Value::Int(1)).collect();
        Ok((there, self.guarantee.judge(answers)))
    }

    /// A connection to the server that commands go to now.
    async fn connect(&mut self) -> Result<MultiplexedConnection, RedisError> {
        let line = wait_up(&mut self.links, Instant::now() + self.patience).await?;
        if let Some((generation, connection)) = &self.connection
            && *generation == line.generation
        {
            return Ok(connection.clone());
        }
        let options = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_limit))
            .set_response_timeout(Some(self.response_limit));
        let connection = line
            .client
            .get_multiplexed_async_connection_with_config(&options)
            .await
            .map_err(|error| RedisError::Unavailable(error.to_string()))?;
        self.connection = Some((line.generation, connection.clone()));
        Ok(connection)
    }
}
