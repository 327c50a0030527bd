//! A whole run: the cluster, the load, the faults, the quiet at the end, the judgement.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    checker::{Bounds, Verdict, Violation, check},
    clients::{Gateways, Tenant},
    fairness,
    faults::Injector,
    load::{Load, Rate},
    operator::{self, Operator},
    proxy::Failpoint,
    schedule::{Means, Schedule, Step},
    server::can_limit_files,
    stage::{LEASE, Stage, Wish},
};
use crate::programs;

/// Steps between two audits in quiet.
const AUDIT_EVERY: usize = 12;
/// A run that has not reached its goals by this much of its time more has failed.
const OVERTIME: f64 = 0.3;

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub wish: Wish,
    pub rate: Rate,
    pub time: Duration,
    pub goals: Goals,
    /// Tenants that compete for everything, before the storm and after it.
    pub saturate: bool,
    /// Recovery has to keep to its bounds; else it is only told how long it took, for the machine has other things to do.
    pub timed: bool,
}

/// What has to be reached, if it takes longer than the plan's time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Goals {
    pub jobs: u64,
    /// kill -9 of gateways and workers.
    pub kills: u64,
    /// Of Redis, by whatever ended it at once.
    pub redis_kills: u64,
    /// Every failpoint has cut.
    pub failpoints: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub plan: Plan,
    pub verdict: Verdict,
    pub faults: BTreeMap<&'static str, u64>,
    /// Every failpoint with how often it has cut.
    pub cuts: BTreeMap<Failpoint, u64>,
    pub jobs: u64,
    pub audits: u64,
    pub records: usize,
    pub means: Means,
    pub took: Duration,
}

impl Outcome {
    /// kill -9 of gateways and workers.
    pub fn kills(&self) -> u64 {
        self.count("kill gateway") + self.count("kill worker")
    }

    /// Of Redis: every fault that ends its process.
    pub fn redis_kills(&self) -> u64 {
        redis_kills(&self.faults)
    }

    fn count(&self, kind: &str) -> u64 {
        self.faults.get(kind).copied().unwrap_or(0)
    }

    /// Breaches that make the run fail.
    pub fn breaches(&self) -> impl Iterator<Item = &Violation> {
        let timed = self.plan.timed;
        let breaches = self.verdict.violations.iter();
        breaches.filter(move |breach| timed || !breach.invariant.is_a_time())
    }

    /// Goals that were missed, in words.
    pub fn missed(&self) -> Vec<String> {
        let goals = self.plan.goals;
        let least = [
            ("jobs", self.jobs, goals.jobs),
            ("kills of gateways and workers", self.kills(), goals.kills),
            ("kills of Redis", self.redis_kills(), goals.redis_kills),
        ];
        let mut missed: Vec<String> = least
            .iter()
            .filter(|(_, reached, goal)| reached < goal)
            .map(|(what, reached, goal)| format!("{reached} {what} of {goal}"))
            .collect();
        if goals.failpoints {
            let never = self.cuts.iter().filter(|(_, cuts)| **cuts == 0);
            missed.extend(never.map(|(failpoint, _)| format!("{failpoint:?} has never cut")));
        }
        missed
    }
}

fn redis_kills(faults: &BTreeMap<&'static str, u64>) -> u64 {
    let kinds = ["kill redis", "torn log", "cut log"];
    kinds.iter().filter_map(|kind| faults.get(kind)).sum()
}

