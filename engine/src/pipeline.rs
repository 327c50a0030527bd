//! A whole request in one process: text, base stage, super-resolution, pixels (Muse Figure 3).
//!
//! `musectl generate --local` and tests use it, and benchmarks as the bare loop that a cluster is compared with.

use std::sync::Arc;
use std::time::{Duration, Instant};

use image::RgbImage;

use crate::bundle::{Bundle, Stage, StageSpec};
use crate::error::Error;
use crate::picture::Provenance;
use crate::pixels::ImageDecoder;
use crate::row::{Row, RowConditioning, RowSettings};
use crate::runtime::{Provider, Runtime, SessionOptions};
use crate::sampling::{FieldViolation, InvalidSettings, Sampling, SamplingOverrides};
use crate::stage::{Conditioning, ConditioningInput, OnnxStage, StageModel, UnconditionalSource};
use crate::text::{Embedding, TextEncoder};

/// How to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineOptions {
    /// ONNX Runtime and its sessions.
    pub session: SessionOptions,
    /// Most rows of a pass, unconditional ones counted; at least 2.
    pub row_budget: usize,
}

/// Pictures to make from a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What they show.
    pub prompt: String,
    /// What they should not show; replaces the unconditional input.
    pub negative_prompt: Option<String>,
    /// How many, at least 1.
    pub count: u32,
    /// Decides the tokens along with everything else here.
    pub seed: u64,
    /// Settings of the base stage.
    pub base: SamplingOverrides,
    /// Settings of super-resolution.
    pub superres: SamplingOverrides,
}

/// What has just been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The texts are embedded.
    Embedded,
    /// A pass is done. The step is that of the least advanced row.
    Step {
        /// The stage.
        stage: Stage,
        /// Steps done.
        step: u32,
        /// N.
        of: u32,
    },
    /// Pictures decoded so far.
    Pixels {
        /// How many.
        done: u32,
        /// Of how many.
        of: u32,
    },
}

/// A picture and the tokens that it was made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Which of the request's pictures.
    pub index: u32,
    /// The pixels.
    pub image: RgbImage,
    /// Each stage's grid `[S]`, in the order in which they ran.
    pub tokens: Vec<(Stage, Vec<u32>)>,
    /// For [`picture::encode`](crate::picture::encode).
    pub provenance: Provenance,
}

/// Where the time went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timings {
    /// Text to embeddings.
    pub embed: Duration,
    /// Conditioning and steps of each stage.
    pub decode: Vec<(Stage, Duration)>,
    /// Tokens to pixels.
    pub pixels: Duration,
}

/// A bundle's whole pipeline, opened.
pub struct Pipeline {
    bundle: Bundle,
    row_budget: usize,
    text: TextEncoder,
    stages: Vec<OnnxStage>,
    decoder: ImageDecoder,
    timings: Timings,
}

// === impl PipelineOptions ===

impl Default for PipelineOptions {
    fn default() -> PipelineOptions {
        PipelineOptions {
            session: SessionOptions::default(),
            row_budget: 16,
        }
    }
}

// === impl Request ===

impl Request {
    /// One picture with the bundle's default settings.
    pub fn new(prompt: impl Into<String>, seed: u64) -> Request {
        Request {
            prompt: prompt.into(),
            negative_prompt: None,
            count: 1,
            seed,
            base: SamplingOverrides::default(),
            superres: SamplingOverrides::default(),
        }
    }

    fn overrides(&self, stage: Stage) -> &SamplingOverrides {
        match stage {
            Stage::Base => &self.base,
            Stage::Superres => &self.superres,
        }
    }

