//! Where a job stands, for its owner. The place in its tenant's queue is read for each job; what the rest of the queue does
//! is a snapshot that is renewed now and then.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use muse_proto::v1::{Job, JobState, QueuePlace};

use super::{
    Queue,
    estimate::{PoolLoad, Waiting, left_ms},
    pool_name,
};
use crate::{
    connection::RedisError,
    jobs::{JobId, Record, duration, stage_name, stage_of_name},
};

type Loads = BTreeMap<(String, String), PoolLoad>;

/// The latest snapshot; shared by the queue's clones.
#[derive(Clone, Default)]
pub(super) struct Snapshot(Arc<RwLock<Option<Seen>>>);

struct Seen {
    read: Instant,
    loads: Arc<Loads>,
}

impl Queue {
    /// Fills in the place and the estimates of jobs. Without them a job is still a job: failures are logged alone.
    pub async fn locate(&self, records: &mut [Record]) {
        if let Err(error) = self.try_locate(records).await {
            tracing::debug!(%error, "jobs are told without their place");
        }
    }

    /// One job with its place and estimates.
    pub async fn located(&self, record: Record) -> Job {
        let mut records = [record];
        self.locate(&mut records).await;
        let [record] = records;
        record.job
    }

    /// One job with its place and estimates, given its rank among its tenant's.
    pub async fn located_at(&self, record: Record, rank: Option<u64>) -> Job {
        let mut records = [record];
        match self.loads().await {
            Ok(loads) => place(&loads, &mut records, vec![rank]),
            Err(error) => tracing::debug!(%error, "a job is told without its place"),
        }
        let [record] = records;
        record.job
    }

    async fn try_locate(&self, records: &mut [Record]) -> Result<(), RedisError> {
        let is_live = |job: &Job| matches!(job.state(), JobState::Queued | JobState::Running);
        if !records.iter().any(|record| is_live(&record.job)) {
            return Ok(());
        }
        let loads = self.loads().await?;
        let ranks = self.ranks(records).await?;
        place(&loads, records, ranks);
        Ok(())
    }

    /// For each job that is queued: how many of its tenant's are before it.
    async fn ranks(&self, records: &[Record]) -> Result<Vec<Option<u64>>, RedisError> {
        let mut pipeline = redis::pipe();
        let mut asked = Vec::new();
        for (index, record) in records.iter().enumerate() {
            let (Ok(id), Some(stage)) = (JobId::parse(&record.job.id), stage_name(record.job.stage())) else {
                continue;
            };
            if record.job.state() != JobState::Queued {
                continue;
            }
            let model = record
                .job
                .request
                .as_ref()
                .map_or("", |request| request.model.as_str());
            pipeline
                .cmd("ZRANK")
                .arg(self.queue_key(id, &pool_name(model, stage), &record.tenant))
                .arg(&record.job.id);
            asked.push(index);
        }
        let mut ranks = vec![None; records.len()];
        if asked.is_empty() {
            return Ok(ranks);
        }
        let answers: Vec<Option<u64>> = self.redis.pipe(&pipeline).await?;
        for (index, answer) in asked.into_iter().zip(answers) {
            if let Some(slot) = ranks.get_mut(index) {
                *slot = answer;
            }
        }
        Ok(ranks)
    }

    async fn loads(&self) -> Result<Arc<Loads>, RedisError> {
        let limit = Duration::from_millis(self.config.housekeeping_ms);
        {
            let latest = self.snapshot.0.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(seen) = latest.as_ref().filter(|seen| seen.read.elapsed() < limit) {
                return Ok(Arc::clone(&seen.loads));
            }
        }
        let loads = Arc::new(self.read_loads().await?);
        let mut latest = self.snapshot.0.write().unwrap_or_else(PoisonError::into_inner);
        *latest = Some(Seen {
            read: Instant::now(),
            loads: Arc::clone(&loads),
        });
        Ok(loads)
    }

