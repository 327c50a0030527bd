//! The first peer: the same graphs in a plain Python loop, in turns with the bare loop.

use std::{
    io::{BufRead as _, BufReader, Write as _},
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

/// Beside this crate's sources.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/plain_loop.py");
/// Pictures together: one alone, and as eight clients would bring them.
const BATCHES: [usize; 2] = [1, 8];
/// Issue 5's bound.
const FASTER: f64 = 1.3;

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
    pictures: usize,
}

/// What it says when it is ready.
#[derive(Deserialize)]
struct Hello {
    versions: String,
}

/// The loop, loaded once and asked again and again.
struct Plain {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    versions: String,
}

pub(crate) fn measure(
    arguments: &Arguments,
    settings: &Settings,
    bundle: &Bundle,
) -> anyhow::Result<Section> {
    say("a plain Python loop on the same graphs");
    let mut bare = Bare::open(bundle, &arguments.session()?)?;
    let mut plain = Plain::start(arguments)?;
    let mut table = Table::new(&[
        "pictures together",
        "this engine, pictures/s",
        "Python loop, pictures/s",
        "ratio",
    ]);
    let mut verdicts = Vec::new();
    let mut index = 0;
    for batch in BATCHES {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..=settings.rounds {
            let (mut own_seconds, mut their_seconds, mut made) = (0.0, 0.0, 0);
            while made < settings.pictures.max(batch) {
                let orders: Vec<Order> = (0..batch).map(|place| Order::numbered(index + place)).collect();
                own_seconds += timed(|| bare.make(&orders, usize::MAX))?.1;
                their_seconds += plain.make(&orders)?;
                index += batch;
                made += batch;
            }
            // The first round fills caches.
            if round > 0 {
                ours.push(made as f64 / own_seconds);
                theirs.push(made as f64 / their_seconds);
            }
        }
        let measured = "nothing was measured";
        let (ours, theirs) = (
            Series::new(ours).context(measured)?,
            Series::new(theirs).context(measured)?,
        );
        let ratio = ours.over(&theirs);
        table.row([
            batch.to_string(),
            spread(&ours, 2),
            spread(&theirs, 2),
            spread(&ratio, 2),
        ]);
        verdicts.push(Verdict::at_least(
            format!("this engine / a plain Python loop on the same graphs, {batch} together"),
            &ratio,
            FASTER,
        ));
    }
    let versions = plain.versions.clone();
    plain.stop()?;
    Ok(Section {
        name: "python".to_owned(),
        title: "A plain Python loop on the same graphs".to_owned(),
        text: format!(
            "`bench/python/plain_loop.py` ({versions}): the bundle's ONNX graphs in batches, sampling vectorised in NumPy, PNG by \
             Pillow; {} threads inside an operator in both, ONNX Runtime's other options as they come in Python. Neither is a \
             service: both are loops in one process.",
            arguments.cores(),
        ),
        tables: vec![table],
        verdicts,
    })
}

impl Plain {
    fn start(arguments: &Arguments) -> anyhow::Result<Self> {
        let mut child = Command::new(&arguments.python)
            .arg(SCRIPT)
            .arg("--bundle")
            .arg(&arguments.bundle)
            .arg("--threads")
            .arg(arguments.cores().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| {
                format!(
                    "cannot run {}; `make python` makes it",
                    arguments.python.display()
                )
            })?;
        let stdin = child.stdin.take().context("no stdin")?;
        let mut stdout = BufReader::new(child.stdout.take().context("no stdout")?);
        let hello: Hello = read(&mut stdout)?;
        Ok(Self {
            child,
            stdin,
            stdout,
            versions: hello.versions,
        })
    }

    /// Seconds that it took, by its own clock: what passes through the pipe is not its work.
    fn make(&mut self, orders: &[Order]) -> anyhow::Result<f64> {
        let task = Task {
            prompts: orders.iter().map(|order| order.prompt.as_str()).collect(),
            seed: orders.first().map_or(0, |order| order.seed),
        };
        writeln!(self.stdin, "{}", serde_json::to_string(&task)?)?;
        self.stdin.flush()?;
        let answer: Answer = read(&mut self.stdout)?;
        if answer.pictures != orders.len() {
            bail!(
                "the Python loop made {} pictures instead of {}",
                answer.pictures,
                orders.len()
            );
        }
        Ok(answer.seconds)
    }

    /// It ends when there is nothing more to read.
    fn stop(self) -> anyhow::Result<()> {
        let Self { mut child, stdin, .. } = self;
        drop(stdin);
        let status = child.wait()?;
        if !status.success() {
            bail!("the Python loop ended with {status}");
        }
        Ok(())
    }
}

fn read<T: for<'de> Deserialize<'de>>(stdout: &mut BufReader<ChildStdout>) -> anyhow::Result<T> {
    let mut line = String::new();
    if stdout.read_line(&mut line)? == 0 {
        bail!("the Python loop has ended; what it said is above");
    }
    serde_json::from_str(&line).with_context(|| format!("the Python loop said {line:?}"))
}
