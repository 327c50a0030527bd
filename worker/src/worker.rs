//! The service: ports, model, device and pixel threads, hub client, and the order in which they end.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use muse_engine::StageModel;
use muse_proto::internal::v1::Hello;
use muse_service::{Addresses, Readiness, Shutdown, ops::Ops};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};
use uuid::Uuid;

use crate::{
    batcher::{Batcher, Settings, policy::Ageing},
    board::Board,
    config::WorkerConfig,
    device::Device,
    encoder, hello,
    hub::{Client, Ended, Limits, Protocol, Standing},
    lease::Acceptance,
    load::{Loaded, load},
    pixels::PixelThread,
    settings,
    shard::{Parts, Shard},
};

/// A worker whose operators' port is bound and whose model is not loaded yet.
pub struct Worker {
    config: WorkerConfig,
    ops: Ops,
    readiness: Readiness,
}

impl Worker {
    /// Binds the operators' port.
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn bind(config: WorkerConfig) -> anyhow::Result<Self> {
        let readiness = Readiness::new();
        let ops = Ops::bind(&config.ops, readiness.clone()).await?;
        Ok(Worker {
            config,
            ops,
            readiness,
        })
    }

    /// Where metrics and probes are.
    pub fn ops_addr(&self) -> SocketAddr {
        self.ops.local_addr()
    }

    /// Ready while the model is warm, a gateway gives leases, and no drain has begun.
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Loads the model, takes leases until the shutdown, and gives back what is held.
    ///
    /// # Errors
    /// When the model cannot be loaded, or breaks.
    pub async fn serve(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let Worker {
            config,
            ops,
            readiness,
        } = self;
        // Probes shall see the drain, so this port ends last: with this function.
        let (ended, end) = oneshot::channel::<()>();
        let probes = tokio::spawn(ops.serve_until(async {
            let _ = end.await;
        }));
        let loading = config.clone();
        let loaded = tokio::task::spawn_blocking(move || load(&loading));
        let result = tokio::select! {
            loaded = loaded => match loaded.context("loading the model panicked") {
                Ok(Ok(loaded)) => run_loaded(config, loaded, readiness, shutdown).await,
                Ok(Err(error)) | Err(error) => Err(error),
            },
            () = shutdown.requested() => Ok(()),
        };
        let _ = ended.send(());
        if let Ok(Err(error)) = probes.await {
            warn!(%error, "the operators' port ended");
        }
        result
    }
}

/// Parses nothing and prints one line: binds, announces, serves.
///
/// # Errors
/// See [`Worker::bind`] and [`Worker::serve`].
pub async fn run(config: WorkerConfig, shutdown: Shutdown) -> anyhow::Result<()> {
    let worker = Worker::bind(config).await?;
    Addresses {
        grpc: None,
        ops: worker.ops_addr(),
    }
    .announce()?;
    worker.serve(shutdown).await
}

