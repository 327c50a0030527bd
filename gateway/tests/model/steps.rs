//! Random steps. A step says "the third running job"; its calls, in `sequence.rs`, name it.

use proptest::{collection::vec, option, prelude::*, sample::select};

use crate::shard::Ms;

/// What may come next. Small numbers pick one of what is there.
#[derive(Clone, Debug)]
pub enum Step {
    /// Time goes on, or the clock is set back.
    Pass(Ms),
    /// A recent call once more, as if its reply had been lost.
    Again(usize),
    Submit(Vec<NewJob>),
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
    /// Lease, size, digest and twist of each.
    Complete(Vec<(Lease, usize, u8, u8)>),
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
    pub tenant: usize,
    pub shape: usize,
    pub rows: i64,
    pub boost: Ms,
    pub timeout: Ms,
    pub size: usize,
    pub key: Option<(u8, u8)>,
    pub ranked: bool,
    /// The id of a job that is there.
    pub known: Option<usize>,
    pub max_waiting: i64,
    pub max_bytes: i64,
    pub rate: f64,
    pub burst: f64,
    pub own: (f64, f64, f64, f64),
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

/// Longer than any sequence waits.
const LONG: Ms = 100_000_000;

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
        14 => several(new_job().boxed()).prop_map(Step::Submit),
        26 => claim.prop_map(|((pool, worker, lease), credit, nonces, weight, max_running)| {
            Step::Claim { pool, worker, lease, credit, nonces, weight, max_running }
        }),
        8 => beat.prop_map(|(worker, lease, leases, step, checkpoint)| {
            Step::Beat { worker, lease, leases, step, checkpoint }
        }),
        18 => several((lease(), 0..20_usize, 0..2_u8, 0..20_u8).boxed()).prop_map(Step::Complete),
        7 => (lease(), 1..6_u8, prop::bool::weighted(0.8), vec(select(vec![0, 50, 2_000]), 0..4))
            .prop_map(|(lease, reason, retriable, delays)| Step::Fail { lease, reason, retriable, delays }),
        5 => (lease(), any::<bool>()).prop_map(|(lease, checkpoint)| Step::Release { lease, checkpoint }),
        10 => (select(vec![1, 2, 100]), select(vec![1, 2, 2, 3]))
            .prop_map(|(most, crashes)| Step::Reap { most, crashes }),
        2 => (pick.clone(), option::weighted(0.1, 0..3_usize))
            .prop_map(|(job, tenant)| Step::Cancel { job, tenant }),
        3 => (select(vec![1, 100]), select(vec![0, 10_000, 100_000]), select(vec![0, 10_000, 100_000]))
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

/// Mostly one or two a call.
fn several<T: std::fmt::Debug + 'static>(one: BoxedStrategy<T>) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![
        3 => one.clone().prop_map(|one| vec![one]),
        2 => vec(one, 2..7),
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
        (option::weighted(0.05, 0..40_usize), any::<bool>()),
    );
    let limits = (
        option::weighted(0.1, select(vec![0, 3])),
        option::weighted(0.1, Just(150)),
        prop_oneof![limit(0.4), limit(2.0)],
        limit(3.0),
    );
    let own = (limit(2.0), limit(50.0), limit(0.7), limit(2.0));
    (what, limits, own).prop_map(|(what, limits, own)| {
        let (tenant, shape, rows, boost, timeout, size, key, (known, ranked)) = what;
        let (max_waiting, max_bytes, rate, burst) = limits;
        NewJob {
            tenant,
            shape,
            rows,
            boost,
            timeout,
            size,
            key,
            ranked,
            known,
            max_waiting: max_waiting.unwrap_or(1_000),
            max_bytes: max_bytes.unwrap_or(0),
            rate,
            burst,
            own,
        }
    })
}
