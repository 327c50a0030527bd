//! Calls of the scripts, with their arguments by name; and how each is written as ARGV.

use crate::shard::Ms;

#[derive(Clone, Debug)]
pub enum Call {
    /// Some at once, which share their limits.
    Submit(Vec<Submit>),
    Claim(Claim),
    Beat {
        worker: String,
        lease: Ms,
        beats: Vec<Beat>,
    },
    /// Some at once.
    Complete(Vec<Complete>),
    Fail(Fail),
    Release {
        id: String,
        nonce: String,
        checkpoint: String,
    },
    Reap {
        most: i64,
        crashes: i64,
        history: i64,
    },
    Cancel {
        id: String,
        tenant: String,
    },
    Purge {
        most: i64,
        keep_done: Ms,
        keep_dead: Ms,
    },
    TenantSet {
        tenant: String,
        /// `None` takes the setting away.
        settings: Vec<(&'static str, Option<f64>)>,
    },
    Pause {
        /// A pool has a colon in its name, a tenant has none.
        name: String,
        resume: bool,
        reason: String,
    },
    RetryDead {
        token: String,
        ids: Vec<String>,
    },
    PurgeDead {
        ids: Vec<String>,
    },
    Requeue {
        id: String,
    },
    Audit {
        token: String,
        act: Act,
        repair: bool,
        lease: Ms,
        patience: Ms,
    },
    /// Arguments that a script must refuse.
    Wrong {
        script: &'static str,
        arguments: Vec<String>,
    },
}

#[derive(Clone, Debug)]
pub struct Submit {
    pub id: String,
    pub tenant: String,
    pub model: String,
    pub stages: Vec<String>,
    pub rows: i64,
    pub boost: Ms,
    pub timeout: Ms,
    pub request: String,
    pub traceparent: String,
    /// Hashes of the key and of the request.
    pub idempotency: Option<(String, String)>,
    /// To be told its rank.
    pub ranked: bool,
    pub max_waiting: i64,
    pub max_bytes: i64,
    pub rate: f64,
    pub burst: f64,
    pub tenant_limits: TenantLimits,
}

/// Of a tenant without settings of its own.
#[derive(Clone, Debug)]
pub struct TenantLimits {
    pub max_queued: f64,
    pub max_bytes: f64,
    pub rate: f64,
    pub burst: f64,
}

#[derive(Clone, Debug)]
pub struct Claim {
    pub model: String,
    pub stage: String,
    pub worker: String,
    pub lease: Ms,
    pub credit: i64,
    pub weight: f64,
    pub max_running: f64,
    pub history: i64,
    pub nonces: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Beat {
    pub id: String,
    pub nonce: String,
    pub step: String,
    pub of: String,
    pub checkpoint: String,
}

#[derive(Clone, Debug)]
pub struct Complete {
    pub id: String,
    pub nonce: String,
    pub stage: String,
    /// Else pictures.
    pub is_tokens: bool,
    pub result: String,
    pub timing: String,
    pub rows: i64,
    pub digest: String,
}

#[derive(Clone, Debug)]
pub struct Fail {
    pub id: String,
    pub nonce: String,
    pub reason: String,
    pub message: String,
    pub retriable: bool,
    pub history: i64,
    pub delays: Vec<Ms>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    Begin,
    Jobs(Vec<String>),
    Entries(String, Vec<String>),
    Keys(Vec<String>),
    Counters(Vec<String>),
    End,
}

impl Call {
    /// The script's name.
    pub fn script(&self) -> &'static str {
        match self {
            Self::Submit(_) => "submit",
            Self::Claim(_) => "claim",
            Self::Beat { .. } => "beat",
            Self::Complete(_) => "complete",
            Self::Fail(_) => "fail",
            Self::Release { .. } => "release",
            Self::Reap { .. } => "reap",
            Self::Cancel { .. } => "cancel",
            Self::Purge { .. } => "purge",
            Self::TenantSet { .. } => "tenant_set",
            Self::Pause { .. } => "pause",
            Self::RetryDead { .. } => "retry_dead",
            Self::PurgeDead { .. } => "purge_dead",
            Self::Requeue { .. } => "requeue",
            Self::Audit { .. } => "audit",
            Self::Wrong { script, .. } => script,
        }
    }

