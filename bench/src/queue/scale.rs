//! Many simulated shards on one real gateway and one real Redis: how far one of each reaches.
//!
//! A simulated shard is a worker whose passes take a set time and no CPU: it holds leases ahead, fills its rows at every pass
//! boundary and reports over the real `WorkerHub`, as a GPU's worker would. What is left to measure is the cluster.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use muse_proto::{
    internal::v1::{
        AckOutcome, Credit, Heartbeat, Lease, LeaseReport, attach_request::Message,
        attach_response::Message as Answer,
    },
    v1::{Progress, Stage},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    load::{self, Pace},
    served::{Fsync, Served},
    workers::Session,
};
use crate::{
    arguments::{Arguments, Settings},
    measure::say,
    report::{Section, Table, Verdict, spread},
    stats::Series,
};

/// Issue 5's bound, at the most shards.
const SHARE_OF_LINEAR: f64 = 0.95;
/// Rows that a shard computes in a pass.
const ROWS: usize = 8;
/// Leases that it holds: half again as many as rows, as workers do (`batcher.queue_ahead`).
const HELD: usize = ROWS * 3 / 2;
/// Passes of a job.
const PASSES: u32 = 24;
/// As the hub asks for by default.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Shards of each stage, at most.
const MOST_SHARDS: usize = 64;
const SHARDS: [usize; 4] = [1, 4, 16, MOST_SHARDS];

/// What one window showed.
struct Window {
    /// Whole jobs a second.
    rate: f64,
    /// CPU a whole job, µs.
    server: f64,
    gateway: f64,
}

pub(crate) async fn measure(arguments: &Arguments, settings: &Settings) -> anyhow::Result<Section> {
    let mut table = Table::new(&[
        "shards of each stage",
        "whole jobs/s",
        "of that many times one",
        "Valkey's CPU, µs a job",
        "gateway's CPU, µs a job",
        "both, share of one core",
    ]);
    let mut one: Option<Series> = None;
    let mut verdicts = Vec::new();
    for shards in SHARDS {
        say(&format!("{shards} simulated shards of each stage"));
        let mut windows = Vec::new();
        for _ in 0..settings.scale_rounds {
            windows.push(window(arguments, settings, shards).await?);
        }
        let series =
            |of: fn(&Window) -> f64| Series::new(windows.iter().map(of)).context("nothing was measured");
        let rate = series(|window| window.rate)?;
        let linear = one.get_or_insert_with(|| rate.clone()).median() * shards as f64;
        let share = rate.map(|rate| rate / linear);
        table.row([
            shards.to_string(),
            spread(&rate, 1),
            spread(&share, 3),
            spread(&series(|window| window.server)?, 0),
            spread(&series(|window| window.gateway)?, 0),
            spread(
                &series(|window| window.rate * (window.server + window.gateway) / 1e6)?,
                2,
            ),
        ]);
        if shards == MOST_SHARDS {
            verdicts.push(Verdict::at_least(
                format!("{shards} simulated shards / {shards} times one"),
                &share,
                SHARE_OF_LINEAR,
            ));
        }
    }
    Ok(Section {
        name: "scale".to_owned(),
        title: "Many shards".to_owned(),
        text: format!(
            "Simulated shards of both stages on one gateway and one Valkey (`appendfsync always`): a pass of {ROWS} rows takes {} ms and no CPU, a job {PASSES} \
             passes in each stage, so that one shard can make {:.2} jobs/s; it holds {HELD} leases. Jobs are submitted as fast as they end, each a call \
             of its own, with twice as many waiting as all shards hold. Windows of {:.0} s, after as many jobs have ended as all shards hold. Clients \
             and shards run on the same cores as what is measured, in the benchmark's process.",
            settings.pass.as_millis(),
            ROWS as f64 / (settings.pass.as_secs_f64() * f64::from(PASSES)),
            settings.scale_window.as_secs_f64(),
        ),
        tables: vec![table],
        verdicts,
    })
}

