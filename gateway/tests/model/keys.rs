//! A shard as the keys that Redis should hold for it; docs/queue.md, Keys.

use std::collections::{BTreeMap, BTreeSet};

use crate::shard::{Budget, Job, Ms, Shard, State};

/// What a key holds. Numbers are written the shortest way.
#[derive(Clone, Debug, PartialEq)]
pub enum Held {
    Text(String),
    Hash(BTreeMap<String, String>),
    Sorted(BTreeMap<String, f64>),
    Set(BTreeSet<String>),
    List(Vec<String>),
}

/// All keys by their name without the prefix, and when those go that go by themselves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Keys {
    pub keys: BTreeMap<String, Held>,
    pub expiries: BTreeMap<String, Ms>,
}

impl Keys {
    fn sorted(&mut self, key: &str, member: &str, score: f64) {
        let held = self.keys.entry(key.to_owned());
        if let Held::Sorted(members) = held.or_insert(Held::Sorted(BTreeMap::new())) {
            members.insert(member.to_owned(), score);
        }
    }

    fn field(&mut self, key: &str, field: &str, value: impl ToString) {
        let held = self.keys.entry(key.to_owned());
        if let Held::Hash(fields) = held.or_insert(Held::Hash(BTreeMap::new())) {
            fields.insert(field.to_owned(), value.to_string());
        }
    }

    fn text(&mut self, key: String, value: String, expires: Option<Ms>) {
        if let Some(expires) = expires {
            self.expiries.insert(key.clone(), expires);
        }
        self.keys.insert(key, Held::Text(value));
    }
}

impl Shard {
    pub fn keys(&self) -> Keys {
        let mut all = Keys::default();
        for job in self.jobs.values() {
            place(&mut all, job);
            record(&mut all, job);
        }
        for tenant in self.known_tenants() {
            all.sorted("tenants", &tenant, 0.0);
        }
        for (tenant, settings) in &self.settings {
            for (name, value) in settings {
                all.field(&format!("tenant:{tenant}"), name, value);
            }
        }
        for (name, since) in &self.paused {
            all.field("paused", name, since);
            if !name.contains(':') {
                all.field(&format!("tenant:{name}"), "paused", since);
            }
        }
        for (pool, line) in &self.lines {
            for (tenant, time) in &line.tenants {
                all.sorted(&format!("act:{pool}"), tenant, *time);
            }
            if let Some(time) = line.time {
                all.field(&format!("vt:{pool}"), "", time);
            }
            for (tenant, time) in &line.ahead {
                all.field(&format!("vt:{pool}"), tenant, time);
            }
        }
        for (tenant, pool) in &self.held {
            let held = all.keys.entry(format!("held:{tenant}"));
            if let Held::Set(pools) = held.or_insert(Held::Set(BTreeSet::new())) {
                pools.insert(pool.clone());
            }
        }
        for (tenant, rate) in &self.rates {
            all.text(format!("rate:{tenant}"), rate.due.to_string(), Some(rate.expires));
        }
        for (worker, claim) in &self.claims {
            let text = format!("{} {}", claim.first_nonce, claim.ids.join(" "));
            all.text(format!("claim:{worker}"), text, Some(claim.expires));
        }
        for (pool, ms) in &self.took {
            all.field("took", pool, ms);
        }
        if let Some(clock) = &self.clock {
            all.field("clk", "last", clock.last);
            all.field("clk", "clock", clock.clock);
        }
        if let Some(audit) = &self.audit {
            all.text("audit".to_owned(), audit.token.clone(), Some(audit.expires));
        }
        for (name, count) in self.counters() {
            let split = if name.starts_with("cnt:") {
                name.split_once(':')
            } else {
                name.rsplit_once(':')
            };
            let (key, field) = split.expect("a counter has a key");
            all.field(key, field, count);
        }
        for (name, count) in self.recount() {
            all.field("recount", &name, count);
            if let Some(audit) = &self.audit {
                all.expiries.insert("recount".to_owned(), audit.expires);
            }
        }
        all
    }

    /// What must hold of a model, whatever was called: the line of a pool and `held`. The rest of docs/queue.md's Places
    /// holds by construction.
    pub fn check_lines(&self) -> Result<(), String> {
        let mut should: BTreeSet<(String, String)> = BTreeSet::new();
        for job in self.jobs.values().filter(|job| job.state == State::Queued) {
            should.insert((job.tenant.clone(), job.pool()));
        }
        let mut is = self.held.clone();
        for (pool, line) in &self.lines {
            for tenant in line.tenants.keys() {
                if !is.insert((tenant.clone(), pool.clone())) {
                    return Err(format!("{tenant} is in the line of {pool} and held"));
                }
            }
        }
        if is == should {
            Ok(())
        } else {
            Err(format!("in line or held: {is:?}; have jobs: {should:?}"))
        }
    }
}

