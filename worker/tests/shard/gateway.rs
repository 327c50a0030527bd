//! A hub in this process that does what a test says.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use muse_proto::internal::v1::{
    Ack, AckOutcome, AttachRequest, AttachResponse, Heartbeat, Hello, Lease, Revoke, Welcome,
    attach_request::Message,
    attach_response,
    worker_hub_server::{WorkerHub, WorkerHubServer},
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Longer than anything takes on a busy machine: what does not come by then does not come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct FakeGateway {
    address: SocketAddr,
    sessions: mpsc::Receiver<Session>,
    server: JoinHandle<()>,
}

/// One worker, attached.
pub(crate) struct Session {
    pub(crate) hello: Hello,
    inbound: Streaming<AttachRequest>,
    outbound: mpsc::Sender<Result<AttachResponse, Status>>,
    /// Everything heard that no test has asked for: shown when a wait fails.
    heard: Vec<Message>,
}

struct Hub(mpsc::Sender<Session>);

#[tonic::async_trait]
impl WorkerHub for Hub {
    type AttachStream = ReceiverStream<Result<AttachResponse, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut inbound = request.into_inner();
        let Some(AttachRequest {
            message: Some(Message::Hello(hello)),
        }) = inbound.message().await?
        else {
            return Err(Status::invalid_argument("hello comes first"));
        };
        let (outbound, responses) = mpsc::channel(64);
        let session = Session {
            hello,
            inbound,
            outbound,
            heard: Vec::new(),
        };
        self.0
            .send(session)
            .await
            .map_err(|_| Status::unavailable("gone"))?;
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

impl FakeGateway {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, sessions) = mpsc::channel(4);
        let hub = WorkerHubServer::new(Hub(sender)).max_decoding_message_size(64 << 20);
        let serve = tonic::transport::Server::builder().add_service(hub);
        let server = tokio::spawn(async move {
            serve
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        FakeGateway {
            address,
            sessions,
            server,
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next worker that attaches, before it is welcomed.
    pub(crate) async fn session(&mut self) -> Session {
        tokio::time::timeout(PATIENCE, self.sessions.recv())
            .await
            .expect("no worker attached")
            .unwrap()
    }

    /// The next worker that attaches, welcomed.
    pub(crate) async fn welcome(&mut self) -> Session {
        let session = self.session().await;
        session.welcome().await;
        session
    }

    pub(crate) fn stop(self) {
        self.server.abort();
    }
}

impl Drop for FakeGateway {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Session {
    pub(crate) async fn welcome(&self) {
        let welcome = Welcome {
            gateway_id: "fake".to_owned(),
            lease: Some(prost_types::Duration {
                seconds: 10,
                nanos: 0,
            }),
            heartbeat: Some(prost_types::Duration {
                seconds: 0,
                nanos: 20_000_000,
            }),
        };
        self.send(attach_response::Message::Welcome(welcome)).await;
    }

    /// Ends the stream with a status.
    pub(crate) async fn refuse(self, status: Status) {
        self.outbound.send(Err(status)).await.unwrap();
    }

    pub(crate) async fn send(&self, message: attach_response::Message) {
        self.outbound
            .send(Ok(AttachResponse {
                message: Some(message),
            }))
            .await
            .unwrap();
    }

    pub(crate) async fn lease(&self, lease: &Lease) {
        self.send(attach_response::Message::Lease(lease.clone())).await;
    }

    pub(crate) async fn revoke(&self, lease: &Lease) {
        let revoke = Revoke {
            job_id: lease.job_id.clone(),
            nonce: lease.nonce.clone(),
            reason: 1,
        };
        self.send(attach_response::Message::Revoke(revoke)).await;
    }

    pub(crate) async fn ack(&self, lease: &Lease) {
        let ack = Ack {
            job_id: lease.job_id.clone(),
            nonce: lease.nonce.clone(),
            outcome: AckOutcome::Accepted as i32,
            retry_after: None,
        };
        self.send(attach_response::Message::Ack(ack)).await;
    }

    /// The hub cannot take the report for now.
    pub(crate) async fn postpone(&self, lease: &Lease, wait: Duration) {
        let ack = Ack {
            job_id: lease.job_id.clone(),
            nonce: lease.nonce.clone(),
            outcome: AckOutcome::Unavailable as i32,
            retry_after: prost_types::Duration::try_from(wait).ok(),
        };
        self.send(attach_response::Message::Ack(ack)).await;
    }

    /// The first message that `pick` takes; others are kept aside for the failure's text.
    pub(crate) async fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(&Message) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            let heard = tokio::time::timeout_at(until.into(), self.inbound.message()).await;
            let message = match heard {
                Ok(Ok(Some(AttachRequest {
                    message: Some(message),
                }))) => message,
                other => panic!(
                    "{what} did not come; the stream: {other:?}; heard before: {:#?}",
                    self.heard
                ),
            };
            if let Some(picked) = pick(&message) {
                return picked;
            }
            self.heard.push(message);
            // Heartbeats come for as long as a test waits.
            let excess = self.heard.len().saturating_sub(40);
            self.heard.drain(..excess);
        }
    }

    pub(crate) async fn heartbeat(
        &mut self,
        what: &str,
        mut pick: impl FnMut(&Heartbeat) -> bool,
    ) -> Heartbeat {
        self.wait(what, |message| match message {
            Message::Heartbeat(heartbeat) if pick(heartbeat) => Some(heartbeat.clone()),
            _ => None,
        })
        .await
    }

    /// Credit of at least so many rows.
    pub(crate) async fn credit(&mut self, at_least: u32) -> u32 {
        self.wait("credit", |message| match message {
            Message::Credit(credit) if credit.rows >= at_least => Some(credit.rows),
            _ => None,
        })
        .await
    }

    /// The report on a lease, of whatever kind.
    pub(crate) async fn report(&mut self, lease: &Lease) -> Message {
        let nonce = &lease.nonce;
        self.wait("a report", |message| match message {
            Message::Complete(report) if report.nonce == *nonce => Some(message.clone()),
            Message::Fail(report) if report.nonce == *nonce => Some(message.clone()),
            Message::Release(report) if report.nonce == *nonce => Some(message.clone()),
            _ => None,
        })
        .await
    }
}
