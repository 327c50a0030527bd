//! The moves of docs/queue.md, which the scripts are made of.

use crate::shard::{Budget, Clock, Job, LONGEST_TICK, Ms, Shard, State};

impl Shard {
    /// A job that is known to be there.
    pub fn job(&mut self, id: &str) -> &mut Job {
        self.jobs.get_mut(id).expect("a job of the model's")
    }

    pub fn ring(&mut self, channel: &str, message: &str) {
        let bell = format!("{channel} {message}");
        // Once for a pool and call.
        if channel != "work" || !self.rung.contains(&bell) {
            self.rung.push(bell);
        }
    }

    /// A visible change.
    pub fn save(&mut self, id: &str) {
        self.save_as(id, id);
    }

    fn save_as(&mut self, id: &str, told: &str) {
        let now = self.now;
        let job = self.job(id);
        (job.updated, job.version) = (now, job.version + 1);
        self.ring("ev", told);
    }

    pub fn line_up(&mut self, pool: &str, tenant: &str) {
        let line = self.lines.entry(pool.to_owned()).or_default();
        let own = line.ahead.get(tenant).copied().unwrap_or(0.0);
        line.tenants.insert(tenant.to_owned(), own.max(line.time()));
    }

    fn step_out(&mut self, pool: &str, tenant: &str) {
        let line = self.lines.entry(pool.to_owned()).or_default();
        let own = line.tenants.remove(tenant).unwrap_or(0.0);
        if own > line.time() {
            line.ahead.insert(tenant.to_owned(), own);
        } else {
            line.ahead.remove(tenant);
        }
    }

    pub fn hold(&mut self, pool: &str, tenant: &str) {
        self.step_out(pool, tenant);
        self.held.insert((tenant.to_owned(), pool.to_owned()));
    }

    pub fn admit(&mut self, tenant: &str) {
        let (out, rest) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|(held, _)| held == tenant);
        self.held = rest;
        let out: std::collections::BTreeSet<(String, String)> = out;
        for (_, pool) in out {
            self.line_up(&pool, tenant);
            self.ring("work", &pool);
        }
    }

    /// Into the queue of its stage.
    pub fn enqueue(&mut self, id: &str) {
        let now = self.now;
        let job = self.job(id);
        (job.state, job.queued) = (State::Queued, now);
        let (pool, tenant) = (job.pool(), job.tenant.clone());
        let in_line = self
            .lines
            .get(&pool)
            .is_some_and(|line| line.tenants.contains_key(&tenant));
        if !in_line && !self.held.contains(&(tenant.clone(), pool.clone())) {
            self.line_up(&pool, &tenant);
        }
        self.mark(id);
        self.ring("work", &pool);
    }

    /// Out of its place; the caller says where to.
    pub fn leave(&mut self, id: &str) {
        let job = self.job(id).clone();
        match job.state {
            State::Queued => {
                let pool = job.pool();
                let is_other =
                    |other: &Job| other.id != id && other.tenant == job.tenant && other.waits_in(&pool);
                if !self.jobs.values().any(is_other) && !self.held.remove(&(job.tenant.clone(), pool.clone()))
                {
                    self.step_out(&pool, &job.tenant);
                }
            }
            State::Running(..) => self.admit(&job.tenant),
            _ => {}
        }
    }

    /// Under a lease.
    pub fn run(&mut self, id: &str, nonce: &str, owner: &str, lease: Ms) {
        let job = self.job(id);
        job.state = State::Running(nonce.to_owned(), lease);
        job.prev = None;
        job.owner = Some(owner.to_owned());
        self.mark(id);
        self.save(id);
    }

    pub fn note(&mut self, id: &str, history: i64, reason: &str, message: &str) {
        let now = self.now;
        let job = self.job(id);
        let owner = match (&job.state, &job.owner) {
            (State::Running(..), Some(owner)) => owner.as_str(),
            _ => "-",
        };
        let entry = format!("{now} {} {reason} {owner} {message}", job.stage);
        job.history.push(entry);
        let extra = job.history.len().saturating_sub(history as usize);
        job.history.drain(..extra);
    }

    pub fn finish(&mut self, id: &str, end: State) {
        self.leave(id);
        let now = self.now;
        let job = self.job(id);
        if end != State::Failed {
            job.history.clear();
        }
        (job.state, job.finished) = (end, Some(now));
        (job.prev, job.checkpoint) = (None, None);
        self.save_as(id, &format!(". {id}"));
    }

    pub fn bury(&mut self, id: &str, history: i64, reason: &str, message: &str) {
        self.note(id, history, reason, message);
        self.job(id).error = Some((reason.to_owned(), message.to_owned()));
        self.finish(id, State::Failed);
    }

    pub fn requeue_job(&mut self, id: &str, prev: Option<String>) {
        self.leave(id);
        self.job(id).prev = prev;
        self.save(id);
        self.enqueue(id);
    }

    pub fn revive(&mut self, id: &str) {
        let now = self.now;
        let job = self.job(id);
        (job.finished, job.progress, job.owner, job.unacked, job.error) = (None, None, None, None, None);
        (job.attempts, job.crashes, job.deadline) = (0, 0, now + job.timeout);
        self.save(id);
        self.enqueue(id);
    }

    pub fn forgive(&mut self, id: &str) {
        let job = self.job(id);
        match job.charged {
            Some(Budget::Unacked) => job.unacked = Some((job.unacked.unwrap_or(0) - 1).max(0)),
            _ => job.crashes = (job.crashes - 1).max(0),
        }
    }

    pub fn revoke(&mut self, id: &str, reason: &str) {
        let job = self.job(id);
        if let (State::Running(nonce, _), Some(owner)) = (&job.state, &job.owner) {
            let message = format!("{owner} {id} {nonce} {reason}");
            self.ring("rev", &message);
        }
    }

    /// Gives the nonce of its pictures, or ''.
    pub fn forget(&mut self, id: &str) -> String {
        let Some(gone) = self.jobs.remove(id) else {
            return String::new();
        };
        let pools = gone.stages.iter().map(|stage| format!("{}:{stage}", gone.model));
        self.forget_tenant(&gone.tenant, pools.collect());
        gone.pictures.map(|(_, nonce)| nonce).unwrap_or_default()
    }

    /// A tenant without jobs and settings is ahead nowhere any more: in pools that have finished something, and in these.
    pub fn forget_tenant(&mut self, tenant: &str, mut pools: Vec<String>) {
        if self.known_tenants().contains(tenant) {
            return;
        }
        pools.extend(self.took.keys().cloned());
        for pool in pools {
            if let Some(line) = self.lines.get_mut(&pool) {
                line.ahead.remove(tenant);
            }
        }
    }

    /// The lease clock.
    pub fn tick(&mut self) -> Ms {
        let now = self.now;
        let clock = self.clock.get_or_insert(Clock { last: now, clock: 0 });
        clock.clock += (now - clock.last).clamp(0, LONGEST_TICK);
        clock.last = now;
        clock.clock
    }

    /// A job that comes into a live state, or that the audit looks at, is in the recount of the audit in progress.
    pub fn mark(&mut self, id: &str) {
        if let Some(audit) = &self.audit {
            let token = audit.token.clone();
            self.job(id).seen = Some(token);
        }
    }
}
