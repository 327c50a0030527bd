//! Opens the model, binds the ports, serves, drains.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use muse_engine::Tokenizer;
use muse_proto::internal::v1::text_encoder_server::TextEncoderServer;
use muse_service::{Addresses, Readiness, Shutdown, grpc, identity::Authentication, ops::Ops};
use tokio::sync::oneshot;

use crate::{
    EncoderConfig,
    admission::Admission,
    cache::EmbeddingCache,
    encoder::Encoder,
    grpc::{GrpcEncoder, Served},
    model::{Model, texts_of_every_bucket},
    passes::{PassLimits, PassThread, Passes},
};

/// A text encoder whose ports are bound and whose model is open, not warm yet.
pub struct Service {
    grpc: grpc::Bound,
    ops: Ops,
    readiness: Readiness,
    thread: PassThread,
}

/// The service's life: opens, announces, serves until the shutdown, drains.
///
/// # Errors
/// One line that names the file, the provider or the port, and the fault.
pub async fn run(config: EncoderConfig, shutdown: Shutdown) -> anyhow::Result<()> {
    let service = Service::bind(config).await?;
    service.addresses().announce()?;
    service.serve(shutdown).await
}

// === impl Service ===

impl Service {
    /// Opens the model and binds the ports. Callers can connect from now on, and wait.
    ///
    /// # Errors
    /// A bundle, a provider or a port that is no good; nothing is left running.
    pub async fn bind(config: EncoderConfig) -> anyhow::Result<Self> {
        let opening = config.clone();
        let model = tokio::task::spawn_blocking(move || Model::open(&opening)).await??;
        let readiness = Readiness::new();
        let ops = Ops::bind(&config.ops, readiness.clone()).await?;
        let (spec, provider) = (model.bundle.model().clone(), model.provider());
        let served = Served {
            model: model.bundle.model().name.clone(),
            digest: model.bundle.digest().to_owned(),
        };
        let (encoder, thread) = start(&config, model)?;
        let service = TextEncoderServer::new(GrpcEncoder {
            encoder: Arc::new(encoder),
            served,
        })
        .max_decoding_message_size(config.request.max_message_bytes)
        // Bounded by max_texts and the bundle's own longest embedding.
        .max_encoding_message_size(usize::MAX);
        let grpc = grpc::Server::new(&config.grpc, Authentication::None, readiness.clone())
            .add_service(service)
            .bind()
            .await?;
        // Nothing can fail from here on: what fails before is one line, not one among others.
        metrics::gauge!("muse_runtime_provider", "provider" => provider.as_str()).set(1.0);
        tracing::info!(model = spec.name, version = spec.version, %provider, "text encoder open");
        Ok(Self {
            grpc,
            ops,
            readiness,
            thread,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        Addresses {
            grpc: Some(self.grpc.local_addr()),
            ops: self.ops.local_addr(),
        }
    }

    /// Warms the model up, serves until the shutdown, answers what was taken on, and ends.
    ///
    /// # Errors
    /// A warm-up that fails, a port that breaks, or a model whose thread is gone.
    pub async fn serve(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let Self {
            grpc,
            ops,
            readiness,
            thread,
        } = self;
        let PassThread { begin, warm, ended } = thread;
        // A thread that cannot hear it has ended, and says so below.
        let _ = begin.send(());
        let becoming_ready = async {
            if warm.await.is_ok() {
                readiness.set_ready(true);
                tracing::info!("warm and ready");
            }
            std::future::pending::<anyhow::Result<()>>().await
        };
        let mut ended = std::pin::pin!(thread_end(ended));
        let serving = async {
            tokio::select! {
                served = grpc.serve(shutdown.clone()) => served.context("cannot go on"),
                // Callers are there, so the thread has no reason to end but a fault.
                reason = &mut ended => reason.and_then(|()| anyhow::bail!("the thread of the model ended")),
                ready = becoming_ready => ready,
            }
        };
        tokio::select! {
            served = serving => served?,
            probed = ops.serve_until(std::future::pending()) => probed?,
        }
        // The last caller has left with the port, and so the thread ends.
        shutdown
            .limit("the thread of the model", ended)
            .await
            .unwrap_or(Ok(()))
    }
}

async fn thread_end(ended: oneshot::Receiver<Result<(), String>>) -> anyhow::Result<()> {
    match ended.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(reason)) => anyhow::bail!("the model's warm-up failed: {reason}"),
        Err(_) => anyhow::bail!("the thread of the model panicked"),
    }
}

fn start(config: &EncoderConfig, model: Model) -> anyhow::Result<(Encoder<Tokenizer>, PassThread)> {
    let Model {
        bundle,
        encoder,
        tokenizer,
    } = model;
    let admission = Admission::new(config.admission.max_queued_tokens);
    let smallest = bundle.text().length_buckets.first().copied().unwrap_or(1).max(1);
    let limits = PassLimits {
        max_tokens: config.batch.max_tokens,
        max_wait: Duration::from_millis(config.batch.max_wait_ms),
        max_prompts: config.admission.max_queued_tokens / smallest + 1,
    };
    let warm_up = texts_of_every_bucket(tokenizer.as_ref());
    let (passes, thread) =
        Passes::start(encoder, warm_up, limits, admission.clone()).context("cannot start a thread")?;
    let cache = EmbeddingCache::new(bundle.digest(), config.cache.max_bytes);
    let limits = config.request.clone();
    Ok((
        Encoder {
            tokenizer,
            cache,
            admission,
            passes,
            limits,
        },
        thread,
    ))
}
