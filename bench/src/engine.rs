//! The engine alone: time of a pass at each size, the share of sampling, pictures a second in a bare loop.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use muse_engine::{
    Bundle, Conditioning, ConditioningInput, Embedding, Logits, Row, RowConditioning, RowSettings, Sampling,
    Stage, StageModel, StageSpec, sampler::Scratch,
};
use muse_worker::batcher::curve::{PassCurve, Point, warm_up_sizes};

use crate::{
    arguments::{Arguments, Settings},
    bare::{Bare, Split},
    measure::{milliseconds, say, timed},
    report::{Section, Table, Verdict, spread},
    stats::Series,
    workload::Order,
};

/// As a worker takes it by default (`batcher.knee_tolerance`).
const KNEE_TOLERANCE: f64 = 0.02;
/// Sampling at the demo's size and at the paper's should take no more of a pass than this.
pub(crate) const SAMPLING_SHARE: f64 = 0.03;

/// What others compare with.
pub(crate) struct Engine {
    pub(crate) sections: Vec<Section>,
    /// Time of a pass against its rows, medians, of each stage.
    pub(crate) curves: Vec<StageCurve>,
    /// Pictures together in the bare loop at which it made most of them a second.
    pub(crate) best_batch: usize,
}

pub(crate) struct StageCurve {
    pub(crate) stage: Stage,
    pub(crate) curve: PassCurve,
}

pub(crate) fn measure(arguments: &Arguments, settings: &Settings, bundle: &Bundle) -> anyhow::Result<Engine> {
    let session = arguments.session()?;
    let samplers = session.samplers()?;
    let mut bare = Bare::open(bundle, &session)?;
    let mut sections = Vec::new();
    let mut curves = Vec::new();
    for model in bare.stages() {
        say(&format!("passes of the {} stage", model.spec().stage));
        let (section, curve) = passes(model, settings, bundle, samplers)?;
        sections.push(section);
        curves.push(curve);
    }
    say("the bare loop");
    let (section, best_batch) = bare_loop(&mut bare, settings)?;
    sections.push(section);
    Ok(Engine {
        sections,
        curves,
        best_batch,
    })
}

fn passes(
    model: &mut impl StageModel,
    settings: &Settings,
    bundle: &Bundle,
    samplers: usize,
) -> anyhow::Result<(Section, StageCurve)> {
    let spec = model.spec().clone();
    let conditioning = conditioning(model, bundle)?;
    let sizes = warm_up_sizes(settings.most_rows);
    let mut times: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    // Size after size and not all passes of one size in a row, so that a slow minute slows all sizes alike. The first round
    // fills caches and buffers and is not counted.
    for round in 0..=settings.passes {
        for size in &sizes {
            let mut rows = (0..*size)
                .map(|index| row(&spec, &conditioning, round, index))
                .collect::<Result<Vec<_>, _>>()?;
            let mut pass: Vec<&mut Row> = rows.iter_mut().collect();
            let ((), seconds) = timed(|| model.pass(&mut pass))?;
            if round > 0 {
                times.entry(*size).or_default().push(seconds);
            }
        }
    }
    let sampling = sampling(&spec, &conditioning, settings)?;

    let times: Vec<(usize, Series)> = times
        .into_iter()
        .filter_map(|(rows, times)| Some((rows, Series::new(times)?)))
        .collect();
    let curve = PassCurve::new(times.iter().map(|(rows, times)| Point {
        rows: *rows,
        time: Duration::from_secs_f64(times.median()),
    }));
    let knee = curve.knee(KNEE_TOLERANCE).unwrap_or(1);
    let mut table = Table::new(&["rows", "pass, ms", "ms a row", "rows/s", ""]);
    for (rows, times) in &times {
        let milliseconds = times.map(|seconds| seconds * 1e3);
        table.row([
            rows.to_string(),
            spread(&milliseconds, 2),
            format!("{:.2}", milliseconds.median() / *rows as f64),
            format!("{:.0}", *rows as f64 / times.median()),
            if *rows == knee { "knee" } else { "" }.to_owned(),
        ]);
    }
    let pass = curve.time(knee).as_secs_f64();
    let share = sampling.map(|seconds| seconds * knee.div_ceil(samplers) as f64 / pass);
    let section = Section {
        name: format!("passes_{}", spec.stage),
        title: format!("A pass of the {} stage", spec.stage),
        text: format!(
            "{} positions of {} codes; {} passes at each size, in turns. Rows are unguided and wholly masked, as at a worker's \
             warm-up; the knee is the smallest size within {:.0} % of the most rows a second. Sampling alone, on logits \
             of that shape with every position masked: {} µs a row; {samplers} threads share the rows.",
            spec.positions(),
            spec.codebook_size,
            settings.passes,
            KNEE_TOLERANCE * 100.0,
            spread(&sampling.map(|seconds| seconds * 1e6), 0),
        ),
        tables: vec![table],
        verdicts: vec![Verdict::at_most(
            format!("sampling / pass at the knee ({} stage)", spec.stage),
            &share,
            SAMPLING_SHARE,
        )],
    };
    let curve = StageCurve {
        stage: spec.stage,
        curve,
    };
    Ok((section, curve))
}

