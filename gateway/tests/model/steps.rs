//! Random steps, and what each means where it is taken: a step says "the third running job", its calls name it.

use proptest::{collection::vec, option, prelude::*, sample::select};

use crate::{
    calls::{Act, Beat, Call, Claim, Complete, Fail, Submit, TenantLimits},
    keys::Held,
    shard::{Ms, PATIENCE, Shard, State},
};

/// What may come next. Small numbers pick one of what is there.
#[derive(Clone, Debug)]
pub enum Step {
    /// Time goes on, or the clock is set back.
    Pass(Ms),
    /// A recent call once more, as if its reply had been lost.
    Again(usize),
    Submit(NewJob),
    Claim {
        pool: usize,
        worker: usize,
        lease: Ms,
        credit: i64,
        nonces: usize,
        weight: f64,
        max_running: f64,
    },
    Beat {
        worker: usize,
        lease: Ms,
        leases: Vec<Lease>,
        step: u8,
        checkpoint: bool,
    },
    Complete {
        lease: Lease,
        size: usize,
        digest: u8,
        twist: u8,
    },
    Fail {
        lease: Lease,
        reason: u8,
        retriable: bool,
        delays: Vec<Ms>,
    },
    Release {
        lease: Lease,
        checkpoint: bool,
    },
    Reap {
        most: i64,
        crashes: i64,
    },
    Cancel {
        job: usize,
        tenant: Option<usize>,
    },
    Purge {
        most: i64,
        keep_done: Ms,
        keep_dead: Ms,
    },
    TenantSet {
        tenant: usize,
        settings: Vec<(&'static str, Option<f64>)>,
    },
    Pause {
        target: usize,
        resume: bool,
    },
    RetryDead(Vec<usize>),
    PurgeDead(Vec<usize>),
    Requeue(usize),
    AuditPart {
        act: u8,
        pick: usize,
    },
    /// All of it, as the gateway does it.
    Audit {
        repair: bool,
    },
    /// With arguments that must be refused.
    Wrong(Box<Step>, usize),
}

#[derive(Clone, Debug)]
pub struct NewJob {
    tenant: usize,
    shape: usize,
    rows: i64,
    boost: Ms,
    timeout: Ms,
    size: usize,
    key: Option<(u8, u8)>,
    /// The id of a job that is there.
    known: Option<usize>,
    max_waiting: i64,
    max_bytes: i64,
    rate: f64,
    burst: f64,
    own: (f64, f64, f64, f64),
}

/// Whose lease a report shows.
#[derive(Clone, Copy, Debug)]
pub enum Lease {
    /// That of a running job.
    Held(usize),
    /// One that ran out.
    Lost(usize),
    /// Any that ever was.
    Old(usize),
    /// Any nonce for any job.
    Mixed(usize, usize),
}

const TENANTS: [&str; 3] = ["a", "b", "c"];
const WORKERS: [&str; 3] = ["w1", "w2", "w"];
const POOLS: [(&str, &str); 4] = [("m", "base"), ("m", "superres"), ("m", "base"), ("n", "base")];
/// Longer than any sequence waits.
const LONG: Ms = 100_000_000;
const HISTORY: i64 = 3;

pub fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        19 => sensible(),
        1 => (sensible(), 0..100_usize).prop_map(|(step, pick)| Step::Wrong(Box::new(step), pick)),
    ]
}

fn sensible() -> impl Strategy<Value = Step> {
    let pick = 0..40_usize;
    let duration = select(vec![0, 100, 1_500, 30_000, 30_000, 30_000]);
    let ids = vec(pick.clone(), 1..4);
    let setting = prop_oneof![
        (Just("weight"), option::of(select(vec![0.5, 1.0, 3.0]))),
        (Just("max_running"), option::of(select(vec![0.0, 1.0, 2.0]))),
        (Just("max_queued"), option::of(select(vec![0.0, 2.0, 5.0]))),
        (Just("max_bytes"), option::of(select(vec![0.0, 30.0, 90.0]))),
        (Just("rate"), option::of(select(vec![0.0, 0.5, 3.0]))),
        (Just("burst"), option::of(select(vec![0.0, 2.0]))),
    ];
    let beat = (
        0..3_usize,
        duration.clone(),
        vec(lease(), 0..4),
        0..3_u8,
        any::<bool>(),
    );
    let claim = (
        (0..4_usize, 0..3_usize, duration.clone()),
        select(vec![0, 1, 2, 3, 8]),
        1..5_usize,
        select(vec![1.0, 1.0, 1.0, 0.3]),
        select(vec![0.0, 0.0, 0.0, 1.0, 2.0]),
    );
    prop_oneof![
        12 => select(vec![1, 5, 5, 100, 100, 1_500, 1_500, 2_001, 10_000, 70_000, -5, -50_000]).prop_map(Step::Pass),
        8 => (0..4_usize).prop_map(Step::Again),
        14 => new_job().prop_map(Step::Submit),
        26 => claim.prop_map(|((pool, worker, lease), credit, nonces, weight, max_running)| {
            Step::Claim { pool, worker, lease, credit, nonces, weight, max_running }
        }),
        8 => beat.prop_map(|(worker, lease, leases, step, checkpoint)| {
            Step::Beat { worker, lease, leases, step, checkpoint }
        }),
        18 => (lease(), 0..20_usize, 0..2_u8, 0..20_u8)
            .prop_map(|(lease, size, digest, twist)| Step::Complete { lease, size, digest, twist }),
        7 => (lease(), 1..6_u8, prop::bool::weighted(0.8), vec(select(vec![0, 50, 2_000]), 0..4))
            .prop_map(|(lease, reason, retriable, delays)| Step::Fail { lease, reason, retriable, delays }),
        5 => (lease(), any::<bool>()).prop_map(|(lease, checkpoint)| Step::Release { lease, checkpoint }),
        10 => (select(vec![1, 2, 100]), select(vec![1, 2, 2, 3]))
            .prop_map(|(most, crashes)| Step::Reap { most, crashes }),
        2 => (pick.clone(), option::weighted(0.1, 0..3_usize))
            .prop_map(|(job, tenant)| Step::Cancel { job, tenant }),
        1 => (select(vec![1, 100]), select(vec![0, 10_000, 100_000]), select(vec![0, 10_000, 100_000]))
            .prop_map(|(most, keep_done, keep_dead)| Step::Purge { most, keep_done, keep_dead }),
        4 => (0..3_usize, vec(setting, 0..3))
            .prop_map(|(tenant, settings)| Step::TenantSet { tenant, settings }),
        5 => (0..7_usize, prop::bool::weighted(0.75)).prop_map(|(target, resume)| Step::Pause { target, resume }),
        4 => ids.clone().prop_map(Step::RetryDead),
        1 => ids.prop_map(Step::PurgeDead),
        4 => pick.clone().prop_map(Step::Requeue),
        5 => (0..6_u8, pick).prop_map(|(act, pick)| Step::AuditPart { act, pick }),
        2 => any::<bool>().prop_map(|repair| Step::Audit { repair }),
    ]
}

