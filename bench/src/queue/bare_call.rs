//! What a unary gRPC call costs that does nothing: what no queue behind gRPC can be faster than with a call for each job.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::future::try_join_all;
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
    time::Instant,
};
use tonic::transport::server::TcpIncoming;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::load::{Client, IN_FLIGHT};

/// A server of tonic's and nothing else: no queue, no spans, no identity. It answers `grpc.health.v1.Health/Check` as a
/// gateway does. Dropping it ends it.
pub(super) struct BareServer {
    address: SocketAddr,
    _serving: JoinSet<()>,
}

impl BareServer {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        // As long as nobody sets it otherwise, the server itself ("") is serving.
        let (_, health) = tonic_health::server::health_reporter();
        let mut serving = JoinSet::new();
        let _: AbortHandle = serving.spawn(async move {
            // It ends with its task; a client sees what becomes of a connection.
            let _ = tonic::transport::Server::builder()
                .add_service(health)
                .serve_with_incoming(incoming)
                .await;
        });
        Ok(Self {
            address,
            _serving: serving,
        })
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// `calls` health checks, [`IN_FLIGHT`] at any time on one connection; seconds that they took.
pub(super) async fn check(client: &Client, calls: u64) -> anyhow::Result<f64> {
    let next = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let lanes = (0..IN_FLIGHT).map(|_| {
        let (mut health, next) = (HealthClient::new(client.channel()), Arc::clone(&next));
        let lane = client.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < calls {
                health.check(HealthCheckRequest::default()).await?;
            }
            anyhow::Ok(())
        });
        async move { lane.await? }
    });
    try_join_all(lanes).await?;
    Ok(begun.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_bare_server_answers_every_call() {
        let server = BareServer::start().await.unwrap();
        let client = Client::connect(&server.endpoint()).await.unwrap();
        assert!(check(&client, 500).await.unwrap() > 0.0);
    }
}
