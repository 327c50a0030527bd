//! Gateways in process over one Redis.

use std::{net::SocketAddr, time::Duration};

use muse_gateway::{Config, Gateway, config::Durability};
use muse_proto::v1::{
    admin_client::AdminClient, generation_client::GenerationClient, models_client::ModelsClient,
};
use muse_service::{Shutdown, ShutdownTrigger};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use super::{redis_server::RedisServer, soon};

pub struct RunningGateway {
    pub address: SocketAddr,
    trigger: ShutdownTrigger,
    task: JoinHandle<anyhow::Result<()>>,
}

/// Short times, so that tests wait little.
pub fn config(redis: &RedisServer) -> Config {
    let mut config = Config::default();
    config.grpc.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.ops.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.redis.url = redis.url();
    config.redis.retry_ms = 500;
    config.redis.ping_ms = 200;
    config.queue.durability = Durability::Always;
    config.queue.lease_ms = 1_500;
    config.queue.reap_ms = 50;
    config.queue.backoff_base_ms = 10;
    config.queue.backoff_cap_ms = 50;
    config.hub.heartbeat_ms = 100;
    config.hub.worker_expiry_ms = 1_000;
    config.models.refresh_ms = 50;
    config
}

impl RunningGateway {
    pub async fn start(redis: &RedisServer) -> Self {
        Self::start_with(config(redis)).await
    }

    pub async fn start_with(config: Config) -> Self {
        let (trigger, shutdown) = Shutdown::manual_with_drain(Duration::from_secs(5));
        let gateway = Gateway::bind(config, shutdown.clone()).await.expect("a gateway");
        let address = gateway.addresses().grpc.expect("a gRPC address");
        let task = tokio::spawn(gateway.serve(shutdown));
        Self {
            address,
            trigger,
            task,
        }
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.address)).expect("an address");
        endpoint.connect().await.expect("a connection")
    }

    pub async fn generation(&self) -> GenerationClient<Channel> {
        GenerationClient::new(self.channel().await)
    }

    pub async fn models(&self) -> ModelsClient<Channel> {
        ModelsClient::new(self.channel().await)
    }

    pub async fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel().await)
    }

    /// As by SIGTERM.
    pub async fn stop(self) {
        self.trigger.shut_down();
        soon("the gateway's end", self.task)
            .await
            .expect("no panic")
            .expect("no error");
    }

    /// As by kill -9: nothing is said to anybody.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}
