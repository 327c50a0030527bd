//! A model without ONNX Runtime, and jobs for it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use muse_engine::{
    Conditioning, ConditioningInput, GuidanceSchedule, Logits, MaskSchedule, Row, RowSettings, RowState,
    Sampling, Scheduler, Stage, StageError, StageModel, StageSpec, Unconditional,
    bundle::ImageSize,
    runtime::RuntimeError,
    sampler::Scratch,
    stage::{Tensor, TensorData},
};

use crate::{
    batcher::{Batcher, Event, NewJob, RowPlan, Settings, curve::PassCurve, policy::Ageing},
    hub::Ticket,
};

/// Conditioning on this value makes every pass and condition call that holds it fail.
pub(super) const POISON: f32 = -1.0;
/// Conditioning on this value gives NaN.
pub(super) const NAN: f32 = -2.0;

pub(super) const UNCONDITIONAL: f32 = 0.25;

/// A clock that only passes and conditioning move.
#[derive(Clone)]
pub(super) struct Clock {
    base: Instant,
    micros: Arc<AtomicU64>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Clock {
            base: Instant::now(),
            micros: Arc::default(),
        }
    }

    pub(super) fn now(&self) -> Instant {
        self.base + Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }

    pub(super) fn advance(&self, by: Duration) {
        self.micros.fetch_add(by.as_micros() as u64, Ordering::Relaxed);
    }
}

/// What passes held: the first conditioning value of each row.
pub(super) type Passes = Arc<Mutex<Vec<Vec<f32>>>>;

pub(super) struct Fake {
    spec: StageSpec,
    clock: Clock,
    /// A pass takes this, and this for each row.
    pub(super) time: (Duration, Duration),
    /// A condition call takes this.
    pub(super) condition_time: Duration,
    pub(super) passes: Passes,
    /// What was conditioned, as passes.
    pub(super) conditioned: Passes,
    /// How often memory was given back.
    pub(super) releases: Arc<AtomicU64>,
    pub(super) row_budget: usize,
    pub(super) broken: bool,
    scratch: Scratch,
}

impl Fake {
    pub(super) fn new(clock: Clock, row_budget: usize) -> Self {
        Fake {
            spec: spec(),
            clock,
            time: (Duration::from_millis(9), Duration::from_millis(1)),
            condition_time: Duration::ZERO,
            passes: Passes::default(),
            conditioned: Passes::default(),
            releases: Arc::default(),
            row_budget,
            broken: false,
            scratch: Scratch::default(),
        }
    }

    fn logits(&self, row: &Row, conditioning: &Conditioning) -> Vec<f32> {
        let value = value(conditioning);
        let (tokens, width) = (row.tokens(), self.spec.logits_size);
        let context: u32 = tokens
            .iter()
            .fold(7, |hash, token| hash.wrapping_mul(31).wrapping_add(*token));
        (0..tokens.len() * width)
            .map(|index| {
                if value == NAN {
                    return f32::NAN;
                }
                let hash = (index as u32 ^ context)
                    .wrapping_mul(0x9E37_79B9)
                    .wrapping_add(value.to_bits());
                let hash = (hash ^ hash >> 15).wrapping_mul(0x85EB_CA6B);
                (hash >> 8) as f32 / (1 << 22) as f32
            })
            .collect()
    }
}

fn value(conditioning: &Conditioning) -> f32 {
    match &conditioning.tensors[..] {
        [
            Tensor {
                data: TensorData::F32(values),
                ..
            },
        ] => values[0],
        other => panic!("not the fake's conditioning: {other:?}"),
    }
}

fn failure() -> StageError {
    StageError::Runtime(RuntimeError::Run {
        file: "step.onnx".to_owned(),
        reason: "poison".to_owned(),
    })
}

impl StageModel for Fake {
    fn spec(&self) -> &StageSpec {
        &self.spec
    }

    fn condition(&mut self, inputs: &[ConditioningInput]) -> Result<Vec<Arc<Conditioning>>, StageError> {
        assert!(inputs.len() <= self.row_budget, "{} inputs at once", inputs.len());
        if inputs.len() > 1 && inputs.iter().any(|input| input.text[0] == POISON) {
            return Err(failure());
        }
        self.clock.advance(self.condition_time);
        let values = inputs.iter().map(|input| input.text[0]).collect();
        self.conditioned.lock().unwrap().push(values);
        let one = |input: &ConditioningInput| {
            let data = TensorData::F32(vec![input.text[0]]);
            Arc::new(Conditioning {
                tensors: vec![Tensor { shape: vec![1], data }],
            })
        };
        Ok(inputs.iter().map(one).collect())
    }

