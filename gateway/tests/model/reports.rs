//! What workers report, and what time overtakes: the scripts that move leased jobs, as docs/queue.md says.

use crate::{
    calls::{Beat, Complete, Fail},
    shard::{Budget, Finish, Job, Ms, Reply, Shard, State, reply},
};

impl Shard {
    pub fn beat(&mut self, worker: &str, lease: Ms, beats: &[Beat]) -> Reply {
        let expires = self.tick() + lease;
        let reply = beats.iter().map(|beat| self.beat_one(worker, expires, beat));
        Reply::from(reply.collect::<Vec<_>>())
    }

    fn beat_one(&mut self, worker: &str, expires: Ms, beat: &Beat) -> &'static str {
        let (id, nonce) = (beat.id.as_str(), beat.nonce.as_str());
        let progress = Some((beat.step.clone(), beat.of.clone()));
        let Some(job) = self.jobs.get_mut(id) else {
            return "lost";
        };
        if job.reported.as_deref() == Some(nonce) {
            return "reported";
        }
        if job.was_lost_by(nonce) {
            // The lease ran out, but the shard is alive and nobody took the job over.
            (job.progress, job.acked) = (progress, Some(nonce.to_owned()));
            self.leave(id);
            self.forgive(id);
            self.run(id, nonce, worker, expires);
        } else if job.runs_under(nonce) {
            job.state = State::Running(nonce.to_owned(), expires);
            job.acked = Some(nonce.to_owned());
            if job.progress != progress {
                job.progress = progress;
                self.save(id);
            }
        } else {
            return match (&job.state, &job.error) {
                (State::Cancelled, _) => "cancelled",
                (State::Failed, Some((reason, _))) if reason == "5" => "deadline",
                _ => "lost",
            };
        }
        if !beat.checkpoint.is_empty() {
            self.job(id).checkpoint = Some(beat.checkpoint.clone());
        }
        "held"
    }

    pub fn complete(&mut self, complete: &Complete) -> Reply {
        let (id, nonce) = (complete.id.as_str(), complete.nonce.as_str());
        let Some(job) = self.jobs.get(id).cloned() else {
            return reply!["stale", "", 0, ""];
        };
        let age = self.now - job.created;
        let finish = job.finishes.get(&complete.stage);
        let digest = finish.map(|finish| finish.digest.as_str()).unwrap_or_default();
        let other = if digest == complete.digest { "" } else { digest };
        if finish.is_some_and(|finish| finish.nonce == nonce) {
            return reply!["duplicate", job.state.name(), age, other];
        }
        let late = job.was_lost_by(nonce);
        if !(late || job.runs_under(nonce)) || job.stage != complete.stage {
            return reply!["stale", job.state.name(), age, other];
        }
        let after = job.stage_after().cloned();
        if complete.is_tokens != after.is_some() || complete.rows != job.rows {
            return reply!["refused", job.state.name(), age, ""];
        }
        if late {
            self.forgive(id);
        } else if let Some(claimed) = job.claimed {
            let took = (self.now - claimed) as f64;
            let before = self.took.get(&job.pool()).copied().unwrap_or(took);
            let average = format!("{:.1}", before + (took - before) / 16.0);
            self.took.insert(job.pool(), average.parse().expect("a number"));
        }
        let record = self.job(id);
        record.reported = Some(nonce.to_owned());
        let finish = Finish {
            nonce: nonce.to_owned(),
            digest: complete.digest.clone(),
            timing: complete.timing.clone(),
            tokens: after.is_some().then(|| complete.result.clone()),
        };
        record.finishes.insert(complete.stage.clone(), finish);
        let Some(after) = after else {
            record.pictures = Some((complete.result.clone(), nonce.to_owned()));
            self.finish(id, State::Succeeded);
            return reply!["accepted", "succeeded", age, ""];
        };
        self.leave(id);
        let record = self.job(id);
        record.bytes += complete.result.len() as i64;
        (record.prev, record.checkpoint, record.progress, record.owner) = (None, None, None, None);
        (record.stage, record.attempts) = (after, 0);
        self.save(id);
        self.enqueue(id);
        reply!["accepted", "queued", age, ""]
    }

    pub fn fail(&mut self, fail: &Fail) -> Reply {
        let (id, nonce) = (fail.id.as_str(), fail.nonce.as_str());
        let now = self.now;
        let Some(job) = self.jobs.get_mut(id) else {
            return reply!["stale", ""];
        };
        if job.failed.as_deref() == Some(nonce) {
            return reply!["duplicate", job.state.name()];
        }
        if !job.runs_under(nonce) {
            return reply!["stale", job.state.name()];
        }
        job.attempts += 1;
        (job.failed, job.reported) = (Some(nonce.to_owned()), Some(nonce.to_owned()));
        let delay = fail
            .delays
            .get(job.attempts as usize - 1)
            .filter(|_| fail.retriable);
        let Some(delay) = delay else {
            self.bury(id, fail.history, &fail.reason, &fail.message);
            return reply!["accepted", "failed"];
        };
        self.note(id, fail.history, &fail.reason, &fail.message);
        self.leave(id);
        let job = self.job(id);
        job.state = State::Delayed(now + delay);
        (job.prev, job.checkpoint, job.progress) = (None, None, None);
        job.error = Some((fail.reason.clone(), fail.message.clone()));
        self.mark(id);
        self.save(id);
        reply!["accepted", "delayed"]
    }

    pub fn release(&mut self, id: &str, nonce: &str, checkpoint: &str) -> Reply {
        let Some(job) = self.jobs.get_mut(id) else {
            return reply!["stale", ""];
        };
        if job.released.as_deref() == Some(nonce) {
            return reply!["duplicate", job.state.name()];
        }
        let late = job.was_lost_by(nonce);
        if !late && !job.runs_under(nonce) {
            return reply!["stale", job.state.name()];
        }
        if !checkpoint.is_empty() {
            job.checkpoint = Some(checkpoint.to_owned());
        }
        (job.released, job.reported) = (Some(nonce.to_owned()), Some(nonce.to_owned()));
        if late {
            job.prev = None;
            self.forgive(id);
            self.save(id);
        } else {
            self.requeue_job(id, None);
        }
        reply!["accepted", "queued"]
    }

    pub fn reap(&mut self, most: i64, crashes: i64, history: i64) -> Reply {
        let (now, clock) = (self.now, self.tick());
        let overdue = self.due(|job| job.state.is_live().then_some(job.deadline), now, most);
        for id in &overdue {
            self.revoke(id, "deadline");
            self.bury(id, history, "5", "the deadline passed before the job was done");
        }
        let lease = |job: &Job| match job.state {
            State::Running(_, lease) => Some(lease),
            _ => None,
        };
        let lost = self.due(lease, clock, most);
        let mut dead = 0;
        for id in &lost {
            let job = self.job(id);
            let State::Running(nonce, _) = job.state.clone() else {
                continue;
            };
            let unacked = job.unacked.unwrap_or(0);
            let is_acked = job.acked.as_ref() == Some(&nonce);
            let charged = if !is_acked && unacked < crashes {
                Budget::Unacked
            } else {
                Budget::Crashes
            };
            let crashed = job.crashes + i64::from(charged == Budget::Crashes);
            job.crashes = crashed;
            if crashed >= crashes {
                dead += 1;
                let message =
                    format!("{crashed} shards were lost while they held this job; it is not tried again");
                self.bury(id, history, "4", &message);
                continue;
            }
            job.unacked = Some(unacked + i64::from(charged == Budget::Unacked));
            job.charged = Some(charged);
            self.note(id, history, "4", "the shard was lost");
            self.requeue_job(id, Some(nonce));
        }
        let delay = |job: &Job| match job.state {
            State::Delayed(until) => Some(until),
            _ => None,
        };
        let over = self.due(delay, now, most);
        for id in &over {
            self.requeue_job(id, None);
        }
        reply![lost.len() as i64, dead, over.len() as i64, overdue.len() as i64]
    }
}
