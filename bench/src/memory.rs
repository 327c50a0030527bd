//! What each process of a cluster holds in memory, before its first job and over many.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures::future::try_join_all;
use muse_engine::{Bundle, Stage};
use muse_proto::v1::{GenerationRequest, generation_request::Task};
use musectl::cluster::{ClusterOptions, LocalCluster};

use crate::{
    arguments::Arguments,
    cluster::{self, Client},
    measure::say,
    report::{Section, Table, Verdict, spread},
    resident::{Resident, greatest, mebibytes},
    stats::Series,
    weights,
    workload::Order,
};

/// Issue 5's bound: a worker over its weights.
const OVER_WEIGHTS: f64 = 1.30;
/// What counts as flat: the last sample over that after a tenth of the jobs.
const FLAT: f64 = 1.05;
/// Workers that do not rest for so long never will.
const REST_PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks whether they do.
const LOOK: Duration = Duration::from_millis(100);
/// Samples, after which the cluster is idle for a moment.
const SAMPLES: usize = 20;
/// Of those, the last ones tell how much is held at the end, with a spread.
const LAST: usize = 5;
/// Clients that ask without a pause.
const CLIENTS: usize = 24;
/// The bundle whose weights are nothing: what is left is the process.
const TINY: &str = "tests/bundles/tiny";
/// Jobs until caches of embeddings are full and turn over, as they would after hours; the prompts of a run take 12 MB.
const SMALL_CACHES: [&str; 2] = [
    "worker.encoder.cache_bytes=1048576",
    "encoder.cache.max_bytes=1048576",
];

/// One look at all processes.
type Sample = BTreeMap<String, Resident>;

pub(crate) async fn measure(arguments: &Arguments, bundle: &Bundle, jobs: usize) -> anyhow::Result<Section> {
    say("memory of a worker without weights");
    let tiny = Bundle::load(TINY.as_ref())
        .with_context(|| format!("{TINY} tells the memory of a worker without weights"))?;
    let without_weights = {
        let cluster = start(arguments, TINY).await?;
        let client = Client::connect(&cluster).await?;
        // Short prompts alone: the bundle takes no longer ones.
        work_off(&client, 0..SAMPLES * CLIENTS / 2, &|index| {
            request(&Order::numbered(index % 64), index)
        })
        .await?;
        let (busy, rested) = (sample(&cluster)?, rested(&cluster).await?);
        cluster.stop().await;
        (busy, rested)
    };

    say(&format!("memory over {jobs} jobs"));
    let folder = bundle.folder().to_string_lossy().into_owned();
    let cluster = start(arguments, &folder).await?;
    let client = Client::connect(&cluster).await?;
    let step = jobs.div_ceil(SAMPLES).max(1);
    let mut samples = vec![(0, sample(&cluster)?)];
    while samples.last().is_some_and(|(done, _)| *done < jobs) {
        let done = samples.last().map_or(0, |(done, _)| *done);
        let until = (done + step).min(jobs);
        work_off(&client, done..until, &|index| {
            request(&Order::numbered(index), index)
        })
        .await?;
        samples.push((until, sample(&cluster)?));
    }
    let mut peaks = BTreeMap::new();
    for part in cluster.parts() {
        peaks.extend(greatest(cluster.pid(part)?).map(|bytes| (part.to_owned(), bytes)));
    }
    let budgets = cluster::row_budgets(&cluster).await?;
    let rested = rested(&cluster).await?;
    cluster.stop().await;
    Seen {
        samples,
        rested,
        peaks,
        without_weights,
        budgets,
    }
    .section(bundle, &tiny)
}

async fn start(arguments: &Arguments, bundle: &str) -> anyhow::Result<LocalCluster> {
    let mut options = ClusterOptions::new(bundle, arguments.programs()?);
    options.overrides = arguments.overrides.clone();
    for text in SMALL_CACHES {
        options.overrides.push(text.parse()?);
    }
    Ok(LocalCluster::start(options).await?)
}

