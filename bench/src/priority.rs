//! A job of high priority among many of low priority: when does it start?

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use muse_engine::Stage;
use muse_proto::{
    std_duration,
    v1::{GenerationRequest, Priority},
};
use tokio::{sync::watch, task::JoinSet};

use crate::{
    arguments::{Arguments, Settings},
    cluster::{self, Client, Made},
    measure::{milliseconds, say},
    report::{Section, Table, Verdict, spread},
    stats::Series,
    workload::Order,
};

/// Issue 5's bound, in passes.
const PASSES: f64 = 1.0;
/// Jobs of high priority, and of the idle cluster.
const JOBS: usize = 25;
/// Pause after one of them.
const PAUSE: Duration = Duration::from_secs(1);

pub(crate) async fn measure(arguments: &Arguments, settings: &Settings) -> anyhow::Result<Section> {
    say("jobs of high priority on full workers");
    let (jobs, pause) = if arguments.quick {
        (2, Duration::from_millis(200))
    } else {
        (JOBS, PAUSE)
    };
    let cluster = cluster::start(arguments, &[]).await?;
    let client = Client::connect(&cluster).await?;
    let next = Arc::new(AtomicUsize::new(0));
    let mut idle = Vec::new();
    for index in 0..=jobs {
        let made = client.generate(request(&next, Priority::High)).await?;
        // The first makes connections.
        if index > 0 {
            idle.push(made);
        }
    }

    let (finished, mut seen) = watch::channel(0_usize);
    let mut low = JoinSet::new();
    for _ in 0..settings.clients {
        let (client, next, finished) = (client.clone(), Arc::clone(&next), finished.clone());
        low.spawn(async move {
            loop {
                let made = client.generate(request(&next, Priority::Low)).await;
                if let Err(error) = made {
                    return error;
                }
                finished.send_modify(|count| *count += 1);
            }
        });
    }
    let before = [Stage::Base, Stage::Superres];
    let measured = async {
        // As many pictures as there are clients: by then the cluster is full.
        let _ = seen.wait_for(|count| *count >= settings.clients).await;
        let mut passes = Vec::new();
        for stage in before {
            passes.push(cluster::passes_of(&cluster, &[stage]).await?);
        }
        let mut high = Vec::new();
        for _ in 0..jobs {
            tokio::time::sleep(pause).await;
            high.push(client.generate(request(&next, Priority::High)).await?);
        }
        let mut times = Vec::new();
        for (stage, earlier) in before.into_iter().zip(passes) {
            let passes = cluster::passes_of(&cluster, &[stage]).await?.since(&earlier);
            times.push((stage, passes.seconds * 1e3 / passes.count.max(1.0)));
        }
        anyhow::Ok((high, times))
    };
    let (high, passes) = tokio::select! {
        measured = measured => measured?,
        // Clients of low priority end only by a failure.
        Some(ended) = low.join_next() => match ended {
            Ok(error) => return Err(error.context("a client of low priority failed")),
            Err(crash) => bail!("a client of low priority crashed: {crash}"),
        },
    };
    low.shutdown().await;
    cluster.stop().await;
    section(&high, &idle, &passes, settings)
}

fn request(next: &AtomicUsize, priority: Priority) -> GenerationRequest {
    let mut request = Order::numbered(next.fetch_add(1, Ordering::Relaxed)).request();
    request.set_priority(priority);
    request
}

/// How long a stage's jobs waited: for a shard, and for its device.
///
/// # Errors
/// When a worker did not tell: as 0 it would look like none.
fn waits(jobs: &[Made], stage: Stage) -> anyhow::Result<(Series, Series)> {
    let wanted = match stage {
        Stage::Base => muse_proto::v1::Stage::Base,
        Stage::Superres => muse_proto::v1::Stage::Superres,
    };
    let timings = jobs.iter().flat_map(|job| &job.timings);
    let (mut shard, mut device) = (Vec::new(), Vec::new());
    for timing in timings.filter(|timing| timing.stage() == wanted) {
        let told = |duration: &Option<prost_types::Duration>| duration.as_ref().and_then(std_duration);
        let (Some(wait), Some(own)) = (told(&timing.wait), told(&timing.device_wait)) else {
            bail!(
                "{} does not tell how long a job waited for its device",
                timing.worker_id
            );
        };
        shard.push(milliseconds(wait.saturating_sub(own)));
        device.push(milliseconds(own));
    }
    let measured = || format!("no job was measured in stage {stage}");
    Ok((
        Series::new(shard).with_context(measured)?,
        Series::new(device).with_context(measured)?,
    ))
}

