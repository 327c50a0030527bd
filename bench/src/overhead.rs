//! One job at a time through an idle cluster, against the same in the engine: what serving costs.

use anyhow::{Context as _, ensure};
use muse_engine::Bundle;

use crate::{
    arguments::{Arguments, Settings},
    bare::{Bare, Split},
    cluster::{self, Client, Made, Passes},
    measure::{milliseconds, say},
    processor::Cpu,
    report::{Section, Table, Verdict, spread},
    stats::Series,
    workload::Order,
};

/// Issue 5's bounds, in milliseconds.
const AT_P50: f64 = 10.0;
const AT_P99: f64 = 25.0;
/// Jobs before the first that counts: connections are made, caches of the empty text filled.
const UNCOUNTED: usize = 3;
/// Jobs are put into so many blocks for a spread of the median.
const BLOCKS: usize = 5;

pub(crate) async fn measure(
    arguments: &Arguments,
    settings: &Settings,
    bundle: &Bundle,
) -> anyhow::Result<Section> {
    say("one job at a time through an idle cluster");
    let mut bare = Bare::open(bundle, &arguments.session()?)?;
    let cluster = cluster::start(arguments, &[]).await?;
    let client = Client::connect(&cluster).await?;
    let mut pairs: Vec<(Made, Split)> = Vec::new();
    let mut before = (Passes::default(), Cpu::of(&cluster)?);
    for index in 0..UNCOUNTED + settings.jobs {
        if index == UNCOUNTED {
            before = (cluster::passes(&cluster).await?, Cpu::of(&cluster)?);
            pairs.clear();
        }
        let order = [Order::numbered(index)];
        // Whoever goes second finds warmer caches: they take turns at that.
        let (made, (files, split)) = if index % 2 == 0 {
            let made = client.make(&order[0]).await?;
            (made, bare.make(&order, usize::MAX)?)
        } else {
            let bare = bare.make(&order, usize::MAX)?;
            (client.make(&order[0]).await?, bare)
        };
        ensure!(
            files.first() == Some(&made.picture),
            "the cluster and the engine made different pictures of {order:?}: they did not do the same work"
        );
        pairs.push((made, split));
    }
    let passes = cluster::passes(&cluster).await?.since(&before.0);
    let cpu = Cpu::of(&cluster)?.since(&before.1);
    cluster.stop().await;
    section(&pairs, &passes, &cpu)
}

fn section(pairs: &[(Made, Split)], passes: &Passes, cpu: &Cpu) -> anyhow::Result<Section> {
    let of_cluster = |figure: &dyn Fn(&Made) -> f64| {
        Series::new(pairs.iter().map(|(made, _)| figure(made))).context("no job was measured")
    };
    let of_engine = |figure: &dyn Fn(&Split) -> f64| {
        Series::new(pairs.iter().map(|(_, split)| figure(split))).context("no job was measured")
    };
    let latency = of_cluster(&|made| milliseconds(made.latency))?;
    let engine = of_engine(&|split| milliseconds(split.total()))?;
    let transfer = of_cluster(&|made| milliseconds(made.latency.saturating_sub(made.phases.total())))?;
    let none = || "-".to_owned();

    let mut table = Table::new(&[
        "",
        "cluster p50, ms",
        "cluster p99, ms",
        "engine p50, ms",
        "engine p99, ms",
    ]);
    let mut row = |name: &str, cluster: Option<&Series>, engine: Option<&Series>| {
        let cells = |series: Option<&Series>| {
            series.map_or_else(
                || [none(), none()],
                |series| [50.0, 99.0].map(|percent| format!("{:.1}", series.percentile(percent))),
            )
        };
        let ([first, second], [third, fourth]) = (cells(cluster), cells(engine));
        table.row([name.to_owned(), first, second, third, fourth]);
    };
    row(
        "queue: waiting for a shard and for its device, both stages",
        Some(&of_cluster(&|made| milliseconds(made.phases.wait))?),
        None,
    );
    row(
        "embed, both stages",
        Some(&of_cluster(&|made| milliseconds(made.phases.embed))?),
        Some(&of_engine(&|split| milliseconds(split.embed))?),
    );
    row(
        "decode: conditioning and passes (with sampling), both stages",
        Some(&of_cluster(&|made| milliseconds(made.phases.decode))?),
        Some(&of_engine(&|split| milliseconds(split.decode))?),
    );
    row(
        "pixels and PNG",
        Some(&of_cluster(&|made| milliseconds(made.phases.pixels))?),
        Some(&of_engine(&|split| milliseconds(split.pixels))?),
    );
    row(
        "transfer: gRPC, Redis with every write on disk, reports, the picture's way",
        Some(&transfer),
        None,
    );
    row("all", Some(&latency), Some(&engine));

    let added = |percent, pairs: &[(Made, Split)]| {
        let cluster = Series::new(pairs.iter().map(|(made, _)| milliseconds(made.latency)))?;
        let engine = Series::new(pairs.iter().map(|(_, split)| milliseconds(split.total())))?;
        Some(cluster.percentile(percent) - engine.percentile(percent))
    };
    // In blocks, for a spread; p99 needs all of them.
    let blocks = pairs.chunks(pairs.len().div_ceil(BLOCKS).max(1));
    let at_p50 = Series::new(blocks.filter_map(|block| added(50.0, block))).context("no job was measured")?;
    let at_p99 = Series::new(added(99.0, pairs)).context("no job was measured")?;
    let jobs = pairs.len() as f64;
    let in_engine = of_engine(&|split| milliseconds(split.passes))?;
    Ok(Section {
        name: "overhead".to_owned(),
        title: "One job through the idle cluster".to_owned(),
        text: format!(
            "{} jobs of one picture, one after another, each made by the cluster (Valkey with `appendfsync always`, a gateway, an \
             encoder, a worker of each stage, over gRPC) and by the engine in this process, in turns, with the same threads. The \
             two files are compared byte by byte. Passes, sampling included, took {:.1} ms a job in the workers (mean, from \
             `muse_pass_seconds`) and {:.1} ms in the engine (median). Beside them Valkey was on a processor for {:.1} ms a job and the \
             gateway for {:.1}, what they do by themselves while the engine has its turn included. Per job, cluster less engine: \
             {} ms.",
            pairs.len(),
            passes.seconds * 1e3 / jobs,
            in_engine.median(),
            milliseconds(cpu.server) / jobs,
            milliseconds(cpu.gateway) / jobs,
            spread(&latency.less(&engine), 1),
        ),
        tables: vec![table],
        verdicts: vec![
            Verdict::at_most(
                "one job through the idle cluster less the same in the engine, p50, ms",
                &at_p50,
                AT_P50,
            )
            .absolute(),
            Verdict::at_most("the same at p99, ms", &at_p99, AT_P99).absolute(),
        ],
    })
}
