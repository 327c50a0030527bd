//! Which function stands for which script; and those that take jobs in and lease them, as docs/queue.md says.

use std::collections::BTreeMap;

use crate::{
    calls::{Call, Claim, Submit},
    shard::{Claimed, Job, Line, Ms, Rate, Reply, Shard, State, reply},
};

/// Tenants that one claim looks at.
const LOOKS: usize = 100;

impl Shard {
    /// One call, at a time.
    pub fn call(&mut self, now: Ms, call: &Call) -> Reply {
        self.now = now;
        self.rung.clear();
        match call {
            Call::Submit(all) => self.submit_all(all),
            Call::Claim(claim) => self.claim(claim),
            Call::Beat { worker, lease, beats } => self.beat(worker, *lease, beats),
            Call::Complete(all) => Reply::List(all.iter().map(|complete| self.complete(complete)).collect()),
            Call::Fail(fail) => self.fail(fail),
            Call::Release {
                id,
                nonce,
                checkpoint,
            } => self.release(id, nonce, checkpoint),
            Call::Reap {
                most,
                crashes,
                history,
            } => self.reap(*most, *crashes, *history),
            Call::Cancel { id, tenant } => self.cancel(id, tenant),
            Call::Purge {
                most,
                keep_done,
                keep_dead,
            } => self.purge(*most, *keep_done, *keep_dead),
            Call::TenantSet { tenant, settings } => self.tenant_set(tenant, settings),
            Call::Pause { name, resume, reason } => self.pause(name, *resume, reason),
            Call::RetryDead { token, ids } => self.retry_dead(token, ids),
            Call::PurgeDead { ids } => self.purge_dead(ids),
            Call::Requeue { id } => self.requeue(id),
            Call::Audit {
                token, act, patience, ..
            } => self.audit(token, act, *patience),
            Call::Wrong { script, .. } => Reply::Error(format!("{script}: bad arguments")),
        }
    }

    /// One after another; ranks are those after all.
    fn submit_all(&mut self, all: &[Submit]) -> Reply {
        let mut replies = Vec::new();
        for new in all {
            let was_there = self.jobs.contains_key(&new.id);
            let reply = self.submit(new);
            let is_new = !was_there && self.jobs.contains_key(&new.id);
            replies.push((new, reply, is_new));
        }
        let told = |(new, mut reply, is_new): (&Submit, Reply, bool)| {
            if let (Reply::List(parts), true) = (&mut reply, is_new) {
                parts[5] = Reply::Int(self.now);
                if new.ranked {
                    parts[6] = Reply::Int(self.rank(&new.id));
                }
            }
            reply
        };
        Reply::List(replies.into_iter().map(told).collect())
    }

    fn rank(&self, id: &str) -> i64 {
        let job = &self.jobs[id];
        let (pool, place) = (job.pool(), (job.score, &job.id));
        let is_before = |other: &&Job| {
            other.tenant == job.tenant && other.waits_in(&pool) && (other.score, &other.id) < place
        };
        self.jobs.values().filter(is_before).count() as i64
    }

    fn submit(&mut self, new: &Submit) -> Reply {
        if self.jobs.contains_key(&new.id) {
            return submitted("created", &new.id, "", None, 0.0);
        }
        if let Some((key, request)) = &new.idempotency {
            let is_known = |job: &&Job| {
                let known = job.idempotency.as_ref();
                job.tenant == new.tenant && known.is_some_and(|(known, _)| known == key)
            };
            if let Some(job) = self.jobs.values().find(is_known) {
                let same = job
                    .idempotency
                    .as_ref()
                    .is_some_and(|(_, known)| known == request);
                return submitted(if same { "existed" } else { "conflict" }, &job.id, "", None, 0.0);
            }
        }
        let first = new.stages.first().cloned().unwrap_or_default();
        let pool = format!("{}:{first}", new.model);
        let bytes = (new.request.len() + new.traceparent.len()) as i64;
        let waiting = self.jobs.values().filter(|job| job.waits_in(&pool)).count() as i64;
        if waiting >= new.max_waiting {
            return submitted("full", &new.id, "jobs", Some(new.max_waiting as f64), 0.0);
        }
        if new.max_bytes > 0 && self.bytes(None) + bytes > new.max_bytes {
            return submitted("full", &new.id, "bytes", Some(new.max_bytes as f64), 0.0);
        }
        let (due, wait) = self.bucket("", new.rate, new.burst);
        if wait > 0.0 {
            return submitted("full", &new.id, "rate", Some(new.rate), wait);
        }
        let (tenant, default) = (&new.tenant, &new.tenant_limits);
        let own = |name: &str, default: f64| self.setting(tenant, name).unwrap_or(default);
        let max_queued = own("max_queued", default.max_queued);
        if max_queued > 0.0 && self.count(tenant, &["queued", "delayed"]) as f64 >= max_queued {
            return submitted("quota", &new.id, "max_queued", Some(max_queued), 0.0);
        }
        let max_bytes = own("max_bytes", default.max_bytes);
        if max_bytes > 0.0 && (self.bytes(Some(tenant)) + bytes) as f64 > max_bytes {
            return submitted("quota", &new.id, "max_bytes", Some(max_bytes), 0.0);
        }
        let rate = own("rate", default.rate);
        let (own_due, wait) = self.bucket(tenant, rate, own("burst", default.burst));
        if wait > 0.0 {
            return submitted("quota", &new.id, "rate", Some(rate), wait);
        }
        self.pay("", due);
        self.pay(tenant, own_due);
        let now = self.now;
        let job = Job {
            id: new.id.clone(),
            state: State::Queued,
            tenant: tenant.clone(),
            model: new.model.clone(),
            stages: new.stages.clone(),
            stage: first,
            rows: new.rows,
            score: now - new.boost,
            request: new.request.clone(),
            traceparent: new.traceparent.clone(),
            bytes,
            timeout: new.timeout,
            deadline: now + new.timeout,
            attempts: 0,
            crashes: 0,
            unacked: None,
            created: now,
            updated: now,
            queued: now,
            claimed: None,
            finished: None,
            version: 1,
            owner: None,
            acked: None,
            prev: None,
            charged: None,
            progress: None,
            checkpoint: None,
            finishes: BTreeMap::new(),
            pictures: None,
            error: None,
            reported: None,
            failed: None,
            released: None,
            retried: None,
            idempotency: new.idempotency.clone(),
            seen: None,
            history: Vec::new(),
        };
        self.jobs.insert(new.id.clone(), job);
        self.enqueue(&new.id);
        submitted("created", &new.id, "", None, 0.0)
    }