/// One conditioning for all rows: what is in it does not change how long a pass takes.
pub(crate) fn conditioning(
    model: &mut impl StageModel,
    bundle: &Bundle,
) -> anyhow::Result<Arc<Conditioning>> {
    let text = bundle.text();
    let zeros = vec![0.0; text.max_length * text.width].into();
    let embedding =
        Embedding::new(zeros, text.max_length, text.width).context("the bundle's text has no size")?;
    let low = vec![0; bundle.base().positions()];
    let low = (model.spec().stage == Stage::Superres).then_some(low.as_slice());
    let input = ConditioningInput::conditional(text, &embedding, low)?;
    let made = model.condition(&[input])?.into_iter().next();
    made.context("the condition graph gave nothing")
}

/// A row that is wholly masked and needs no unconditional one beside it.
pub(crate) fn row(
    spec: &StageSpec,
    conditioning: &Arc<Conditioning>,
    round: usize,
    index: usize,
) -> Result<Row, muse_engine::RowError> {
    let settings = RowSettings {
        seed: round as u64,
        image_index: index as u32,
        stage: spec.stage,
        sampling: Sampling {
            guidance: 0.0,
            ..spec.defaults.clone()
        },
    };
    let conditioning = RowConditioning {
        conditional: Arc::clone(conditioning),
        unconditional: None,
    };
    Row::text_to_image(spec, settings, conditioning)
}

/// Seconds that a row's sampling takes at its first step, the longest one.
pub(crate) fn sampling(
    spec: &StageSpec,
    conditioning: &Arc<Conditioning>,
    settings: &Settings,
) -> anyhow::Result<Series> {
    let logits = logits(spec.positions() * spec.logits_size);
    let mut scratch = Scratch::default();
    let mut times = Vec::new();
    for round in 0..=settings.passes {
        let mut row = row(spec, conditioning, round, 0)?;
        let begun = Instant::now();
        row.advance(Logits::at_masked(&logits, spec.logits_size), None, &mut scratch)?;
        if round > 0 {
            times.push(begun.elapsed().as_secs_f64());
        }
    }
    Series::new(times).context("nothing was sampled")
}

/// Numbers as spread as a model's logits, the same on every machine.
fn logits(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 21) as f32 - 4.0
        })
        .collect()
}

/// Where the time of a picture went, for each number of pictures together.
fn by_part(splits: &BTreeMap<usize, Vec<Split>>) -> Table {
    let mut table = Table::new(&[
        "pictures together",
        "embed, ms",
        "conditioning, ms",
        "passes, ms",
        "pixels and PNG, ms",
    ]);
    for (batch, splits) in splits {
        let cell = |part: fn(&Split) -> Duration| {
            let times = splits
                .iter()
                .map(|split| milliseconds(part(split)) / *batch as f64);
            Series::new(times).map_or_else(String::new, |times| spread(&times, 1))
        };
        table.row([
            batch.to_string(),
            cell(|split| split.embed),
            cell(|split| split.decode - split.passes),
            cell(|split| split.passes),
            cell(|split| split.pixels),
        ]);
    }
    table
}

fn bare_loop(bare: &mut Bare, settings: &Settings) -> anyhow::Result<(Section, usize)> {
    let mut rates: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let mut splits: BTreeMap<usize, Vec<Split>> = BTreeMap::new();
    let mut index = 0;
    bare.make(&[Order::numbered(0)], usize::MAX)?;
    for _ in 0..settings.rounds {
        for batch in settings.batches {
            let (mut made, mut seconds) = (0, 0.0);
            while made < settings.pictures.max(*batch) {
                let orders: Vec<Order> = (0..*batch).map(|place| Order::numbered(index + place)).collect();
                let ((_, split), took) = timed(|| bare.make(&orders, usize::MAX))?;
                index += batch;
                made += batch;
                seconds += took;
                splits.entry(*batch).or_default().push(split);
            }
            rates.entry(*batch).or_default().push(made as f64 / seconds);
        }
    }
    let rates: Vec<(usize, Series)> = rates
        .into_iter()
        .filter_map(|(batch, rates)| Some((batch, Series::new(rates)?)))
        .collect();
    let best = rates
        .iter()
        .max_by(|(_, left), (_, right)| left.median().total_cmp(&right.median()));
    let (best_batch, _) = best.context("no batch was measured")?;
    let alone = rates.first().map(|(_, rates)| rates.clone());
    let mut table = Table::new(&["pictures together", "pictures/s", "against one at a time", ""]);
    for (batch, rates) in &rates {
        table.row([
            batch.to_string(),
            spread(rates, 2),
            alone
                .as_ref()
                .map_or_else(String::new, |alone| spread(&rates.over(alone), 2)),
            if batch == best_batch { "best" } else { "" }.to_owned(),
        ]);
    }
    let by_part = by_part(&splits);
    let section = Section {
        name: "bare_loop".to_owned(),
        title: "The engine in a bare loop".to_owned(),
        text: format!(
            "Everything that a picture needs (text, both stages with the bundle's default settings, pixels, PNG) in one \
             process with nothing around it; prompts all differ. {} rounds, in turns. The second table says where the time of \
             a picture goes.",
            settings.rounds,
        ),
        tables: vec![table, by_part],
        verdicts: Vec::new(),
    };
    Ok((section, *best_batch))
}
