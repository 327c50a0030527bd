//! The queue against its peers on one server: submissions a second, and whole jobs through two stages.

use std::collections::BTreeMap;

use anyhow::Context as _;
use muse_proto::v1::Stage;
use tokio::time::Instant;

use super::{
    bare_call::{self, BareServer},
    load::{self, Client, IN_FLIGHT},
    peers::{Peer, Running, What},
    served::{Fsync, Served},
    workers::{Session, Workers},
};
use crate::{
    arguments::{Arguments, Settings},
    measure::say,
    report::{Section, Table, Verdict, spread},
    stats::Series,
};

/// Issue 4: ahead of both at equal durability.
const AHEAD: f64 = 1.0;
/// Threads of the Celery producer; more are slower in one Python.
const CELERY_IN_FLIGHT: usize = 8;
/// Leases that a worker takes at a time; BullMQ's concurrency.
const ROWS: u32 = 64;

/// Who was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Calls,
    Stream,
    BullMq,
    Celery,
}

impl Who {
    fn of(peer: Peer) -> Self {
        match peer {
            Peer::BullMq => Self::BullMq,
            Peer::Celery => Self::Celery,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Calls => "Muse Serve, a SubmitJob call for each",
            Self::Stream => "Muse Serve, over SubmitJobs",
            Self::BullMq => "BullMQ, two queues",
            Self::Celery => "Celery, a chain of two tasks",
        }
    }
}

/// Jobs a second, a value a round.
#[derive(Default)]
struct Rates {
    adds: Vec<f64>,
    jobs: Vec<f64>,
    /// The server's time on a processor for each submission, in microseconds; nothing of peers, who tidy up in the same breath.
    server: Vec<f64>,
}

type All = BTreeMap<(Who, usize), Rates>;

/// Calls a second that do nothing, a value a round.
#[derive(Default)]
struct IdleCalls {
    /// Of the same gateway.
    gateway: Vec<f64>,
    /// Of a server of tonic's alone.
    bare: Vec<f64>,
}

pub(super) async fn measure(arguments: &Arguments, settings: &Settings) -> anyhow::Result<Section> {
    say("the queue beside BullMQ and Celery");
    let mut served = Served::start(arguments).await?;
    let mut running = Vec::new();
    let mut missing = Vec::new();
    for peer in Peer::ALL {
        match Running::start(peer, arguments, served.socket()).await? {
            Some(peer) => running.push(peer),
            None => {
                say(&format!(
                    "{} is not there: {} fetches it",
                    peer.name(),
                    peer.fetch()
                ));
                missing.push(peer);
            }
        }
    }
    let mut all = All::new();
    let bare = BareServer::start().await?;
    let mut idle = IdleCalls::default();
    for round in 0..=settings.rounds {
        say(&format!("round {round} of {} beside the peers", settings.rounds));
        let calls = settings.queue_jobs;
        for (endpoint, rates) in [
            (served.endpoint(), &mut idle.gateway),
            (bare.endpoint(), &mut idle.bare),
        ] {
            let client = Client::connect(&endpoint).await?;
            let rate = calls as f64 / bare_call::check(&client, calls).await?;
            if round > 0 {
                rates.push(rate);
            }
        }
        for (mode, fsync) in Fsync::ALL.into_iter().enumerate() {
            served.set_fsync(fsync).await?;
            let mut rates = Vec::new();
            for who in [Who::Calls, Who::Stream] {
                let (adds, flow, server) = ours(&served, who, settings.queue_jobs).await?;
                rates.push((who, (adds, flow, Some(server))));
            }
            for peer in &mut running {
                let (jobs, in_flight) = match peer.peer {
                    Peer::BullMq => (settings.queue_jobs, IN_FLIGHT),
                    Peer::Celery => (settings.celery_jobs, CELERY_IN_FLIGHT),
                };
                let adds = peer.rate(What::Adds, jobs, in_flight).await?;
                let flow = peer.rate(What::Flow, jobs, in_flight).await?;
                rates.push((Who::of(peer.peer), (adds, flow, None)));
            }
            // The first round fills caches, and compiles what is compiled when it is hot.
            if round > 0 {
                for (who, (adds, jobs, server)) in rates {
                    let rates = all.entry((who, mode)).or_default();
                    rates.adds.push(adds);
                    rates.jobs.push(jobs);
                    rates.server.extend(server);
                }
            }
        }
    }
    let versions: Vec<String> = running.iter().map(|peer| peer.versions.clone()).collect();
    for peer in running {
        peer.stop().await?;
    }
    served.stop().await;
    section(&all, &idle, &missing, &versions, settings)
}