    /// Checks every field and fills in the defaults: the settings of each stage of `bundle`, in order.
    pub fn resolve(&self, bundle: &Bundle) -> Result<Vec<Sampling>, InvalidSettings> {
        let mut violations = Vec::new();
        let mut refuse = |field: &str, description: &str| {
            violations.push(FieldViolation {
                field: field.to_owned(),
                description: description.to_owned(),
            });
        };
        if self.prompt.trim().is_empty() {
            refuse("prompt", "must say something");
        }
        if self.count == 0 {
            refuse("count", "must be at least 1");
        }
        if bundle.stage(Stage::Superres).is_none() && self.superres != SamplingOverrides::default() {
            refuse("superres", "the model has no super-resolution stage");
        }
        let mut settings = Vec::new();
        for spec in bundle.stages() {
            let sampling = self.overrides(spec.stage).resolve(&spec.defaults);
            if let Err(error) = sampling.validate(spec.stage.as_str()) {
                violations.extend(error.violations);
            }
            settings.push(sampling);
        }
        if violations.is_empty() {
            Ok(settings)
        } else {
            Err(InvalidSettings { violations })
        }
    }
}

// === impl Pipeline ===

impl Pipeline {
    /// Loads ONNX Runtime unless that is done, and opens every graph of `bundle` that makes pictures.
    pub fn open(bundle: &Bundle, options: &PipelineOptions) -> Result<Pipeline, Error> {
        let session = &options.session;
        Runtime::initialise(session.onnxruntime.as_deref())?;
        let text = TextEncoder::open(bundle, session)?;
        let stages = bundle
            .stages()
            .map(|spec| OnnxStage::open(bundle, spec.stage, session))
            .collect::<Result<_, _>>()?;
        let decoder = ImageDecoder::open(bundle, bundle.last_stage().stage, session)?;
        let row_budget = options.row_budget.max(2);
        Ok(Pipeline {
            bundle: bundle.clone(),
            row_budget,
            text,
            stages,
            decoder,
            timings: Timings::default(),
        })
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// What the last stage runs on.
    pub fn provider(&self) -> Provider {
        self.stages
            .last()
            .map_or(self.text.provider(), OnnxStage::provider)
    }

    /// Where the time of the last [`generate`](Pipeline::generate) went.
    pub fn timings(&self) -> &Timings {
        &self.timings
    }

    /// Makes the pictures of `request`, in order.
    pub fn generate(
        &mut self,
        request: &Request,
        mut progress: impl FnMut(Progress),
    ) -> Result<Vec<Picture>, Error> {
        let settings = request.resolve(&self.bundle)?;
        self.timings = Timings::default();
        let started = Instant::now();
        let texts = self.embed(request, &settings)?;
        self.timings.embed = started.elapsed();
        progress(Progress::Embedded);

        let mut tokens: Vec<Vec<(Stage, Vec<u32>)>> = vec![Vec::new(); request.count as usize];
        for (index, sampling) in settings.into_iter().enumerate() {
            let started = Instant::now();
            let Some(model) = self.stages.get_mut(index) else {
                break;
            };
            let stage = model.spec().stage;
            let mut rows = start_rows(&self.bundle, model, request, &texts, &sampling, &tokens)?;
            run_rows(model, &mut rows, self.row_budget, &mut progress)?;
            for (tokens, row) in tokens.iter_mut().zip(&rows) {
                tokens.push((stage, row.tokens().to_vec()));
            }
            self.timings.decode.push((stage, started.elapsed()));
        }

        let started = Instant::now();
        let mut pictures = Vec::with_capacity(tokens.len());
        for (index, tokens) in (0u32..).zip(tokens) {
            // One at a time: a decoder's activations are far larger than a step's.
            let last = tokens
                .last()
                .map(|(_, tokens)| tokens.as_slice())
                .unwrap_or_default();
            let images = self.decoder.decode(&[last])?;
            let provenance = Provenance::new(&self.bundle, request.seed, index);
            pictures.extend(images.into_iter().map(|image| Picture {
                index,
                image,
                tokens: tokens.clone(),
                provenance: provenance.clone(),
            }));
            progress(Progress::Pixels {
                done: index + 1,
                of: request.count,
            });
        }
        self.timings.pixels = started.elapsed();
        Ok(pictures)
    }

    fn embed(&mut self, request: &Request, settings: &[Sampling]) -> Result<Texts, Error> {
        let guided = settings.iter().any(|sampling| sampling.guidance > 0.0);
        let negative = request
            .negative_prompt
            .as_deref()
            .filter(|text| guided && !text.is_empty());
        let empty = (guided && negative.is_none() && self.bundle.stages().any(StageSpec::needs_empty_text))
            .then_some("");
        let mut ids = vec![self.text.tokenize(&request.prompt)?];
        for text in negative.iter().chain(&empty) {
            ids.push(self.text.tokenize(text)?);
        }
        let mut embeddings = self.text.embed(&ids)?.into_iter();
        let prompt = embeddings
            .next()
            .ok_or_else(|| Error::Unsupported("the text encoder gave nothing".to_owned()))?;
        Ok(Texts {
            prompt,
            negative: negative.and_then(|_| embeddings.next()),
            empty: empty.and_then(|_| embeddings.next()),
        })
    }
}

/// The embeddings of a request.
struct Texts {
    prompt: Embedding,
    negative: Option<Embedding>,
    empty: Option<Embedding>,
}

/// A row for each picture, with its conditioning. Rows share conditionings where nothing about them differs.
fn start_rows(
    bundle: &Bundle,
    model: &mut OnnxStage,
    request: &Request,
    texts: &Texts,
    sampling: &Sampling,
    tokens: &[Vec<(Stage, Vec<u32>)>],
) -> Result<Vec<Row>, Error> {
    let spec = model.spec().clone();
    let mut shared: Option<RowConditioning> = None;
    let mut rows = Vec::with_capacity(tokens.len());
    for (image_index, tokens) in (0u32..).zip(tokens) {
        let low = match spec.stage {
            Stage::Base => None,
            Stage::Superres => tokens.last().map(|(_, tokens)| tokens.as_slice()),
        };
        let conditioning = match (&shared, low) {
            (Some(shared), None) => shared.clone(),
            _ => condition(bundle, model, &spec, texts, sampling, low)?,
        };
        shared = Some(conditioning.clone());
        let settings = RowSettings {
            seed: request.seed,
            image_index,
            stage: spec.stage,
            sampling: sampling.clone(),
        };
        rows.push(Row::text_to_image(&spec, settings, conditioning)?);
    }
    Ok(rows)
}

fn condition(
    bundle: &Bundle,
    model: &mut OnnxStage,
    spec: &StageSpec,
    texts: &Texts,
    sampling: &Sampling,
    low: Option<&[u32]>,
) -> Result<RowConditioning, Error> {
    let mut inputs = vec![
        ConditioningInput::conditional(bundle.text(), &texts.prompt, low)
            .map_err(crate::stage::StageError::from)?,
    ];
    if sampling.guidance > 0.0 {
        let source = UnconditionalSource {
            prompt: &texts.prompt,
            negative: texts.negative.as_ref(),
            empty: texts.empty.as_ref(),
        };
        inputs.push(
            ConditioningInput::unconditional(bundle.text(), spec, source, low)
                .map_err(crate::stage::StageError::from)?,
        );
    }
    let mut made = model.condition(&inputs)?.into_iter();
    let conditional: Arc<Conditioning> = made
        .next()
        .ok_or_else(|| Error::Unsupported("the condition graph gave nothing".to_owned()))?;
    Ok(RowConditioning {
        conditional,
        unconditional: made.next(),
    })
}

/// Steps all rows to their end, as many in a pass as the budget allows.
fn run_rows(
    model: &mut OnnxStage,
    rows: &mut [Row],
    row_budget: usize,
    progress: &mut impl FnMut(Progress),
) -> Result<(), Error> {
    let stage = model.spec().stage;
    loop {
        let mut budget = row_budget;
        let mut pass: Vec<&mut Row> = rows
            .iter_mut()
            .filter(|row| !row.is_done())
            .take_while(|row| {
                let fits = row.cost() <= budget;
                budget = budget.saturating_sub(row.cost());
                fits
            })
            .collect();
        if pass.is_empty() {
            return Ok(());
        }
        model.pass(&mut pass)?;
        if let Some(least) = rows.iter().min_by_key(|row| row.step()) {
            progress(Progress::Step {
                stage,
                step: least.step(),
                of: least.of(),
            });
        }
    }
}
