//! The command line, and how much is measured.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use muse_engine::SessionOptions;
use musectl::cluster::{Override, Programs, find_onnxruntime};

/// Benchmarks of the engine and the cluster, side by side in one run.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// The bundle
    #[arg(long, global = true, default_value = "bundles/demo")]
    pub(crate) bundle: PathBuf,
    /// A bundle with integer products (`muse_models.export.static_int8`): peers and servers are measured beside it as well
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) int8_bundle: Option<PathBuf>,
    /// Threads inside an operator, for the engine and for peers; 0: one for each core
    #[arg(long, global = true, default_value_t = 0)]
    pub(crate) threads: usize,
    /// A setting of the engine in this process, as a line of a service's `[runtime]`: `providers=["cuda"]`, `cuda.tf32=true`
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub(crate) runtime: Vec<String>,
    /// A setting of the cluster's parts, as of `musectl up --set`
    #[arg(long = "set", global = true, value_name = "ROLE.SECTION.KEY=VALUE")]
    pub(crate) overrides: Vec<Override>,
    /// Workers of each stage in clusters that make pictures, but for `memory`, which looks at one of each
    #[arg(long, global = true, value_name = "WORKERS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) workers: u16,
    /// Short rounds, to see that everything runs: the figures mean nothing
    #[arg(long, global = true)]
    pub(crate) quick: bool,
    /// Fewer and shorter rounds, and no queue of a million: `all` in some 20 minutes
    #[arg(long, global = true, conflicts_with = "quick")]
    pub(crate) brief: bool,
    /// Rounds of whatever takes turns [default: 5, 3 with --brief, 2 with --quick]
    #[arg(long, global = true)]
    pub(crate) rounds: Option<usize>,
    /// Python for the peers: NumPy, ONNX Runtime, tokenizers, Pillow
    #[arg(long, global = true, default_value = ".deps/python/bin/python")]
    pub(crate) python: PathBuf,
    /// Python for the PyTorch peers, which `make peers` fetches
    #[arg(long, global = true, default_value = ".deps/python-train/bin/python")]
    pub(crate) python_train: PathBuf,
    /// What the bundle's parts were trained by: the PyTorch peers get its shapes
    #[arg(long, global = true, value_name = "DIR", default_value = "models/configs")]
    pub(crate) configs: PathBuf,
    /// Node modules of the BullMQ peer; without them it is left out
    #[arg(long, global = true, default_value = ".deps/node-peers/node_modules")]
    pub(crate) node_modules: PathBuf,
    /// Python of the Celery peer; without it the peer is left out
    #[arg(long, global = true, default_value = ".deps/python-peers/bin/python")]
    pub(crate) python_peers: PathBuf,
    /// Write the report here as Markdown [default: to stdout]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Write every figure here as JSON
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// The engine alone: time of a pass at each size, sampling, pictures a second in a bare loop
    Engine,
    /// GFLOP/s reached in the step graphs, over those of a large matrix product
    Arithmetic,
    /// Embeddings a second of the engine and of encoder-svc, against ONNX Runtime and transformers in Python
    Encoder,
    /// One job at a time through an idle cluster, against the same in the engine
    Overhead,
    /// The cluster at saturation against the bare loop, and eight clients with mixed settings
    Saturation,
    /// Jobs that arrive at random at several shares of the peak: percentiles of their latency, and where it goes
    OpenLoop,
    /// A job of high priority on workers full of low priority: how long until its first pass
    Priority,
    /// Memory of each process before the first job and over many, and a worker's over its weights
    Memory {
        /// Jobs [default: 10000, 400 with --brief, 200 with --quick]
        #[arg(long, value_name = "JOBS")]
        jobs: Option<usize>,
    },
    /// The bare loop against peers' loops: Python on the same graphs, muse-maskgit-pytorch, aMUSEd
    Peers,
    /// Eight clients of the cluster against eight of a Python server on the same graphs
    Server,
    /// The queue with workers that compute nothing, beside BullMQ and Celery, and at several depths
    Queue {
        /// Jobs that wait, in rising order [default: 100,10000,1000000, without the last with --brief]
        #[arg(long, value_delimiter = ',', value_name = "JOBS")]
        depths: Vec<u64>,
    },
    /// Simulated shards, 1 to 64 of each stage, on one gateway and one Redis
    Scale,
    /// A text encoder or a stage of any size by itself: loading, memory, a pass
    Paper(crate::paper::Options),
    /// Whether a picture depends on those made beside it, and what becomes of it on another provider than the CPU
    Invariance {
        /// Pictures, each made alone and in every company
        #[arg(long, value_name = "PICTURES", default_value_t = 16)]
        pictures: usize,
    },
    /// All of it
    All {
        /// Criterion's folder: its latest estimates go into the report
        #[arg(long, value_name = "FOLDER")]
        criterion: Option<PathBuf>,
    },
    /// Compare the ratios of two reports (--json): fails when one became worse by more than its spread
    Compare {
        /// The earlier report
        old: PathBuf,
        /// The later report
        new: PathBuf,
    },
}

