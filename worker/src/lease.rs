//! What a lease asks for, checked. A lease that cannot be done fails its job, never the process.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use muse_engine::{
    Bundle, ConditioningInput, Embedding, RowSettings, RowState, Sampling, Stage, StageSpec, TextSpec,
    stage::{InputError, UnconditionalSource},
};
use muse_proto::{
    internal::v1::Lease,
    v1::{GenerationRequest, ImageFormat, Priority, generation_request::Task},
};

use crate::{
    batcher::{NewJob, RowPlan},
    checkpoint, grid,
    hub::Ticket,
    pixels::PictureOrder,
    settings,
};

/// Rows that a lease takes: one for each picture. At least 1, also where the lease is malformed.
pub fn rows(lease: &Lease) -> u32 {
    match lease.request.as_ref().and_then(|request| request.task.as_ref()) {
        Some(Task::TextToImage(task)) => task.count.unwrap_or(1).max(1),
        None => 1,
    }
}

/// Why a lease is not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request cannot be done by this model: the client's fault.
    #[error("{0}")]
    Request(String),
    /// The lease itself is wrong: what an earlier stage or shard left does not fit.
    #[error("{0}")]
    Lease(String),
    /// It is for another shard.
    #[error("{0}")]
    Misrouted(String),
}

/// What this shard accepts.
#[derive(Debug, Clone)]
pub struct Acceptance {
    model: String,
    text: TextSpec,
    spec: StageSpec,
    /// The stage before, whose tokens are the input.
    low: Option<StageSpec>,
    max_pictures: u32,
    deadline_grace: Duration,
}

/// A lease that can be run.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// Time in the queue.
    pub waited: Duration,
    /// When it is given up, by this shard's clock.
    pub deadline: Option<Instant>,
    text: TextSpec,
    spec: StageSpec,
    prompt: String,
    negative: Option<String>,
    sampling: Sampling,
    seed: u64,
    format: ImageFormat,
    priority: u8,
    /// For each picture, in super-resolution.
    low_tokens: Option<Vec<Vec<u32>>>,
    /// For each picture.
    starts: Vec<RowState>,
}

impl Acceptance {
    /// What a shard of `stage` accepts; `None` when the bundle has no such stage.
    pub fn new(bundle: &Bundle, stage: Stage, max_pictures: u32, deadline_grace: Duration) -> Option<Self> {
        Some(Acceptance {
            model: bundle.model().name.clone(),
            text: bundle.text().clone(),
            spec: bundle.stage(stage)?.clone(),
            low: (stage == Stage::Superres).then(|| bundle.base().clone()),
            max_pictures,
            deadline_grace,
        })
    }

    /// The shard's stage.
    pub fn stage(&self) -> Stage {
        self.spec.stage
    }

    /// Checks a lease.
    ///
    /// # Errors
    /// Why it is not run, by whose fault it is.
    pub fn check(&self, lease: &Lease) -> Result<Accepted, Refusal> {
        let stage = self.spec.stage;
        if lease.stage() != settings::stage_to_wire(stage) {
            let found = lease.stage().as_str_name();
            return Err(Refusal::Misrouted(format!(
                "a lease of {found} came to a shard of stage {stage}"
            )));
        }
        let request = lease
            .request
            .as_ref()
            .ok_or_else(|| Refusal::Lease("the lease has no request".to_owned()))?;
        if !request.model.is_empty() && request.model != self.model {
            return Err(Refusal::Misrouted(format!(
                "a lease for model {} came to a shard of model {}",
                request.model, self.model
            )));
        }
        let Some(Task::TextToImage(task)) = &request.task else {
            return Err(Refusal::Request(
                "this worker knows only the task text_to_image".to_owned(),
            ));
        };
        let count = task.count.unwrap_or(1);
        if count == 0 || count > self.max_pictures {
            let limit = self.max_pictures;
            return Err(Refusal::Request(format!(
                "text_to_image.count: must be 1 to {limit}, not {count}"
            )));
        }
        if task.prompt.is_empty() {
            return Err(Refusal::Request(
                "text_to_image.prompt: must not be empty".to_owned(),
            ));
        }
        let sampling = self.sampling(request)?;
        let seed = request
            .seed
            .ok_or_else(|| Refusal::Lease("the lease has no seed".to_owned()))?;
        let pictures = count as usize;
        Ok(Accepted {
            waited: lease
                .waited
                .as_ref()
                .and_then(muse_proto::std_duration)
                .unwrap_or_default(),
            deadline: self.deadline(lease),
            text: self.text.clone(),
            spec: self.spec.clone(),
            prompt: task.prompt.clone(),
            negative: (!task.negative_prompt.is_empty()).then(|| task.negative_prompt.clone()),
            seed,
            format: match request.format() {
                ImageFormat::Unspecified => ImageFormat::Png,
                format => format,
            },
            priority: match request.priority() {
                Priority::Low => 1,
                Priority::Normal | Priority::Unspecified => 2,
                Priority::High => 3,
            },
            low_tokens: self.low_tokens(lease, pictures)?,
            starts: self.starts(lease, &sampling, pictures)?,
            sampling,
        })
    }

    fn sampling(&self, request: &GenerationRequest) -> Result<Sampling, Refusal> {
        let wanted = match self.spec.stage {
            Stage::Base => request.base.as_ref(),
            Stage::Superres => request.superres.as_ref(),
        };
        settings::from_wire(wanted, &self.spec.defaults, self.spec.stage)
            .map_err(|error| Refusal::Request(error.to_string()))
    }

