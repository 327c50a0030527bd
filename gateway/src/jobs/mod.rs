//! Jobs, as a library: what the public API does, without a word of gRPC's transport. The handlers in `api/` are one front
//! end of it; another (HTTP) would call the same methods.

mod id;
mod idempotency;
mod page;
mod picture;
mod record;
mod stage;

use std::{sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _};
use muse_proto::v1::{
    GenerationRequest, Image, Job, ListJobsRequest, ListJobsResponse, PrimaryDurability, Priority, Stage,
};
use muse_service::Tenant;
use prost::Message as _;
use tracing::Instrument as _;

use self::picture::Picture;
pub use self::{
    id::{InvalidJobId, JobId, Nonce},
    record::{Record, duration, timestamp},
    stage::{sampling_of, stage_after, stage_name, stage_of_name},
};
use crate::{
    Error, config,
    connection::{Confirmed, RedisError},
    models::Models,
    queue::{Acceptance, Cancellation, NewJob, Queue, Refusal, Submission, boost_ms},
    results::{Recent, ResultStore},
    validate,
    watch::{Ends, News, Watcher},
};
pub use muse_proto::std_duration;

/// Everything a front end needs; cloning is cheap.
#[derive(Clone)]
pub struct Jobs {
    queue: Queue,
    models: Models,
    results: Arc<dyn ResultStore>,
    recent: Recent,
    watcher: Watcher,
    limits: Arc<config::Limits>,
    priority_boost_ms: u64,
    memory_share: f64,
}

/// An accepted job.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// Its name.
    pub id: JobId,
    /// The idempotency key was known: it is the earlier one.
    pub already_existed: bool,
    /// What it survives.
    pub durability: muse_proto::v1::Durability,
}

/// An accepted job, told in full.
#[derive(Clone, Debug)]
pub struct Submitted {
    /// As it is stored.
    pub job: Job,
    /// The idempotency key was known: it is the earlier one.
    pub already_existed: bool,
    /// What it survives.
    pub durability: muse_proto::v1::Durability,
}

impl Jobs {
    /// Puts the parts together.
    pub fn new(
        queue: Queue,
        models: Models,
        (results, recent): (Arc<dyn ResultStore>, Recent),
        watcher: Watcher,
        config: &config::Config,
    ) -> Self {
        Self {
            queue,
            models,
            results,
            recent,
            watcher,
            limits: Arc::new(config.limits.clone()),
            priority_boost_ms: config.queue.priority_boost_ms,
            memory_share: config.redis.memory_share,
        }
    }

    /// The registry of models.
    pub fn models(&self) -> &Models {
        &self.models
    }

    /// The queue under it.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Checks a request, fills in every default, and puts it into the queue.
    ///
    /// # Errors
    /// [`Error::Invalid`] with every violation, [`Error::NoModel`], [`Error::IdempotencyConflict`], [`Error::Full`],
    /// [`Error::Quota`], [`Error::MemoryShort`], [`Error::Redis`].
    pub async fn accept(
        &self,
        tenant: &Tenant,
        request: Option<GenerationRequest>,
        traceparent: Option<String>,
    ) -> Result<Accepted, Error> {
        let (new, request) = self.resolve(tenant, request, traceparent).await?;
        self.queue.expect_first(&new, || validate::texts_of(&request));
        let accepted = self.queue.accept(&new).instrument(submit_span(&new)).await?;
        self.accepted(&new, accepted)
    }

    /// As [`Jobs::accept`], and tells the job as it stands.
    ///
    /// # Errors
    /// As there.
    pub async fn submit(
        &self,
        tenant: &Tenant,
        request: Option<GenerationRequest>,
        traceparent: Option<String>,
    ) -> Result<Submitted, Error> {
        let (new, request) = self.resolve(tenant, request, traceparent).await?;
        self.queue.expect_first(&new, || validate::texts_of(&request));
        let accepted = self
            .queue
            .accept_ranked(&new)
            .instrument(submit_span(&new))
            .await?;
        // What the call itself has created need not be read back.
        let fresh = accepted.fresh;
        let Accepted {
            id,
            already_existed,
            durability,
        } = self.accepted(&new, accepted)?;
        let job = match fresh {
            Some(fresh) => {
                let record = Record::fresh(&new, request, fresh.created_ms);
                self.queue.located_at(record, fresh.rank).await
            }
            None => match self.get(tenant, &id.to_string()).await {
                // It went with the server's last moments before it could be read back: nothing was accepted.
                Err(Error::UnknownJob) => {
                    let lost = "Redis has lost what it took a moment ago".to_owned();
                    return Err(RedisError::Unavailable(lost).into());
                }
                job => job?,
            },
        };
        Ok(Submitted {
            job,
            already_existed,
            durability,
        })
    }

