//! The registry of models and the table of workers, both in Redis: every gateway knows them, and the models survive
//! restarts. A model's record is what its workers said when they attached.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use muse_proto::v1::{Model, Worker};
use prost::Message as _;

use crate::{
    Error, config,
    connection::{Bells, Call, RedisError},
    jobs::{stage_name, timestamp},
    queue::{Queue, scripts},
};

/// The registry; cloning is cheap.
#[derive(Clone)]
pub struct Models {
    queue: Queue,
    config: config::Models,
    worker_expiry_ms: u64,
    cache: Arc<RwLock<Option<Cached>>>,
    // Shared by the clones: who reads the registry answers the bell for all of them.
    rings: Arc<Mutex<tokio::sync::watch::Receiver<()>>>,
}

struct Cached {
    read: Instant,
    models: Arc<BTreeMap<String, Arc<Model>>>,
}

/// Another build of the model is being served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherDigest {
    /// The one being served.
    pub served: String,
    /// Live workers that serve it.
    pub workers: u64,
}

impl Models {
    /// The registry beside `queue`.
    pub fn new(queue: Queue, bells: &Bells, config: config::Models, worker_expiry_ms: u64) -> Self {
        Self {
            queue,
            config,
            worker_expiry_ms,
            cache: Arc::default(),
            rings: Arc::new(Mutex::new(bells.registry())),
        }
    }

    /// All models by name, with the live workers of each stage. At most `models.refresh_ms` old.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn all(&self) -> Result<Arc<BTreeMap<String, Arc<Model>>>, RedisError> {
        let rung = self.rings().has_changed().unwrap_or(false);
        {
            let cache = self.cache.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(cached) = cache.as_ref().filter(|cached| {
                !rung && cached.read.elapsed() < Duration::from_millis(self.config.refresh_ms)
            }) {
                return Ok(Arc::clone(&cached.models));
            }
        }
        self.refresh().await
    }

    /// The model of a request; an empty name means the default one. A name that is unknown to the copy in memory is
    /// looked up afresh before it is refused.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the known names, [`Error::NoModel`] while there is none at all.
    pub async fn find(&self, name: &str) -> Result<Arc<Model>, Error> {
        let models = self.all().await?;
        let found = match choose(name, &models, self.config.default.as_deref()) {
            Ok(model) => return Ok(Arc::clone(model)),
            Err(_) => self.refresh().await?,
        };
        match choose(name, &found, self.config.default.as_deref()) {
            Ok(model) => Ok(Arc::clone(model)),
            Err(_) if found.is_empty() => Err(Error::NoModel {
                retry: Duration::from_millis(self.config.retry_ms),
            }),
            Err(reason) => Err(Error::field("request.model", reason)),
        }
    }

    /// What an empty name means; empty when that is undecided.
    pub fn default_of(&self, models: &BTreeMap<String, Arc<Model>>) -> String {
        choose("", models, self.config.default.as_deref())
            .map(|model| model.name.clone())
            .unwrap_or_default()
    }

    /// Notes a worker as alive, and its model as served. Gives whether an operator wants it drained. `Err` inside: live
    /// workers serve another build of the model.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn seen(
        &self,
        worker: &Worker,
        session: &str,
        model: &Model,
    ) -> Result<Result<bool, OtherDigest>, RedisError> {
        let stage = stage_name(worker.stage()).unwrap_or_default();
        let stages: Vec<&str> = model
            .stages
            .iter()
            .filter_map(|served| stage_name(served.stage()))
            .collect();
        let mut call = Call::new(&scripts::WORKER_SEEN, self.queue.keys().registry() + "meta");
        call.arg(&worker.id)
            .arg(session)
            .arg(&model.name)
            .arg(stage)
            .arg(&model.bundle_digest);
        call.arg(model.encode_to_vec())
            .arg(worker.encode_to_vec())
            .arg(self.worker_expiry_ms)
            .arg(stages.join(","));
        let reply: Vec<redis::Value> = self.queue.redis().eval(&call).await?;
        if reply.len() < 3 {
            return Ok(Ok(matches!(reply.get(1), Some(redis::Value::Int(1)))));
        }
        let text = |index: usize| {
            reply
                .get(index)
                .and_then(|value| redis::from_redis_value_ref::<String>(value).ok())
                .unwrap_or_default()
        };
        Ok(Err(OtherDigest {
            served: text(1),
            workers: text(2).parse().unwrap_or(0),
        }))
    }

    /// Asks a worker, attached to any gateway, to give its jobs back and end. False: there is no such worker.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn drain(&self, worker: &str) -> Result<bool, RedisError> {
        let mut call = Call::new(&scripts::WORKER_DRAIN, self.queue.keys().registry() + "meta");
        call.arg(worker);
        Ok(self.queue.redis().eval::<u64>(&call).await? == 1)
    }

    /// A worker's stream ended; no effect when it has attached again meanwhile.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn left(&self, worker: &str, session: &str) -> Result<(), RedisError> {
        let mut call = Call::new(&scripts::WORKER_LEFT, self.queue.keys().registry() + "meta");
        call.arg(worker).arg(session);
        self.queue.redis().eval::<u64>(&call).await?;
        Ok(())
    }

    /// The workers attached to any gateway, by name.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn workers(&self) -> Result<Vec<Worker>, RedisError> {
        let prefix = self.queue.keys().registry();
        let mut command = redis::cmd("ZRANGE");
        command
            .arg(format!("{prefix}seen"))
            .arg(0)
            .arg(-1)
            .arg("WITHSCORES");
        let seen: Vec<(String, f64)> = self.queue.redis().query(&command).await?;
        if seen.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for (worker, _) in &seen {
            pipeline
                .cmd("HGET")
                .arg(format!("{prefix}worker:{worker}"))
                .arg("record");
        }
        let records: Vec<Option<Vec<u8>>> = self.queue.redis().pipe(&pipeline).await?;
        let mut workers: Vec<Worker> = seen
            .into_iter()
            .zip(records)
            .filter_map(|((_, seen_ms), record)| {
                // The record of a silent worker has expired.
                let mut worker = Worker::decode(record?.as_slice()).ok()?;
                worker.last_seen_at = Some(timestamp(seen_ms as u64));
                Some(worker)
            })
            .collect();
        workers.sort_by(|a, b| (&a.model, a.stage, &a.id).cmp(&(&b.model, b.stage, &b.id)));
        Ok(workers)
    }

    fn rings(&self) -> MutexGuard<'_, tokio::sync::watch::Receiver<()>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn refresh(&self) -> Result<Arc<BTreeMap<String, Arc<Model>>>, RedisError> {
        let prefix = self.queue.keys().registry();
        // Before it is read, so that what changes meanwhile rings again.
        self.rings().mark_unchanged();
        let mut pipeline = redis::pipe();
        pipeline.cmd("HVALS").arg(format!("{prefix}models")).cmd("TIME");
        let (records, (seconds, micros)): (Vec<Vec<u8>>, (u64, u64)) =
            self.queue.redis().pipe(&pipeline).await?;
        let now_ms = seconds * 1000 + micros / 1000;
        let mut models: Vec<Model> = records
            .iter()
            .filter_map(|record| Model::decode(record.as_slice()).ok())
            .collect();
        let mut pipeline = redis::pipe();
        let mut asked = false;
        for model in &models {
            for served in &model.stages {
                let stage = stage_name(served.stage()).unwrap_or_default();
                let since = now_ms.saturating_sub(self.worker_expiry_ms);
                pipeline
                    .cmd("ZCOUNT")
                    .arg(format!("{prefix}live:{}:{stage}", model.name))
                    .arg(since)
                    .arg("+inf");
                asked = true;
            }
        }
        let counts: Vec<u32> = if asked {
            self.queue.redis().pipe(&pipeline).await?
        } else {
            Vec::new()
        };
        let slots = models.iter_mut().flat_map(|model| &mut model.stages);
        for (served, workers) in slots.zip(counts) {
            served.workers = workers;
        }
        let models: Arc<BTreeMap<String, Arc<Model>>> = Arc::new(
            models
                .into_iter()
                .map(|model| (model.name.clone(), Arc::new(model)))
                .collect(),
        );
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        *cache = Some(Cached {
            read: Instant::now(),
            models: Arc::clone(&models),
        });
        Ok(models)
    }
}

