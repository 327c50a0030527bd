//! `musectl batch`: a file of prompts to a folder of pictures.
//!
//! The [`driver`] passes lines from the [`feeder`] through the [`window`] to a gateway, over one stream ([`link`]), and their pictures to the
//! [`writer`]; only the window's lines are in memory. Nothing of a run is kept but what is in the [`folder`]: whichever
//! side crashes, everything that was sent and has no result is sent again under the same idempotency key, which finds the
//! same job.

mod display;
mod driver;
mod feeder;
mod folder;
mod input;
mod journal;
mod line;
mod link;
mod names;
mod shards;
mod window;
mod writer;

use std::time::Duration;

use muse_proto::v1::ImageFormat;
use serde::Serialize;
use tokio::{sync::mpsc, time::Instant};

use self::{
    display::{Counts, Display},
    driver::Batch,
    feeder::Source,
    folder::Folder,
    link::Patience,
    names::Names,
    shards::Shards,
    window::Window,
};
use crate::{
    arguments::{BatchArguments, Output},
    client::Gateways,
    failure::Failure,
    output,
    view::{facts, span},
};

/// What `--output json` prints.
#[derive(Serialize)]
struct Report {
    made: u64,
    made_before: u64,
    failed: u64,
    seconds: f64,
    results: String,
    failures: String,
}

pub(crate) async fn run(
    arguments: &BatchArguments,
    gateways: Gateways,
    output: Output,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let template = arguments.template()?;
    let folder = Folder::open(
        &arguments.out,
        ImageFormat::from(arguments.format),
        arguments.shard_size(),
    )?;
    let source = Source::open(&arguments.prompts, arguments.strict, &folder)?;
    let settled = folder.settled()?;
    // Bad lines are found again; a line that was made after it had failed is no failure any more.
    folder.compact_failures(true, |id| !settled.is_done(id))?;

    let (orders, ordered) = mpsc::channel(writer::GROUP);
    // Never full: it holds what the window has handed over, and as many shards as are ordered at once.
    let (done, written) = mpsc::channel(arguments.in_flight as usize + writer::GROUP);
    let writer = writer::start(&folder, ordered, done)?;
    let options = feeder::Options {
        template,
        max_line_bytes: arguments.max_line_bytes,
        strict: arguments.strict,
        retry_failed: arguments.retry_failed,
        sharded: folder.shard_size().is_some(),
    };
    let fed = feeder::start(source, settled, options)?;
    let mut batch = Batch {
        gateways,
        window: Window::new(arguments.in_flight as usize),
        patience: Patience::new(arguments.patience),
        display: Display::new(output == Output::Json, begun),
        counts: Counts::default(),
        shards: folder.shard_size().map(Shards::new),
        orders,
        run: folder.run_id().to_owned(),
        mended: Names::default(),
    };
    let ended = tokio::select! {
        ended = batch.go(fed, written) => ended,
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted(
            "; what was submitted goes on, and the same command goes on from here".to_owned(),
        )),
    };
    batch.display.finish();
    let Batch {
        counts,
        orders,
        mended,
        ..
    } = batch;
    // What has arrived is still written.
    drop(orders);
    let joined = tokio::task::spawn_blocking(move || writer.join()).await;
    ended?;
    if !matches!(joined, Ok(Ok(()))) {
        return Err(Failure::Failed("the thread that writes died".to_owned()));
    }
    folder.compact_failures(false, |id| !mended.contains(id))?;
    report(&counts, &folder, begun.elapsed(), output)
}

fn report(counts: &Counts, folder: &Folder, took: Duration, output: Output) -> Result<(), Failure> {
    let report = Report {
        made: counts.made,
        made_before: counts.made_before,
        failed: counts.failed,
        seconds: took.as_secs_f64(),
        results: folder.results().display().to_string(),
        failures: folder.failures().display().to_string(),
    };
    output::print(output, &report, || {
        let mut rows = vec![("made", format!("{} in {}", report.made, span(report.seconds)))];
        if report.made_before > 0 {
            rows.push(("made before", report.made_before.to_string()));
        }
        rows.push(("results", report.results.clone()));
        if report.failed > 0 {
            rows.push(("failed", report.failed.to_string()));
            rows.push(("failures", report.failures.clone()));
        }
        facts(rows)
    })?;
    if counts.failed == 0 {
        return Ok(());
    }
    let lines = if counts.failed == 1 {
        "line has"
    } else {
        "lines have"
    };
    Err(Failure::Incomplete(format!(
        "{} {lines} no picture; see {}",
        counts.failed,
        folder.failures().display()
    )))
}