    async fn read_loads(&self) -> Result<Loads, RedisError> {
        let mut loads = Loads::new();
        for shard in 0..self.keys.shards() {
            let prefix = self.keys.shard(shard);
            let mut pipeline = redis::pipe();
            for key in ["cnt", "took", "paused"] {
                pipeline.cmd("HGETALL").arg(format!("{prefix}{key}"));
            }
            type Fields = HashMap<String, String>;
            let (counts, took, paused): (Fields, Fields, Fields) = self.redis.pipe(&pipeline).await?;
            let mut tenants = BTreeSet::new();
            for (field, count) in &counts {
                let words: Vec<&str> = field.split(':').collect();
                let [state, model, stage, tenant] = words[..] else {
                    continue;
                };
                let count = count.parse::<u64>().unwrap_or(0);
                let load = loads.entry((model.to_owned(), stage.to_owned())).or_default();
                match state {
                    "queued" => {
                        tenants.insert(tenant.to_owned());
                        let weight = self.config.tenant.weight;
                        let waiting = Waiting {
                            jobs: count,
                            weight,
                            paused: false,
                        };
                        load.waiting.insert(tenant.to_owned(), waiting);
                    }
                    "running" => load.running += count,
                    _ => {}
                }
            }
            for (pool, ms) in took {
                if let Some((model, stage)) = pool.split_once(':') {
                    let load = loads.entry((model.to_owned(), stage.to_owned())).or_default();
                    load.took_ms = ms.parse().ok().or(load.took_ms);
                }
            }
            for pool in paused.keys() {
                if let Some((model, stage)) = pool.split_once(':') {
                    loads
                        .entry((model.to_owned(), stage.to_owned()))
                        .or_default()
                        .paused = true;
                }
            }
            self.read_shares(&prefix, tenants.into_iter().collect(), &mut loads)
                .await?;
        }
        Ok(loads)
    }

    async fn read_shares(
        &self,
        prefix: &str,
        tenants: Vec<String>,
        loads: &mut Loads,
    ) -> Result<(), RedisError> {
        if tenants.is_empty() {
            return Ok(());
        }
        let mut pipeline = redis::pipe();
        for tenant in &tenants {
            pipeline
                .cmd("HMGET")
                .arg(format!("{prefix}tenant:{tenant}"))
                .arg("weight")
                .arg("paused");
        }
        let answers: Vec<(Option<f64>, Option<String>)> = self.redis.pipe(&pipeline).await?;
        for (tenant, (weight, paused)) in tenants.iter().zip(answers) {
            for load in loads.values_mut() {
                if let Some(waiting) = load.waiting.get_mut(tenant) {
                    waiting.weight = weight.filter(|weight| *weight > 0.0).unwrap_or(waiting.weight);
                    waiting.paused = paused.is_some();
                }
            }
        }
        Ok(())
    }
}

/// Fills in places and estimates; a rank is that of a queued job among its tenant's.
fn place(loads: &Loads, records: &mut [Record], ranks: Vec<Option<u64>>) {
    for (record, rank) in records.iter_mut().zip(ranks) {
        let Some(stage) = stage_name(record.job.stage()) else {
            continue;
        };
        let model = record
            .job
            .request
            .as_ref()
            .map_or("", |request| request.model.as_str())
            .to_owned();
        let empty = PoolLoad::default();
        let load = |stage: &str| loads.get(&(model.clone(), stage.to_owned())).unwrap_or(&empty);
        let here = load(stage);
        let started = match (record.job.state(), rank) {
            (JobState::Queued, Some(own)) => {
                let ahead = here.ahead(&record.tenant, own);
                let is_paused = here
                    .waiting
                    .get(&record.tenant)
                    .is_some_and(|waiting| waiting.paused);
                let wait = here.wait_ms(ahead.saturating_add(1)).filter(|_| !is_paused);
                record.job.place = Some(QueuePlace {
                    ahead_of_tenant: own,
                    ahead,
                    wait: wait.map(|wait| duration(wait as u64)),
                });
                wait.zip(here.took_ms).map(|(wait, took)| wait + took)
            }
            (JobState::Running, _) => {
                let progress = record.job.progress.unwrap_or_default();
                here.took_ms.map(|took| left_ms(took, progress.step, progress.of))
            }
            _ => None,
        };
        let later = record.stages.split(',').skip_while(|name| *name != stage).skip(1);
        let total = later
            .filter(|name| stage_of_name(name).is_some())
            .try_fold(started, |sum, name| Some(Some(sum? + load(name).pass_ms()?)))
            .flatten();
        record.job.eta = total.map(|total| duration(total as u64));
    }
}