/// The `index`-th job: short, and so that passes of every size come by.
fn request(order: &Order, index: usize) -> GenerationRequest {
    let mut request = order.request();
    if let Some(Task::TextToImage(task)) = &mut request.task {
        task.count = Some([1, 1, 2, 1, 1, 3, 1, 1][index % 8]);
    }
    for (sampling, steps) in [
        (&mut request.base, [1, 2, 1, 1, 3][index % 5]),
        (&mut request.superres, [1, 1, 2][index % 3]),
    ] {
        if let Some(sampling) = sampling {
            sampling.steps = Some(steps);
            sampling.guidance = Some([0.0, 2.0, 0.0, 1.0, 0.0, 4.0, 0.0][index % 7]);
        }
    }
    request
}

/// Has clients work the jobs off; returns when all are done.
async fn work_off(
    client: &Client,
    jobs: std::ops::Range<usize>,
    request: &(dyn Fn(usize) -> GenerationRequest + Sync),
) -> anyhow::Result<()> {
    let next = AtomicUsize::new(jobs.start);
    let clients = (0..CLIENTS).map(|_| async {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= jobs.end {
                return anyhow::Ok(());
            }
            client.generate(request(index)).await?;
        }
    });
    try_join_all(clients).await.map(drop)
}

fn sample(cluster: &LocalCluster) -> anyhow::Result<Sample> {
    cluster
        .parts()
        .into_iter()
        .map(|part| {
            let resident = Resident::of(cluster.pid(part)?)
                .with_context(|| format!("cannot tell the memory of {part}"))?;
            anyhow::Ok((part.to_owned(), resident))
        })
        .collect()
}

/// A look once all workers rest (`batcher.rest_after_ms`), which they do because there are no jobs from now on.
async fn rested(cluster: &LocalCluster) -> anyhow::Result<Sample> {
    let before = cluster::rests(cluster).await?;
    let begun = Instant::now();
    loop {
        let now = cluster::rests(cluster).await?;
        if now.iter().all(|(part, rests)| Some(rests) > before.get(part)) {
            return sample(cluster);
        }
        anyhow::ensure!(
            begun.elapsed() < REST_PATIENCE,
            "workers do not rest within {} s: {now:?}",
            REST_PATIENCE.as_secs()
        );
        tokio::time::sleep(LOOK).await;
    }
}

/// What was measured.
struct Seen {
    /// Jobs done by then.
    samples: Vec<(usize, Sample)>,
    /// After the last of them, at rest.
    rested: Sample,
    peaks: BTreeMap<String, u64>,
    /// Right after jobs, and at rest.
    without_weights: (Sample, Sample),
    budgets: BTreeMap<Stage, usize>,
}