/// Runs it. Panics where a cluster cannot even be run; what is wrong with the queue is in the verdict.
pub async fn run(plan: Plan) -> Outcome {
    println!("seed {}: {plan:?}", plan.seed);
    let begun = Instant::now();
    let stage = Arc::new(Stage::start(plan.wish).await);
    let gateways = Gateways::of(&stage);
    let history = stage.history.clone();
    if plan.saturate {
        fairness::saturate(&stage, &gateways, 0).await;
    }
    let operator = Operator::start(&gateways, &history, plan.seed).await;
    let load = Load::start(&gateways, &history, plan.rate, plan.seed);
    let injector = Injector::new(&stage, gateways.clone(), plan.seed);
    let means = Means {
        clock: stage.server.has_clock(),
        disk: can_limit_files().await,
    };
    if !means.disk {
        println!("no full disks: there is no prlimit");
    }
    storm(&plan, &stage, &injector, (&load, operator.admin()), means, begun).await;

    println!("{:7.1} s: quiet", begun.elapsed().as_secs_f64());
    injector.heal();
    injector.settle().await;
    let admin = operator.finish().await;
    let mut jobs = load.finish().await;
    if plan.saturate {
        fairness::saturate(&stage, &gateways, 1).await;
        fairness::come_too_late(&stage, &gateways).await;
    }
    admin.audit().await;
    let names = Load::tenants().into_iter().chain(fairness::tenants());
    for name in names.chain([operator::NAME]) {
        Tenant::new(name, &gateways, &history).sweep().await;
    }
    stage.collect();
    let records = history.records();
    let bounds = Bounds {
        lease: LEASE,
        ..Bounds::default()
    };
    let verdict = check(&records, &bounds);
    jobs = jobs.max(verdict.ends.values().sum());
    let mut cuts: BTreeMap<Failpoint, u64> = stage
        .proxy
        .failpoints()
        .into_iter()
        .map(|failpoint| (failpoint, 0))
        .collect();
    cuts.extend(stage.proxy.cuts());
    let audits = records
        .iter()
        .filter(|record| matches!(record.event, super::history::Event::Audited { .. }))
        .count();
    let outcome = Outcome {
        plan,
        verdict,
        faults: injector.counts(),
        cuts,
        jobs,
        audits: audits as u64,
        records: records.len(),
        means,
        took: begun.elapsed(),
    };
    keep(&outcome, &records, &stage);
    if outcome.breaches().next().is_some() {
        println!("{}", crate::logs(&stage.cluster));
    }
    drop(injector);
    match Arc::try_unwrap(stage) {
        Ok(stage) => stage.cluster.stop().await,
        // The log's sampler holds it for a moment; the cluster then ends with the last of them.
        Err(stage) => drop(stage),
    }
    outcome
}

async fn storm(
    plan: &Plan,
    stage: &Stage,
    injector: &Injector,
    (load, admin): (&Load, &operator::Admin),
    means: Means,
    begun: Instant,
) {
    let lease_ms = LEASE.as_millis() as u64;
    let schedule = Schedule::new(plan.seed, stage.parts(), plan.wish.promise, means, lease_ms);
    let storm = Instant::now();
    for (number, step) in schedule.enumerate() {
        let passed = storm.elapsed();
        let faults = injector.counts();
        let kills = ["kill gateway", "kill worker"]
            .iter()
            .filter_map(|kind| faults.get(kind))
            .sum::<u64>();
        let reached = load.submitted() >= plan.goals.jobs
            && kills >= plan.goals.kills
            && redis_kills(&faults) >= plan.goals.redis_kills
            && (!plan.goals.failpoints || stage.proxy.cuts().len() == stage.proxy.failpoints().len());
        if passed >= plan.time && (reached || passed >= plan.time.mul_f64(1.0 + OVERTIME)) {
            return;
        }
        let at = begun.elapsed().as_secs_f64();
        match &step {
            Step::Burst { faults, failpoints } => {
                let told: Vec<String> = faults
                    .iter()
                    .map(|(delay, fault)| format!("+{delay} {fault}"))
                    .collect();
                println!("{at:7.1} s: {}; {failpoints} failpoints", told.join(", "));
                injector.burst(faults, *failpoints).await;
            }
            Step::Lone(fault) => {
                println!("{at:7.1} s: alone: {fault}");
                injector.lone(fault).await;
            }
        }
        if number % AUDIT_EVERY == AUDIT_EVERY - 1 {
            admin.audit().await;
        }
    }
}

/// The whole history and every log, for whoever has to find out: where MUSE_FAULT_HISTORY names a folder, and beside the services
/// where an invariant was breached.
fn keep(outcome: &Outcome, records: &[super::history::Record], stage: &Stage) {
    use std::io::Write as _;

    let folder = match std::env::var_os("MUSE_FAULT_HISTORY") {
        Some(folder) => std::path::PathBuf::from(folder),
        None if outcome.breaches().next().is_some() => programs::folder().join("faults"),
        None => return,
    };
    let folder = folder.join(outcome.plan.seed.to_string());
    std::fs::create_dir_all(&folder).expect("a folder for the history");
    for log in std::fs::read_dir(stage.cluster.directory().join("logs")).expect("logs") {
        let log = log.expect("a log");
        std::fs::copy(log.path(), folder.join(log.file_name())).expect("a copy of a log");
    }
    let path = folder.join("history.jsonl");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).expect("a file for the history"));
    for record in records {
        serde_json::to_writer(&mut file, record).expect("written");
        file.write_all(b"\n").expect("written");
    }
    println!("the history is in {}", path.display());
}