    /// It may go on where it stopped when it is repeated: it takes a batch at a time.
    pub fn is_a_batch(&self) -> bool {
        matches!(self, Self::Reap { .. } | Self::Purge { .. })
    }

    /// ARGV.
    pub fn arguments(&self) -> Vec<String> {
        let mut list = List::default();
        match self {
            Self::Submit(all) => {
                let first = all.first().expect("a job");
                list.add(first.max_waiting);
                list.add(first.max_bytes).add(first.rate).add(first.burst);
                let own = &first.tenant_limits;
                list.add(own.max_queued)
                    .add(own.max_bytes)
                    .add(own.rate)
                    .add(own.burst);
                for new in all {
                    let (key, request) = new.idempotency.clone().unwrap_or_default();
                    list.add(&new.id).add(&new.tenant).add(&new.model);
                    list.add(new.stages.join(",")).add(new.rows).add(new.boost);
                    list.add(new.timeout).add(&new.request).add(&new.traceparent);
                    list.add(key).add(request).add(u8::from(new.ranked));
                }
            }
            Self::Claim(claim) => {
                list.add(&claim.model).add(&claim.stage).add(&claim.worker);
                list.add(claim.lease).add(claim.credit).add(claim.weight);
                list.add(claim.max_running).add(claim.history).all(&claim.nonces);
            }
            Self::Beat { worker, lease, beats } => {
                list.add(worker).add(lease);
                for beat in beats {
                    list.add(&beat.id).add(&beat.nonce).add(&beat.step);
                    list.add(&beat.of).add(&beat.checkpoint);
                }
            }
            Self::Complete(all) => {
                for complete in all {
                    let kind = if complete.is_tokens { "tokens" } else { "pictures" };
                    list.add(&complete.id).add(&complete.nonce).add(&complete.stage);
                    list.add(kind).add(&complete.result).add(&complete.timing);
                    list.add(complete.rows).add(&complete.digest);
                }
            }
            Self::Fail(fail) => {
                list.add(&fail.id).add(&fail.nonce).add(&fail.reason);
                list.add(&fail.message).add(u8::from(fail.retriable));
                list.add(fail.history).all(&fail.delays);
            }
            Self::Release {
                id,
                nonce,
                checkpoint,
            } => drop(list.add(id).add(nonce).add(checkpoint)),
            Self::Reap {
                most,
                crashes,
                history,
            } => drop(list.add(most).add(crashes).add(history)),
            Self::Cancel { id, tenant } => drop(list.add(id).add(tenant)),
            Self::Purge {
                most,
                keep_done,
                keep_dead,
            } => drop(list.add(most).add(keep_done).add(keep_dead)),
            Self::TenantSet { tenant, settings } => {
                list.add(tenant);
                for (name, value) in settings {
                    list.add(name)
                        .add(value.map(|value| value.to_string()).unwrap_or_default());
                }
            }
            Self::Pause { name, resume, reason } => {
                let kind = if name.contains(':') { "pool" } else { "tenant" };
                list.add(kind)
                    .add(name)
                    .add(if *resume { "resume" } else { "pause" });
                list.add(reason);
            }
            Self::RetryDead { token, ids } => drop(list.add(token).all(ids)),
            Self::PurgeDead { ids } => drop(list.all(ids)),
            Self::Requeue { id } => drop(list.add(id)),
            Self::Audit {
                token,
                act,
                repair,
                lease,
                patience,
            } => {
                let (word, names) = match act {
                    Act::Begin => ("begin", Vec::new()),
                    Act::Jobs(ids) => ("jobs", ids.clone()),
                    Act::Entries(key, members) => {
                        ("entries", [std::slice::from_ref(key), &members[..]].concat())
                    }
                    Act::Keys(names) => ("keys", names.clone()),
                    Act::Counters(names) => ("counters", names.clone()),
                    Act::End => ("end", Vec::new()),
                };
                list.add(token).add(word).add(u8::from(*repair));
                list.add(lease).add(patience).all(&names);
            }
            Self::Wrong { arguments, .. } => drop(list.all(arguments)),
        }
        list.0
    }

