//! What each script does that clients and operators cause to a job from outside, as docs/queue.md says.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    calls::Act,
    shard::{Audit, Job, Ms, Reply, Shard, State, reply},
};

impl Shard {
    pub fn cancel(&mut self, id: &str, tenant: &str) -> Reply {
        match self.jobs.get(id) {
            Some(job) if job.tenant == tenant && job.state.is_live() => {}
            Some(job) if job.tenant == tenant => return "ended".into(),
            _ => return "unknown".into(),
        }
        self.revoke(id, "cancelled");
        self.finish(id, State::Cancelled);
        "cancelled".into()
    }

    pub fn purge(&mut self, most: i64, keep_done: Ms, keep_dead: Ms) -> Reply {
        let now = self.now;
        let ended =
            |states: [State; 2]| move |job: &Job| job.finished.filter(|_| states.contains(&job.state));
        let done = self.due(ended([State::Succeeded, State::Cancelled]), now - keep_done, most);
        let dead = self.due(ended([State::Failed, State::Failed]), now - keep_dead, most);
        let purged = done.iter().chain(&dead);
        Reply::List(purged.map(|id| reply![id, &self.forget(id)]).collect())
    }

    pub fn tenant_set(&mut self, tenant: &str, settings: &[(&'static str, Option<f64>)]) -> Reply {
        let own = self.settings.entry(tenant.to_owned()).or_default();
        for (name, value) in settings {
            match value {
                Some(value) => drop(own.insert((*name).to_owned(), *value)),
                None => drop(own.remove(*name)),
            }
        }
        self.settings.retain(|_, own| !own.is_empty());
        self.forget_tenant(tenant, Vec::new());
        // A higher cap may let it go on.
        self.admit(tenant);
        "ok".into()
    }

    pub fn pause(&mut self, name: &str, resume: bool, reason: &str) -> Reply {
        let before = self.paused.get(name).cloned().unwrap_or_default();
        if !resume {
            let since = format!("{} {reason}", self.now);
            self.paused.entry(name.to_owned()).or_insert(since);
        } else {
            self.paused.remove(name);
            if name.contains(':') {
                self.ring("work", name);
            } else {
                self.admit(name);
                self.forget_tenant(name, Vec::new());
            }
        }
        (&before).into()
    }

    pub fn retry_dead(&mut self, token: &str, ids: &[String]) -> Reply {
        let mut retry = |id: &String| {
            let Some(job) = self.jobs.get_mut(id) else {
                return "unknown";
            };
            // The answer to the first call was lost.
            if job.retried.as_deref() == Some(token) {
                return "retried";
            }
            if job.state != State::Failed {
                return "not_dead";
            }
            job.retried = Some(token.to_owned());
            self.revive(id);
            "retried"
        };
        Reply::from(ids.iter().map(&mut retry).collect::<Vec<_>>())
    }

    pub fn purge_dead(&mut self, ids: &[String]) -> Reply {
        let mut purge = |id: &String| {
            if self.jobs.get(id).is_some_and(|job| job.state != State::Failed) {
                return "not_dead";
            }
            self.forget(id);
            "purged"
        };
        Reply::from(ids.iter().map(&mut purge).collect::<Vec<_>>())
    }

    pub fn requeue(&mut self, id: &str) -> Reply {
        let Some(job) = self.jobs.get(id) else {
            return "unknown".into();
        };
        match job.state {
            State::Running(..) => {
                self.revoke(id, "requeued");
                self.requeue_job(id, None);
            }
            State::Delayed(_) => self.requeue_job(id, None),
            State::Failed => self.revive(id),
            State::Queued => {}
            State::Succeeded | State::Cancelled => return "ended".into(),
        }
        "queued".into()
    }

    /// Places cannot be wrong here, so that all it may find are counters of which the walk has not seen the jobs yet.
    pub fn audit(&mut self, token: &str, act: &Act, patience: Ms) -> Reply {
        let is_own = self.audit.as_ref().is_some_and(|audit| audit.token == token);
        if !is_own && *act != Act::Begin {
            return "superseded".into();
        }
        if *act == Act::End {
            self.audit = None;
            return Reply::List(Vec::new());
        }
        let expires = self.now + patience;
        let token = token.to_owned();
        self.audit = Some(Audit { token, expires });
        let mut found = Vec::new();
        match act {
            Act::Jobs(ids) => {
                for id in ids {
                    if self.jobs.get(id).is_some_and(|job| job.state.is_live()) {
                        self.mark(id);
                    }
                }
            }
            Act::Counters(names) => {
                let (counters, recount) = (self.counters(), self.recount());
                for name in names {
                    let of = |counts: &BTreeMap<String, i64>| counts.get(name).copied().unwrap_or(0);
                    let (is, should) = (of(&counters), of(&recount));
                    if is != should {
                        let detail = format!("is {is} where {should} were counted");
                        found.push(reply!["counter", &counter_in_words(name), &detail]);
                    }
                }
            }
            _ => {}
        }
        Reply::List(found)
    }

    /// What the hashes of counters hold, by name: `cnt:<field>`, `use:<tenant>:<field>`.
    pub fn counters(&self) -> BTreeMap<String, i64> {
        count(self.jobs.values())
    }

    /// What the audit in progress has counted.
    pub fn recount(&self) -> BTreeMap<String, i64> {
        let Some(audit) = &self.audit else {
            return BTreeMap::new();
        };
        count(
            self.jobs
                .values()
                .filter(|job| job.seen.as_ref() == Some(&audit.token)),
        )
    }

    /// Each tenant that has jobs, settings or a pause.
    pub fn known_tenants(&self) -> BTreeSet<String> {
        let with_jobs = self.jobs.values().map(|job| &job.tenant);
        let paused = self.paused.keys().filter(|name| !name.contains(':'));
        with_jobs
            .chain(self.settings.keys())
            .chain(paused)
            .cloned()
            .collect()
    }
}

fn count<'a>(jobs: impl Iterator<Item = &'a Job>) -> BTreeMap<String, i64> {
    let mut counts = BTreeMap::new();
    for job in jobs.filter(|job| job.state.is_live()) {
        let (state, tenant) = (job.state.name(), &job.tenant);
        let mut add = |name: String, by: i64| *counts.entry(name).or_default() += by;
        add(format!("cnt:{state}:{}:{tenant}", job.pool()), 1);
        add(format!("use:{tenant}:{state}"), 1);
        add(format!("use:{tenant}:bytes"), job.bytes);
        add("use::bytes".to_owned(), job.bytes);
    }
    counts.retain(|_, count| *count != 0);
    counts
}

/// Key and field.
fn counter_in_words(name: &str) -> String {
    let (key, field) = if name.starts_with("cnt:") {
        name.split_once(':')
    } else {
        name.rsplit_once(':')
    }
    .expect("a counter has a key");
    format!("{key} {field}")
}
