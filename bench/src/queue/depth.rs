//! The queue at several depths: what a submission, a claim and a whole job cost while many others wait.

use anyhow::Context as _;
use muse_proto::v1::Stage;
use tokio::time::Instant;

use super::{
    load::{self, IN_FLIGHT, Pace},
    served::{Fsync, Served},
    workers::{Session, Workers},
};
use crate::{
    arguments::{Arguments, Settings},
    measure::{milliseconds, say},
    processor::Cpu,
    report::{Section, Table, Verdict, spread},
    stats::Series,
};

/// Issue 4's bound.
const DEARER_WHEN_DEEP: f64 = 1.3;
/// Leases that a worker takes at a time.
const ROWS: u32 = 64;
/// Jobs that are submitted beyond those that wait, so that all parts have something to do.
const AHEAD: u64 = 256;
/// Jobs that base shards may be ahead of super-resolution.
const BETWEEN: usize = 256;

/// A server with jobs in its queue.
struct Deep {
    depth: u64,
    served: Served,
    /// Bytes of Redis that a waiting job takes.
    job_bytes: f64,
    figures: [Figures; 2],
}

/// Of one mode of the server's, a value a round.
#[derive(Default)]
struct Figures {
    submits: Vec<f64>,
    jobs: Vec<f64>,
    server_cpu: Vec<f64>,
    gateway_cpu: Vec<f64>,
    /// Of all rounds together.
    claims: Vec<f64>,
}

pub(super) async fn measure(
    arguments: &Arguments,
    settings: &Settings,
    depths: &[u64],
) -> anyhow::Result<Section> {
    let mut all = Vec::new();
    for depth in depths {
        say(&format!("a queue of {depth} jobs"));
        all.push(Deep::fill(arguments, *depth).await?);
    }
    for round in 0..=settings.rounds {
        say(&format!("round {round} of {} at all depths", settings.rounds));
        for (mode, fsync) in Fsync::ALL.into_iter().enumerate() {
            for deep in &mut all {
                deep.round(mode, fsync, settings, round > 0).await?;
            }
        }
    }
    let section = section(&all, settings);
    for deep in all {
        deep.served.stop().await;
    }
    section
}

impl Deep {
    async fn fill(arguments: &Arguments, depth: u64) -> anyhow::Result<Self> {
        let mut served = Served::start(arguments).await?;
        served.set_fsync(Fsync::Everysec).await?;
        // The model is known as soon as a worker has attached.
        drop(Session::attach(&served.endpoint(), Stage::Base, ROWS).await?);
        let before = served.memory().await?;
        let (seconds, repeated) = load::streamed(&served.client().await?, depth).await?;
        say(&format!(
            "filled in {seconds:.0} s, {repeated} submissions repeated"
        ));
        let job_bytes = (served.memory().await? - before) / depth as f64;
        Ok(Self {
            depth,
            served,
            job_bytes,
            figures: <[Figures; 2]>::default(),
        })
    }

    /// Leaves as many jobs waiting as there were.
    async fn round(
        &mut self,
        mode: usize,
        fsync: Fsync,
        settings: &Settings,
        counts: bool,
    ) -> anyhow::Result<()> {
        self.served.set_fsync(fsync).await?;
        let client = self.served.client().await?;

        let mut session = Session::attach(&self.served.endpoint(), Stage::Base, 1).await?;
        let mut claims = Vec::new();
        for _ in 0..settings.claims {
            // In the place of the one that will be gone.
            load::one_by_one(&client, 1, None).await?;
            claims.push(milliseconds(session.claim_one().await?));
        }
        drop(session);

        // The workers work these off before their window begins.
        let added = settings.queue_jobs;
        let submits = added as f64 / load::one_by_one(&client, added, None).await?;

        let mut workers = Workers::attach(&self.served.endpoint(), ROWS, BETWEEN).await?;
        workers.reach(added).await?;
        let (begun, before) = (Instant::now(), self.served.cpu()?);
        let pace = Some(Pace {
            finished: workers.finished(),
            before: added,
            ahead: AHEAD,
        });
        let producer = tokio::spawn(async move { load::one_by_one(&client, added, pace).await });
        workers.reach(2 * added).await?;
        let (seconds, cpu): (f64, Cpu) = (begun.elapsed().as_secs_f64(), self.served.cpu()?.since(&before));
        producer.await??;
        workers.stop().await?;

        if counts {
            let figures = &mut self.figures[mode];
            let micros = |time: std::time::Duration| time.as_secs_f64() * 1e6 / added as f64;
            figures.submits.push(submits);
            figures.jobs.push(added as f64 / seconds);
            figures.server_cpu.push(micros(cpu.server));
            figures.gateway_cpu.push(micros(cpu.gateway));
            figures.claims.extend(claims);
        }
        Ok(())
    }
}