    /// What may not be missing from ARGV, which of it are numbers, and which may not be empty, by index.
    fn requirements(&self) -> (usize, Vec<usize>, Vec<usize>) {
        let filled_beats =
            |beats: &Vec<Beat>| (0..beats.len()).flat_map(|n| [2 + 5 * n, 3 + 5 * n]).collect();
        match self {
            Self::Submit(all) => {
                let of = |n: usize| 8 + 12 * n;
                let numbers = (0..all.len()).flat_map(|n| [of(n) + 4, of(n) + 5, of(n) + 6]);
                let mut filled: Vec<usize> = (0..all.len()).flat_map(|n| of(n)..of(n) + 4).collect();
                // A key stands for a request.
                let keyed = all
                    .iter()
                    .enumerate()
                    .filter(|(_, new)| new.idempotency.is_some());
                filled.extend(keyed.map(|(n, _)| of(n) + 10));
                (of(all.len()), (0..8).chain(numbers).collect(), filled)
            }
            Self::Claim(claim) => (9, (3..8).collect(), (8..8 + claim.nonces.len()).collect()),
            Self::Beat { beats, .. } => (2 + 5 * beats.len(), vec![1], filled_beats(beats)),
            Self::Complete(all) => {
                let numbers = (0..all.len()).map(|n| 8 * n + 6).collect();
                let filled = (0..all.len()).flat_map(|n| 8 * n..8 * n + 4).collect();
                (8 * all.len(), numbers, filled)
            }
            Self::Fail(fail) => {
                let numbers = [&[2, 5][..], &(6..6 + fail.delays.len()).collect::<Vec<_>>()].concat();
                (6, numbers, vec![0, 1])
            }
            Self::Release { .. } => (3, vec![], vec![0, 1]),
            Self::Reap { .. } => (3, vec![0, 1, 2], vec![]),
            Self::Cancel { .. } => (2, vec![], vec![]),
            Self::Purge { .. } => (3, vec![0, 1, 2], vec![]),
            Self::TenantSet { settings, .. } => {
                let pairs = 0..settings.len();
                (
                    1 + 2 * settings.len(),
                    pairs.clone().map(|n| 2 + 2 * n).collect(),
                    std::iter::once(0).chain(pairs.map(|n| 1 + 2 * n)).collect(),
                )
            }
            Self::Pause { .. } => (4, vec![], vec![0, 1, 2]),
            Self::RetryDead { .. } => (2, vec![], vec![0]),
            Self::PurgeDead { .. } => (1, vec![], vec![]),
            Self::Requeue { .. } => (1, vec![], vec![]),
            Self::Audit { .. } => (5, vec![3, 4], vec![0, 1]),
            Self::Wrong { .. } => (0, vec![], vec![]),
        }
    }

    /// The same call with one of its arguments missing, no number, or empty. `None`: this one cannot be spoiled.
    pub fn spoiled(&self, pick: usize) -> Option<Self> {
        let mut arguments = self.arguments();
        let (least, numbers, filled) = self.requirements();
        // Jobs, results, leases and settings come in groups: only a part of a group is missing.
        let missing: Vec<usize> = match self {
            Self::Beat { beats, .. } => (0..least)
                .filter(|n| *n < 2 || beats.is_empty() || (n - 2) % 5 != 0)
                .collect(),
            Self::Submit(_) => (0..least).filter(|n| *n <= 8 || (n - 8) % 12 != 0).collect(),
            Self::Complete(_) => (0..least).filter(|n| *n == 0 || n % 8 != 0).collect(),
            Self::TenantSet { .. } => (0..least).filter(|n| n % 2 == 0).collect(),
            _ => (0..least).collect(),
        };
        let pick = pick % (missing.len() + numbers.len() + filled.len()).max(1);
        if let Some(length) = missing.get(pick) {
            arguments.truncate(*length);
        } else if let Some(number) = numbers.get(pick - missing.len()) {
            *arguments.get_mut(*number)? = "many".to_owned();
        } else {
            arguments
                .get_mut(*filled.get(pick - missing.len() - numbers.len())?)?
                .clear();
        }
        Some(Self::Wrong {
            script: self.script(),
            arguments,
        })
    }
}

#[derive(Default)]
struct List(Vec<String>);

impl List {
    fn add(&mut self, argument: impl ToString) -> &mut Self {
        self.0.push(argument.to_string());
        self
    }

    fn all(&mut self, arguments: &[impl ToString]) -> &mut Self {
        self.0.extend(arguments.iter().map(ToString::to_string));
        self
    }
}
