//! What clients do all the time: jobs of every kind, of several tenants, at a rate.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use muse_proto::v1::{GenerationRequest, Priority, Sampling, TextToImage, generation_request::Task};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    task::{JoinError, JoinSet},
    time::sleep,
};

use super::{
    clients::{Gateways, Order, Tenant},
    history::{History, JobKind},
};
use crate::{noop, noop_worker};

/// Those whose jobs come all the time.
pub const TENANTS: [&str; 3] = ["acme", "lab", "studio"];
/// Has little allowed, and wants much.
pub const GREEDY: &str = "greedy";
/// Whose jobs a real model makes.
pub const REAL: &str = "gallery";
/// Jobs that the greedy one submits at once, and how often.
const FLOOD: usize = 40;
const FLOOD_EVERY: Duration = Duration::from_secs(10);
/// Prompts of the real model, so that each is made often.
const PROMPTS: [&str; 4] = ["a red circle", "two blue stars", "a cat", "a green heart"];

/// How much is submitted.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Jobs a second of all [`TENANTS`] together.
    pub jobs: f64,
    /// Jobs a second for the real model; 0: there is none.
    pub real: f64,
}

/// Submits until it is told to stop, and then waits for what it has submitted.
#[derive(Debug)]
pub struct Load {
    gateways: Gateways,
    history: History,
    stopping: Arc<AtomicBool>,
    submitted: Arc<AtomicU64>,
    sources: JoinSet<()>,
}

impl Load {
    /// Starts.
    pub fn start(gateways: &Gateways, history: &History, rate: Rate, seed: u64) -> Self {
        let mut load = Self {
            gateways: gateways.clone(),
            history: history.clone(),
            stopping: Arc::default(),
            submitted: Arc::default(),
            sources: JoinSet::new(),
        };
        for (index, name) in TENANTS.iter().enumerate() {
            let per_second = rate.jobs / TENANTS.len() as f64;
            load.source(name, per_second, seed + index as u64, usual);
        }
        if rate.real > 0.0 {
            load.source(REAL, rate.real, seed + 100, real);
        }
        load.flood(seed + 200);
        load
    }

    /// Jobs submitted so far.
    pub fn submitted(&self) -> u64 {
        self.submitted.load(Ordering::Relaxed)
    }

    /// Submits nothing more, and waits until every client knows how its job ended, or has given up.
    pub async fn finish(mut self) -> u64 {
        self.stopping.store(true, Ordering::Relaxed);
        all(&mut self.sources).await;
        self.submitted()
    }

    /// Every name that jobs were submitted under.
    pub fn tenants() -> Vec<&'static str> {
        TENANTS.into_iter().chain([GREEDY, REAL]).collect()
    }

    fn source(
        &mut self,
        name: &str,
        per_second: f64,
        seed: u64,
        draw: fn(&mut StdRng, String) -> (Order, Deed),
    ) {
        let tenant = Tenant::new(name, &self.gateways, &self.history);
        let (stopping, submitted) = (Arc::clone(&self.stopping), Arc::clone(&self.submitted));
        let mut rng = StdRng::seed_from_u64(seed);
        self.sources.spawn(async move {
            let mut jobs = JoinSet::new();
            let mut number = 0;
            while !stopping.load(Ordering::Relaxed) {
                // Poisson: the gaps are exponential.
                let gap = -(1.0 - rng.random::<f64>()).ln() / per_second;
                sleep(Duration::from_secs_f64(gap.min(5.0))).await;
                number += 1;
                let (order, deed) = draw(&mut rng, format!("{}-{number}", tenant.name()));
                submitted.fetch_add(1, Ordering::Relaxed);
                jobs.spawn(pursue(tenant.clone(), order, deed));
                while let Some(ended) = jobs.try_join_next() {
                    sound(ended);
                }
            }
            all(&mut jobs).await;
        });
    }

    fn flood(&mut self, seed: u64) {
        let tenant = Tenant::new(GREEDY, &self.gateways, &self.history);
        let (stopping, submitted) = (Arc::clone(&self.stopping), Arc::clone(&self.submitted));
        let mut rng = StdRng::seed_from_u64(seed);
        self.sources.spawn(async move {
            let mut number = 0;
            while !stopping.load(Ordering::Relaxed) {
                let mut jobs = JoinSet::new();
                for _ in 0..FLOOD {
                    number += 1;
                    let order = Order {
                        key: format!("{GREEDY}-{number}"),
                        kind: JobKind::Plain,
                        request: request(rng.random(), 100),
                    };
                    jobs.spawn(pursue(tenant.clone(), order, Deed::Watch));
                }
                submitted.fetch_add(FLOOD as u64, Ordering::Relaxed);
                all(&mut jobs).await;
                sleep(FLOOD_EVERY).await;
            }
        });
    }
}

