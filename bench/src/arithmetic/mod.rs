//! GFLOP/s reached in the step graphs, over those of the largest matrix product that this machine was seen to make.

mod picture;
mod product;
mod profile;
mod step;

use std::{collections::BTreeMap, time::Instant};

use anyhow::Context as _;
use muse_engine::{Bundle, Runtime, StageSpec};
use muse_worker::batcher::curve::warm_up_sizes;

use self::{
    picture::{Passes, RowOperations},
    product::{Products, SIDES, peer_rates},
    profile::Run,
    step::{Size, Step, profiled},
};
use crate::{
    arguments::{Arguments, Settings},
    loops::{Loaded, Python},
    measure::say,
    report::{Section, Table, Verdict, spread},
    stats::Series,
};

/// Issue 5's bound at the best batch.
const SHARE_OF_PEAK: f64 = 0.85;
/// A graph that can leave positions out is measured with one in so many, too.
const PART: usize = 4;
/// Passes of a size that ONNX Runtime profiles.
const PROFILED: usize = 5;
/// Operators that take less of a pass than this are added up.
const SMALL: f64 = 0.01;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/products.py");
const TITLE: &str = "Arithmetic of the step graphs";

/// A stage's step graph, measured.
struct Stage<'bundle> {
    spec: &'bundle StageSpec,
    step: Step,
    sizes: Vec<Size>,
    /// Of each size.
    runs: Vec<Vec<Run>>,
    /// GFLOP/s of each size, by round.
    rates: Vec<Vec<f64>>,
    /// Milliseconds of a pass of each size, by round.
    times: Vec<Vec<f64>>,
}

pub(crate) fn measure(
    arguments: &Arguments,
    settings: &Settings,
    bundle: &Bundle,
) -> anyhow::Result<Vec<Section>> {
    say(TITLE);
    let options = arguments.session()?;
    Runtime::initialise(options.onnxruntime.as_deref())?;
    let mut products = Products::open(&options)?;
    let mut peers = Vec::new();
    for (name, title, python) in [
        ("numpy", "NumPy", Python::Tests),
        ("pytorch", "PyTorch", Python::Training),
    ] {
        if python.missing(arguments).is_none() {
            peers.push((title, Loaded::start(name, python, SCRIPT, arguments)?));
        }
    }
    let (mut stages, mut left_out) = (Vec::new(), Vec::new());
    for spec in bundle.stages() {
        let step = Step::open(bundle, spec, &options, None)?;
        let sizes = sizes(spec, &step, settings.most_rows);
        // A bundle whose steps multiply integers, or take other types, is no reason to measure nothing at all.
        match profiled(bundle, spec, &options, &sizes, PROFILED) {
            Ok(runs) => {
                let empty = vec![Vec::new(); sizes.len()];
                stages.push(Stage {
                    spec,
                    step,
                    sizes,
                    runs,
                    rates: empty.clone(),
                    times: empty,
                });
            }
            Err(reason) => {
                say(&format!("the {} stage: not measured, {reason:#}", spec.stage));
                left_out.push(format!("**Not measured**: the {} stage, {reason:#}.", spec.stage));
            }
        }
    }

    let mut peaks: BTreeMap<(&str, usize), Vec<f64>> = BTreeMap::new();
    for round in 0..=settings.rounds {
        let mut seen = vec![("ONNX Runtime", products.rates(arguments.quick)?)];
        for (title, peer) in &mut peers {
            seen.push((*title, peer_rates(peer, arguments.quick)?));
        }
        for stage in &mut stages {
            stage.round(round > 0, settings.passes.div_ceil(3))?;
        }
        // The first round fills caches and buffers.
        if round > 0 {
            for (title, rates) in seen {
                for (side, rate) in rates {
                    peaks.entry((title, side)).or_default().push(rate);
                }
            }
        }
    }
    let mut versions = Vec::new();
    for (title, peer) in peers {
        versions.push(format!("{title}: {}", peer.versions));
        peer.stop()?;
    }

    let peaks: Vec<((&str, usize), Series)> = peaks
        .into_iter()
        .filter_map(|(key, rates)| Some((key, Series::new(rates)?)))
        .collect();
    let ((library, side), peak) = peaks
        .iter()
        .max_by(|(_, left), (_, right)| left.median().total_cmp(&right.median()))
        .context("no product was measured")?;
    let mut sections = vec![Section {
        name: "arithmetic".to_owned(),
        title: TITLE.to_owned(),
        text: format!(
            "What the cores can do: products of square f32 matrices, {} threads, in turns with the step graphs below; GFLOP/s count a \
             multiplication and an addition as two. The highest is taken as the machine's: {library} at {side}, {}. {}. {} The second table is what the \
             step graphs of one picture come to with the bundle's default settings, each step with the positions that are still masked, and how many \
             pictures a second the peak would allow if nothing else took time: no server of these graphs makes more of them in f32.",
            arguments.cores(),
            spread(peak, 0),
            versions.join("; "),
            left_out.join(" "),
        ),
        tables: vec![peak_table(&peaks), picture_table(&stages, peak)?],
        verdicts: Vec::new(),
    }];
    for stage in &stages {
        sections.push(stage.section(peak)?);
    }
    Ok(sections)
}