    fn release_memory(&mut self) -> Result<(), StageError> {
        self.releases.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn pass(&mut self, rows: &mut [&mut Row]) -> Result<(), StageError> {
        let cost: usize = rows.iter().map(|row| row.cost()).sum();
        assert!(
            cost <= self.row_budget,
            "a pass of {cost} rows with a budget of {}",
            self.row_budget
        );
        assert!(!rows.is_empty());
        let values: Vec<f32> = rows
            .iter()
            .map(|row| value(&row.conditioning().conditional))
            .collect();
        self.passes.lock().unwrap().push(values.clone());
        self.clock.advance(self.time.0 + self.time.1 * cost as u32);
        if self.broken || values.contains(&POISON) {
            return Err(failure());
        }
        let mut failures = Vec::new();
        let width = self.spec.logits_size;
        for (index, row) in rows.iter_mut().enumerate() {
            let conditional = self.logits(row, &row.conditioning().conditional);
            let unconditional = row
                .needs_unconditional()
                .then(|| self.logits(row, row.conditioning().unconditional.as_ref().unwrap()));
            let conditional = Logits::everywhere(&conditional, width);
            let unconditional = unconditional
                .as_deref()
                .map(|values| Logits::everywhere(values, width));
            if let Err(error) = row.advance(conditional, unconditional, &mut self.scratch) {
                failures.push(muse_engine::stage::RowFailure { row: index, error });
            }
        }
        if failures.is_empty() {
            Ok(())
        } else {
            Err(StageError::Rows(failures))
        }
    }
}

/// 3 x 4 positions, 6 codes, mask id 7.
pub(super) fn spec() -> StageSpec {
    StageSpec {
        stage: Stage::Base,
        rows: 3,
        columns: 4,
        codebook_size: 6,
        vocab_size: 8,
        logits_size: 8,
        mask_id: 7,
        unconditional: Unconditional::EmptyText,
        condition: "condition.onnx".to_owned(),
        step: "step.onnx".to_owned(),
        conditioning: None,
        decoder: None,
        encoder: None,
        image_size: ImageSize {
            height: 12,
            width: 16,
        },
        defaults: sampling(4, 0.0),
    }
}

pub(super) fn sampling(steps: u32, guidance: f32) -> Sampling {
    Sampling {
        steps,
        guidance,
        guidance_schedule: GuidanceSchedule::Linear,
        temperature: 1.0,
        top_k: 0,
        choice_temperature: 4.5,
        mask_schedule: MaskSchedule::Cosine,
        scheduler: Scheduler::Confidence,
    }
}

/// What a test says about a job.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wish {
    pub(super) ticket: u64,
    pub(super) priority: u8,
    pub(super) deadline: Option<Instant>,
    pub(super) queued_at: Instant,
    pub(super) value: f32,
    pub(super) pictures: usize,
    pub(super) sampling: Sampling,
    /// Whether its unconditional input is told as the one that all jobs have in common.
    pub(super) common: bool,
}

impl Wish {
    /// One unguided picture of 4 steps, of normal priority; its conditioning is its ticket.
    pub(super) fn new(ticket: u64, clock: &Clock) -> Self {
        Wish {
            ticket,
            priority: 2,
            deadline: None,
            queued_at: clock.now(),
            value: ticket as f32 + 1.0,
            pictures: 1,
            sampling: sampling(4, 0.0),
            common: true,
        }
    }

    pub(super) fn job(&self) -> NewJob {
        self.resumed(vec![RowState::masked(&spec(), &self.sampling); self.pictures])
    }

    pub(super) fn resumed(&self, rows: Vec<RowState>) -> NewJob {
        let input = |value| ConditioningInput {
            text: vec![value],
            text_mask: vec![1],
            low_tokens: None,
        };
        let guided = self.sampling.guidance > 0.0;
        let mut inputs = vec![input(self.value)];
        inputs.extend(guided.then(|| input(UNCONDITIONAL)));
        let rows = rows.into_iter().enumerate().map(|(index, start)| RowPlan {
            settings: RowSettings {
                seed: self.ticket,
                image_index: index as u32,
                stage: Stage::Base,
                sampling: self.sampling.clone(),
            },
            conditional: 0,
            unconditional: guided.then_some(1),
            start,
        });
        NewJob {
            ticket: Ticket(self.ticket),
            priority: self.priority,
            queued_at: self.queued_at,
            deadline: self.deadline,
            inputs,
            common_input: (guided && self.common).then_some(1),
            rows: rows.collect(),
        }
    }
}

pub(super) fn batcher(model: Fake) -> Batcher<Fake> {
    let settings = Settings {
        row_budget: model.row_budget,
        ageing: Ageing {
            interval: Duration::from_secs(60),
        },
        max_failed_passes: 3,
    };
    Batcher::new(model, settings, PassCurve::default())
}

/// Grids of finished jobs, by ticket.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Finished {
    pub(super) grids: BTreeMap<u64, BTreeMap<usize, Vec<u32>>>,
    pub(super) done: Vec<u64>,
    pub(super) failed: Vec<u64>,
    pub(super) overdue: Vec<u64>,
}

impl Finished {
    pub(super) fn take(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Row {
                    ticket,
                    index,
                    tokens,
                } => {
                    let twice = self.grids.entry(ticket.0).or_default().insert(index, tokens);
                    assert_eq!(twice, None, "a row was told twice");
                }
                Event::Done { ticket, .. } => self.done.push(ticket.0),
                Event::Failed { ticket, .. } => self.failed.push(ticket.0),
                Event::Overdue { ticket } => self.overdue.push(ticket.0),
                Event::Stepped { .. } => {}
            }
        }
    }
}

/// Turns until nothing is left.
pub(super) fn finish(batcher: &mut Batcher<Fake>, clock: &Clock) -> Finished {
    let mut finished = Finished::default();
    for _ in 0..10_000 {
        if batcher.is_idle() {
            return finished;
        }
        finished.take(batcher.turn(&|| clock.now()).unwrap().events);
    }
    panic!("not finished: {finished:?}");
}

/// The grids of a job that has the batcher to itself.
pub(super) fn alone(wish: &Wish, clock: &Clock, row_budget: usize) -> BTreeMap<usize, Vec<u32>> {
    let mut batcher = batcher(Fake::new(clock.clone(), row_budget));
    batcher.admit(wish.job());
    finish(&mut batcher, clock)
        .grids
        .remove(&wish.ticket)
        .unwrap_or_default()
}
