//! Leases, from the claim to the report: the scripts that workers set off, typed.

use muse_proto::v1::JobErrorReason;
use redis::Cmd;

use super::{
    Queue, backoff,
    call::{ITEM_BYTES, broken, foreign},
    coalesce::{Coming, Item},
    pool_name, scripts,
    types::{Beat, Beaten, Completed, Grant, Reported, StageResult},
};
use crate::{
    connection::RedisError,
    jobs::{JobId, Nonce, stage_after},
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

/// Outcome, state, age, the other digest.
pub(super) type Finished = (String, String, u64, String);

impl Queue {
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

    /// A stage of a model is done: moves the job on to its next stage, or ends it, in one step.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn complete(
        &self,
        id: JobId,
        nonce: Nonce,
        (model, stage): (&str, &str),
        result: &StageResult,
        rows: u32,
        timing: &[u8],
    ) -> Result<Completed, RedisError> {
        let (kind, writes) = match result {
            StageResult::Tokens(_) => ("tokens", &[][..]),
            StageResult::Pictures { writes, .. } => ("pictures", &writes[..]),
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
        let next = stage_after(stage).filter(|_| matches!(result, StageResult::Tokens(_)));
        let ahead = self.ahead(|| match next {
            Some(next) => Coming::Work(pool_name(model, next)),
            None => Coming::End(id.to_string()),
        });
        let item = Item::writing(item, writes).telling(ahead);
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
