//! One model of any size by itself: how long it takes to load, how much memory it keeps, and what a pass costs. For models of the
//! paper's size, which a bundle of random weights stands for (`muse_models.export.random`).

use std::{fs, sync::Arc, time::Instant};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use muse_engine::{
    Bundle, Row, Runtime, SessionOptions, Stage, StageModel as _, TextEncoder, WidenWeights, stage::OnnxStage,
};

use crate::{
    arguments::{Arguments, Settings},
    engine::{SAMPLING_SHARE, conditioning, row, sampling},
    measure::{say, timed},
    report::{Section, Table, Verdict, spread},
    stats::Series,
};

/// Memory of a process over that of its weights.
const MEMORY_RATIO: f64 = 1.30;
const GIB: f64 = (1_u64 << 30) as f64;

/// What of a bundle is opened, and how.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// What is measured; each part by itself, one after another
    #[arg(long, value_delimiter = ',', default_values = ["text", "base"])]
    parts: Vec<Part>,
    /// When weights that are stored in f16 or int8 become f32 (`runtime.widen_weights`)
    #[arg(long, default_value = "at_load")]
    widen_weights: Widen,
    /// Bits of a weight in the bundle's files
    #[arg(long, default_value_t = 16)]
    stored_bits: u32,
    /// Rows of a pass, or texts together
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    rows: Vec<usize>,
    /// Passes at each size
    #[arg(long, default_value_t = 3)]
    passes: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Part {
    Text,
    Base,
    Superres,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Widen {
    AtLoad,
    InEachPass,
}

/// Of this process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Memory {
    /// Most that was ever resident since the last [`Memory::forget_peak`].
    peak: u64,
    resident: u64,
    /// Of that, pages of files: weights that are mapped and not copied, and programs.
    files: u64,
}

/// One part, measured.
struct Measured {
    part: Part,
    /// As stored, in all files of its graphs.
    bytes: u64,
    /// Of those, the graph that a pass runs.
    pass_bytes: u64,
    /// Tokens of a row or a text.
    positions: usize,
    /// Seconds to open it, with what runs to check it.
    open: f64,
    opened: Memory,
    ran: Memory,
    passes: Vec<(usize, Series)>,
    /// Threads that share the sampling of a pass's rows.
    samplers: usize,
    /// Seconds a row; text is not sampled.
    sampling: Option<Series>,
}

pub(crate) fn measure(
    arguments: &Arguments,
    settings: &Settings,
    options: &Options,
) -> anyhow::Result<Vec<Section>> {
    say("the bundle's digests");
    let (bundle, load) = timed(|| Bundle::load(&arguments.bundle))?;
    let session = SessionOptions {
        widen_weights: match options.widen_weights {
            Widen::AtLoad => WidenWeights::AtLoad,
            Widen::InEachPass => WidenWeights::InEachPass,
        },
        ..arguments.session()?
    };
    Runtime::initialise(session.onnxruntime.as_deref())?;
    options
        .parts
        .iter()
        .map(|part| {
            say(&format!("{part:?}, {:?}", options.widen_weights));
            Memory::forget_peak()?;
            let measured = match part {
                Part::Text => text(&bundle, &session, options)?,
                Part::Base => stage(&bundle, Stage::Base, *part, &session, options, settings)?,
                Part::Superres => stage(&bundle, Stage::Superres, *part, &session, options, settings)?,
            };
            section(&measured, options, load)
        })
        .collect()
}

fn text(bundle: &Bundle, session: &SessionOptions, options: &Options) -> anyhow::Result<Measured> {
    let bytes = stored(bundle, &bundle.text().encoder)?;
    let (mut encoder, open) = timed(|| TextEncoder::open(bundle, session))?;
    let opened = Memory::now()?;
    // As long as a prompt may be: a word a token is the least that any tokenizer makes of it.
    let longest = bundle.text().max_length;
    let mut prompt = String::new();
    let mut ids = encoder.tokenize(&prompt)?;
    loop {
        prompt.push_str(" a");
        match encoder.tokenize(&prompt) {
            Ok(longer) if longer.len() <= longest => ids = longer,
            _ => break,
        }
    }
    let passes = series(options, |rows, count| {
        let texts = vec![ids.clone(); rows];
        let mut times = Vec::new();
        for _ in 0..count {
            let (embeddings, seconds) = timed(|| encoder.embed(&texts))?;
            anyhow::ensure!(embeddings.len() == rows, "an embedding is missing");
            times.push(seconds);
        }
        Ok(times)
    })?;
    Ok(Measured {
        part: Part::Text,
        bytes,
        pass_bytes: bytes,
        positions: longest,
        open,
        opened,
        ran: Memory::now()?,
        passes,
        samplers: 1,
        sampling: None,
    })
}

