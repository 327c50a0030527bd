//! A sequence under way: what a random step means now.

use crate::{
    calls::{Act, Beat, Call, Claim, Complete, Fail, Submit, TenantLimits},
    keys::Held,
    shard::{PATIENCE, Shard, State},
    steps::{Lease, NewJob, Step},
};

const TENANTS: [&str; 3] = ["a", "b", "c"];
const WORKERS: [&str; 3] = ["w1", "w2", "w"];
const POOLS: [(&str, &str); 4] = [("m", "base"), ("m", "superres"), ("m", "base"), ("n", "base")];
const HISTORY: i64 = 3;

/// What a sequence remembers besides the model.
#[derive(Default)]
pub struct Memory {
    /// All leases that were granted: job, nonce, stage.
    pub leases: Vec<(String, String, String)>,
    pub calls: Vec<Call>,
    names: usize,
}

impl Memory {
    fn name(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}{}", self.names)
    }

    /// The calls that a step means now.
    pub fn calls(&mut self, shard: &Shard, step: &Step) -> Vec<Call> {
        match step {
            Step::Pass(_) => Vec::new(),
            Step::Again(back) => self.again(shard, *back).into_iter().collect(),
            Step::Audit { repair } => self.whole_audit(shard, *repair),
            Step::Wrong(step, pick) => {
                let calls = self.calls(shard, step);
                calls
                    .first()
                    .filter(|call| !matches!(call, Call::Wrong { .. }))
                    .and_then(|call| call.spoiled(*pick))
                    .into_iter()
                    .collect()
            }
            step => vec![self.one(shard, step)],
        }
    }

    fn again(&self, shard: &Shard, back: usize) -> Option<Call> {
        let call = self.calls.iter().rev().nth(back)?;
        // An audit that is over does not begin again: its token is never used for another.
        let is_over = |token: &String| shard.audit.as_ref().is_none_or(|audit| audit.token != *token);
        match call {
            Call::Audit {
                token,
                act: Act::Begin,
                ..
            } if is_over(token) => None,
            call => Some(call.clone()),
        }
    }

    fn one(&mut self, shard: &Shard, step: &Step) -> Call {
        match step {
            Step::Submit(all) => Call::Submit(self.submit(shard, all)),
            Step::Claim {
                pool,
                worker,
                lease,
                credit,
                nonces,
                weight,
                max_running,
            } => {
                let (model, stage) = POOLS[*pool % POOLS.len()];
                Call::Claim(Claim {
                    model: model.to_owned(),
                    stage: stage.to_owned(),
                    worker: WORKERS[*worker % WORKERS.len()].to_owned(),
                    lease: *lease,
                    credit: *credit,
                    weight: *weight,
                    max_running: *max_running,
                    history: HISTORY,
                    nonces: (0..*nonces).map(|_| self.name("n")).collect(),
                })
            }
            Step::Beat {
                worker,
                lease,
                leases,
                step,
                checkpoint,
            } => {
                let beat = |lease: &Lease| {
                    let (id, nonce, _) = self.lease(shard, *lease);
                    Beat {
                        id,
                        nonce,
                        step: step.to_string(),
                        of: "3".to_owned(),
                        checkpoint: if *checkpoint {
                            format!("at {step}")
                        } else {
                            String::new()
                        },
                    }
                };
                Call::Beat {
                    worker: WORKERS[*worker % WORKERS.len()].to_owned(),
                    lease: *lease,
                    beats: leases.iter().map(beat).collect(),
                }
            }
            Step::Complete(all) => {
                let complete = |(lease, size, digest, twist): &(Lease, usize, u8, u8)| {
                    self.complete(shard, *lease, *size, *digest, *twist)
                };
                Call::Complete(all.iter().map(complete).collect())
            }
            Step::Fail {
                lease,
                reason,
                retriable,
                delays,
            } => {
                let (id, nonce, _) = self.lease(shard, *lease);
                Call::Fail(Fail {
                    id,
                    nonce,
                    reason: reason.to_string(),
                    message: "it was too red".to_owned(),
                    retriable: *retriable,
                    history: HISTORY,
                    delays: delays.clone(),
                })
            }
            Step::Release { lease, checkpoint } => {
                let (id, nonce, _) = self.lease(shard, *lease);
                let checkpoint = if *checkpoint {
                    "released at 1".to_owned()
                } else {
                    String::new()
                };
                Call::Release {
                    id,
                    nonce,
                    checkpoint,
                }
            }
            Step::Reap { most, crashes } => Call::Reap {
                most: *most,
                crashes: *crashes,
                history: HISTORY,
            },
            Step::Cancel { job, tenant } => {
                let id = any_job(shard, *job);
                let own = shard.jobs.get(&id).map(|job| job.tenant.clone());
                let tenant = tenant.map(|tenant| TENANTS[tenant % TENANTS.len()].to_owned());
                Call::Cancel {
                    tenant: tenant.or(own).unwrap_or_else(|| "a".to_owned()),
                    id,
                }
            }
            Step::Purge {
                most,
                keep_done,
                keep_dead,
            } => Call::Purge {
                most: *most,
                keep_done: *keep_done,
                keep_dead: *keep_dead,
            },
            Step::TenantSet { tenant, settings } => Call::TenantSet {
                tenant: TENANTS[*tenant % TENANTS.len()].to_owned(),
                settings: settings.clone(),
            },
            Step::Pause { target, resume } => {
                let name = match TENANTS.get(*target) {
                    Some(tenant) => (*tenant).to_owned(),
                    None => {
                        let (model, stage) = POOLS[*target % POOLS.len()];
                        format!("{model}:{stage}")
                    }
                };
                Call::Pause {
                    name,
                    resume: *resume,
                    reason: "an upgrade".to_owned(),
                }
            }
            Step::RetryDead(picks) => Call::RetryDead {
                token: self.name("t"),
                ids: picks.iter().map(|pick| dead_job(shard, *pick)).collect(),
            },
            Step::PurgeDead(picks) => Call::PurgeDead {
                ids: picks.iter().map(|pick| dead_job(shard, *pick)).collect(),
            },
            Step::Requeue(pick) => Call::Requeue {
                id: any_job(shard, *pick),
            },
            Step::AuditPart { act, pick } => self.audit_part(shard, *act, *pick),
            Step::Pass(_) | Step::Again(_) | Step::Audit { .. } | Step::Wrong(..) => {
                unreachable!("more or less than one call")
            }
        }
    }

    /// The limits of the first are those of all.
    fn submit(&mut self, shard: &Shard, all: &[NewJob]) -> Vec<Submit> {
        let first = all.first().expect("a job");
        let submit = |new: &NewJob| self.submit_one(shard, new, first);
        all.iter().map(submit).collect()
    }

    fn submit_one(&mut self, shard: &Shard, new: &NewJob, limits: &NewJob) -> Submit {
        let (max_queued, max_bytes, rate, burst) = limits.own;
        let model = if new.shape == 3 { "n" } else { "m" };
        let stages: &[&str] = if new.shape >= 2 {
            &["base"]
        } else {
            &["base", "superres"]
        };
        let name = self.name("j");
        Submit {
            id: new.known.map_or(name, |pick| any_job(shard, pick)),
            tenant: TENANTS[new.tenant % TENANTS.len()].to_owned(),
            model: model.to_owned(),
            stages: stages.iter().map(|stage| (*stage).to_owned()).collect(),
            rows: new.rows,
            boost: new.boost,
            timeout: new.timeout,
            request: "r".repeat(new.size),
            traceparent: "00-trace".to_owned(),
            idempotency: new
                .key
                .map(|(key, request)| (format!("key{key}"), format!("hash{request}"))),
            ranked: new.ranked,
            max_waiting: limits.max_waiting,
            max_bytes: limits.max_bytes,
            rate: limits.rate,
            burst: limits.burst,
            tenant_limits: TenantLimits {
                max_queued,
                max_bytes,
                rate,
                burst,
            },
        }
    }

    fn complete(&self, shard: &Shard, lease: Lease, size: usize, digest: u8, twist: u8) -> Complete {
        let (id, nonce, stage) = self.lease(shard, lease);
        let job = shard.jobs.get(&id);
        let is_last = job.is_none_or(|job| job.stages.last() == Some(&stage));
        let rows = job.map_or(1, |job| job.rows);
        let other = if stage == "base" { "superres" } else { "base" };
        Complete {
            id,
            nonce,
            is_tokens: is_last == (twist == 1),
            stage: if twist == 0 { other.to_owned() } else { stage },
            result: "x".repeat(size),
            timing: "took".to_owned(),
            rows: if twist == 2 { rows + 1 } else { rows },
            digest: format!("digest{digest}"),
        }
    }

    fn audit_part(&mut self, shard: &Shard, act: u8, pick: usize) -> Call {
        let keys = shard.keys().keys;
        let named = |kinds: &[&str]| -> Vec<String> {
            let is_one = |key: &&String| kinds.iter().any(|kind| key.starts_with(kind));
            keys.keys().filter(is_one).cloned().collect()
        };
        let known = shard.audit.as_ref().map(|audit| audit.token.clone());
        let act = match act {
            0 => Act::Begin,
            1 | 2 => Act::Jobs((0..3).map(|n| any_job(shard, pick + n)).collect()),
            3 => {
                let sets = entries(shard);
                match sets.get(pick % sets.len().max(1)) {
                    Some((key, members)) => Act::Entries(key.clone(), members.clone()),
                    None => Act::Entries("done".to_owned(), vec!["nobody".to_owned()]),
                }
            }
            4 => Act::Counters(counter_names(shard)),
            _ if pick.is_multiple_of(4) => Act::End,
            _ => Act::Keys(named(&["idem:", "hist:"])),
        };
        let token = match (&act, known) {
            (Act::Begin, _) | (_, None) => self.name("t"),
            (_, Some(token)) => token,
        };
        audit_call(&token, act, false)
    }

    /// As the gateway does it.
    fn whole_audit(&mut self, shard: &Shard, repair: bool) -> Vec<Call> {
        let token = self.name("t");
        let ids: Vec<String> = shard.jobs.keys().cloned().collect();
        let owned = shard.keys().keys;
        let owned = owned
            .keys()
            .filter(|key| key.starts_with("idem:") || key.starts_with("hist:"));
        let mut acts = vec![Act::Begin];
        acts.extend(ids.chunks(100).map(|ids| Act::Jobs(ids.to_vec())));
        acts.push(Act::Keys(owned.cloned().collect()));
        acts.extend(
            entries(shard)
                .into_iter()
                .map(|(key, members)| Act::Entries(key, members)),
        );
        acts.push(Act::Counters(counter_names(shard)));
        acts.push(Act::End);
        acts.into_iter()
            .map(|act| audit_call(&token, act, repair))
            .collect()
    }

    fn lease(&self, shard: &Shard, lease: Lease) -> (String, String, String) {
        let of = |found: Vec<(String, String, String)>, pick: usize| {
            let none = || ("nobody".to_owned(), "none".to_owned(), "base".to_owned());
            found.get(pick % found.len().max(1)).cloned().unwrap_or_else(none)
        };
        let jobs = shard.jobs.values();
        match lease {
            Lease::Held(pick) => {
                let held = jobs.filter_map(|job| match &job.state {
                    State::Running(nonce, _) => Some((job.id.clone(), nonce.clone(), job.stage.clone())),
                    _ => None,
                });
                of(held.collect(), pick)
            }
            Lease::Lost(pick) => {
                let lost =
                    jobs.filter_map(|job| Some((job.id.clone(), job.prev.clone()?, job.stage.clone())));
                of(lost.collect(), pick)
            }
            // The latest are of more interest.
            Lease::Old(pick) => of(self.leases.iter().rev().take(60).cloned().collect(), pick),
            Lease::Mixed(job, pick) => {
                let (_, nonce, stage) = of(self.leases.clone(), pick);
                (any_job(shard, job), nonce, stage)
            }
        }
    }
}