impl Seen {
    fn section(&self, bundle: &Bundle, tiny: &Bundle) -> anyhow::Result<Section> {
        let measured = "nothing was measured";
        let (_, first) = self.samples.first().context(measured)?;
        let (jobs, last) = self.samples.last().context(measured)?;
        let (settled_at, settled) = self
            .samples
            .iter()
            .find(|(done, _)| *done * 10 >= *jobs)
            .context(measured)?;
        let mut verdicts = Vec::new();
        for part in last.keys() {
            // What the queue keeps of jobs that are done is in it; see the text.
            if part == "valkey" {
                continue;
            }
            let before = settled.get(part).context(measured)?;
            let growth = self.at_the_end(part, |resident| resident.all as f64 / before.all as f64)?;
            verdicts.push(Verdict::at_most(
                format!("memory of {part}: after {jobs} jobs / after {settled_at}"),
                &growth,
                FLAT,
            ));
        }
        let mut over = Table::new(&[
            "",
            "weights as computed with, MiB",
            "the process without weights, MiB",
            "anonymous before the first job / weights",
            "anonymous after / weights",
            "less the process",
            "at rest, less the process",
        ]);
        for spec in bundle.stages() {
            let (stage, part) = (spec.stage, format!("{}-0", spec.stage));
            let own = weights::of_worker(bundle, stage)?;
            let (Some(before), Some(after)) = (first.get(&part), last.get(&part)) else {
                continue;
            };
            // The tiny bundle's weights are no part of the process.
            let tiny = weights::of_worker(tiny, stage)?;
            let process = |sample: &Sample| Some(sample.get(&part)?.anonymous.saturating_sub(tiny));
            let constant = process(&self.without_weights.0).context(measured)?;
            let ratio = |bytes: u64| bytes as f64 / own.max(1) as f64;
            let less = self.at_the_end(&part, |resident| {
                ratio(resident.anonymous.saturating_sub(constant))
            })?;
            let constant_at_rest = process(&self.without_weights.1).context(measured)?;
            let rested = self.rested.get(&part).context(measured)?;
            let at_rest =
                Series::new([ratio(rested.anonymous.saturating_sub(constant_at_rest))]).context(measured)?;
            over.row([
                part.clone(),
                format!("{:.1}", mebibytes(own)),
                format!("{:.1}", mebibytes(constant)),
                format!("{:.2}", ratio(before.anonymous)),
                format!("{:.2}", ratio(after.anonymous)),
                spread(&less, 2),
                spread(&at_rest, 2),
            ]);
            verdicts.push(Verdict::at_most(
                format!("memory of a {stage} worker, less a process without weights / its weights"),
                &less,
                OVER_WEIGHTS,
            ));
            verdicts.push(Verdict::at_most(
                format!("memory of a {stage} worker at rest, less a process without weights / its weights"),
                &at_rest,
                OVER_WEIGHTS,
            ));
        }
        Ok(Section {
            name: "memory".to_owned(),
            title: "Memory".to_owned(),
            text: self.text(*jobs, first, last),
            tables: vec![self.table(last), over],
            verdicts,
        })
    }

    /// A figure of a part over the last samples.
    fn at_the_end(&self, part: &str, figure: impl Fn(&Resident) -> f64) -> anyhow::Result<Series> {
        let samples = self.samples.iter().skip(1).rev().take(LAST);
        Series::new(samples.filter_map(|(_, sample)| sample.get(part)).map(figure))
            .with_context(|| format!("the memory of {part} was not measured"))
    }

    fn table(&self, parts: &Sample) -> Table {
        let names: Vec<String> = parts
            .keys()
            .map(|part| format!("{part}: resident (anonymous), MiB"))
            .collect();
        let header: Vec<&str> = std::iter::once("jobs done")
            .chain(names.iter().map(String::as_str))
            .collect();
        let mut table = Table::new(&header);
        for (done, sample) in &self.samples {
            let cells = sample.values().map(|resident| {
                format!(
                    "{:.1} ({:.1})",
                    mebibytes(resident.all),
                    mebibytes(resident.anonymous)
                )
            });
            table.row([done.to_string()].into_iter().chain(cells));
        }
        let cells = self.rested.values().map(|resident| {
            format!(
                "{:.1} ({:.1})",
                mebibytes(resident.all),
                mebibytes(resident.anonymous)
            )
        });
        table.row(["at rest".to_owned()].into_iter().chain(cells));
        let shares = self.samples.last().map(|(_, sample)| sample);
        let cells = shares.into_iter().flat_map(BTreeMap::values);
        table.row(
            ["proportional share at the end".to_owned()]
                .into_iter()
                .chain(cells.map(|resident| format!("{:.1}", mebibytes(resident.share)))),
        );
        let peaks = parts.keys().map(|part| {
            self.peaks
                .get(part)
                .map_or("unknown".to_owned(), |bytes| format!("{:.1}", mebibytes(*bytes)))
        });
        table.row(["greatest since its start".to_owned()].into_iter().chain(peaks));
        table
    }

