//! Peers that make pictures in a loop of their own, in turns with the engine's bare loop.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, bail};
use muse_engine::Bundle;
use serde::{Deserialize, Serialize};

use crate::{
    arguments::{Arguments, Settings},
    bare::Bare,
    measure::{say, timed},
    report::{Section, Table, Verdict, spread},
    stats::Series,
    workload::Order,
};

/// Pictures together: one alone, and as eight clients would bring them.
const BATCHES: [usize; 2] = [1, 8];

/// Issue 5's bound on pictures a second with integer products over those of a peer in PyTorch.
const FASTER_WITH_INT8: f64 = 5.0;

/// A loop in Python, which speaks as `bench/python/peer.py` says.
struct Peer {
    /// For programs.
    name: &'static str,
    title: &'static str,
    /// Which Python runs it.
    python: Python,
    /// Beside this crate's sources.
    script: &'static str,
    /// Issue 5's bound on the engine's pictures a second over the peer's.
    faster: f64,
    /// What it is, and what is not the same.
    text: &'static str,
}

/// An environment that `scripts/fetch_deps.py` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Python {
    /// ONNX Runtime and NumPy.
    Tests,
    /// PyTorch and the peers' packages.
    Training,
}

const ON_SAME_GRAPHS: Peer = Peer {
    name: "python",
    title: "A plain Python loop on the same graphs",
    python: Python::Tests,
    script: concat!(env!("CARGO_MANIFEST_DIR"), "/python/plain_loop.py"),
    faster: 1.3,
    text: "The bundle's ONNX graphs in batches, sampling vectorised in NumPy, PNG by Pillow; ONNX Runtime's other options as they come \
           in Python.",
};

/// Where the bundle has integer products.
const ON_SAME_INT8_GRAPHS: Peer = Peer {
    name: "python_int8",
    title: "A plain Python loop on the same graphs, int8 bundle",
    ..ON_SAME_GRAPHS
};

const IN_PYTORCH: [Peer; 2] = [
    Peer {
        name: "lucidrains",
        title: "muse-maskgit-pytorch (lucidrains)",
        python: Python::Training,
        script: concat!(env!("CARGO_MANIFEST_DIR"), "/python/lucidrains.py"),
        faster: 3.0,
        text: "The package's own `generate` of both stages in PyTorch, f32, fused attention, random weights; grids, widths, layers, heads, codebook, \
               steps and guidance as in the bundle. What differs: its super-resolution transformer has a state for each token (ours \
               for each 2×2), its base picture is decoded and encoded again on its way, guidance is the same at every step, and its tokenizer's \
               convolutions are its own, at the bundle's widths with one block for each resolution.",
    },
    Peer {
        name: "amused",
        title: "aMUSEd (diffusers)",
        python: Python::Training,
        script: concat!(env!("CARGO_MANIFEST_DIR"), "/python/amused.py"),
        faster: 3.0,
        text: "diffusers' pipeline in PyTorch, f32, random weights. It has one stage: a transformer of the base stage's width, layers, heads, steps and \
               guidance fills the grid of super-resolution, so it makes fewer passes (16 for 24 by the demo bundle's defaults), each over 256 tokens.",
    },
];

/// What the loop is asked to do, a line of JSON.
#[derive(Serialize)]
struct Task<'order> {
    prompts: Vec<&'order str>,
    seed: u64,
}

/// What it answers, a line of JSON.
#[derive(Deserialize)]
struct Answer {
    seconds: f64,
    made: usize,
}

/// What it says when it is ready.
#[derive(Deserialize)]
struct Hello {
    versions: String,
}

/// A loop, loaded once and asked again and again.
pub(crate) struct Loaded {
    name: &'static str,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    pub(crate) versions: String,
}