/// Submissions a second with no worker there, and then whole jobs a second, from the first submission to the last end; and
/// what each of those submissions took of the server's time, in microseconds.
async fn ours(served: &Served, who: Who, jobs: u64) -> anyhow::Result<(f64, f64, f64)> {
    let client = served.client().await?;
    let submit = async |jobs| match who {
        Who::Stream => load::streamed(&client, jobs).await.map(|(seconds, _)| seconds),
        _ => load::one_by_one(&client, jobs, None).await,
    };
    // The model is known as soon as a worker has attached.
    drop(Session::attach(&served.endpoint(), Stage::Base, ROWS).await?);
    let before = served.cpu()?;
    let adds = jobs as f64 / submit(jobs).await?;
    let server = served.cpu()?.since(&before).server.as_secs_f64() * 1e6 / jobs as f64;
    // They are worked off and not counted.
    let all = usize::try_from(jobs)?;
    let mut workers = Workers::attach(&served.endpoint(), ROWS, all).await?;
    workers.reach(jobs).await?;
    let begun = Instant::now();
    submit(jobs).await?;
    workers.reach(2 * jobs).await?;
    let seconds = begun.elapsed().as_secs_f64();
    workers.stop().await?;
    Ok((adds, jobs as f64 / seconds, server))
}

fn section(
    all: &All,
    idle: &IdleCalls,
    missing: &[Peer],
    versions: &[String],
    settings: &Settings,
) -> anyhow::Result<Section> {
    let series = |values: &Vec<f64>| Series::new(values.iter().copied()).context("nothing was measured");
    let none = || "-".to_owned();
    let mut table = Table::new(&[
        "",
        "appendfsync",
        "submits/s",
        "whole jobs/s",
        "Valkey's CPU, µs a submission",
    ]);
    for ((who, mode), rates) in all {
        table.row([
            who.name().to_owned(),
            Fsync::ALL[*mode].name().to_owned(),
            spread(&series(&rates.adds)?, 0),
            spread(&series(&rates.jobs)?, 0),
            series(&rates.server).map_or_else(|_| none(), |server| spread(&server, 1)),
        ]);
    }
    for peer in missing {
        let not = format!("not measured: `{}` fetches it", peer.fetch());
        let name = Who::of(*peer).name().to_owned();
        table.row([name, none(), not.clone(), not, none()]);
    }
    let mut calls = Table::new(&["a unary call that does nothing", "calls/s"]);
    for (whose, rates) in [
        ("of the same gateway, with its spans and counters", &idle.gateway),
        ("of tonic alone", &idle.bare),
    ] {
        calls.row([whose.to_owned(), spread(&series(rates)?, 0)]);
    }
    let mut verdicts = Vec::new();
    for peer in Peer::ALL {
        for (mode, fsync) in Fsync::ALL.into_iter().enumerate() {
            let rates = |who| all.get(&(who, mode));
            let (Some(calls), Some(stream), Some(peers)) =
                (rates(Who::Calls), rates(Who::Stream), rates(Who::of(peer)))
            else {
                continue;
            };
            let name = peer.name();
            for (what, own, other) in [
                ("whole jobs/s, a call for each", &calls.jobs, &peers.jobs),
                ("whole jobs/s, over SubmitJobs", &stream.jobs, &peers.jobs),
                ("submits/s, a call for each", &calls.adds, &peers.adds),
                ("submits/s, over SubmitJobs", &stream.adds, &peers.adds),
            ] {
                let ratio = series(own)?.over(&series(other)?);
                let what = format!("{what} / {name}'s, {}", fsync.name());
                verdicts.push(Verdict::at_least(what, &ratio, AHEAD));
            }
        }
    }
    let versions = if versions.is_empty() {
        "none was there".to_owned()
    } else {
        versions.join("; ")
    };
    Ok(Section {
        name: "queue peers".to_owned(),
        title: "The queue beside BullMQ and Celery".to_owned(),
        text: format!(
            "One Valkey for all, in turns, everybody over its Unix socket; jobs of {} bytes that do nothing. Peers: {versions}. *Submits*: to a queue \
             that no worker reads. *Whole jobs*: from the first submission to the last end, workers of both stages at work. Muse Serve: {} jobs, \
             {IN_FLIGHT} calls in flight on one gRPC connection or one stream, from one thread, a gateway process, one worker of each stage with {ROWS} leases, each over a \
             gRPC connection of its own. BullMQ: as many jobs, {IN_FLIGHT} adds in flight, a worker of each queue at concurrency {ROWS}, all in one Node process, \
             without gRPC; the job of `base` adds that of `superres`. Celery: {} jobs, {CELERY_IN_FLIGHT} threads that submit in one process, \
             a worker process of 8 threads (faster here than processes) that reads both queues, late acknowledgement, no results kept. *A unary call \
             that does nothing*: `grpc.health.v1.Health/Check`, as many and as many at once, from the same kind of client.",
            load::REQUEST_BYTES,
            settings.queue_jobs,
            settings.celery_jobs,
        ),
        tables: vec![table, calls],
        verdicts,
    })
}
