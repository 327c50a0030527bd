//! The gateway's own clockwork: what time overtakes in the queue, what is old, and the queue's metrics. Every gateway runs
//! it; the scripts make sure that each job is moved once.

use std::time::Duration;

use muse_service::{Readiness, Shutdown};
use tokio::time::MissedTickBehavior;

use crate::{config, connection::RedisError, models::Models, queue::Queue, results::Discarded};

/// Runs until the shutdown.
pub struct Reaper {
    /// The queue to look after.
    pub queue: Queue,
    /// For the workers' metrics.
    pub models: Models,
    /// Takes the pictures of forgotten jobs.
    pub discarded: Discarded,
    /// How often.
    pub config: config::Queue,
    /// Follows the connection to Redis.
    pub readiness: Readiness,
}

impl Reaper {
    /// Runs until the shutdown. Failures are logged and tried again at the next tick.
    pub async fn run(self, shutdown: Shutdown) {
        let mut reap = tokio::time::interval(Duration::from_millis(self.config.reap_ms));
        let mut housekeeping = tokio::time::interval(Duration::from_millis(self.config.housekeeping_ms));
        reap.set_missed_tick_behavior(MissedTickBehavior::Delay);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            let outcome = tokio::select! {
                () = shutdown.requested() => return,
                _ = reap.tick() => self.reap().await,
                _ = housekeeping.tick() => self.housekeep().await,
            };
            self.readiness.set_ready(self.queue.redis().is_up());
            metrics::gauge!("muse_redis_up").set(if self.queue.redis().is_up() { 1.0 } else { 0.0 });
            match outcome {
                Ok(()) => failing = false,
                // Once an outage, not twice a second.
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(%error, "the queue cannot be looked after; trying again");
                }
                Err(_) => {}
            }
        }
    }

    async fn reap(&self) -> Result<(), RedisError> {
        let batch = u64::from(self.config.reap_batch);
        for shard in 0..self.queue.keys().shards() {
            loop {
                let reaped = self.queue.reap(shard).await?;
                if reaped.lost > 0 {
                    tracing::warn!(
                        lost = reaped.lost,
                        dead = reaped.dead,
                        "leases ran out; their jobs go to other shards"
                    );
                }
                for (outcome, count) in [
                    ("lost", reaped.lost),
                    ("dead", reaped.dead),
                    ("retried", reaped.delayed),
                    ("overdue", reaped.overdue),
                ] {
                    metrics::counter!("muse_reaped_jobs_total", "outcome" => outcome).increment(count);
                }
                if reaped.lost.max(reaped.delayed).max(reaped.overdue) < batch {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn housekeep(&self) -> Result<(), RedisError> {
        for shard in 0..self.queue.keys().shards() {
            // One batch at a time: forgetting is never urgent.
            for purged in self.queue.purge(shard).await? {
                if let Some(nonce) = purged.pictures {
                    self.discarded.discard(purged.id, nonce);
                }
            }
        }
        self.measure().await
    }

    async fn measure(&self) -> Result<(), RedisError> {
        let (pools, dead) = self.queue.counts().await?;
        metrics::gauge!("muse_dead_jobs").set(dead as f64);
        metrics::gauge!("muse_redis_memory_share").set(self.queue.redis().memory_share());
        let models = self.models.all().await?;
        // Pools without jobs report zeros, or a gauge would keep its last value.
        let served = models.values().flat_map(|model| {
            model.stages.iter().filter_map(|served| {
                Some((
                    model.name.clone(),
                    crate::jobs::stage_name(served.stage())?.to_owned(),
                    served.workers,
                ))
            })
        });
        for (model, stage, workers) in served {
            metrics::gauge!("muse_hub_workers", "model" => model.clone(), "stage" => stage.clone())
                .set(workers);
            if !pools.contains_key(&(model.clone(), stage.clone())) {
                publish(&model, &stage, &crate::queue::PoolCounts::default());
            }
        }
        for ((model, stage), counts) in &pools {
            publish(model, stage, counts);
        }
        Ok(())
    }
}

fn publish(model: &str, stage: &str, counts: &crate::queue::PoolCounts) {
    let jobs = |state: &'static str, count: u64| {
        let (model, stage) = (model.to_owned(), stage.to_owned());
        metrics::gauge!("muse_queue_jobs", "model" => model, "stage" => stage, "state" => state)
            .set(count as f64);
    };
    jobs("queued", counts.queued);
    jobs("running", counts.running);
    jobs("delayed", counts.delayed);
    let oldest = counts.oldest_ms.unwrap_or(0) as f64 / 1000.0;
    metrics::gauge!("muse_queue_oldest_seconds", "model" => model.to_owned(), "stage" => stage.to_owned())
        .set(oldest);
}