/// A section for each peer. One whose Python is not there is named, with the command that makes it.
pub(crate) fn measure(
    arguments: &Arguments,
    settings: &Settings,
    bundle: &Bundle,
) -> anyhow::Result<Vec<Section>> {
    let mut sections = vec![ON_SAME_GRAPHS.measure(arguments, settings, bundle)?];
    if let Some(arguments) = arguments.on_int8() {
        let bundle = Bundle::load(&arguments.bundle)?;
        sections.push(ON_SAME_INT8_GRAPHS.measure(&arguments, settings, &bundle)?);
    }
    for peer in &IN_PYTORCH {
        sections.push(peer.measure(arguments, settings, bundle)?);
    }
    Ok(sections)
}

fn beside(
    peer: &Peer,
    arguments: &Arguments,
    settings: &Settings,
    bundle: &Bundle,
) -> anyhow::Result<Section> {
    say(peer.title);
    let mut bare = Bare::open(bundle, &arguments.session_alone()?)?;
    // The loop on the same graphs is no measure for other graphs.
    let int8 = match (&arguments.int8_bundle, peer.python) {
        (Some(folder), Python::Training) => Some(Bundle::load(folder)?),
        _ => None,
    };
    let mut static_int8 = int8
        .as_ref()
        .map(|bundle| Bare::open(bundle, &arguments.session_alone()?))
        .transpose()?;
    let mut loaded = Loaded::start(peer.name, peer.python, peer.script, arguments)?;
    let mut header = vec![
        "pictures together",
        "this engine, pictures/s",
        "peer, pictures/s",
        "ratio",
    ];
    if static_int8.is_some() {
        header.extend(["with int8, pictures/s", "ratio with int8"]);
    }
    let mut table = Table::new(&header);
    let mut verdicts = Vec::new();
    let mut index = 0;
    for batch in BATCHES {
        let (mut ours, mut theirs, mut with_int8) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=settings.rounds {
            let (mut own_seconds, mut their_seconds, mut int8_seconds, mut made) = (0.0, 0.0, 0.0, 0);
            while made < settings.pictures.max(batch) {
                let orders: Vec<Order> = (0..batch).map(|place| Order::numbered(index + place)).collect();
                own_seconds += timed(|| bare.make(&orders, usize::MAX))?.1;
                their_seconds += loaded.make(&orders)?;
                if let Some(bare) = &mut static_int8 {
                    int8_seconds += timed(|| bare.make(&orders, usize::MAX))?.1;
                }
                index += batch;
                made += batch;
            }
            // The first round fills caches.
            if round > 0 {
                ours.push(made as f64 / own_seconds);
                theirs.push(made as f64 / their_seconds);
                if static_int8.is_some() {
                    with_int8.push(made as f64 / int8_seconds);
                }
            }
        }
        let measured = "nothing was measured";
        let (ours, theirs) = (
            Series::new(ours).context(measured)?,
            Series::new(theirs).context(measured)?,
        );
        let ratio = ours.over(&theirs);
        let mut cells = vec![
            batch.to_string(),
            spread(&ours, 2),
            spread(&theirs, 2),
            spread(&ratio, 2),
        ];
        verdicts.push(Verdict::at_least(
            format!("this engine / {}, {batch} together", peer.title),
            &ratio,
            peer.faster,
        ));
        if let Some(with_int8) = Series::new(with_int8) {
            let ratio = with_int8.over(&theirs);
            cells.extend([spread(&with_int8, 2), spread(&ratio, 2)]);
            verdicts.push(Verdict::at_least(
                format!("this engine with int8 / {}, {batch} together", peer.title),
                &ratio,
                FASTER_WITH_INT8,
            ));
        }
        table.row(cells);
    }
    let versions = loaded.versions.clone();
    loaded.stop()?;
    let int8 = int8.map_or_else(String::new, |bundle| {
        format!(
            " With int8: bundle {} {}, whose products are of integers.",
            bundle.model().name,
            bundle.model().version
        )
    });
    let text = format!(
        "{versions}; {} threads inside an operator in both. Neither is a service: both are loops in one process.{int8}",
        arguments.cores()
    );
    Ok(peer.section(text, vec![table], verdicts))
}