    fn text(&self, jobs: usize, first: &Sample, last: &Sample) -> String {
        let budgets: Vec<String> = self
            .budgets
            .iter()
            .map(|(stage, rows)| format!("{stage} {rows}"))
            .collect();
        let kept = match (first.get("valkey"), last.get("valkey")) {
            (Some(before), Some(after)) => {
                after.all.saturating_sub(before.all) as f64 / 1024.0 / jobs.max(1) as f64
            }
            _ => 0.0,
        };
        format!(
            "{jobs} jobs of {CLIENTS} clients through a cluster of real processes: 1 to 3 pictures, base steps 1 to 3, super-resolution \
             steps 1 or 2, with and without guidance, so that passes of every size up to the row budget ({}) come by. Every {} jobs the \
             clients stop, and `/proc/PID/smaps_rollup` is read: resident pages, and of those the anonymous ones, which no file is \
             behind. *At rest* is once a worker had no job for `batcher.rest_after_ms` and has given back what only work needs. Caches of embeddings are bounded to 1 MiB here so that they are full early and turn over; by default they grow to 32 MiB \
             in a worker and more in an encoder (`encoder.cache_bytes`, `cache.max_bytes`). Valkey keeps what is done for \
             `queue.keep_done_seconds`, a day: {kept:.1} KiB a job with its pictures, so it grows by design and has no verdict. \
             A worker's weights are the initializers of the graphs that it opens, in f32 where the file stores fewer bits and they are widened \
             when it is opened. The process without weights is a worker of `{TINY}` after {} jobs, less that bundle's weights: ONNX \
             Runtime's own heap, threads, buffers. What is left above 1 is the activations of a pass, which depend on the row budget, and memory \
             that was freed after opening the graphs and that the C library keeps.",
            budgets.join(", "),
            jobs.div_ceil(SAMPLES).max(1),
            SAMPLES * CLIENTS / 2,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn jobs_differ_in_what_decides_the_size_of_a_pass() {
        let jobs: Vec<GenerationRequest> = (0..840)
            .map(|index| request(&Order::numbered(index), index))
            .collect();
        let seen = |figure: &dyn Fn(&GenerationRequest) -> String| {
            jobs.iter().map(figure).collect::<BTreeSet<String>>().len()
        };
        let guidance = |request: &GenerationRequest| format!("{:?}", request.base.unwrap().guidance);
        let count = |request: &GenerationRequest| match &request.task {
            Some(Task::TextToImage(task)) => format!("{:?}", task.count),
            None => String::new(),
        };
        let steps = |request: &GenerationRequest| {
            format!(
                "{:?} {:?}",
                request.base.unwrap().steps,
                request.superres.unwrap().steps
            )
        };
        assert_eq!((seen(&guidance), seen(&count), seen(&steps)), (4, 3, 6));
        assert_eq!(
            seen(&|request| format!("{} {} {}", guidance(request), count(request), steps(request))),
            72,
            "every one of them meets every other"
        );
    }

    #[test]
    fn growth_is_told_from_a_tenth_of_the_jobs_on_and_the_process_is_no_weight() {
        let bundle =
            Bundle::load(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/bundles/tiny").as_ref()).unwrap();
        let resident = |all, anonymous| Resident {
            all,
            share: all,
            anonymous,
        };
        let sample = |base| {
            Sample::from([
                ("base-0".to_owned(), resident(2 * base, base)),
                ("valkey".to_owned(), resident(base, base)),
            ])
        };
        let weights = weights::of_worker(&bundle, Stage::Base).unwrap();
        let seen = Seen {
            samples: vec![
                (0, sample(10 * weights)),
                (100, sample(20 * weights)),
                (600, sample(22 * weights)),
                (700, sample(22 * weights)),
                (800, sample(22 * weights)),
                (900, sample(22 * weights)),
                (1000, sample(22 * weights)),
            ],
            rested: sample(21 * weights),
            peaks: BTreeMap::new(),
            without_weights: (sample(21 * weights), sample(19 * weights)),
            budgets: BTreeMap::new(),
        };
        let section = seen.section(&bundle, &bundle).unwrap();
        let medians: Vec<f64> = section.verdicts.iter().map(|verdict| verdict.median).collect();
        // 22 / 20; of 22, 20 are the process; at rest 18 of 21 are.
        assert_eq!(medians.len(), 3, "{:?}", section.verdicts);
        let expected = [1.1, 2.0, 3.0];
        assert!(
            medians
                .iter()
                .zip(expected)
                .all(|(found, wanted)| (found - wanted).abs() < 1e-9),
            "{medians:?}"
        );
    }
}