    /// A request that passes every check, as it is put into the queue, and with every default in it.
    async fn resolve(
        &self,
        tenant: &Tenant,
        request: Option<GenerationRequest>,
        traceparent: Option<String>,
    ) -> Result<(NewJob, GenerationRequest), Error> {
        let name = request.as_ref().map_or("", |request| request.model.as_str());
        let model = self.models.find(name).await;
        // A wrong model is one violation among the others.
        let mut violations = match &model {
            Err(Error::Invalid(violations)) => violations.clone(),
            _ => Vec::new(),
        };
        violations.extend(validate::request(
            request.as_ref(),
            model.as_deref().ok(),
            &self.limits,
        ));
        if !violations.is_empty() {
            return Err(Error::Invalid(violations));
        }
        let (Some(request), model) = (request, model?) else {
            return Err(Error::field("request", "is required"));
        };
        if self.queue.redis().memory_share() >= self.memory_share {
            return Err(Error::MemoryShort);
        }

        let idempotency = idempotency::of(&request);
        let resolved = validate::resolve(request, &model, &self.limits, rand::random());
        let id = JobId::new(self.queue.keys().shard_of(tenant));
        let priority = Priority::try_from(resolved.priority).unwrap_or_default();
        let new = NewJob {
            id,
            tenant: tenant.clone(),
            model: model.name.clone(),
            stages: model
                .stages
                .iter()
                .map(|served| served.stage())
                .filter(|stage| *stage != Stage::Unspecified)
                .collect(),
            rows: validate::count_of(&resolved),
            boost_ms: boost_ms(priority, self.priority_boost_ms),
            timeout_ms: validate::timeout_of(&resolved),
            request: resolved.encode_to_vec(),
            traceparent: traceparent.unwrap_or_default(),
            idempotency,
        };
        Ok((new, resolved))
    }

    /// What the queue's answer means for the client.
    fn accepted(&self, new: &NewJob, accepted: Acceptance) -> Result<Accepted, Error> {
        let (id, already_existed) = match accepted.submission {
            Submission::Created(id) => (id, false),
            Submission::Existed(id) => (id, true),
            Submission::Conflict => return Err(Error::IdempotencyConflict),
            Submission::Full(refusal) => {
                let retry = self.refused("queue", &refusal);
                return Err(Error::Full { refusal, retry });
            }
            Submission::Quota(refusal) => {
                let (tenant, retry) = (new.tenant.clone(), self.refused("tenant", &refusal));
                return Err(Error::Quota {
                    tenant,
                    refusal,
                    retry,
                });
            }
        };
        if !already_existed {
            metrics::counter!("muse_jobs_submitted_total", "model" => new.model.clone()).increment(1);
        }
        Ok(Accepted {
            id,
            already_existed,
            durability: accepted.confirmed.map(durability).unwrap_or_default(),
        })
    }

    /// A job as it stands.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that is none, [`Error::UnknownJob`] also for another tenant's.
    pub async fn get(&self, tenant: &Tenant, job_id: &str) -> Result<Job, Error> {
        Ok(self.queue.located(self.record(tenant, job_id).await?).await)
    }

