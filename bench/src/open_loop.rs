//! Jobs that arrive when they arrive, whether those before them are done or not: what clients wait at a share of the peak.
//!
//! A closed loop asks for less as soon as the cluster is slow, and so hides how long one would have waited. Here a job's
//! latency counts from the moment at which it was meant to arrive, also if the client was late with it.

use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::task::JoinSet;

use crate::{
    arguments::{Arguments, Settings},
    closed_loop::closed_loop,
    cluster::{self, Client, Made, asking},
    measure::{milliseconds, say},
    report::{Section, Table, Verdict},
    stats::Series,
    workload::Order,
};

/// Of the closed loop's pictures a second.
const SHARES: [f64; 4] = [0.3, 0.5, 0.7, 0.9];
/// Of the arrivals: the same in every run.
const SEED: u64 = 5;
/// Jobs through the idle cluster, for the latency of one alone.
const ALONE: usize = 15;
/// Fewer jobs have no 99th percentile.
const ENOUGH_FOR_P99: usize = 100;
/// Jobs of a rate are put into so many blocks for a spread.
const BLOCKS: usize = 5;

/// A job as its client saw it.
struct Arrived {
    /// From when it was meant to arrive to its picture's last byte.
    latency: Duration,
    made: Made,
}

/// What was seen at one rate.
struct Rate {
    share: f64,
    arrivals: Vec<Arrived>,
}

/// Jobs arrive for `window` at each rate.
pub(crate) async fn measure(
    arguments: &Arguments,
    settings: &Settings,
    window: Duration,
) -> anyhow::Result<Section> {
    say("jobs that arrive by themselves");
    let cluster = cluster::start(arguments, &[]).await?;
    let client = Client::connect(&cluster).await?;
    let next = Arc::new(AtomicUsize::new(0));
    let mut alone = Vec::new();
    let jobs_alone = if arguments.quick { 2 } else { ALONE };
    for index in 0..=jobs_alone {
        let made = client.make(&order(&next)).await?;
        // The first makes connections.
        if index > 0 {
            alone.push(milliseconds(made.latency));
        }
    }
    let before = closed_loop(asking(&client), settings.clients, settings.window, &next).await?;
    let mut rates = Vec::new();
    for (index, share) in SHARES.into_iter().enumerate() {
        say(&format!("{share} of the peak"));
        let times = arrivals(SEED + index as u64, share * before.rate, window);
        rates.push(Rate {
            share,
            arrivals: open_loop(&client, &times, &next).await?,
        });
    }
    let after = closed_loop(asking(&client), settings.clients, settings.window, &next).await?;
    cluster.stop().await;
    let alone = Series::new(alone).context("no job was measured")?;
    section(&rates, &alone, (before.rate, after.rate), settings, window)
}

fn order(next: &AtomicUsize) -> Order {
    Order::numbered(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}

/// A Poisson process: when jobs arrive in `window` at `rate` a second, from its beginning; never nothing.
fn arrivals(seed: u64, rate: f64, window: Duration) -> Vec<Duration> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut at = 0.0;
    let mut times = Vec::new();
    loop {
        // Exponential gaps; 1 - u is never 0.
        at += -(1.0 - random.random::<f64>()).ln() / rate.max(f64::MIN_POSITIVE);
        if at >= window.as_secs_f64() {
            break;
        }
        times.push(Duration::from_secs_f64(at));
    }
    if times.is_empty() {
        times.push(Duration::ZERO);
    }
    times
}

/// Sends a job at each of `times`, and waits for all of them.
async fn open_loop(client: &Client, times: &[Duration], next: &AtomicUsize) -> anyhow::Result<Vec<Arrived>> {
    let begun = Instant::now();
    let mut jobs = JoinSet::new();
    for time in times {
        let (client, order, at) = (client.clone(), order(next), begun + *time);
        jobs.spawn(async move {
            tokio::time::sleep_until(at.into()).await;
            let made = client.make(&order).await?;
            anyhow::Ok(Arrived {
                latency: at.elapsed(),
                made,
            })
        });
    }
    let mut arrived = Vec::with_capacity(times.len());
    while let Some(job) = jobs.join_next().await {
        arrived.push(job.context("a client crashed")??);
    }
    Ok(arrived)
}

/// Mean wait, in seconds, of an M/D/1 queue whose server ends `peak` jobs a second when it is busy.
fn m_d_1_wait(share: f64, peak: f64) -> f64 {
    share / (2.0 * peak * (1.0 - share))
}