/// See [`SessionOptions::spin_us`]; what was fastest on two cores.
const ALONE_SPIN_US: u32 = 50;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Rounds of whatever takes turns.
    pub(crate) rounds: usize,
    /// Largest pass measured, in rows.
    pub(crate) most_rows: usize,
    /// Passes measured at each size.
    pub(crate) passes: usize,
    /// Batches that the bare loop is tried at.
    pub(crate) batches: &'static [usize],
    /// Pictures of a round of the bare loop.
    pub(crate) pictures: usize,
    /// Texts that a text encoder is given at each batch size in a round.
    pub(crate) encoder_texts: usize,
    /// Jobs sent through the idle cluster.
    pub(crate) jobs: usize,
    /// Clients at saturation.
    pub(crate) clients: usize,
    /// Length of a window at saturation.
    pub(crate) window: Duration,
    /// Length of a window of eight clients.
    pub(crate) server_window: Duration,
    /// Jobs of each of the eight clients in a round.
    pub(crate) mixed_jobs: usize,
    /// Jobs of a round through the queue alone.
    pub(crate) queue_jobs: u64,
    /// The same through Celery, which is slower.
    pub(crate) celery_jobs: u64,
    /// Claims of a round, one after another.
    pub(crate) claims: usize,
    /// Time of a simulated shard's pass.
    pub(crate) pass: Duration,
    /// Rounds and length of a window of simulated shards.
    pub(crate) scale_rounds: usize,
    pub(crate) scale_window: Duration,
    /// Jobs that wait in the queue.
    pub(crate) depths: &'static [u64],
}

const FULL: Settings = Settings {
    rounds: 5,
    most_rows: 32,
    passes: 15,
    batches: &[1, 2, 4, 8, 16],
    pictures: 16,
    encoder_texts: 768,
    jobs: 120,
    clients: 32,
    window: Duration::from_secs(20),
    server_window: Duration::from_secs(10),
    mixed_jobs: 8,
    queue_jobs: 10_000,
    celery_jobs: 1_000,
    claims: 400,
    pass: Duration::from_millis(100),
    scale_rounds: 3,
    scale_window: Duration::from_secs(10),
    depths: &[100, 10_000, 1_000_000],
};

/// What fits in 20 minutes and still has medians.
const BRIEF: Settings = Settings {
    rounds: 3,
    jobs: 60,
    window: Duration::from_secs(10),
    server_window: Duration::from_secs(8),
    mixed_jobs: 4,
    celery_jobs: 500,
    scale_rounds: 1,
    scale_window: Duration::from_secs(5),
    depths: &[100, 10_000],
    ..FULL
};

const QUICK: Settings = Settings {
    rounds: 2,
    most_rows: 4,
    passes: 2,
    batches: &[1, 2],
    pictures: 2,
    encoder_texts: 32,
    jobs: 3,
    clients: 4,
    window: Duration::from_secs(2),
    server_window: Duration::from_secs(2),
    mixed_jobs: 1,
    queue_jobs: 200,
    celery_jobs: 20,
    claims: 10,
    pass: Duration::from_millis(20),
    scale_rounds: 1,
    scale_window: Duration::from_secs(1),
    depths: &[100, 1_000],
};

impl Arguments {
    /// The same with the bundle of integer products in the bundle's place, where there is one.
    pub(crate) fn on_int8(&self) -> Option<Arguments> {
        let bundle = self.int8_bundle.clone()?;
        Some(Arguments {
            bundle,
            int8_bundle: None,
            ..self.clone()
        })
    }

    pub(crate) fn settings(&self) -> Settings {
        let settings = match (self.quick, self.brief) {
            (true, _) => QUICK,
            (false, true) => BRIEF,
            (false, false) => FULL,
        };
        Settings {
            rounds: self.rounds.map_or(settings.rounds, |rounds| rounds.max(1)),
            ..settings
        }
    }

    /// `--depths`, or those of the settings.
    pub(crate) fn depths(&self, asked: &[u64]) -> Vec<u64> {
        if asked.is_empty() {
            self.settings().depths.to_vec()
        } else {
            asked.to_vec()
        }
    }

    /// How long jobs arrive at each rate; among all measurements half as long, or a quarter.
    pub(crate) fn open_loop_window(&self, among_all: bool) -> Duration {
        Duration::from_secs(match (self.quick, self.brief, among_all) {
            (true, ..) => 2,
            (_, true, _) => 15,
            (.., true) => 30,
            _ => 60,
        })
    }

    /// Jobs over which memory is watched; among all measurements a fifth of them, or less.
    pub(crate) fn memory_jobs(&self, among_all: bool) -> usize {
        match (self.quick, self.brief, among_all) {
            (true, ..) => 200,
            (_, true, _) => 400,
            (.., true) => 2_000,
            _ => 10_000,
        }
    }

    /// How the engine in this process is opened; the cluster's workers have the same defaults.
    pub(crate) fn session(&self) -> anyhow::Result<SessionOptions> {
        let given: SessionOptions = toml::from_str(&self.runtime.join("\n")).context("--runtime")?;
        Ok(SessionOptions {
            onnxruntime: match given.onnxruntime {
                Some(library) => Some(library),
                None => Some(find_onnxruntime()?),
            },
            threads: self.threads,
            ..given
        })
    }

    /// The same for a loop that has the machine to itself, as its peers have: they spin by default.
    pub(crate) fn session_alone(&self) -> anyhow::Result<SessionOptions> {
        Ok(SessionOptions {
            spin_us: ALONE_SPIN_US,
            ..self.session()?
        })
    }

    /// The services beside this program.
    pub(crate) fn programs(&self) -> anyhow::Result<Programs> {
        Ok(Programs::discover()?)
    }

    /// `--threads`, with 0 resolved.
    pub(crate) fn cores(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}
