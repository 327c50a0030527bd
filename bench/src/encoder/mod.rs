//! Embeddings a second: the engine's text encoder in a loop and the service over gRPC, in turns with loops in Python.

mod service;

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context as _, ensure};
use muse_engine::{Bundle, Runtime, SessionOptions, TextEncoder};
use serde::Serialize;

use self::service::{CACHE_BYTES, Service};
use crate::{
    arguments::{Arguments, Settings},
    loops::{Loaded, Python},
    measure::{say, timed},
    report::{Section, Table, Verdict, spread},
    stats::Series,
    workload::Order,
};

/// Texts together: one alone, and as callers with many would bring them.
const BATCHES: [usize; 3] = [1, 8, 32];
/// Callers of the service that ask at the same time.
const CALLERS: usize = 8;
/// Issue 5: ahead of every peer.
const AHEAD: f64 = 1.0;

const TITLE: &str = "Text encoder";

/// Who embeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Engine,
    /// With so many callers at the same time.
    Service(usize),
    Peer(usize),
}

/// A loop in Python.
struct Peer {
    name: &'static str,
    title: &'static str,
    python: Python,
    script: &'static str,
}

const PEERS: [Peer; 2] = [
    Peer {
        name: "encoder_loop",
        title: "ONNX Runtime in Python",
        python: Python::Tests,
        script: concat!(env!("CARGO_MANIFEST_DIR"), "/python/encoder_loop.py"),
    },
    Peer {
        name: "t5",
        title: "transformers' T5",
        python: Python::Training,
        script: concat!(env!("CARGO_MANIFEST_DIR"), "/python/t5_encoder.py"),
    },
];

/// What a peer is asked to do, a line of JSON.
#[derive(Serialize)]
struct Task<'batches> {
    batches: &'batches [Vec<String>],
}

/// Embeddings a second, by side and by texts together, of each round.
#[derive(Default)]
struct Rates(BTreeMap<(Side, usize), Vec<f64>>);

pub(crate) async fn measure(
    arguments: &Arguments,
    settings: &Settings,
    bundle: &Bundle,
) -> anyhow::Result<Section> {
    say(TITLE);
    let session = arguments.session_alone()?;
    Runtime::initialise(session.onnxruntime.as_deref())?;
    let mut engine = TextEncoder::open(bundle, &session)?;
    // A text alone is computed by one lane, so one lane with all threads is the better setting for a loop over single texts.
    let undivided = SessionOptions { lanes: 1, ..session };
    let mut engine_alone = TextEncoder::open(bundle, &undivided)?;
    let service = Service::start(arguments).await?;
    let mut peers = Vec::new();
    let mut missing = Vec::new();
    for (index, peer) in PEERS.iter().enumerate() {
        match peer.python.missing(arguments) {
            None => peers.push((
                index,
                Loaded::start(peer.name, peer.python, peer.script, arguments)?,
            )),
            Some(reason) => {
                say(&format!("{}: not measured, {reason}", peer.title));
                missing.push(format!("**Not measured**: {}, {reason}.", peer.title));
            }
        }
    }
    service
        .check(&prompts(&mut 0, settings.encoder_texts.min(32)), &mut engine)
        .await?;

    let mut next = 0;
    let (mut rates, mut hits) = (Rates::default(), Vec::new());
    for round in 0..=settings.rounds {
        for size in BATCHES {
            let mut keep = |side, rate| {
                // The first round fills caches and buffers.
                if round > 0 {
                    rates.0.entry((side, size)).or_default().push(rate);
                }
            };
            let batches = batches(&mut next, size, settings.encoder_texts);
            let engine = if size == 1 { &mut engine_alone } else { &mut engine };
            keep(Side::Engine, engine_rate(engine, &batches)?);
            for (index, loaded) in &mut peers {
                let texts = batches.iter().map(Vec::len).sum();
                let seconds = loaded.ask(&Task { batches: &batches }, texts)?;
                keep(Side::Peer(*index), texts as f64 / seconds);
            }
            for callers in [1, CALLERS] {
                let batches = Arc::new(self::batches(&mut next, size, settings.encoder_texts));
                keep(
                    Side::Service(callers),
                    service.rate(&batches, callers, false).await?,
                );
            }
        }
        let again = vec![prompts(&mut next, 32)];
        service.rate(&Arc::new(again.clone()), 1, false).await?;
        let calls = settings.encoder_texts.div_ceil(32);
        let again = Arc::new(vec![again.concat(); calls]);
        let rate = service.rate(&again, CALLERS, true).await?;
        if round > 0 {
            hits.push(rate);
        }
    }
    service.stop().await;
    let mut versions = Vec::new();
    for (index, loaded) in peers {
        versions.push(format!("{}: {}", PEERS[index].title, loaded.versions));
        loaded.stop()?;
    }
    let hits = Series::new(hits).context("nothing was measured")?;
    rates.section(arguments, settings, &hits, &versions, &missing)
}

/// The next prompts of the workload, all different for as long as it has any. Those that follow each other there have about the
/// same length; a stride without a common divisor mixes long and short ones.
fn prompts(next: &mut usize, count: usize) -> Vec<String> {
    const STRIDE: usize = 611;
    let first = *next;
    *next += count;
    (first..*next)
        .map(|index| Order::numbered(index.wrapping_mul(STRIDE)).prompt)
        .collect()
}

/// About `texts` of them, `size` together.
fn batches(next: &mut usize, size: usize, texts: usize) -> Vec<Vec<String>> {
    (0..texts.div_ceil(size)).map(|_| prompts(next, size)).collect()
}