fn lease() -> impl Strategy<Value = Lease> {
    let pick = 0..40_usize;
    prop_oneof![
        12 => pick.clone().prop_map(Lease::Held),
        4 => pick.clone().prop_map(Lease::Lost),
        4 => pick.clone().prop_map(Lease::Old),
        1 => (pick.clone(), pick).prop_map(|(job, nonce)| Lease::Mixed(job, nonce)),
    ]
}

fn new_job() -> impl Strategy<Value = NewJob> {
    // Mostly no limit.
    let limit = |value: f64| option::weighted(0.08, Just(value)).prop_map(|limit| limit.unwrap_or(0.0));
    let what = (
        0..3_usize,
        0..4_usize,
        1..4_i64,
        select(vec![0, 0, 0, 60_000, -60_000]),
        select(vec![LONG, LONG, LONG, LONG, 5_000, 0]),
        0..30_usize,
        option::weighted(0.3, (0..4_u8, 0..2_u8)),
        option::weighted(0.05, 0..40_usize),
    );
    let limits = (
        option::weighted(0.1, select(vec![0, 3])),
        option::weighted(0.1, Just(150)),
        prop_oneof![limit(0.4), limit(2.0)],
        limit(3.0),
    );
    let own = (limit(2.0), limit(50.0), limit(0.7), limit(2.0));
    (what, limits, own).prop_map(|(what, limits, own)| {
        let (tenant, shape, rows, boost, timeout, size, key, known) = what;
        let (max_waiting, max_bytes, rate, burst) = limits;
        NewJob {
            tenant,
            shape,
            rows,
            boost,
            timeout,
            size,
            key,
            known,
            max_waiting: max_waiting.unwrap_or(1_000),
            max_bytes: max_bytes.unwrap_or(0),
            rate,
            burst,
            own,
        }
    })
}

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
            Step::Again(back) => self.again(*back).into_iter().collect(),
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

    fn again(&self, back: usize) -> Option<Call> {
        let call = self.calls.iter().rev().nth(back)?;
        // An audit's beginning is only repeated at once: its token is never used again.
        let begins = matches!(call, Call::Audit { act: Act::Begin, .. });
        (back == 0 || !begins).then(|| call.clone())
    }

    fn one(&mut self, shard: &Shard, step: &Step) -> Call {
        match step {
            Step::Submit(new) => Call::Submit(self.submit(shard, new)),
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
            Step::Complete {
                lease,
                size,
                digest,
                twist,
            } => self.complete(shard, *lease, *size, *digest, *twist),
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

    fn submit(&mut self, shard: &Shard, new: &NewJob) -> Submit {
        let (max_queued, max_bytes, rate, burst) = new.own;
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
            max_waiting: new.max_waiting,
            max_bytes: new.max_bytes,
            rate: new.rate,
            burst: new.burst,
            tenant_limits: TenantLimits {
                max_queued,
                max_bytes,
                rate,
                burst,
            },
        }
    }

    fn complete(&mut self, shard: &Shard, lease: Lease, size: usize, digest: u8, twist: u8) -> Call {
        let (id, nonce, stage) = self.lease(shard, lease);
        let job = shard.jobs.get(&id);
        let is_last = job.is_none_or(|job| job.stages.last() == Some(&stage));
        let rows = job.map_or(1, |job| job.rows);
        let other = if stage == "base" { "superres" } else { "base" };
        Call::Complete(Complete {
            id,
            nonce,
            is_tokens: is_last == (twist == 1),
            stage: if twist == 0 { other.to_owned() } else { stage },
            result: "x".repeat(size),
            timing: "took".to_owned(),
            rows: if twist == 2 { rows + 1 } else { rows },
            digest: format!("digest{digest}"),
        })
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
            _ if pick % 4 == 0 => Act::End,
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
        Some(id) if pick % 5 != 0 => (*id).clone(),
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