fn any_job(shard: &Shard, pick: usize) -> String {
    // One in forty is nobody's.
    let ids: Vec<&String> = shard.jobs.keys().collect();
    match ids.get(pick % ids.len().max(1)) {
        Some(id) if pick != 39 => (*id).clone(),
        _ => "nobody".to_owned(),
    }
}

/// Mostly one that is dead.
fn dead_job(shard: &Shard, pick: usize) -> String {
    let dead: Vec<&String> = shard
        .jobs
        .values()
        .filter(|job| job.state == State::Failed)
        .map(|job| &job.id)
        .collect();
    match dead.get(pick % dead.len().max(1)) {
        Some(id) if !pick.is_multiple_of(5) => (*id).clone(),
        _ => any_job(shard, pick),
    }
}

/// The sets whose entries an audit looks at, a hundred members at most.
fn entries(shard: &Shard) -> Vec<(String, Vec<String>)> {
    let members = |held: &Held| -> Vec<String> {
        match held {
            Held::Sorted(members) => members.keys().take(99).cloned().collect(),
            Held::Set(members) => members.iter().take(99).cloned().collect(),
            _ => Vec::new(),
        }
    };
    let keys = shard.keys().keys;
    keys.iter()
        .map(|(key, held)| (key.clone(), members(held)))
        .filter(|(_, members)| !members.is_empty())
        .collect()
}

fn counter_names(shard: &Shard) -> Vec<String> {
    let mut names: Vec<String> = shard
        .counters()
        .into_keys()
        .chain(shard.recount().into_keys())
        .collect();
    names.sort_unstable();
    names.dedup();
    names.truncate(100);
    names
}

fn audit_call(token: &str, act: Act, repair: bool) -> Call {
    Call::Audit {
        token: token.to_owned(),
        act,
        repair,
        lease: 1_500,
        patience: PATIENCE,
    }
}