/// Embeddings a second of the engine in a loop.
fn engine_rate(engine: &mut TextEncoder, batches: &[Vec<String>]) -> anyhow::Result<f64> {
    let (texts, seconds) = timed(|| {
        let mut made = 0;
        for batch in batches {
            let ids = batch
                .iter()
                .map(|text| engine.tokenize(text))
                .collect::<Result<Vec<_>, _>>()?;
            made += engine.embed(&ids)?.len();
        }
        ensure!(
            made == batches.iter().map(Vec::len).sum::<usize>(),
            "an embedding is missing"
        );
        anyhow::Ok(made)
    })?;
    Ok(texts as f64 / seconds)
}

impl Rates {
    fn series(&self, side: Side, size: usize) -> Option<Series> {
        Series::new(self.0.get(&(side, size))?.iter().copied())
    }

    /// The number of texts together at which a side made most embeddings a second, and those.
    fn best(&self, side: Side) -> Option<(usize, Series)> {
        BATCHES
            .iter()
            .filter_map(|size| Some((*size, self.series(side, *size)?)))
            .max_by(|(_, left), (_, right)| left.median().total_cmp(&right.median()))
    }

    fn section(
        &self,
        arguments: &Arguments,
        settings: &Settings,
        hits: &Series,
        versions: &[String],
        missing: &[String],
    ) -> anyhow::Result<Section> {
        let many = format!("service, {CALLERS} callers");
        let mut sides = vec![
            (Side::Engine, "engine in a loop"),
            (Side::Service(1), "service, 1 caller"),
            (Side::Service(CALLERS), many.as_str()),
        ];
        sides.extend(
            PEERS
                .iter()
                .enumerate()
                .map(|(index, peer)| (Side::Peer(index), peer.title)),
        );
        sides.retain(|(side, _)| self.best(*side).is_some());
        let header: Vec<&str> = std::iter::once("texts together")
            .chain(sides.iter().map(|(_, name)| *name))
            .collect();
        let mut table = Table::new(&header);
        for size in BATCHES {
            let cells = sides
                .iter()
                .map(|(side, _)| self.series(*side, size).map(|rates| spread(&rates, 0)));
            table.row(std::iter::once(size.to_string()).chain(cells.map(Option::unwrap_or_default)));
        }

        let mut verdicts = Vec::new();
        for (index, peer) in PEERS.iter().enumerate() {
            let Some((best, theirs)) = self.best(Side::Peer(index)) else {
                continue;
            };
            for (side, name) in [(Side::Engine, "engine"), (Side::Service(CALLERS), many.as_str())] {
                let (own, ours) = self.best(side).context("nothing was measured")?;
                verdicts.push(Verdict::at_least(
                    format!(
                        "embeddings/s: {name}, {own} together / {}, {best} together (the best of each)",
                        peer.title
                    ),
                    &ours.over(&theirs),
                    AHEAD,
                ));
                if let (Some(ours), Some(theirs)) = (self.series(side, 1), self.series(Side::Peer(index), 1))
                {
                    verdicts.push(Verdict::at_least(
                        format!("embeddings/s: {name} / {}, one text at a time", peer.title),
                        &ours.over(&theirs),
                        AHEAD,
                    ));
                }
            }
        }
        let text = format!(
            "Embeddings a second, {} texts a round and side, in turns. Prompts are the workload's, long and short ones mixed, and are \
             tokenized in the time that is measured. The service keeps only {} KiB of embeddings, so that no prompt is there still when it \
             comes again, and no answer came from its cache (each one says so). The same batch of 32 again and again, {CALLERS} callers, all from the cache: {} \
             embeddings a second. The service is a process of its own, its answers cross gRPC and are the engine's to the bit; its \
             callers live on the same cores. The Python loops pad each batch to its longest prompt and are loops in one process, \
             transformers' has random weights. {} threads everywhere: inside an operator, or in lanes where the engine and the service have several \
             texts. The engine in its loop has one lane for single texts and threads that wait awake, as the loops in Python have. {}",
            settings.encoder_texts,
            CACHE_BYTES / 1024,
            spread(hits, 0),
            arguments.cores(),
            [versions.join("; "), missing.join(" ")].join(". ")
        );
        Ok(Section {
            name: "encoder".to_owned(),
            title: TITLE.to_owned(),
            text,
            tables: vec![table],
            verdicts,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn prompts_of_a_batch_differ_in_length_and_none_comes_twice_for_long() {
        let mut next = 0;
        let batches = batches(&mut next, 32, 1024);
        assert_eq!((batches.len(), next), (32, 1024));
        let all: BTreeSet<&String> = batches.iter().flatten().collect();
        assert_eq!(all.len(), 1024);
        for batch in &batches {
            let words: BTreeSet<usize> = batch.iter().map(|text| text.split(' ').count()).collect();
            assert!(words.len() > 1, "{batch:?}");
        }
    }

    #[test]
    fn the_best_of_a_side_is_where_its_median_is_highest() {
        let mut rates = Rates::default();
        rates.0.insert((Side::Engine, 1), vec![5.0, 9.0, 5.0]);
        rates.0.insert((Side::Engine, 8), vec![6.0, 6.0, 7.0]);
        assert_eq!(rates.best(Side::Engine).map(|(size, _)| size), Some(8));
        assert!(rates.best(Side::Peer(0)).is_none());
    }
}