fn stage(
    bundle: &Bundle,
    stage: Stage,
    part: Part,
    session: &SessionOptions,
    options: &Options,
    settings: &Settings,
) -> anyhow::Result<Measured> {
    let (mut model, open) = timed(|| OnnxStage::open(bundle, stage, session))?;
    let spec = model.spec().clone();
    let pass_bytes = stored(bundle, &spec.step)?;
    let opened = Memory::now()?;
    let conditioning = conditioning(&mut model, bundle)?;
    let passes = series(options, |rows, count| {
        let mut rows = (0..rows)
            .map(|index| row(&spec, &Arc::clone(&conditioning), 0, index))
            .collect::<Result<Vec<_>, _>>()?;
        let mut times = Vec::new();
        for _ in 0..count {
            let mut pass: Vec<&mut Row> = rows.iter_mut().collect();
            let begun = Instant::now();
            model.pass(&mut pass)?;
            times.push(begun.elapsed().as_secs_f64());
        }
        Ok(times)
    })?;
    let ran = Memory::now()?;
    Ok(Measured {
        part,
        bytes: stored(bundle, &spec.condition)? + pass_bytes,
        pass_bytes,
        positions: spec.positions(),
        open,
        opened,
        ran,
        passes,
        samplers: session.samplers()?,
        sampling: Some(sampling(&spec, &conditioning, settings)?),
    })
}

/// Seconds of passes at each size, one after another of the same rows, as they follow each other when a batch is decoded. `passes` runs so
/// many of a number of rows. The first is not counted: it reads mapped weights from the disk, and sends a device what the others
/// find there.
fn series(
    options: &Options,
    mut passes: impl FnMut(usize, usize) -> anyhow::Result<Vec<f64>>,
) -> anyhow::Result<Vec<(usize, Series)>> {
    let mut measured = Vec::new();
    for rows in &options.rows {
        let times = passes(*rows, options.passes + 1)?;
        for seconds in &times {
            say(&format!("{rows} rows: {seconds:.4} s"));
        }
        let counted = times.into_iter().skip(1);
        measured.push((*rows, Series::new(counted).context("no pass was measured")?));
    }
    Ok(measured)
}