/// Every number of rows with all of their positions, and with a part of them where the graph can choose.
fn sizes(spec: &StageSpec, step: &Step, most_rows: usize) -> Vec<Size> {
    let whole = |rows| Size {
        rows,
        wanted: rows * spec.positions(),
    };
    let mut sizes: Vec<Size> = warm_up_sizes(most_rows).into_iter().map(whole).collect();
    if step.chooses() {
        let part = sizes.iter().map(|size| Size {
            rows: size.rows,
            wanted: (size.wanted / PART).max(1),
        });
        sizes.extend(part.collect::<Vec<_>>());
    }
    sizes
}

fn peak_table(peaks: &[((&str, usize), Series)]) -> Table {
    let sides = SIDES.map(|side| format!("{side}³"));
    let header: Vec<&str> = std::iter::once("GFLOP/s")
        .chain(sides.iter().map(String::as_str))
        .collect();
    let mut table = Table::new(&header);
    let mut libraries: Vec<&str> = peaks.iter().map(|((library, _), _)| *library).collect();
    libraries.dedup();
    for library in libraries {
        let rates = peaks.iter().filter(|((own, _), _)| *own == library);
        table.row(std::iter::once(library.to_owned()).chain(rates.map(|(_, rates)| spread(rates, 0))));
    }
    table
}

/// What a picture's passes come to, and how many pictures the peak has room for.
fn picture_table(stages: &[Stage], peak: &Series) -> anyhow::Result<Table> {
    let mut table = Table::new(&[
        "stage",
        "rows of a picture's passes",
        "GFLOP",
        "pictures/s at the peak",
    ]);
    let mut all = Passes::default();
    let row = |name: String, passes: &Passes| {
        let most = peak.map(|peak| peak * 1e9 / passes.operations);
        let operations = format!("{:.2}", passes.operations / 1e9);
        [name, passes.rows.to_string(), operations, spread(&most, 2)]
    };
    for stage in stages {
        let passes = Passes::of(stage.spec, stage.row_operations()?);
        table.row(row(stage.spec.stage.to_string(), &passes));
        all.rows += passes.rows;
        all.operations += passes.operations;
    }
    if stages.len() > 1 {
        table.row(row("all".to_owned(), &all));
    }
    Ok(table)
}

