//! The engine alone: many pictures in one loop, in this process, with nothing around it.
//!
//! What a cluster is compared with. It does all that a cluster must do for a picture (text, both stages, pixels, PNG) and
//! shares passes among pictures as well as it can: all of a batch start together and stay together.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use muse_engine::{
    Bundle, Conditioning, ConditioningInput, Embedding, Row, RowConditioning, RowSettings, Runtime, Sampling,
    SessionOptions, StageModel, StageSpec, TextEncoder, Unconditional, UnconditionalSource,
    picture::{self, EncodeOptions, Provenance},
    pixels::ImageDecoder,
    stage::OnnxStage,
};

use crate::workload::Order;

/// Most pictures that become pixels and files at once, each by one thread: a decoder's operators do not keep two busy, and
/// compression is one thread's. One picture alone has all threads.
const PAINTERS: usize = 2;

/// Every graph of a bundle that makes pictures, opened.
pub(crate) struct Bare {
    bundle: Bundle,
    threads: usize,
    text: TextEncoder,
    stages: Vec<OnnxStage>,
    decoder: ImageDecoder,
    /// The decoder with one thread in an operator.
    decoder_of_one_thread: ImageDecoder,
    /// Of the empty text, where a stage's unconditional input is that: a cluster caches it too.
    empty: Option<Embedding>,
    /// The base stage's conditioning on it, which is every prompt's; workers keep it too.
    unconditional: Option<Arc<Conditioning>>,
}

/// Where the time of a batch went.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Split {
    /// Texts to embeddings.
    pub(crate) embed: Duration,
    /// Conditioning and passes of all stages.
    pub(crate) decode: Duration,
    /// Of that, the passes: ONNX Runtime and sampling.
    pub(crate) passes: Duration,
    /// Tokens to pixels to PNG.
    pub(crate) pixels: Duration,
}

impl Split {
    pub(crate) fn total(&self) -> Duration {
        self.embed + self.decode + self.pixels
    }
}

impl Bare {
    pub(crate) fn open(bundle: &Bundle, session: &SessionOptions) -> anyhow::Result<Self> {
        Runtime::initialise(session.onnxruntime.as_deref())?;
        let mut text = TextEncoder::open(bundle, session)?;
        let stages = bundle
            .stages()
            .map(|spec| OnnxStage::open(bundle, spec.stage, session))
            .collect::<Result<Vec<_>, _>>()?;
        let last = bundle.last_stage().stage;
        let decoder = ImageDecoder::open(bundle, last, session)?;
        let one_thread = SessionOptions {
            threads: 1,
            ..session.clone()
        };
        let decoder_of_one_thread = ImageDecoder::open(bundle, last, &one_thread)?;
        let empty = if bundle.stages().any(StageSpec::needs_empty_text) {
            let ids = text.tokenize("")?;
            text.embed(&[ids])?.pop()
        } else {
            None
        };
        Ok(Self {
            bundle: bundle.clone(),
            threads: session.cpu_threads(),
            text,
            stages,
            decoder,
            decoder_of_one_thread,
            empty,
            unconditional: None,
        })
    }

    /// The stages' models, in order.
    pub(crate) fn stages(&mut self) -> &mut [OnnxStage] {
        &mut self.stages
    }

    /// Makes all `orders` together, in passes of at most `row_budget` rows (guided ones counted twice). Returns each
    /// picture's file, PNG.
    pub(crate) fn make(
        &mut self,
        orders: &[Order],
        row_budget: usize,
    ) -> anyhow::Result<(Vec<Vec<u8>>, Split)> {
        let mut split = Split::default();
        let begun = Instant::now();
        let ids = orders
            .iter()
            .map(|order| self.text.tokenize(&order.prompt))
            .collect::<Result<Vec<_>, _>>()?;
        let prompts = self.text.embed(&ids)?;
        split.embed = begun.elapsed();

        let mut grids: Option<Vec<Vec<u32>>> = None;
        for (index, model) in self.stages.iter_mut().enumerate() {
            let begun = Instant::now();
            let settings: Vec<Sampling> = orders
                .iter()
                .map(|order| order.overrides()[index.min(1)].resolve(&model.spec().defaults))
                .collect();
            let conditioned = Conditioned {
                bundle: &self.bundle,
                prompts: &prompts,
                empty: self.empty.as_ref(),
                low: grids.as_deref(),
            };
            let mut rows = conditioned.rows(model, orders, settings, &mut self.unconditional)?;
            let conditioned_at = Instant::now();
            run(model, &mut rows, row_budget)?;
            split.passes += conditioned_at.elapsed();
            split.decode += begun.elapsed();
            grids = Some(rows.iter().map(|row| row.tokens().to_vec()).collect());
        }

        let begun = Instant::now();
        let finished: Vec<_> = orders.iter().zip(grids.unwrap_or_default()).collect();
        let painters = PAINTERS.min(self.threads);
        let each = finished.len().div_ceil(painters).max(1);
        let decoder = if finished.len() > 1 && painters > 1 {
            &self.decoder_of_one_thread
        } else {
            &self.decoder
        };
        let own: &Self = self;
        let files = thread::scope(|scope| {
            let painters: Vec<_> = finished
                .chunks(each)
                .map(|share| scope.spawn(move || own.paint(decoder, share)))
                .collect();
            painters
                .into_iter()
                .map(|painter| painter.join().unwrap_or_else(|_| bail!("a painter panicked")))
                .collect::<anyhow::Result<Vec<_>>>()
        })?;
        split.pixels = begun.elapsed();
        Ok((files.concat(), split))
    }

