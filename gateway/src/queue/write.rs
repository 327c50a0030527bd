//! The scripts that change something, typed.

use muse_proto::v1::JobErrorReason;
use redis::{Cmd, Script};

use super::{
    Queue, backoff,
    coalesce::Coalesced,
    gathering::Limits,
    keys::Keys,
    scripts,
    types::{
        Beat, Beaten, Cancellation, Completed, Fresh, Grant, NewJob, Purged, Reaped, Refusal, Reported,
        StageResult, Submission,
    },
};
use crate::{
    config,
    connection::{Call, Redis, RedisError},
    jobs::{JobId, Nonce, stage_name},
};

/// Leases renewed by one call; the script's own limit.
const BEATS: usize = 100;

type GrantReply = (
    String,
    String,
    Vec<u8>,
    Vec<u8>,
    Vec<u8>,
    u64,
    String,
    u64,
    u32,
    String,
);

/// Outcome, id, limit, its value, ms to wait, when it was created, rank.
pub(super) type Submitted = (String, String, String, String, u64, u64, i64);

/// Outcome, state, age, the other digest.
pub(super) type Finished = (String, String, u64, String);

/// About what an item has besides its request or result.
const ITEM_BYTES: usize = 256;

/// The scripts that take several items a call.
pub(super) fn coalesced(
    redis: &Redis,
    keys: &Keys,
    config: &config::Queue,
) -> (Coalesced<Submitted>, Coalesced<Finished>) {
    let limits = Limits {
        items: config.call_items,
        bytes: config.call_bytes,
        calls: config.calls_in_flight,
    };
    let tenant = &config.tenant;
    let mut constants = Cmd::new();
    constants
        .arg(config.max_waiting)
        .arg(config.max_bytes)
        .arg(config.rate)
        .arg(config.burst);
    constants
        .arg(tenant.max_queued)
        .arg(tenant.max_bytes)
        .arg(tenant.rate)
        .arg(tenant.burst);
    let (submit, complete) = (("submit", &*scripts::SUBMIT), ("complete", &*scripts::COMPLETE));
    (
        Coalesced::new((redis, keys), submit, constants, limits),
        Coalesced::new((redis, keys), complete, Cmd::new(), limits),
    )
}

/// How keys are laid out. A gateway that finds a later number must not touch them.
const SCHEMA: u32 = 2;

impl Queue {
    /// Notes the layout of the keys, or refuses a server that holds another one.
    ///
    /// # Errors
    /// [`RedisError::Refused`] names both layouts.
    pub async fn check_schema(&self) -> Result<(), RedisError> {
        for shard in 0..self.keys.shards() {
            let key = self.keys.shard(shard) + "meta";
            let mut pipeline = redis::pipe();
            pipeline
                .cmd("HSETNX")
                .arg(&key)
                .arg("schema")
                .arg(SCHEMA)
                .ignore();
            pipeline.cmd("HGET").arg(&key).arg("schema");
            let (schema,): (u32,) = self.redis.pipe(&pipeline).await?;
            if schema != SCHEMA {
                return Err(RedisError::Refused(format!(
                    "the keys under {key} have layout {schema}, this version knows {SCHEMA}: run the version that wrote \
                     them, or set another redis.prefix"
                )));
            }
        }
        Ok(())
    }