async fn run_loaded<M: StageModel + 'static>(
    config: WorkerConfig,
    loaded: Loaded<M>,
    readiness: Readiness,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let Loaded {
        bundle,
        model,
        painter,
        curve,
        row_budget,
        provider,
        device: device_name,
    } = loaded;
    let stage = config.stage;
    let settings = Settings {
        row_budget,
        ageing: Ageing {
            interval: Duration::from_secs_f64(config.batcher.ageing_seconds),
        },
        max_failed_passes: config.batcher.max_failed_passes,
    };
    let limits = limits(&config, row_budget);
    let board = Arc::new(Board::new(stage));
    let batcher = Batcher::new(model, settings, curve);
    // Orders are few and small: one to admit a job and one to stop it.
    let order_queue = 2 * limits.max_rows as usize;
    let (device, mut device_ended) = Device::start(batcher, board.clone(), order_queue)?;
    let (pixels, mut pixels_ended) = painter
        .map(|painter| PixelThread::start(painter, config.pixels.queue))
        .transpose()?
        .unzip();

    let worker_id = format!("{stage}-{}", Uuid::now_v7().simple());
    let (reports, received) = mpsc::channel(limits.max_rows as usize);
    let rest_after = config.batcher.rest_after_ms;
    // What is not kept would be asked for twice.
    let ahead = if config.encoder.cache_bytes > 0 {
        config.encoder.ahead
    } else {
        0
    };
    let shard = Shard::new(
        Parts {
            worker_id: worker_id.clone(),
            acceptance: Acceptance::new(
                &bundle,
                stage,
                config.batcher.max_pictures,
                Duration::from_millis(config.batcher.deadline_grace_ms),
            )
            .with_context(|| format!("the bundle has no stage {stage}"))?,
            encoder: encoder::Client::new(
                config.encoder.clone(),
                bundle.model().name.clone(),
                bundle.digest().to_owned(),
                bundle.text().width,
                bundle.text().max_length,
            )?,
            device,
            pixels,
            board,
        },
        reports,
        (rest_after > 0).then(|| Duration::from_millis(rest_after)),
        ahead,
    );
    let hello = Hello {
        worker_id: worker_id.clone(),
        stage: settings::stage_to_wire(stage) as i32,
        model: Some(hello::model(&bundle)),
        provider,
        device: device_name,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        row_budget: u32::try_from(row_budget).unwrap_or(u32::MAX),
    };
    let (standing, watched) = watch::channel(Standing::Detached);
    let client = Client::new(
        config.hub.clone(),
        hello,
        Protocol::new(limits),
        shard,
        received,
        standing,
    )?;
    info!(worker_id, capacity = limits.capacity, "taking leases");
    tokio::spawn(show_readiness(watched, readiness));

    // The hub client drains on the shutdown, and also when the model breaks: what is held goes to other shards.
    let (trigger, draining) = Shutdown::manual_with_drain(shutdown.drain());
    let mut client = std::pin::pin!(client.run(draining));
    let mut fault = None;
    let mut told = false;
    let ended = loop {
        tokio::select! {
            ended = &mut client => break ended?,
            () = shutdown.requested(), if !told => {
                told = true;
                trigger.shut_down();
            }
            result = &mut device_ended, if fault.is_none() => match result {
                Ok(Ok(())) => fault = Some(anyhow!("the device thread ended too early")),
                Ok(Err(broken)) => {
                    fault = Some(anyhow::Error::new(broken).context("the device is taken for broken"));
                    trigger.shut_down();
                }
                // It crashed. The leases are left to expire: that counts as a crash against the jobs, one of which may be
                // the cause.
                Err(_) => return Err(anyhow!("the device thread crashed")),
            },
            // It ends only when nobody can order pictures any more, or by a crash.
            () = crashed(&mut pixels_ended) => return Err(anyhow!("the pixel thread crashed")),
        }
    };
    match ended {
        Ended::Drained => info!("drained"),
        Ended::Cut { leases } => warn!(leases, "the drain deadline passed; what is held will expire"),
    }
    fault.map_or(Ok(()), Err)
}

async fn crashed(ended: &mut Option<oneshot::Receiver<()>>) {
    match ended {
        Some(ended) => {
            let _ = ended.await;
        }
        None => std::future::pending().await,
    }
}

/// How many rows are held, and when is spoken.
fn limits(config: &WorkerConfig, row_budget: usize) -> Limits {
    let rows = |factor: f64, of: f64| (of * factor).ceil().clamp(1.0, f64::from(u32::MAX / 4)) as u32;
    let capacity = rows(config.batcher.queue_ahead, row_budget as f64);
    let interval = config.hub.progress_interval_ms;
    Limits {
        capacity,
        max_rows: rows(config.batcher.overcommit, f64::from(capacity)),
        resend_after: Duration::from_millis(config.hub.resend_after_ms),
        progress_interval: (interval > 0).then(|| Duration::from_millis(interval)),
    }
}

/// The model is warm by now, so being attached decides.
async fn show_readiness(mut standing: watch::Receiver<Standing>, readiness: Readiness) {
    loop {
        match *standing.borrow_and_update() {
            Standing::Attached => readiness.set_ready(true),
            Standing::Detached => readiness.set_ready(false),
            Standing::Draining => readiness.drain(),
        }
        if standing.changed().await.is_err() {
            // The hub client has ended.
            readiness.drain();
            return;
        }
    }
}