fn section(
    high: &[Made],
    idle: &[Made],
    passes: &[(Stage, f64)],
    settings: &Settings,
) -> anyhow::Result<Section> {
    let mut table = Table::new(&[
        "",
        "pass, ms (mean)",
        "wait for a shard, ms",
        "wait for its device, ms",
        "the same, in passes",
    ]);
    let mut verdicts = Vec::new();
    for (stage, pass) in passes {
        let (shard, device) = waits(high, *stage)?;
        let in_passes = |wait: &Series| wait.map(|wait| wait / pass.max(f64::MIN_POSITIVE));
        table.row([
            stage.to_string(),
            format!("{pass:.1}"),
            spread(&shard, 1),
            spread(&device, 1),
            spread(&in_passes(&device), 2),
        ]);
        verdicts.push(Verdict::at_most(
            format!("a job of high priority on a full {stage} worker waits for its device, in passes"),
            &in_passes(&device),
            PASSES,
        ));
        verdicts.push(Verdict::reported(
            format!("the same waits for a lease of a full {stage} worker, in passes"),
            &in_passes(&shard),
        ));
    }
    let latency = |jobs: &[Made]| {
        Series::new(jobs.iter().map(|made| milliseconds(made.latency))).context("no job was measured")
    };
    let (high, idle) = (latency(high)?, latency(idle)?);
    verdicts.push(Verdict::reported(
        "a job of high priority on the full cluster / a job on the idle one, latency",
        &high.map(|latency| latency / idle.median()),
    ));
    Ok(Section {
        name: "priority".to_owned(),
        title: "A job of high priority on full workers".to_owned(),
        text: format!(
            "{} clients of low priority keep the cluster full. One job of high priority after another, {} in all with pauses between: a \
             shard leases it, and then its device takes it up at the next step boundary, parking others. The wait for a shard is what \
             passes until a worker has room for the lease; the wait for its device, from embedding to conditioning, is within one pass if parking works. The job takes \
             {:.0} ms (p50; p90 {:.0}), and {:.0} ms on the idle cluster.",
            settings.clients,
            high.len(),
            high.median(),
            high.percentile(90.0),
            idle.median(),
        ),
        tables: vec![table],
        verdicts,
    })
}

#[cfg(test)]
mod tests {
    use muse_proto::v1::StageTiming;

    use super::*;

    #[test]
    fn the_wait_for_a_shard_is_what_no_device_accounts_for() {
        let milliseconds = |millis: i32| {
            Some(prost_types::Duration {
                seconds: 0,
                nanos: millis * 1_000_000,
            })
        };
        let timing = |stage: muse_proto::v1::Stage, wait, device| StageTiming {
            stage: stage as i32,
            wait: milliseconds(wait),
            device_wait: milliseconds(device),
            ..StageTiming::default()
        };
        let made = Made {
            latency: Duration::ZERO,
            picture: Vec::new(),
            phases: cluster::Phases::default(),
            timings: vec![
                timing(muse_proto::v1::Stage::Base, 30, 10),
                timing(muse_proto::v1::Stage::Superres, 7, 7),
            ],
        };
        let (shard, device) = waits(std::slice::from_ref(&made), Stage::Base).unwrap();
        assert!((shard.median() - 20.0).abs() < 1e-9 && (device.median() - 10.0).abs() < 1e-9);
        let (shard, device) = waits(std::slice::from_ref(&made), Stage::Superres).unwrap();
        assert!(shard.median().abs() < 1e-9 && (device.median() - 7.0).abs() < 1e-9);
        let mut older = made;
        older.timings[0].device_wait = None;
        assert!(
            waits(&[older], Stage::Base).is_err(),
            "no wait is not told apart from none told"
        );
    }
}