impl Stage<'_> {
    /// Of passes of one row, the smallest that were profiled.
    fn row_operations(&self) -> anyhow::Result<RowOperations> {
        let of_one_row = self
            .sizes
            .iter()
            .zip(&self.runs)
            .filter(|(size, _)| size.rows == 1);
        let (mut whole, mut part) = (None, None);
        for (size, runs) in of_one_row {
            let operations = runs.first().context("no pass was profiled")?.operations;
            if size.wanted == self.spec.positions() {
                whole = Some(operations);
            } else {
                part = Some((size.wanted, operations));
            }
        }
        let whole = whole.context("no pass of one row was profiled")?;
        Ok(RowOperations { whole, part })
    }

    /// Size after size, `passes` times, so that a slow moment slows all alike; the median of each counts.
    fn round(&mut self, counted: bool, passes: usize) -> anyhow::Result<()> {
        let mut seconds = vec![Vec::new(); self.sizes.len()];
        for _ in 0..passes {
            for (size, seconds) in self.sizes.iter().zip(&mut seconds) {
                let inputs = self.step.inputs(*size)?;
                let begun = Instant::now();
                self.step.run(inputs)?;
                seconds.push(begun.elapsed().as_secs_f64());
            }
        }
        if !counted {
            return Ok(());
        }
        let measured = self.rates.iter_mut().zip(&mut self.times);
        for ((seconds, runs), (rates, times)) in seconds.into_iter().zip(&self.runs).zip(measured) {
            let seconds = Series::new(seconds).context("no pass was measured")?.median();
            let operations = runs.first().context("no pass was profiled")?.operations;
            rates.push(operations / seconds / 1e9);
            times.push(seconds * 1e3);
        }
        Ok(())
    }

    fn section(&self, peak: &Series) -> anyhow::Result<Section> {
        let stage = self.spec.stage;
        let lanes = self.step.lanes();
        let measured = "nothing was measured";
        let mut table = Table::new(&[
            "rows",
            "positions",
            "GFLOP a pass",
            "pass, ms",
            "GFLOP/s",
            "of the peak",
            "",
        ]);
        let shares = self
            .rates
            .iter()
            .map(|rates| Some(Series::new(rates.iter().copied())?.over(peak)))
            .collect::<Option<Vec<_>>>()
            .context(measured)?;
        // The bound is of passes that compute everything.
        let whole = self
            .sizes
            .iter()
            .zip(&shares)
            .enumerate()
            .filter(|(_, (size, _))| size.wanted == size.rows * self.spec.positions());
        let (best, (size, share)) = whole
            .max_by(|(_, (_, left)), (_, (_, right))| left.median().total_cmp(&right.median()))
            .context(measured)?;
        for (index, (size, share)) in self.sizes.iter().zip(&shares).enumerate() {
            let (rates, times) = (
                Series::new(self.rates[index].iter().copied()).context(measured)?,
                Series::new(self.times[index].iter().copied()).context(measured)?,
            );
            let operations = self.runs[index].first().context(measured)?.operations;
            table.row([
                size.rows.to_string(),
                size.wanted.to_string(),
                format!("{:.3}", operations / 1e9),
                spread(&times, 2),
                spread(&rates, 0),
                spread(share, 2),
                if index == best { "best" } else { "" }.to_owned(),
            ]);
        }
        Ok(Section {
            name: format!("arithmetic_{stage}"),
            title: format!("Arithmetic of the {stage} stage"),
            text: format!(
                "The step graph alone, without sampling, {lanes}. Its operations are those of its matrix products, attention's two included, \
                 counted from the shapes that ONNX Runtime says each had; all else (norms, activations, copies) counts as none and takes time. \
                 *positions*: of all rows together, whose logits are computed. The second table is ONNX Runtime's own profile at {} rows, \
                 all threads in each operator, medians of {PROFILED} passes; profiling itself costs a little.",
                size.rows
            ),
            tables: vec![table, kinds(&self.runs[best])?],
            verdicts: vec![Verdict::at_least(
                format!(
                    "GFLOP/s of the {stage} stage's step graph, {} rows / the machine's peak",
                    size.rows
                ),
                share,
                SHARE_OF_PEAK,
            )],
        })
    }
}

/// Time by kind of operator, the longest first.
fn kinds(runs: &[Run]) -> anyhow::Result<Table> {
    let kinds: BTreeMap<&String, Vec<f64>> =
        runs.iter()
            .flat_map(|run| &run.time)
            .fold(BTreeMap::new(), |mut kinds, (kind, time)| {
                kinds.entry(kind).or_insert_with(Vec::new).push(time / 1e3);
                kinds
            });
    let mut kinds: Vec<(&str, f64)> = kinds
        .into_iter()
        .filter_map(|(kind, times)| Some((kind.as_str(), Series::new(times)?.median())))
        .collect();
    kinds.sort_by(|(_, left), (_, right)| right.total_cmp(left));
    let total: f64 = kinds.iter().map(|(_, time)| time).sum();
    let small = kinds.partition_point(|(_, time)| *time >= total * SMALL);
    let rest: f64 = kinds.split_off(small).iter().map(|(_, time)| time).sum();
    kinds.push(("others", rest));
    let mut table = Table::new(&["operator", "ms a pass", "share"]);
    for (kind, time) in kinds {
        table.row([
            kind.to_owned(),
            format!("{time:.2}"),
            format!("{:.0} %", time / total * 100.0),
        ]);
    }
    Ok(table)
}