fn place(all: &mut Keys, job: &Job) {
    let (id, pool) = (job.id.as_str(), job.pool());
    match &job.state {
        State::Queued => {
            all.sorted(&format!("q:{pool}:{}", job.tenant), id, job.score as f64);
            all.sorted(&format!("wait:{pool}"), id, job.queued as f64);
        }
        State::Running(_, lease) => all.sorted("lease", id, *lease as f64),
        State::Delayed(until) => all.sorted("delay", id, *until as f64),
        State::Failed => all.sorted("dead", id, job.finished.unwrap_or(0) as f64),
        State::Succeeded | State::Cancelled => all.sorted("done", id, job.finished.unwrap_or(0) as f64),
    }
    if job.state.is_live() {
        all.sorted("deadline", id, job.deadline as f64);
    }
    all.sorted(&format!("jobs:{}", job.tenant), id, 0.0);
    if let Some((key, request)) = &job.idempotency {
        all.text(
            format!("idem:{}:{key}", job.tenant),
            format!("{id} {request}"),
            None,
        );
    }
    if !job.history.is_empty() {
        all.keys
            .insert(format!("hist:{id}"), Held::List(job.history.clone()));
    }
}

fn record(all: &mut Keys, job: &Job) {
    let key = format!("j:{}", job.id);
    let mut put = |field: &str, value: Option<String>| {
        if let Some(value) = value {
            all.field(&key, field, value);
        }
    };
    let nonce = match &job.state {
        State::Running(nonce, _) => Some(nonce.clone()),
        _ => None,
    };
    let charged = job.charged.map(|budget| match budget {
        Budget::Crashes => "crashes".to_owned(),
        Budget::Unacked => "unacked".to_owned(),
    });
    let (step, of) = job.progress.clone().unzip();
    let (reason, message) = job.error.clone().unzip();
    let (pictures, pictures_nonce) = job.pictures.clone().unzip();
    let texts = [
        ("state", Some(job.state.name().to_owned())),
        ("tenant", Some(job.tenant.clone())),
        ("model", Some(job.model.clone())),
        ("stages", Some(job.stages.join(","))),
        ("stage", Some(job.stage.clone())),
        ("request", Some(job.request.clone())),
        ("traceparent", Some(job.traceparent.clone())),
        ("nonce", nonce),
        ("owner", job.owner.clone()),
        ("acked", job.acked.clone()),
        ("prev", job.prev.clone()),
        ("charged", charged),
        ("step", step),
        ("of", of),
        ("ckpt", job.checkpoint.clone()),
        ("pictures", pictures),
        ("pictures_nonce", pictures_nonce),
        ("err_reason", reason),
        ("err_message", message),
        ("reported", job.reported.clone()),
        ("failed", job.failed.clone()),
        ("released", job.released.clone()),
        ("retried", job.retried.clone()),
        ("idem", job.idempotency.clone().map(|(key, _)| key)),
        ("seen", job.seen.clone()),
    ];
    for (field, value) in texts {
        put(field, value);
    }
    let numbers = [
        ("rows", Some(job.rows)),
        ("score", Some(job.score)),
        ("bytes", Some(job.bytes)),
        ("timeout", Some(job.timeout)),
        ("deadline", Some(job.deadline)),
        ("attempts", Some(job.attempts)),
        ("crashes", Some(job.crashes)),
        ("unacked", job.unacked),
        ("created", Some(job.created)),
        ("updated", Some(job.updated)),
        ("queued", Some(job.queued)),
        ("claimed", job.claimed),
        ("finished", job.finished),
        ("ver", Some(job.version)),
    ];
    for (field, value) in numbers {
        put(field, value.map(|value| value.to_string()));
    }
    for (stage, finish) in &job.finishes {
        put(&format!("completed:{stage}"), Some(finish.nonce.clone()));
        put(&format!("digest:{stage}"), Some(finish.digest.clone()));
        put(&format!("timing:{stage}"), Some(finish.timing.clone()));
        put(&format!("out:{stage}"), finish.tokens.clone());
    }
}