fn section(all: &[Deep], settings: &Settings) -> anyhow::Result<Section> {
    let series = |values: &Vec<f64>| Series::new(values.iter().copied()).context("nothing was measured");
    let mut table = Table::new(&[
        "jobs that wait",
        "appendfsync",
        "submits/s",
        "whole jobs/s",
        "claim p50, ms",
        "claim p99, ms",
        "Valkey's CPU, µs a job",
        "gateway's CPU, µs a job",
    ]);
    let mut memory = Table::new(&["jobs that wait", "bytes of Redis each"]);
    let mut verdicts = Vec::new();
    for deep in all {
        memory.row([deep.depth.to_string(), format!("{:.0}", deep.job_bytes)]);
        for (figures, fsync) in deep.figures.iter().zip(Fsync::ALL) {
            let claims = series(&figures.claims)?;
            table.row([
                deep.depth.to_string(),
                fsync.name().to_owned(),
                spread(&series(&figures.submits)?, 0),
                spread(&series(&figures.jobs)?, 0),
                format!("{:.2}", claims.median()),
                format!("{:.2}", claims.percentile(99.0)),
                spread(&series(&figures.server_cpu)?, 0),
                spread(&series(&figures.gateway_cpu)?, 0),
            ]);
        }
    }
    if let [shallow, .., deep] = all {
        for (mode, fsync) in Fsync::ALL.into_iter().enumerate() {
            // Time a job is one over the rate.
            let ratio = series(&shallow.figures[mode].jobs)?.over(&series(&deep.figures[mode].jobs)?);
            let what = format!(
                "time of a whole job with {} waiting / with {}, {}",
                deep.depth,
                shallow.depth,
                fsync.name()
            );
            verdicts.push(Verdict::at_most(what, &ratio, DEARER_WHEN_DEEP));
        }
    }
    Ok(Section {
        name: "queue".to_owned(),
        title: "The queue with workers that compute nothing".to_owned(),
        text: format!(
            "For each depth a Valkey and a gateway of their own, filled over SubmitJobs, then measured in turns. Requests of {} bytes. \
             *Submits*: {} SubmitJob calls, {IN_FLIGHT} in flight on one connection, while no worker is there, so that the depth rises by as many. *Whole jobs*: one worker of each \
             stage, {ROWS} leases at a time, over the real WorkerHub; as many jobs are submitted as end, so that the depth stays \
             within {AHEAD} of what is told; from {} ends to twice as many, submissions included. *Claim*: {} a round, one after another: \
             from a worker's credit for one row to the lease, by gRPC both ways. CPU is of all threads over that window, divided by \
             its whole jobs: a submission, two claims, two results, a picture stored. The clients and workers run on the same \
             cores, in the benchmark's process. Valkey's log is not rewritten meanwhile.",
            load::REQUEST_BYTES,
            settings.queue_jobs,
            settings.queue_jobs,
            settings.claims,
        ),
        tables: vec![table, memory],
        verdicts,
    })
}
