//! Where workers attach. A session holds nothing that a worker cannot bring to another gateway: leases, progress and
//! checkpoints are in Redis, and a report that was not acknowledged is sent again.

mod check;
mod claim;
mod heartbeat;
mod lease;
mod reports;
mod session;

use std::sync::Arc;

use futures::stream::BoxStream;
use muse_proto::internal::v1::{
    AttachRequest, AttachResponse, attach_request::Message, worker_hub_server::WorkerHub,
};
use muse_service::Shutdown;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use self::session::Session;
use crate::{
    Error, config,
    connection::Bells,
    models::Models,
    queue::Queue,
    results::{Recent, ResultStore},
};

/// The `muse.internal.v1.WorkerHub` service; cloning is cheap.
#[derive(Clone)]
pub struct Hub(Arc<Shared>);

/// What all sessions share.
struct Shared {
    queue: Queue,
    models: Models,
    results: Arc<dyn ResultStore>,
    recent: Recent,
    bells: Bells,
    config: config::Hub,
    lease_ms: u64,
    max_count: u32,
    picture_bytes: usize,
    gateway_id: String,
    shutdown: Shutdown,
    sessions: TaskTracker,
}

impl Hub {
    /// A hub that ends its sessions at the shutdown, so that their workers attach elsewhere.
    pub fn new(
        queue: Queue,
        models: Models,
        (results, recent): (Arc<dyn ResultStore>, Recent),
        bells: Bells,
        config: &config::Config,
        shutdown: Shutdown,
    ) -> Self {
        Self(Arc::new(Shared {
            queue,
            models,
            results,
            recent,
            bells,
            config: config.hub.clone(),
            lease_ms: config.queue.lease_ms,
            max_count: config.limits.count,
            picture_bytes: config.results.picture_bytes,
            gateway_id: format!("gateway-{}", uuid::Uuid::now_v7().simple()),
            shutdown,
            sessions: TaskTracker::new(),
        }))
    }

    /// Returns when every session has ended; after the shutdown.
    pub async fn ended(&self) {
        self.0.sessions.close();
        self.0.sessions.wait().await;
    }
}

#[tonic::async_trait]
impl WorkerHub for Hub {
    type AttachStream = BoxStream<'static, Result<AttachResponse, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        if self.0.shutdown.is_requested() {
            return Err(Error::ShuttingDown.into());
        }
        let mut inbound = request.into_inner();
        let (sender, receiver) = mpsc::channel(self.0.config.outbox);
        let shared = Arc::clone(&self.0);
        // The response starts before the first message is read: a client may wait for its headers before it says hello.
        self.0.sessions.spawn(async move {
            let limit = std::time::Duration::from_millis(shared.config.hello_timeout_ms);
            let first = match tokio::time::timeout(limit, inbound.message()).await {
                Ok(Ok(Some(AttachRequest {
                    message: Some(Message::Hello(hello)),
                }))) => Ok(hello),
                Ok(Ok(_)) => Err(Status::invalid_argument("the first message must be hello")),
                Ok(Err(status)) => Err(status),
                Err(_) => Err(Status::deadline_exceeded("no hello came in time")),
            };
            let attached = match first {
                Ok(hello) => Session::begin(shared, hello, sender.clone())
                    .await
                    .map_err(Status::from),
                Err(status) => Err(status),
            };
            match attached {
                Ok(session) => session.run(inbound).await,
                Err(status) => {
                    let _ = sender.send(Err(status)).await;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
