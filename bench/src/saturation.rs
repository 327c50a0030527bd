//! The cluster with more clients than it has rows, against the bare loop at its best batch.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use muse_engine::Bundle;

use crate::{
    arguments::{Arguments, Settings},
    bare::Bare,
    closed_loop::closed_loop,
    cluster::{self, Client, asking},
    measure::{milliseconds, say},
    report::{Section, Table, Verdict, spread},
    stats::Series,
    workload::Order,
};

/// Issue 5's bound.
const SHARE_OF_BARE: f64 = 0.95;

pub(crate) async fn measure(
    arguments: &Arguments,
    settings: &Settings,
    bundle: &Bundle,
    batch: usize,
) -> anyhow::Result<Section> {
    say("the cluster at saturation");
    let mut bare = Bare::open(bundle, &arguments.session()?)?;
    let cluster = cluster::start(arguments, &[]).await?;
    let client = Client::connect(&cluster).await?;
    let next = Arc::new(AtomicUsize::new(0));
    let (mut alone, mut served, mut latencies, mut batches) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..=settings.rounds {
        let bare_rate = bare_window(&mut bare, settings.window, batch, &next)?;
        let before = cluster::passes(&cluster).await?;
        let window = closed_loop(asking(&client), settings.clients, settings.window, &next).await?;
        let passes = cluster::passes(&cluster).await?.since(&before);
        // The first round fills caches.
        if round > 0 {
            alone.push(bare_rate);
            served.push(window.rate);
            latencies.extend(window.latencies.iter().copied().map(milliseconds));
            batches.push(passes.rows / passes.count.max(1.0));
        }
    }
    let budgets = cluster::row_budgets(&cluster).await?;
    cluster.stop().await;

    let measured = "nothing was measured";
    let (alone, served) = (
        Series::new(alone).context(measured)?,
        Series::new(served).context(measured)?,
    );
    let (latencies, batches) = (
        Series::new(latencies).context(measured)?,
        Series::new(batches).context(measured)?,
    );
    let mut table = Table::new(&["", "pictures/s"]);
    table.row([format!("bare loop, {batch} together"), spread(&alone, 2)]);
    table.row([
        format!("cluster, {} clients", settings.clients),
        spread(&served, 2),
    ]);
    let budgets: Vec<String> = budgets
        .iter()
        .map(|(stage, rows)| format!("{stage} {rows}"))
        .collect();
    Ok(Section {
        name: "saturation".to_owned(),
        title: "The cluster at saturation".to_owned(),
        text: format!(
            "{} clients, each asking for the next picture as soon as it has one; windows of {:.0} s, begun when as many \
             pictures were there as clients, in turns with the bare loop. Row budgets that warm-up found: {}. Rows in a pass: {}. A client waits \
             {:.0} ms at the median and {:.0} ms at p99 for its picture.",
            settings.clients,
            settings.window.as_secs_f64(),
            budgets.join(", "),
            spread(&batches, 1),
            latencies.median(),
            latencies.percentile(99.0),
        ),
        tables: vec![table],
        verdicts: vec![Verdict::at_least(
            "cluster at saturation / engine in a bare loop at its best batch",
            &served.over(&alone),
            SHARE_OF_BARE,
        )],
    })
}

fn bare_window(bare: &mut Bare, window: Duration, batch: usize, next: &AtomicUsize) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let mut made = 0;
    while begun.elapsed() < window {
        let orders: Vec<Order> = (0..batch)
            .map(|_| Order::numbered(next.fetch_add(1, Ordering::Relaxed)))
            .collect();
        bare.make(&orders, usize::MAX)?;
        made += batch;
    }
    Ok(made as f64 / begun.elapsed().as_secs_f64())
}