    /// A page of the tenant's jobs, newest first.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub async fn list(&self, tenant: &Tenant, request: &ListJobsRequest) -> Result<ListJobsResponse, Error> {
        page::list(&self.queue, &self.limits, tenant, request).await
    }

    /// Cancels a job in any state; one that has ended is left as it is.
    ///
    /// # Errors
    /// As [`Jobs::get`].
    pub async fn cancel(&self, tenant: &Tenant, job_id: &str) -> Result<Job, Error> {
        let id = parse(job_id)?;
        if id.shard() >= self.queue.keys().shards() {
            return Err(Error::UnknownJob);
        }
        match self.queue.cancel(id, tenant.as_str()).await? {
            Cancellation::Unknown => Err(Error::UnknownJob),
            Cancellation::Cancelled | Cancellation::Ended => self.get(tenant, job_id).await,
        }
    }

    /// News of a job to its end. The last item has its record too.
    ///
    /// # Errors
    /// As [`Jobs::get`], before the first item.
    pub async fn watch(
        &self,
        tenant: &Tenant,
        job_id: &str,
        after_version: u64,
    ) -> Result<impl Stream<Item = Result<(News, Option<Record>), Error>> + Send + use<>, Error> {
        let known = self.record(tenant, job_id).await?;
        let queue = self.queue.clone();
        let news = self.watcher.watch(parse(job_id)?, after_version);
        Ok(news.then(move |item| {
            let (queue, known) = (queue.clone(), known.clone());
            async move {
                let (job, ended) = match item {
                    Ok((News::Job(job), ended)) => (job, ended),
                    other => return other,
                };
                let job = queue.located(Record { job: *job, ..known }).await;
                Ok((News::Job(Box::new(job)), ended))
            }
        }))
    }

    /// The ends of up to `most` jobs at once, of which the caller has made sure that they are the tenant's.
    pub fn ends(&self, most: usize) -> Ends {
        self.watcher.ends(most)
    }

    /// One picture of a job.
    ///
    /// # Errors
    /// [`Error::NoImage`] says why there is none.
    pub async fn image(&self, tenant: &Tenant, job_id: &str, index: u32) -> Result<Image, Error> {
        let record = self.record(tenant, job_id).await?;
        self.read(&Picture::of_job(&record, index)?).await
    }

    /// One picture of a job that was watched to its end.
    ///
    /// # Errors
    /// [`Error::NoImage`] says why there is none.
    pub async fn image_of(&self, record: &Record, index: u32) -> Result<Image, Error> {
        let picture = Picture::of_job(record, index)?;
        match self.recent.take(picture.id, picture.nonce, index) {
            Some(data) => Ok(picture.with(data)),
            None => self.read(&picture).await,
        }
    }

    async fn read(&self, picture: &Picture<'_>) -> Result<Image, Error> {
        match self
            .results
            .get(picture.id, picture.nonce, picture.info.index)
            .await?
        {
            Some(data) => Ok(picture.with(data)),
            None => Err(Error::NoImage("the picture is not kept any more".to_owned())),
        }
    }

    /// Counts a refusal; gives when to try again.
    fn refused(&self, whose: &'static str, refusal: &Refusal) -> Duration {
        let limit = refusal.limit.clone();
        metrics::counter!("muse_jobs_refused_total", "whose" => whose, "limit" => limit).increment(1);
        Duration::from_millis(refusal.wait_ms.unwrap_or(self.queue.config().full_retry_ms))
    }

    async fn record(&self, tenant: &Tenant, job_id: &str) -> Result<Record, Error> {
        let record = self.queue.get(parse(job_id)?).await?;
        record
            .filter(|record| record.tenant == tenant.as_str())
            .ok_or(Error::UnknownJob)
    }
}

fn submit_span(new: &NewJob) -> tracing::Span {
    tracing::info_span!("submit", job = %new.id, model = %new.model, tenant = %new.tenant)
}

fn durability(confirmed: Confirmed) -> muse_proto::v1::Durability {
    let primary = match confirmed.primary {
        config::Durability::Always | config::Durability::Synced => PrimaryDurability::Disk,
        config::Durability::Everysec => PrimaryDurability::EverySecond,
        config::Durability::None => PrimaryDurability::Memory,
        config::Durability::Unverified => PrimaryDurability::Unspecified,
    };
    muse_proto::v1::Durability {
        primary: primary.into(),
        replicas: confirmed.replicas,
        replicas_on_disk: confirmed.replicas_on_disk,
    }
}

fn parse(job_id: &str) -> Result<JobId, Error> {
    JobId::parse(job_id).map_err(|invalid| Error::field("job_id", invalid.to_string()))
}