    /// The file of each grid, one after another: a decoder's activations are far larger than a step's.
    fn paint(&self, decoder: &ImageDecoder, finished: &[(&Order, Vec<u32>)]) -> anyhow::Result<Vec<Vec<u8>>> {
        finished
            .iter()
            .map(|(order, grid)| {
                let images = decoder.decode(&[grid])?;
                let image = images.first().context("the decoder gave no picture")?;
                let provenance = Provenance::new(&self.bundle, order.seed, 0);
                Ok(picture::encode(image, EncodeOptions::default(), &provenance)?)
            })
            .collect()
    }
}

/// What the rows of a stage begin with.
struct Conditioned<'batch> {
    bundle: &'batch Bundle,
    prompts: &'batch [Embedding],
    empty: Option<&'batch Embedding>,
    low: Option<&'batch [Vec<u32>]>,
}

impl Conditioned<'_> {
    /// A row for each order, all conditioned in one call. `kept`: see [`Bare::unconditional`].
    fn rows(
        &self,
        model: &mut OnnxStage,
        orders: &[Order],
        settings: Vec<Sampling>,
        kept: &mut Option<Arc<Conditioning>>,
    ) -> anyhow::Result<Vec<Row>> {
        let (spec, text) = (model.spec().clone(), self.bundle.text());
        let unconditional = |prompt, low| {
            let source = UnconditionalSource {
                prompt,
                negative: None,
                empty: self.empty,
            };
            ConditioningInput::unconditional(text, &spec, source, low)
        };
        let shared = self.low.is_none() && spec.unconditional != Unconditional::MaskedText;
        if let (true, None, Some(prompt)) = (shared, &kept, self.prompts.first()) {
            *kept = model.condition(&[unconditional(prompt, None)?])?.pop();
        }

        let mut inputs = Vec::new();
        for (index, (prompt, sampling)) in self.prompts.iter().zip(&settings).enumerate() {
            let low = self.low.and_then(|grids| grids.get(index)).map(Vec::as_slice);
            inputs.push(ConditioningInput::conditional(text, prompt, low)?);
            if sampling.guidance > 0.0 && !shared {
                inputs.push(unconditional(prompt, low)?);
            }
        }
        let mut made = model.condition(&inputs)?.into_iter();
        let mut rows = Vec::with_capacity(orders.len());
        for (order, sampling) in orders.iter().zip(settings) {
            let conditional = made.next().context("the condition graph gave too little")?;
            let unconditional = match (sampling.guidance > 0.0, shared) {
                (false, _) => None,
                (true, true) => kept.clone(),
                (true, false) => made.next(),
            };
            let conditioning = RowConditioning {
                conditional,
                unconditional,
            };
            let settings = RowSettings {
                seed: order.seed,
                image_index: 0,
                stage: spec.stage,
                sampling,
            };
            rows.push(Row::text_to_image(&spec, settings, conditioning)?);
        }
        Ok(rows)
    }
}

/// Steps all rows to their end; each pass takes the first ones that fit.
fn run(model: &mut OnnxStage, rows: &mut [Row], row_budget: usize) -> anyhow::Result<()> {
    loop {
        let mut left = row_budget.max(2);
        let mut pass: Vec<&mut Row> = Vec::new();
        for row in rows.iter_mut().filter(|row| !row.is_done()) {
            if row.cost() <= left {
                left -= row.cost();
                pass.push(row);
            }
        }
        if pass.is_empty() {
            return Ok(());
        }
        model.pass(&mut pass)?;
    }
}