    /// Accepts a job. Repeating it with the same id changes nothing.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn submit(&self, job: &NewJob) -> Result<Submission, RedisError> {
        Ok(self.submit_anew(job, false).await?.0)
    }

    /// The same; tells also of a job that was created by this very call. `ranked`: with its rank.
    ///
    /// # Errors
    /// [`RedisError`].
    pub(super) async fn submit_anew(
        &self,
        job: &NewJob,
        ranked: bool,
    ) -> Result<(Submission, Option<Fresh>), RedisError> {
        let stages: Vec<&str> = job.stages.iter().filter_map(|stage| stage_name(*stage)).collect();
        let (key, request) = match &job.idempotency {
            Some(idempotency) => (idempotency.key.as_str(), idempotency.request.as_str()),
            None => ("", ""),
        };
        let mut item = Cmd::with_capacity(12, job.request.len() + ITEM_BYTES);
        item.arg(job.id.to_string())
            .arg(job.tenant.as_str())
            .arg(&job.model)
            .arg(stages.join(","));
        item.arg(job.rows)
            .arg(job.boost_ms)
            .arg(job.timeout_ms)
            .arg(&job.request[..])
            .arg(&job.traceparent);
        item.arg(key).arg(request).arg(u8::from(ranked));
        let (outcome, id, limit, value, wait_ms, created_ms, rank) =
            self.submissions.call(job.id.shard(), item).await?;
        let refusal = Refusal {
            limit,
            value,
            wait_ms: Some(wait_ms).filter(|wait| *wait > 0),
        };
        let fresh = (created_ms > 0).then(|| Fresh {
            created_ms,
            rank: u64::try_from(rank).ok(),
        });
        let id = || JobId::parse(&id).map_err(|_| foreign("submit", &id));
        let submission = match outcome.as_str() {
            "created" => Submission::Created(id()?),
            "existed" => Submission::Existed(id()?),
            "conflict" => Submission::Conflict,
            "full" => Submission::Full(refusal),
            "quota" => Submission::Quota(refusal),
            "broken" => return Err(broken("submit", &refusal.limit)),
            other => return Err(foreign("submit", other)),
        };
        Ok((submission, fresh))
    }

    /// Cancels a job in any live state.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn cancel(&self, id: JobId, tenant: &str) -> Result<Cancellation, RedisError> {
        let mut call = self.on(&scripts::CANCEL, id.shard());
        call.arg(id.to_string()).arg(tenant);
        match self.redis.eval::<String>(&call).await?.as_str() {
            "cancelled" => Ok(Cancellation::Cancelled),
            "ended" => Ok(Cancellation::Ended),
            "unknown" => Ok(Cancellation::Unknown),
            other => Err(foreign("cancel", other)),
        }
    }

    /// Leases jobs of a pool to `worker`: while credit in rows lasts, and one for each nonce at most. The last job may
    /// exceed the credit. Repeating it with the same nonces gives the same leases.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn claim(
        &self,
        shard: u16,
        (model, stage): (&str, &str),
        worker: &str,
        credit: u32,
        nonces: &[Nonce],
    ) -> Result<Vec<Grant>, RedisError> {
        let mut call = self.on(&scripts::CLAIM, shard);
        call.arg(model)
            .arg(stage)
            .arg(worker)
            .arg(self.config.lease_ms)
            .arg(credit)
            .arg(self.config.tenant.weight)
            .arg(self.config.tenant.max_running)
            .arg(self.config.history);
        for nonce in nonces {
            call.arg(nonce.to_string());
        }
        let replies: Vec<GrantReply> = self.redis.eval(&call).await?;
        let grants = replies.into_iter().map(|reply| {
            let (
                id,
                nonce,
                request,
                low_tokens,
                checkpoint,
                deadline_ms,
                traceparent,
                waited_ms,
                attempts,
                tenant,
            ) = reply;
            Ok(Grant {
                id: JobId::parse(&id).map_err(|_| foreign("claim", &id))?,
                nonce: Nonce::from_hex(&nonce).ok_or_else(|| foreign("claim", &nonce))?,
                request,
                low_tokens,
                checkpoint,
                deadline_ms,
                traceparent,
                waited_ms,
                attempts,
                tenant,
            })
        });
        grants.collect()
    }

    /// Renews leases of `worker`, and records progress. One answer for each beat, in order.
    ///
    /// # Errors
    /// [`RedisError`]; beats of other shards may have been taken.
    pub async fn beat(&self, worker: &str, beats: &[Beat]) -> Result<Vec<Beaten>, RedisError> {
        // A job of a shard that is not there any more is nobody's.
        let mut answers = vec![Beaten::Lost; beats.len()];
        for shard in 0..self.keys.shards() {
            let here: Vec<(usize, &Beat)> = beats
                .iter()
                .enumerate()
                .filter(|(_, beat)| beat.id.shard() == shard)
                .collect();
            for chunk in here.chunks(BEATS) {
                let mut call = self.on(&scripts::BEAT, shard);
                call.arg(worker).arg(self.config.lease_ms);
                for (_, beat) in chunk {
                    call.arg(beat.id.to_string()).arg(beat.nonce.to_string());
                    call.arg(beat.step).arg(beat.of).arg(&beat.checkpoint[..]);
                }
                let replies: Vec<String> = self.redis.eval(&call).await?;
                for ((index, _), reply) in chunk.iter().zip(replies) {
                    answers[*index] = match reply.as_str() {
                        "held" => Beaten::Held,
                        "cancelled" => Beaten::Cancelled,
                        "deadline" => Beaten::Deadline,
                        "reported" => Beaten::Reported,
                        _ => Beaten::Lost,
                    };
                }
            }
        }
        Ok(answers)
    }

    /// A stage is done: moves the job on to its next stage, or ends it, in one step.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn complete(
        &self,
        id: JobId,
        nonce: Nonce,
        stage: &str,
        result: &StageResult,
        rows: u32,
        timing: &[u8],
    ) -> Result<Completed, RedisError> {
        let kind = match result {
            StageResult::Tokens(_) => "tokens",
            StageResult::Pictures(_) => "pictures",
        };
        let encoded = result.encoded();
        let mut item = Cmd::with_capacity(8, encoded.len() + timing.len() + ITEM_BYTES);
        item.arg(id.to_string())
            .arg(nonce.to_string())
            .arg(stage)
            .arg(kind)
            .arg(encoded)
            .arg(timing)
            .arg(rows)
            .arg(result.digest());
        let (outcome, state, age_ms, other) = self.completions.call(id.shard(), item).await?;
        if outcome == "broken" {
            return Err(broken("complete", &state));
        }
        Ok(Completed {
            outcome: reported("complete", &outcome)?,
            job_ended: state == "succeeded",
            age_ms,
            other_digest: Some(other).filter(|digest| !digest.is_empty()),
        })
    }

    /// An attempt failed. It is tried again after a delay while the budget lasts and another attempt can help.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn fail(
        &self,
        id: JobId,
        nonce: Nonce,
        (reason, message): (JobErrorReason, &str),
        retriable: bool,
    ) -> Result<Reported, RedisError> {
        let delays = backoff::delays(
            self.config.attempts,
            self.config.backoff_base_ms,
            self.config.backoff_cap_ms,
            rand::random::<f64>,
        );
        let mut call = self.on(&scripts::FAIL, id.shard());
        call.arg(id.to_string())
            .arg(nonce.to_string())
            .arg(reason as i32)
            .arg(message);
        call.arg(u8::from(retriable))
            .arg(self.config.history)
            .arg(&delays);
        let (outcome, _state): (String, String) = self.redis.eval(&call).await?;
        reported("fail", &outcome)
    }

    /// Gives a job back unfinished; another shard goes on from `checkpoint` (encoded; empty: from the last one known).
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn release(&self, id: JobId, nonce: Nonce, checkpoint: &[u8]) -> Result<Reported, RedisError> {
        let mut call = self.on(&scripts::RELEASE, id.shard());
        call.arg(id.to_string()).arg(nonce.to_string()).arg(checkpoint);
        let (outcome, _state): (String, String) = self.redis.eval(&call).await?;
        reported("release", &outcome)
    }

    /// Moves on what time has overtaken in a shard, a batch at a time.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn reap(&self, shard: u16) -> Result<Reaped, RedisError> {
        let mut call = self.on(&scripts::REAP, shard);
        call.arg(self.config.reap_batch)
            .arg(self.config.crashes)
            .arg(self.config.history);
        let (lost, dead, delayed, overdue) = self.redis.eval(&call).await?;
        Ok(Reaped {
            lost,
            dead,
            delayed,
            overdue,
        })
    }

    /// Forgets jobs of a shard that ended long ago, a batch at a time.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn purge(&self, shard: u16) -> Result<Vec<Purged>, RedisError> {
        let mut call = self.on(&scripts::PURGE, shard);
        call.arg(self.config.reap_batch);
        call.arg(self.config.keep_done_seconds.saturating_mul(1000));
        call.arg(self.config.keep_dead_seconds.saturating_mul(1000));
        let replies: Vec<(String, String)> = self.redis.eval(&call).await?;
        let purged = replies.into_iter().filter_map(|(id, nonce)| {
            let id = JobId::parse(&id).ok()?;
            Some(Purged {
                id,
                pictures: Nonce::from_hex(&nonce),
            })
        });
        Ok(purged.collect())
    }

    pub(super) fn on(&self, script: &'static Script, shard: u16) -> Call {
        Call::new(script, self.keys.shard(shard) + "meta")
    }
}

fn reported(script: &str, outcome: &str) -> Result<Reported, RedisError> {
    match outcome {
        "accepted" => Ok(Reported::Accepted),
        "duplicate" => Ok(Reported::Duplicate),
        "stale" => Ok(Reported::Stale),
        "refused" => Ok(Reported::Refused),
        other => Err(foreign(script, other)),
    }
}

/// Something else has written over a key of this item alone.
fn broken(script: &str, fault: &str) -> RedisError {
    RedisError::Refused(format!("script {script}: {fault}"))
}

pub(super) fn foreign(script: &str, reply: &str) -> RedisError {
    RedisError::Refused(format!(
        "script {script} gave an answer that this version does not know: {reply}"
    ))
}