fn section(
    rates: &[Rate],
    alone: &Series,
    peaks: (f64, f64),
    settings: &Settings,
    window: Duration,
) -> anyhow::Result<Section> {
    let mut latencies = Table::new(&[
        "arrivals",
        "jobs",
        "p50, ms",
        "p90, ms",
        "p99, ms",
        "greatest, ms",
        "mean, ms",
        "mean by M/D/1, ms",
    ]);
    let mut parts = Table::new(&[
        "arrivals",
        "queue, ms",
        "embed, ms",
        "decode, ms",
        "pixels, ms",
        "transfer, ms",
    ]);
    let mut verdicts = Vec::new();
    for rate in rates {
        let of = |figure: &dyn Fn(&Arrived) -> Duration| {
            Series::new(rate.arrivals.iter().map(|job| milliseconds(figure(job))))
                .context("no job was measured")
        };
        let latency = of(&|job| job.latency)?;
        let name = format!("{:.1} of the peak, {:.2}/s", rate.share, rate.share * peaks.0);
        let p99 = if latency.len() < ENOUGH_FOR_P99 {
            "-".to_owned()
        } else {
            format!("{:.0}", latency.percentile(99.0))
        };
        latencies.row([
            name.clone(),
            latency.len().to_string(),
            format!("{:.0}", latency.median()),
            format!("{:.0}", latency.percentile(90.0)),
            p99,
            format!("{:.0}", latency.range().1),
            format!("{:.0}", latency.mean()),
            format!("{:.0}", alone.mean() + 1e3 * m_d_1_wait(rate.share, peaks.0)),
        ]);
        let phases: [Series; 5] = [
            of(&|job| job.made.phases.wait)?,
            of(&|job| job.made.phases.embed)?,
            of(&|job| job.made.phases.decode)?,
            of(&|job| job.made.phases.pixels)?,
            of(&|job| job.latency.saturating_sub(job.made.phases.total()))?,
        ];
        let cells = phases.map(|phase| format!("{:.0} / {:.0}", phase.median(), phase.percentile(90.0)));
        parts.row([name].into_iter().chain(cells));
        let blocks = rate.arrivals.chunks(rate.arrivals.len().div_ceil(BLOCKS).max(1));
        let medians = blocks.filter_map(|block| {
            Series::new(block.iter().map(|job| milliseconds(job.latency))).map(|block| block.median())
        });
        let ratio = Series::new(medians)
            .context("no job was measured")?
            .map(|median| median / alone.median());
        verdicts.push(Verdict::reported(
            format!(
                "jobs that arrive at {:.1} of the peak: p50 latency / that of a job alone",
                rate.share
            ),
            &ratio,
        ));
    }
    Ok(Section {
        name: "open_loop".to_owned(),
        title: "Jobs that arrive by themselves".to_owned(),
        text: format!(
            "Jobs of one picture arrive at random (Poisson, from a fixed seed) for {:.0} s at each rate, and are sent whether those \
             before them are done or not; a latency counts from the moment at which the job was meant to arrive, to the picture's \
             last byte. The peak is {:.2} pictures/s: a closed loop of {} clients for {:.0} s just before; just after, it was {:.2}. A job \
             alone takes {:.0} ms (p50). M/D/1 is the mean that one server would give which works on a job for 1/peak without \
             pause, plus the latency of a job alone: the cluster is two stages that share cores, and shares passes among the jobs that \
             are there, so this is a yardstick and no bound. Below, medians and p90 of where the time went: the queue is the wait \
             for a shard and for its device, the transfer what no worker accounts for, the client's lateness included.",
            window.as_secs_f64(),
            peaks.0,
            settings.clients,
            settings.window.as_secs_f64(),
            peaks.1,
            alone.median(),
        ),
        tables: vec![latencies, parts],
        verdicts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_come_at_their_rate_and_are_the_same_in_every_run() {
        let window = Duration::from_secs(1000);
        let times = arrivals(SEED, 7.0, window);
        assert_eq!(times, arrivals(SEED, 7.0, window));
        assert_ne!(times, arrivals(SEED + 1, 7.0, window));
        assert!(times.is_sorted() && times.iter().all(|time| *time < window));
        // 7000 expected, with a deviation of 84.
        assert!((6600..7400).contains(&times.len()), "{}", times.len());
        // Gaps of a Poisson process are as wide as they are long: deviation = mean.
        let gaps: Vec<f64> = times
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).as_secs_f64())
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.1, "{variance} {mean}");
        assert_eq!(arrivals(SEED, 0.0, window).len(), 1);
    }

    #[test]
    fn the_yardstick_is_pollaczek_and_khinchines() {
        // Half busy, 0.1 s a job: a quarter of a job's time each.
        assert!((m_d_1_wait(0.5, 10.0) - 0.05).abs() < 1e-12);
        assert!((m_d_1_wait(0.9, 10.0) - 0.45).abs() < 1e-12);
    }
}
