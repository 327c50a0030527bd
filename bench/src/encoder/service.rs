//! The real text encoder's process, asked over gRPC.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use muse_engine::TextEncoder;
use muse_proto::internal::v1::{EmbedRequest, Embedding, text_encoder_client::TextEncoderClient};
use musectl::cluster::{ClusterOptions, LocalCluster, Sizes};
use tonic::transport::Channel;

use crate::arguments::Arguments;

/// Bytes of embeddings that the service keeps: enough for one batch that is asked for again and again, too little for any
/// prompt to be there still when the list of prompts begins again.
pub(super) const CACHE_BYTES: usize = 1024 * 1024;
/// The embeddings of one call must fit.
const MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// A text encoder, and no other part of a cluster but the server that every one begins with.
pub(super) struct Service {
    cluster: LocalCluster,
    client: TextEncoderClient<Channel>,
}

impl Service {
    pub(super) async fn start(arguments: &Arguments) -> anyhow::Result<Self> {
        let mut options = ClusterOptions::new(&arguments.bundle, arguments.programs()?);
        options.sizes = Sizes {
            gateways: 0,
            encoders: 1,
            base_workers: 0,
            superres_workers: 0,
        };
        let own = [
            format!("encoder.cache.max_bytes={CACHE_BYTES}"),
            format!("encoder.runtime.threads={}", arguments.threads),
        ];
        for text in own {
            options.overrides.push(text.parse()?);
        }
        options.overrides.extend(arguments.overrides.iter().cloned());
        let cluster = LocalCluster::start(options).await?;
        let endpoint = cluster.encoder_endpoints().into_iter().next();
        let channel = Channel::from_shared(endpoint.context("no text encoder runs")?)?
            .connect()
            .await?;
        let client = TextEncoderClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
        Ok(Self { cluster, client })
    }

    /// Embeddings a second: `callers` ask for the batches, each for the next one as soon as it has the last. `cached`: whether
    /// the service must have had every one of them, or none.
    pub(super) async fn rate(
        &self,
        batches: &Arc<Vec<Vec<String>>>,
        callers: usize,
        cached: bool,
    ) -> anyhow::Result<f64> {
        let next = Arc::new(AtomicUsize::new(0));
        let begun = Instant::now();
        let callers = (0..callers).map(|_| {
            let (batches, next, client) = (Arc::clone(batches), Arc::clone(&next), self.client.clone());
            let call = async move {
                while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                    for embedding in embed(&client, batch).await? {
                        ensure!(
                            embedding.cached == cached,
                            "the service answered from its cache: {}, wanted: {cached}",
                            embedding.cached
                        );
                    }
                }
                anyhow::Ok(())
            };
            tokio::spawn(call)
        });
        for ended in try_join_all(callers).await? {
            ended?;
        }
        let texts: usize = batches.iter().map(Vec::len).sum();
        Ok(texts as f64 / begun.elapsed().as_secs_f64())
    }

    /// That it gives what the engine gives alone, to the bit.
    pub(super) async fn check(&self, batch: &[String], alone: &mut TextEncoder) -> anyhow::Result<()> {
        for (text, told) in batch.iter().zip(embed(&self.client, batch).await?) {
            let ids = alone.tokenize(text)?;
            let own = alone.embed(&[ids])?.pop().context("the engine gave nothing")?;
            let bytes: Vec<u8> = own.values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let told = told.embedding.context("the service sent no tensor")?;
            ensure!(
                told.data == bytes,
                "the service's embedding of {text:?} is not the engine's"
            );
        }
        Ok(())
    }

    pub(super) async fn stop(self) {
        self.cluster.stop().await;
    }
}

async fn embed(client: &TextEncoderClient<Channel>, batch: &[String]) -> anyhow::Result<Vec<Embedding>> {
    let request = EmbedRequest {
        texts: batch.to_vec(),
        ..EmbedRequest::default()
    };
    let embeddings = client.clone().embed(request).await?.into_inner().embeddings;
    ensure!(
        embeddings.len() == batch.len(),
        "the service sent {} embeddings for {} texts",
        embeddings.len(),
        batch.len()
    );
    Ok(embeddings)
}