    /// When the submission after this one would be on time, and how long this one must wait.
    fn bucket(&self, whose: &str, rate: f64, burst: f64) -> (Option<f64>, f64) {
        if rate <= 0.0 {
            return (None, 0.0);
        }
        let now = self.now as f64;
        let (space, most) = (
            1000.0 / rate,
            if burst > 0.0 { burst } else { rate.ceil() }.max(1.0),
        );
        let stored = self.rates.get(whose).map_or(0.0, |rate| rate.due);
        let due = stored.max(now).min(now + most * space);
        (Some(due + space), (due - now - (most - 1.0) * space).max(0.0))
    }

    fn pay(&mut self, whose: &str, due: Option<f64>) {
        let Some(due) = due else { return };
        let expires = self.now + ((due - self.now as f64).ceil() as Ms).max(1);
        // Thousandths are kept.
        let due = format!("{due:.3}").parse().expect("a number");
        self.rates.insert(whose.to_owned(), Rate { due, expires });
    }

    fn claim(&mut self, claim: &Claim) -> Reply {
        let first_nonce = claim.nonces.first().expect("a nonce").clone();
        if let Some(last) = self
            .claims
            .get(&claim.worker)
            .filter(|last| last.first_nonce == first_nonce)
        {
            let still = last.ids.iter().zip(&claim.nonces);
            let still =
                still.filter(|(id, nonce)| self.jobs.get(*id).is_some_and(|job| job.runs_under(nonce)));
            return Reply::List(still.map(|(id, nonce)| self.grant(id, nonce)).collect());
        }
        let pool = format!("{}:{}", claim.model, claim.stage);
        let is_empty = |line: &Line| line.tenants.is_empty();
        if self.is_paused(&pool) || self.lines.get(&pool).is_none_or(is_empty) {
            return Reply::List(Vec::new());
        }
        let lease = self.tick() + claim.lease;
        let (mut credit, mut nonces) = (claim.credit, claim.nonces.iter());
        let (mut grants, mut ids) = (Vec::new(), Vec::new());
        for _ in 0..LOOKS {
            if credit <= 0 || nonces.len() == 0 {
                break;
            }
            let Some((tenant, time)) = self.lines.get(&pool).and_then(Line::head) else {
                break;
            };
            let job = self
                .first_waiting(&pool, &tenant)
                .expect("a tenant in line has a job")
                .clone();
            let max_running = self.setting(&tenant, "max_running").unwrap_or(claim.max_running);
            let at_its_cap = max_running > 0.0 && self.count(&tenant, &["running"]) as f64 >= max_running;
            if job.deadline <= self.now {
                let message = "the deadline passed while the job waited for a shard";
                self.bury(&job.id, claim.history, "5", message);
            } else if self.is_paused(&tenant) || at_its_cap {
                self.hold(&pool, &tenant);
            } else {
                let nonce = nonces.next().expect("nonces are left");
                grants.push(self.grant(&job.id, nonce));
                let weight = self.setting(&tenant, "weight").unwrap_or(claim.weight);
                let line = self.lines.entry(pool.clone()).or_default();
                line.time = Some(time);
                line.tenants.insert(tenant, time + job.rows as f64 / weight);
                self.leave(&job.id);
                let now = self.now;
                self.job(&job.id).claimed = Some(now);
                self.run(&job.id, nonce, &claim.worker, lease);
                credit -= job.rows;
                ids.push(job.id);
            }
        }
        if !ids.is_empty() {
            let expires = self.now + claim.lease.max(1);
            let claimed = Claimed {
                first_nonce,
                ids,
                expires,
            };
            self.claims.insert(claim.worker.clone(), claimed);
        }
        Reply::List(grants)
    }

    /// A lease in the words of a claim's reply.
    fn grant(&self, id: &str, nonce: &str) -> Reply {
        let job = &self.jobs[id];
        let before = job.stage_before().and_then(|stage| job.finishes.get(stage));
        let tokens = before
            .and_then(|finish| finish.tokens.clone())
            .unwrap_or_default();
        reply![
            id,
            nonce,
            &job.request,
            &tokens,
            &job.checkpoint.clone().unwrap_or_default(),
            &job.deadline.to_string(),
            &job.traceparent,
            &(self.now - job.queued).max(0).to_string(),
            &job.attempts.to_string(),
            &job.tenant,
        ]
    }
}

fn submitted(outcome: &str, id: &str, limit: &str, value: Option<f64>, wait: f64) -> Reply {
    let value = value.map(|value| value.to_string()).unwrap_or_default();
    reply![outcome, id, limit, &value, wait.ceil() as i64, 0, -1]
}
