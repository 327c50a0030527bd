//! Puts the gateway together.

use std::sync::Arc;

use anyhow::Context as _;
use muse_proto::{
    internal::v1::worker_hub_server::WorkerHubServer,
    v1::{admin_server::AdminServer, generation_server::GenerationServer, models_server::ModelsServer},
};
use muse_service::{Addresses, Readiness, Shutdown, grpc, ops::Ops};

use crate::{
    Config,
    api::{AdminService, GenerationService, ModelsService},
    connection::{Bells, Redis},
    hub::Hub,
    jobs::Jobs,
    models::Models,
    queue::Queue,
    reaper::Reaper,
    results::{self, Cleaner, Recent},
    watch::Watcher,
};

/// A gateway that listens and is not served yet.
pub struct Gateway {
    grpc: grpc::Bound,
    ops: Ops,
    hub: Hub,
    reaper: Reaper,
    cleaner: Cleaner,
    addresses: Addresses,
}

/// Binds, announces, serves until the shutdown, drains.
///
/// # Errors
/// When Redis or the store of pictures cannot be used, or a port is taken; each in one line that says what to do.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let gateway = Gateway::bind(config, shutdown.clone()).await?;
    gateway.addresses().announce().context("cannot write to stdout")?;
    // Large: every part of the service lives in it.
    Box::pin(gateway.serve(shutdown)).await
}

impl Gateway {
    /// Connects to Redis and the store of pictures, checks them, and opens the ports. The parts end at `shutdown`.
    ///
    /// # Errors
    /// See [`run`].
    pub async fn bind(config: Config, shutdown: Shutdown) -> anyhow::Result<Self> {
        // Before anything that waits: a port that may not be opened is known at once.
        let authentication = config.identity.authentication()?;
        authentication.may_listen(config.grpc.listen, config.grpc.insecure_allow_remote)?;
        let redis = Redis::open(&config.redis, &config.queue).await?;
        let queue = Queue::new(redis.clone(), &config.redis.prefix, config.queue.clone());
        queue.check_schema().await?;
        let bells = Bells::listen(&redis, queue.keys().channels());
        let queue = queue.telling(&bells);
        let models = Models::new(
            queue.clone(),
            &bells,
            config.models.clone(),
            config.hub.worker_expiry_ms,
        );
        let (results, cleaner) = results::open(&config, &queue).await?;
        let recent = Recent::new(config.results.recent_bytes);
        let watcher = Watcher::new(
            queue.clone(),
            bells.clone(),
            config.watch.clone(),
            shutdown.clone(),
        );
        let jobs = Jobs::new(
            queue.clone(),
            models.clone(),
            (Arc::clone(&results), recent.clone()),
            watcher,
            &config,
        );
        let hub = Hub::new(
            queue.clone(),
            models.clone(),
            (results, recent),
            bells,
            &config,
            shutdown.clone(),
        );

        let limit = config.limits.control_message_bytes;
        let generation = GenerationService::new(jobs, &config, shutdown);
        let admin = AdminService::new(queue.clone(), models.clone(), &config);
        let readiness = Readiness::new();
        let grpc = grpc::Server::new(&config.grpc, authentication, readiness.clone())
            .add_service(GenerationServer::new(generation).max_decoding_message_size(limit))
            .add_service(
                ModelsServer::new(ModelsService::new(models.clone())).max_decoding_message_size(limit),
            )
            .add_service(AdminServer::new(admin).max_decoding_message_size(limit))
            .add_service(
                WorkerHubServer::new(hub.clone()).max_decoding_message_size(config.hub.message_bytes),
            )
            .bind()
            .await?;
        let ops = Ops::bind(&config.ops, readiness.clone()).await?;
        let addresses = Addresses {
            grpc: Some(grpc.local_addr()),
            ops: ops.local_addr(),
        };
        let reaper = Reaper {
            queue,
            models,
            discarded: cleaner.discarded(),
            config: config.queue,
            readiness: readiness.clone(),
        };
        readiness.set_ready(true);
        Ok(Self {
            grpc,
            ops,
            hub,
            reaper,
            cleaner,
            addresses,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Serves until the shutdown: then workers are sent elsewhere, watches end with UNAVAILABLE, and calls in progress go on
    /// within the drain's limit. Dropping the future cuts everything.
    ///
    /// # Errors
    /// When a listener breaks.
    pub async fn serve(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let Self {
            grpc,
            ops,
            hub,
            reaper,
            cleaner,
            addresses: _,
        } = self;
        let drained = async {
            shutdown.requested().await;
            hub.ended().await;
        };
        let serve_grpc = async {
            let (served, _) = tokio::join!(
                grpc.serve(shutdown.clone()),
                shutdown.limit("worker sessions", drained)
            );
            served
        };
        // The reaper and the probes go on until the last call has ended.
        let ended = tokio_util::sync::CancellationToken::new();
        let serve_all = async {
            let served = serve_grpc.await;
            ended.cancel();
            served
        };
        let (served, ops, (), ()) = tokio::join!(
            serve_all,
            ops.serve_until(ended.clone().cancelled_owned()),
            reaper.run(shutdown.clone()),
            cleaner.run(shutdown.clone())
        );
        served?;
        ops?;
        Ok(())
    }
}