/// On a cluster of its own: what one window leaves behind is no other's.
async fn window(arguments: &Arguments, settings: &Settings, shards: usize) -> anyhow::Result<Window> {
    let mut served = Served::start(arguments).await?;
    served.set_fsync(Fsync::Always).await?;
    let (ended, finished) = watch::channel(0_u64);
    let ended = Arc::new(ended);
    let mut tasks = JoinSet::new();
    for number in 0..shards {
        for stage in [Stage::Base, Stage::Superres] {
            let id = format!("simulated-{}-{number}", stage.as_str_name());
            let session = Session::attach_as(&id, &served.endpoint(), stage, ROWS as u32).await?;
            let shard = Shard {
                session,
                stage,
                held: VecDeque::new(),
                unacknowledged: 0,
            };
            tasks.spawn(shard.work(settings.pass, Arc::clone(&ended)));
        }
    }
    let held = (2 * shards * HELD) as u64;
    let pace = Pace {
        finished: finished.clone(),
        before: 0,
        ahead: 3 * held,
    };
    let client = served.client().await?;
    tasks.spawn(async move { load::one_by_one(&client, u64::MAX, Some(pace)).await.map(drop) });
    let measured = async {
        let mut seen = finished.clone();
        seen.wait_for(|jobs| *jobs >= held).await?;
        let (begun, cpu, before) = (Instant::now(), served.cpu()?, *finished.borrow());
        tokio::time::sleep(settings.scale_window).await;
        let (seconds, jobs) = (begun.elapsed().as_secs_f64(), *finished.borrow() - before);
        let cpu = served.cpu()?.since(&cpu);
        let micros = |time: Duration| time.as_secs_f64() * 1e6 / jobs as f64;
        anyhow::Ok(Window {
            rate: jobs as f64 / seconds,
            server: micros(cpu.server),
            gateway: micros(cpu.gateway),
        })
    };
    let window = tokio::select! {
        window = measured => window?,
        Some(broken) = tasks.join_next() => {
            broken??;
            bail!("a shard's stream ended");
        }
    };
    tasks.shutdown().await;
    served.stop().await;
    Ok(window)
}

/// A worker that computes nothing.
struct Shard {
    session: Session,
    stage: Stage,
    /// With the passes that are left. The first `ROWS` have a row, the others wait for one.
    held: VecDeque<(Lease, u32)>,
    unacknowledged: usize,
}

impl Shard {
    /// Until its stream breaks.
    async fn work(mut self, pass: Duration, ended: Arc<watch::Sender<u64>>) -> anyhow::Result<()> {
        let mut passes = interval(pass);
        passes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beats = interval(HEARTBEAT);
        let mut credit = None;
        loop {
            // As workers do: what is reported counts until it is acknowledged.
            let rows = HELD.saturating_sub(self.held.len() + self.unacknowledged) as u32;
            if credit != Some(rows) {
                credit = Some(rows);
                self.session.send(Message::Credit(Credit { rows })).await?;
            }
            tokio::select! {
                answer = self.session.next() => match answer? {
                    Answer::Lease(lease) => {
                        credit = credit.map(|rows| rows.saturating_sub(1));
                        self.held.push_back((lease, PASSES));
                    }
                    Answer::Ack(ack) => {
                        if ack.outcome() != AckOutcome::Accepted {
                            bail!("a result is not taken: {ack:?}");
                        }
                        self.unacknowledged = self.unacknowledged.saturating_sub(1);
                        if self.stage == Stage::Superres {
                            ended.send_modify(|jobs| *jobs += 1);
                        }
                    }
                    Answer::Drain(_) => bail!("the gateway drains"),
                    _ => {}
                },
                _ = passes.tick() => self.pass().await?,
                _ = beats.tick() => self.beat().await?,
            }
        }
    }

    /// Every row goes a step further; those at their end are reported, and make room for those that wait.
    async fn pass(&mut self) -> anyhow::Result<()> {
        for _ in 0..self.held.len().min(ROWS) {
            let Some((lease, left)) = self.held.pop_front() else {
                break;
            };
            if left > 1 {
                self.held.push_back((lease, left - 1));
            } else {
                self.session.complete(&lease).await?;
                self.unacknowledged += 1;
            }
        }
        // Rows that go on are before those that wait.
        self.held.make_contiguous().sort_by_key(|(_, left)| *left);
        Ok(())
    }

    async fn beat(&mut self) -> anyhow::Result<()> {
        let leases = self.held.iter().map(|(lease, left)| LeaseReport {
            job_id: lease.job_id.clone(),
            nonce: lease.nonce.clone(),
            progress: Some(Progress {
                stage: self.stage.into(),
                step: PASSES - left,
                of: PASSES,
            }),
            checkpoint: None,
        });
        let heartbeat = Heartbeat {
            leases: leases.collect(),
            rows: self.held.len().min(ROWS) as u32,
            ..Heartbeat::default()
        };
        self.session.send(Message::Heartbeat(heartbeat)).await
    }
}