fn section(measured: &Measured, options: &Options, load: f64) -> anyhow::Result<Section> {
    let stored_bits = f64::from(options.stored_bits);
    let weights = measured.pass_bytes as f64 * 8.0 / stored_bits;
    let held = match options.widen_weights {
        Widen::AtLoad => measured.bytes as f64 * 32.0 / stored_bits,
        Widen::InEachPass => measured.bytes as f64,
    };
    let mut memory = Table::new(&["", "GiB", "over the weights as they are held"]);
    for (what, bytes) in [
        ("weights in the bundle's files", measured.bytes),
        ("resident when opened", measured.opened.resident),
        ("peak while it was opened", measured.opened.peak),
        ("resident after the passes", measured.ran.resident),
        ("of that, pages of files", measured.ran.files),
        ("peak, passes included", measured.ran.peak),
    ] {
        memory.row([
            what.to_owned(),
            format!("{:.2}", bytes as f64 / GIB),
            format!("{:.2}", bytes as f64 / held),
        ]);
    }
    let mut times = Table::new(&["rows", "pass, ms", "GFLOP/s", "sampling, share of the pass"]);
    let mut verdicts = vec![Verdict::at_most(
        format!(
            "resident memory / weights ({:?}, {:?})",
            measured.part, options.widen_weights
        ),
        &Series::new([measured.ran.resident as f64 / held]).context("never empty")?,
        MEMORY_RATIO,
    )];
    for (rows, passes) in &measured.passes {
        let products = 2.0 * weights * (measured.positions * rows) as f64;
        let share = measured.sampling.as_ref().map(|sampling| {
            sampling.map(|seconds| seconds * rows.div_ceil(measured.samplers) as f64 / passes.median())
        });
        times.row([
            rows.to_string(),
            spread(&passes.map(|seconds| seconds * 1e3), 1),
            spread(&passes.map(|seconds| products / seconds / 1e9), 0),
            share.as_ref().map_or_else(
                || "-".to_owned(),
                |share| format!("{:.2} %", share.median() * 100.0),
            ),
        ]);
        if let Some(share) = share {
            let what = format!("sampling / pass of {rows} rows ({:?})", measured.part);
            verdicts.push(Verdict::at_most(what, &share, SAMPLING_SHARE));
        }
    }
    let sampling = measured.sampling.as_ref().map_or_else(String::new, |sampling| {
        let seconds = sampling.map(|seconds| seconds * 1e3);
        format!(
            " Sampling alone takes {} ms a row, all positions masked.",
            spread(&seconds, 2)
        )
    });
    Ok(Section {
        name: format!("paper_{:?}_{:?}", measured.part, options.widen_weights).to_lowercase(),
        title: format!("{:?}, weights widened {:?}", measured.part, options.widen_weights),
        text: format!(
            "{:.2} billion weights in a pass over {} tokens a row. Checking the whole bundle's digests took {load:.1} s, opening \
             this part {:.1} s. GFLOP/s count each weight of the pass's graph once a token, and not attention's own \
             products.{sampling}",
            weights / 1e9,
            measured.positions,
            measured.open,
        ),
        tables: vec![memory, times],
        verdicts,
    })
}

/// Bytes of a graph's file and of its external data, which the export puts beside it.
fn stored(bundle: &Bundle, file: &str) -> anyhow::Result<u64> {
    let graph = bundle.path(file);
    let size = fs::metadata(&graph)
        .with_context(|| format!("cannot look at {}", graph.display()))?
        .len();
    let beside = fs::metadata(bundle.path(&format!("{file}.data")));
    Ok(size + beside.map_or(0, |data| data.len()))
}

// === impl Memory ===

impl Memory {
    fn now() -> anyhow::Result<Self> {
        let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
        Self::parse(&status).context("/proc/self/status does not tell this process's memory")
    }

    /// Has the peak begin anew at what is resident now.
    fn forget_peak() -> anyhow::Result<()> {
        fs::write("/proc/self/clear_refs", "5").context("cannot write /proc/self/clear_refs")
    }

    fn parse(status: &str) -> Option<Self> {
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            let kibibytes: u64 = line.strip_prefix(':')?.split_whitespace().next()?.parse().ok()?;
            kibibytes.checked_mul(1024)
        };
        Some(Self {
            peak: bytes("VmHWM")?,
            resident: bytes("VmRSS")?,
            files: bytes("RssFile")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let status = "Name:\tx\nVmPeak:\t  900 kB\nVmHWM:\t   30 kB\nVmRSS:\t   20 kB\nRssAnon:\t 12 kB\nRssFile:\t    8 kB\n";
        let expected = Memory {
            peak: 30 << 10,
            resident: 20 << 10,
            files: 8 << 10,
        };
        assert_eq!(Memory::parse(status), Some(expected));
        assert_eq!(
            Memory::parse("VmHWM: many kB\nVmRSS: 1 kB\nRssFile: 1 kB\n"),
            None
        );
        let before = Memory::now().unwrap();
        assert!(before.peak >= before.resident && before.resident > before.files);
    }

    #[test]
    fn the_peak_begins_anew_when_it_is_forgotten() {
        let kept = vec![1_u8; 64 << 20];
        let peak = Memory::now().unwrap().peak;
        assert!(kept.iter().all(|byte| *byte == 1));
        drop(kept);
        Memory::forget_peak().unwrap();
        assert!(Memory::now().unwrap().peak + (32 << 20) < peak);
    }
}
