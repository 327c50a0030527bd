//! More work than shards can take, of tenants with different weights; and a result that comes too late.

use std::{collections::BTreeMap, time::Duration};

use muse_proto::v1::{Pool, Stage as WireStage, TenantSettings, pause_request};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    clients::{Gateways, Order, Tenant},
    history::{Event, JobKind, Log as _, Record, now},
    load::request,
    operator::Admin,
    stage::{LEASE, Stage},
};
use crate::noop;

/// Tenants and what they are worth.
pub const WEIGHTS: [(&str, f64); 3] = [("one", 1.0), ("two", 2.0), ("four", 4.0)];
/// Jobs of each.
const JOBS: u64 = 350;
/// Who makes the job that is finished twice.
const NAME: &str = "late";
const PATIENCE: Duration = Duration::from_secs(120);

/// Every name that jobs are submitted under here.
pub fn tenants() -> Vec<&'static str> {
    WEIGHTS.iter().map(|(name, _)| *name).chain([NAME]).collect()
}

/// Fills the queue while nothing is leased, lets go, and loses a worker on the way. Returns when all jobs have ended; the window
/// in which everybody had work is taken down.
pub async fn saturate(stage: &Stage, gateways: &Gateways, round: u64) {
    let admin = Admin::new(gateways, &stage.history);
    for (name, weight) in WEIGHTS {
        let weight = Some(weight);
        let settings = TenantSettings {
            weight,
            ..TenantSettings::default()
        };
        admin.set_tenant(name, settings).await;
    }
    let pool = pause_request::Target::Pool(Pool {
        model: noop::MODEL.to_owned(),
        stage: WireStage::Base.into(),
    });
    admin.pause(pool.clone(), true).await;
    let mut submitting = JoinSet::new();
    for number in 0..JOBS {
        for (name, _) in WEIGHTS {
            let tenant = Tenant::new(name, gateways, &stage.history);
            let order = Order {
                key: format!("{name}-{round}-{number}"),
                kind: JobKind::Plain,
                request: request(number, 40),
            };
            submitting.spawn(async move { drop(tenant.submit(&order).await) });
        }
        while submitting.len() > 60 {
            submitting.join_next().await;
        }
    }
    while submitting.join_next().await.is_some() {}

    let from = now();
    admin.pause(pool, false).await;
    sleep(Duration::from_millis(700)).await;
    let part = "noop-base-1";
    stage.history.write(&Event::Fault {
        kind: "kill worker".to_owned(),
        target: part.to_owned(),
        lone: false,
    });
    stage.cluster.kill(part).await.expect("it runs");
    sleep(Duration::from_millis(300)).await;
    stage.cluster.start_part(part).await.expect("it starts");
    let begun = Instant::now();
    while admin.live_jobs(&WEIGHTS.map(|(name, _)| name)).await > 0 {
        assert!(begun.elapsed() < PATIENCE, "the saturating jobs do not end");
        sleep(Duration::from_millis(100)).await;
    }
    stage.history.write(&Event::Saturated {
        from,
        to: until_one_is_out(stage, from),
        stage: "base".to_owned(),
        weights: WEIGHTS.map(|(name, weight)| (name.to_owned(), weight)).into(),
    });
}

/// When the first of the tenants had nothing more that was never leased.
fn until_one_is_out(stage: &Stage, from: u64) -> u64 {
    let mut first_lease: BTreeMap<String, (String, u64)> = BTreeMap::new();
    stage.history.select(|Record { at, event }| {
        if let Event::Granted {
            job, stage, tenant, ..
        } = event
            && stage == "base"
            && *at >= from
        {
            let first = first_lease.entry(job.clone()).or_insert((tenant.clone(), *at));
            first.1 = first.1.min(*at);
        }
        None::<()>
    });
    let last = |name: &str| {
        let leases = first_lease.values().filter(|(tenant, _)| tenant == name);
        leases.map(|(_, at)| *at).max().unwrap_or(from)
    };
    WEIGHTS.iter().map(|(name, _)| last(name)).min().unwrap_or(from)
}

/// A shard is stopped until another has done its work, and goes on: its result must not count, and the gateways' alarm must
/// ring, since a no-op worker's results differ from each other's.
pub async fn come_too_late(stage: &Stage, gateways: &Gateways) {
    use nix::sys::signal::Signal;

    let before = stage.metric(ALARM).await;
    let tenant = Tenant::new(NAME, gateways, &stage.history);
    let order = Order {
        key: format!("{NAME}-{}", now()),
        kind: JobKind::Plain,
        request: request(1, 2500),
    };
    let job = tenant.submit(&order).await.expect("nothing is disturbed");
    let leases = |job: &str| {
        stage.history.select(|Record { event, .. }| match event {
            Event::Granted {
                job: of,
                stage,
                owner,
                nonce,
                ..
            } if of == job && stage == "base" => Some((owner.clone(), nonce.clone())),
            _ => None,
        })
    };
    let (owner, nonce) = until("a lease", || leases(&job.id).first().cloned()).await;
    // A worker's id is its part's name and something of its own.
    let part = owner
        .rsplit_once('-')
        .map(|(part, _)| part.to_owned())
        .unwrap_or_default();
    stage
        .cluster
        .signal(&part, Signal::SIGSTOP)
        .await
        .expect("it runs");
    until("another worker's result", || {
        let answers = outcomes(stage, &job.id, "base");
        answers
            .into_iter()
            .find(|(by, outcome)| *by != nonce && outcome == "accepted")
    })
    .await;
    stage
        .cluster
        .signal(&part, Signal::SIGCONT)
        .await
        .expect("it is there");
    // The gateway may have told it already that its lease is lost: then it drops the job, and nothing comes too late.
    let begun = Instant::now();
    let mut late = false;
    while !late && begun.elapsed() < 3 * LEASE {
        let answers = outcomes(stage, &job.id, "base");
        late = answers
            .iter()
            .any(|(by, outcome)| *by == nonce && outcome == "stale");
        sleep(Duration::from_millis(50)).await;
    }
    tenant.watch(&job.id).await.expect("it ends");
    if late {
        let after = stage.metric(ALARM).await;
        if after <= before {
            tenant.wrong(format!(
                "{nonce} of {} finished with another result, and {ALARM} is {after}",
                job.id
            ));
        }
    }
    println!(
        "a result that came too late: {}",
        if late {
            "turned away, and told"
        } else {
            "none, the lease was revoked first"
        }
    );
}

const ALARM: &str = "muse_digest_disagreements_total";

/// Who was answered what.
fn outcomes(stage: &Stage, job: &str, of_stage: &str) -> Vec<(String, String)> {
    stage.history.select(|Record { event, .. }| match event {
        Event::Completed {
            job: of,
            stage,
            nonce,
            outcome,
            ..
        } if of == job && stage == of_stage => Some((nonce.clone(), outcome.clone())),
        _ => None,
    })
}

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