/// Until all have ended; see [`sound`].
async fn all(tasks: &mut JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        sound(ended);
    }
}

/// A client that panicked tells nothing of its job: the run is worth nothing.
fn sound(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// What a client does with its job besides waiting.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Watch,
    CancelAfter(u64),
    /// Somebody else submits the same at the same time.
    Twin,
    /// Somebody else submits another request under the same key.
    Conflict,
}

async fn pursue(tenant: Tenant, order: Order, deed: Deed) {
    let job = if let Deed::Twin = deed {
        let (one, other) = tokio::join!(tenant.submit(&order), tenant.resubmit(&order));
        one.or(other)
    } else {
        tenant.submit(&order).await
    };
    let Some(job) = job else { return };
    let meanwhile = async {
        match deed {
            Deed::CancelAfter(ms) => {
                sleep(Duration::from_millis(ms)).await;
                tenant.cancel(&job.id).await;
            }
            Deed::Conflict => tenant.conflict(&order).await,
            Deed::Watch | Deed::Twin => {}
        }
    };
    tokio::join!(tenant.watch(&job.id), meanwhile);
}

/// A job for the no-op workers.
pub fn request(seed: u64, pass_ms: u64) -> GenerationRequest {
    GenerationRequest {
        model: noop::MODEL.to_owned(),
        task: Some(Task::TextToImage(TextToImage {
            prompt: "nothing".to_owned(),
            ..TextToImage::default()
        })),
        seed: Some(seed),
        labels: [(noop_worker::PASS_MS.to_owned(), pass_ms.to_string())].into(),
        ..GenerationRequest::default()
    }
}

/// What it is a picture of.
pub fn prompt_of(request: &GenerationRequest) -> String {
    match &request.task {
        Some(Task::TextToImage(task)) => task.prompt.clone(),
        None => String::new(),
    }
}

/// With one label more.
pub fn labelled(mut request: GenerationRequest, name: &str, value: &str) -> GenerationRequest {
    request.labels.insert(name.to_owned(), value.to_owned());
    request
}

fn usual(rng: &mut StdRng, key: String) -> (Order, Deed) {
    // Most are quick, and some take so long that they are met by something.
    let pass_ms = if rng.random_bool(0.15) {
        rng.random_range(700..1500)
    } else {
        rng.random_range(20..300)
    };
    let mut request = request(rng.random(), pass_ms);
    request.priority = [Priority::Low, Priority::Normal, Priority::High][rng.random_range(0..3)].into();
    if let Some(Task::TextToImage(task)) = &mut request.task {
        task.count = rng.random_bool(0.1).then_some(2);
    }
    let (kind, deed) = match rng.random_range(0..100) {
        0..50 => (JobKind::Plain, Deed::Watch),
        50..62 => (JobKind::Plain, Deed::Twin),
        62..68 => (JobKind::Plain, Deed::Conflict),
        68..80 => (JobKind::Cancelled, Deed::CancelAfter(rng.random_range(0..1500))),
        80..86 => (JobKind::Hasty, Deed::Watch),
        86..96 => (JobKind::Flaky, Deed::Watch),
        _ => (JobKind::Rejected, Deed::Watch),
    };
    let request = match kind {
        JobKind::Hasty => GenerationRequest {
            timeout: Some(prost_types::Duration {
                seconds: rng.random_range(1..4),
                nanos: 0,
            }),
            ..labelled(request, noop_worker::PASS_MS, "900")
        },
        JobKind::Flaky => labelled(request, noop_worker::FAIL_PERCENT, "35"),
        JobKind::Rejected => labelled(request, noop_worker::REJECT, "yes"),
        _ => request,
    };
    (Order { key, kind, request }, deed)
}

/// The prompt decides everything, and so the pictures.
fn real(rng: &mut StdRng, key: String) -> (Order, Deed) {
    let steps = |steps| {
        Some(Sampling {
            steps: Some(steps),
            ..Sampling::default()
        })
    };
    let request = GenerationRequest {
        model: "muse-tiny".to_owned(),
        task: Some(Task::TextToImage(TextToImage {
            prompt: PROMPTS[rng.random_range(0..PROMPTS.len())].to_owned(),
            ..TextToImage::default()
        })),
        seed: Some(7),
        base: steps(8),
        superres: steps(4),
        ..GenerationRequest::default()
    };
    let kind = JobKind::Real;
    (Order { key, kind, request }, Deed::Watch)
}