/// The model that a name means, or why there is none. Empty: `default`, else the only one with live workers, else the
/// only one.
fn choose<'a>(
    name: &str,
    models: &'a BTreeMap<String, Arc<Model>>,
    default: Option<&str>,
) -> Result<&'a Arc<Model>, String> {
    let known = || models.keys().cloned().collect::<Vec<_>>().join(", ");
    let wanted = if name.is_empty() { default } else { Some(name) };
    if let Some(wanted) = wanted {
        let whose = if name.is_empty() {
            "the default model, "
        } else {
            ""
        };
        let missing = || format!("{whose}{wanted:?}, is not served; the models are: {}", known());
        return models.get(wanted).ok_or_else(missing);
    }
    let only = |models: Vec<&'a Arc<Model>>| {
        if let [model] = models[..] {
            Some(model)
        } else {
            None
        }
    };
    let live = |model: &&Arc<Model>| model.stages.iter().any(|served| served.workers > 0);
    only(models.values().filter(live).collect())
        .or_else(|| only(models.values().collect()))
        .ok_or_else(|| format!("is required, because several models are served: {}", known()))
}

#[cfg(test)]
mod tests {
    use muse_proto::v1::ModelStage;

    use super::*;

    fn models(names: &[(&str, u32)]) -> BTreeMap<String, Arc<Model>> {
        let model = |(name, workers): &(&str, u32)| {
            let stages = vec![ModelStage {
                workers: *workers,
                ..ModelStage::default()
            }];
            (
                (*name).to_owned(),
                Arc::new(Model {
                    name: (*name).to_owned(),
                    stages,
                    ..Model::default()
                }),
            )
        };
        names.iter().map(model).collect()
    }

    fn chosen(
        name: &str,
        models: &BTreeMap<String, Arc<Model>>,
        default: Option<&str>,
    ) -> Result<String, String> {
        choose(name, models, default).map(|model| model.name.clone())
    }

    #[test]
    fn an_empty_name_means_the_default_or_the_only_model() {
        assert_eq!(chosen("", &models(&[("a", 0)]), None), Ok("a".to_owned()));
        assert_eq!(
            chosen("", &models(&[("a", 1), ("b", 1)]), Some("b")),
            Ok("b".to_owned())
        );
        assert_eq!(
            chosen("", &models(&[("retired", 0), ("new", 2)]), None),
            Ok("new".to_owned())
        );
    }

    #[test]
    fn an_unknown_or_undecided_name_is_refused_with_the_known_ones() {
        let two = models(&[("a", 1), ("b", 1)]);
        for refused in [
            chosen("c", &two, None),
            chosen("", &two, None),
            chosen("", &two, Some("c")),
        ] {
            let reason = refused.unwrap_err();
            assert!(reason.contains("a, b"), "{reason}");
        }
    }
}