    fn low_tokens(&self, lease: &Lease, pictures: usize) -> Result<Option<Vec<Vec<u32>>>, Refusal> {
        let Some(low) = &self.low else { return Ok(None) };
        let tensor = lease
            .low_tokens
            .as_ref()
            .ok_or_else(|| Refusal::Lease("the lease has no low_tokens".to_owned()))?;
        let grids = grid::from_tensor(tensor, pictures, low.positions())
            .map_err(|fault| Refusal::Lease(format!("low_tokens: {fault}")))?;
        match grids.iter().flatten().find(|token| **token >= low.codebook_size) {
            Some(token) => Err(Refusal::Lease(format!(
                "low_tokens: token {token} is not below the base codebook's size {}",
                low.codebook_size
            ))),
            None => Ok(Some(grids)),
        }
    }

    fn starts(&self, lease: &Lease, sampling: &Sampling, pictures: usize) -> Result<Vec<RowState>, Refusal> {
        if let Some(checkpoint) = &lease.checkpoint {
            return checkpoint::from_wire(checkpoint, &self.spec, pictures)
                .map_err(|fault| Refusal::Lease(fault.to_string()));
        }
        Ok(vec![RowState::masked(&self.spec, sampling); pictures])
    }

    /// The deadline by this shard's own clock. The gateway's wall clock may differ from ours, hence the grace; the gateway
    /// itself ends overdue jobs exactly.
    fn deadline(&self, lease: &Lease) -> Option<Instant> {
        let deadline = SystemTime::try_from(lease.deadline?).ok()?;
        let left = deadline.duration_since(SystemTime::now()).unwrap_or_default();
        Instant::now().checked_add(left.saturating_add(self.deadline_grace))
    }
}

impl Accepted {
    /// Pictures, each a row.
    pub fn rows(&self) -> usize {
        self.starts.len()
    }

    /// Steps in all of its least advanced row.
    pub fn steps(&self) -> u32 {
        self.least_advanced().map_or(0, |row| row.of)
    }

    /// Steps done by its least advanced row.
    pub fn step(&self) -> u32 {
        self.least_advanced().map_or(0, |row| row.step)
    }

    fn least_advanced(&self) -> Option<&RowState> {
        self.starts
            .iter()
            .max_by_key(|row| row.of.saturating_sub(row.step))
    }

    /// The texts whose embeddings [`Accepted::admit`] needs.
    pub fn texts(&self) -> Vec<&str> {
        let unconditional = match &self.negative {
            _ if self.sampling.guidance <= 0.0 => None,
            Some(negative) => Some(negative.as_str()),
            None => self.spec.needs_empty_text().then_some(""),
        };
        let mut texts = vec![self.prompt.as_str()];
        texts.extend(unconditional.filter(|text| *text != self.prompt));
        texts
    }

    /// The job for the batcher. Rows of one prompt share their conditioning, except in super-resolution, where each has its
    /// own low tokens.
    ///
    /// # Errors
    /// When an embedding is not of this bundle.
    pub fn admit(&self, ticket: Ticket, embeddings: &HashMap<String, Embedding>) -> Result<NewJob, Refusal> {
        let missing = || Refusal::Lease("an embedding is missing".to_owned());
        let refused = |error: InputError| Refusal::Lease(error.to_string());
        let prompt = embeddings.get(&self.prompt).ok_or_else(missing)?;
        let source = UnconditionalSource {
            prompt,
            negative: self
                .negative
                .as_ref()
                .and_then(|negative| embeddings.get(negative)),
            empty: embeddings.get(""),
        };
        let guided = self.sampling.guidance > 0.0;
        let grids: Vec<Option<&[u32]>> = match &self.low_tokens {
            Some(grids) => grids.iter().map(|grid| Some(grid.as_slice())).collect(),
            None => vec![None],
        };
        let mut inputs = Vec::new();
        for low in &grids {
            inputs.push(ConditioningInput::conditional(&self.text, prompt, *low).map_err(refused)?);
            if guided {
                let input = ConditioningInput::unconditional(&self.text, &self.spec, source, *low);
                inputs.push(input.map_err(refused)?);
            }
        }
        let each = 1 + usize::from(guided);
        let rows = self.starts.iter().enumerate().map(|(index, start)| {
            let conditional = if grids.len() > 1 { index * each } else { 0 };
            RowPlan {
                settings: RowSettings {
                    seed: self.seed,
                    image_index: index as u32,
                    stage: self.spec.stage,
                    sampling: self.sampling.clone(),
                },
                conditional,
                unconditional: guided.then_some(conditional + 1),
                start: start.clone(),
            }
        });
        let now = Instant::now();
        Ok(NewJob {
            ticket,
            priority: self.priority,
            queued_at: now.checked_sub(self.waited).unwrap_or(now),
            deadline: self.deadline,
            rows: rows.collect(),
            inputs,
            // Without a negative prompt and low tokens, what is unconditional may be the same for every prompt.
            common_input: (guided
                && self.low_tokens.is_none()
                && self.negative.is_none()
                && self.spec.unconditional.is_constant())
            .then_some(1),
        })
    }

    /// The order for picture `index`, made of `tokens`.
    pub fn picture(&self, index: usize, tokens: Vec<u32>) -> PictureOrder {
        PictureOrder {
            index: index as u32,
            tokens,
            format: self.format,
            seed: self.seed,
        }
    }
}