impl Peer {
    fn measure(
        &self,
        arguments: &Arguments,
        settings: &Settings,
        bundle: &Bundle,
    ) -> anyhow::Result<Section> {
        match self.python.missing(arguments) {
            None => beside(self, arguments, settings, bundle),
            Some(missing) => {
                say(&format!("{}: not measured, {missing}", self.title));
                Ok(self.section(format!("**Not measured**: {missing}."), Vec::new(), Vec::new()))
            }
        }
    }

    fn section(&self, text: String, tables: Vec<Table>, verdicts: Vec<Verdict>) -> Section {
        Section {
            name: self.name.to_owned(),
            title: self.title.to_owned(),
            text: format!("{} {text}", self.text),
            tables,
            verdicts,
        }
    }
}

impl Python {
    pub(crate) fn program(self, arguments: &Arguments) -> &Path {
        match self {
            Self::Tests => &arguments.python,
            Self::Training => &arguments.python_train,
        }
    }

    /// What to do where it is not there.
    pub(crate) fn missing(self, arguments: &Arguments) -> Option<&'static str> {
        let program = self.program(arguments);
        match self {
            Self::Tests => (!program.exists()).then_some("`make python` fetches what it runs on"),
            Self::Training => {
                // The list that `fetch_deps.py` leaves when everything on it is there.
                let peers = program
                    .ancestors()
                    .nth(2)
                    .map(|environment| environment.join("requirements-pytorch-peers.sha256"));
                (!peers.is_some_and(|peers| peers.exists())).then_some("`make peers` fetches what it runs on")
            }
        }
    }
}

impl Loaded {
    /// Runs `script` and waits until it says what it is.
    pub(crate) fn start(
        name: &'static str,
        python: Python,
        script: &str,
        arguments: &Arguments,
    ) -> anyhow::Result<Self> {
        let program = python.program(arguments);
        let mut command = Command::new(program);
        command.arg(script).arg("--bundle").arg(&arguments.bundle);
        if python == Python::Training {
            command.arg("--configs").arg(&arguments.configs);
        }
        let mut child = command
            .arg("--threads")
            .arg(arguments.cores().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let stdin = child.stdin.take().context("no stdin")?;
        let mut stdout = BufReader::new(child.stdout.take().context("no stdout")?);
        let hello: Hello = read(&mut stdout)?;
        Ok(Self {
            name,
            child,
            stdin,
            stdout,
            versions: hello.versions,
        })
    }

    /// Seconds that the pictures took.
    fn make(&mut self, orders: &[Order]) -> anyhow::Result<f64> {
        let task = Task {
            prompts: orders.iter().map(|order| order.prompt.as_str()).collect(),
            seed: orders.first().map_or(0, |order| order.seed),
        };
        self.ask(&task, orders.len())
    }

    /// Seconds that a task of `wanted` pictures or embeddings took, by its own clock: what passes through the pipe is not its
    /// work.
    pub(crate) fn ask(&mut self, task: &impl Serialize, wanted: usize) -> anyhow::Result<f64> {
        writeln!(self.stdin, "{}", serde_json::to_string(task)?)?;
        self.stdin.flush()?;
        let answer: Answer = read(&mut self.stdout)?;
        if answer.made != wanted {
            bail!("{} made {} instead of {wanted}", self.name, answer.made);
        }
        Ok(answer.seconds)
    }

    /// It ends when there is nothing more to read.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        let Self {
            name,
            mut child,
            stdin,
            ..
        } = self;
        drop(stdin);
        let status = child.wait()?;
        if !status.success() {
            bail!("{name} ended with {status}");
        }
        Ok(())
    }
}

fn read<T: for<'de> Deserialize<'de>>(stdout: &mut BufReader<ChildStdout>) -> anyhow::Result<T> {
    let mut line = String::new();
    if stdout.read_line(&mut line)? == 0 {
        bail!("the peer has ended; what it said is above");
    }
    serde_json::from_str(&line).with_context(|| format!("the peer said {line:?}"))
}
