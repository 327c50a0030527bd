//! The gRPC port as a peer meets it: limits, mistakes, garbage, and the end.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, which clippy does not see as tests"
)]

use std::{net::SocketAddr, time::Duration};

use muse_proto::internal::v1::{
    EmbedRequest, EmbedResponse, Embedding,
    text_encoder_client::TextEncoderClient,
    text_encoder_server::{TextEncoder, TextEncoderServer},
};
use muse_service::{
    Error, Readiness, Shutdown, ShutdownTrigger,
    client::{self, Channel},
    config::{GrpcClient, GrpcServer},
    grpc::{Deadline, ServeError, Server},
    identity::{self, Authentication},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// Answers with the number of bytes of each text, or does what the first text says.
struct Echo;

#[tonic::async_trait]
impl TextEncoder for Echo {
    async fn embed(&self, request: Request<EmbedRequest>) -> Result<Response<EmbedResponse>, Status> {
        assert_eq!(identity::tenant(&request)?.as_str(), "default");
        let has_deadline = request.extensions().get::<Deadline>().is_some();
        let texts = request.into_inner().texts;
        match texts.first().map(String::as_str) {
            Some("panic") => panic!("a handler's own fault"),
            Some("never") => std::future::pending().await,
            Some("refuse") => Err(Error::invalid_field("texts[0]", "is not wanted").into()),
            Some("deadline?") if !has_deadline => {
                Err(Error::internal("no deadline in the extensions").into())
            }
            _ => Ok(Response::new(EmbedResponse {
                embeddings: texts
                    .iter()
                    .map(|text| Embedding {
                        tokens: text.len() as u32,
                        ..Embedding::default()
                    })
                    .collect(),
            })),
        }
    }
}

struct Running {
    address: SocketAddr,
    readiness: Readiness,
    trigger: ShutdownTrigger,
    served: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    async fn start(config: &GrpcServer, drain: Duration) -> Self {
        muse_service::metrics::install().unwrap();
        let readiness = Readiness::new();
        let bound = Server::new(config, Authentication::None, readiness.clone())
            .add_service(TextEncoderServer::new(Echo).max_decoding_message_size(1024))
            .bind()
            .await
            .unwrap();
        let address = bound.local_addr();
        let (trigger, shutdown) = Shutdown::manual_with_drain(drain);
        let served = tokio::spawn(bound.serve(shutdown));
        Self {
            address,
            readiness,
            trigger,
            served,
        }
    }

    fn channel(&self) -> Channel {
        client::connect(&self.address.to_string(), &GrpcClient::default()).unwrap()
    }

    fn client(&self) -> TextEncoderClient<Channel> {
        TextEncoderClient::new(self.channel())
    }
}

fn ask(text: &str) -> Request<EmbedRequest> {
    Request::new(EmbedRequest {
        texts: vec![text.to_owned()],
        ..EmbedRequest::default()
    })
}

async fn works(client: &mut TextEncoderClient<Channel>) {
    let answer = client.embed(ask("four")).await.unwrap().into_inner();
    assert_eq!(answer.embeddings[0].tokens, 4);
}

#[tokio::test]
async fn each_kind_of_failure_has_its_status_and_the_port_lives_on() {
    let port = Running::start(&GrpcServer::default(), Shutdown::DEFAULT_DRAIN).await;
    let mut client = port.client();
    let mut code = async |request| client.embed(request).await.unwrap_err().code();

    assert_eq!(code(ask("refuse")).await, Code::InvalidArgument);
    assert_eq!(code(ask("panic")).await, Code::Internal);
    assert_eq!(
        code(ask(&"x".repeat(2000))).await,
        Code::ResourceExhausted,
        "a message over the limit"
    );
    let mut hurried = ask("never");
    hurried
        .metadata_mut()
        .insert("grpc-timeout", "60m".parse().unwrap());
    assert_eq!(code(hurried).await, Code::DeadlineExceeded);
    let mut patient = ask("deadline?");
    patient.set_timeout(Duration::from_secs(60));
    client.embed(patient).await.unwrap();
    works(&mut client).await;

    let figures = muse_service::metrics::install().unwrap().render();
    for code in [
        "OK",
        "INVALID_ARGUMENT",
        "INTERNAL",
        "RESOURCE_EXHAUSTED",
        "DEADLINE_EXCEEDED",
    ] {
        let method = "/muse.internal.v1.TextEncoder/Embed";
        let line = format!("muse_requests_total{{method=\"{method}\",code=\"{code}\"}}");
        assert!(figures.contains(&line), "{line} is not in\n{figures}");
    }
}

#[tokio::test]
async fn bytes_that_are_no_message_are_the_callers_mistake() {
    let port = Running::start(&GrpcServer::default(), Shutdown::DEFAULT_DRAIN).await;
    let mut grpc = tonic::client::Grpc::new(port.channel());
    grpc.ready().await.unwrap();
    // Field 1 is a number here and a text there.
    let number_for_text = muse_proto::v1::JobError {
        reason: 1,
        ..Default::default()
    };
    let codec = tonic_prost::ProstCodec::<muse_proto::v1::JobError, EmbedResponse>::default();
    let path = "/muse.internal.v1.TextEncoder/Embed".parse().unwrap();
    let status = grpc
        .unary(Request::new(number_for_text), path, codec)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
}

#[tokio::test]
async fn garbage_on_the_port_and_silence_do_no_harm() {
    let config = GrpcServer {
        handshake_timeout_ms: 50,
        ..GrpcServer::default()
    };
    let port = Running::start(&config, Shutdown::DEFAULT_DRAIN).await;
    let mut before = port.client();
    works(&mut before).await;

    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        &[0xff; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let mut stream = TcpStream::connect(port.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        // The server may close, or reset what it has not read: both end the connection.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    let mut silent = TcpStream::connect(port.address).await.unwrap();
    let closed = silent.read_to_end(&mut Vec::new()).await;
    assert!(
        closed.is_ok(),
        "a silent connection was not closed cleanly: {closed:?}"
    );

    works(&mut before).await;
    works(&mut port.client()).await;
}

#[tokio::test]
async fn one_connection_over_the_limit_is_closed_and_a_place_comes_free_again() {
    let config = GrpcServer {
        max_connections: 1,
        ..GrpcServer::default()
    };
    let port = Running::start(&config, Shutdown::DEFAULT_DRAIN).await;
    let first = TcpStream::connect(port.address).await.unwrap();
    let mut second = TcpStream::connect(port.address).await.unwrap();
    let closed = second.read_to_end(&mut Vec::new()).await;
    assert!(closed.is_ok(), "{closed:?}");
    drop(first);
    let mut client = port.client();
    while client.embed(ask("four")).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_health_watch_does_not_hold_the_shutdown_up() {
    let port = Running::start(&GrpcServer::default(), Duration::from_secs(3600)).await;
    let mut health = HealthClient::new(port.channel());
    let request = HealthCheckRequest {
        service: "muse.internal.v1.TextEncoder".to_owned(),
    };
    let mut watch = health.watch(request).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    port.readiness.set_ready(true);
    assert!(watch.message().await.unwrap().is_some());
    port.trigger.shut_down();
    port.served.await.unwrap().unwrap();
    assert_eq!(port.readiness.describe(), "draining");
}

#[tokio::test]
async fn a_call_that_does_not_end_is_cut_after_the_drain() {
    let port = Running::start(&GrpcServer::default(), Duration::from_millis(50)).await;
    let mut client = port.client();
    works(&mut client).await;
    let stuck = tokio::spawn(async move { client.embed(ask("never")).await });
    // The call has to be under way before the shutdown; the server's own count of calls does not say so, another call does.
    works(&mut port.client()).await;
    port.trigger.shut_down();
    port.served.await.unwrap().unwrap();
    let status = stuck.await.unwrap().unwrap_err();
    assert!(status.code() != Code::Ok, "{status:?}");
}

#[tokio::test]
async fn a_taken_port_and_a_remote_address_are_refused_in_one_line() {
    let port = Running::start(&GrpcServer::default(), Shutdown::DEFAULT_DRAIN).await;
    let bind = |listen: SocketAddr| {
        let config = GrpcServer {
            listen,
            ..GrpcServer::default()
        };
        Server::new(&config, Authentication::None, Readiness::new()).bind()
    };
    let taken = bind(port.address).await.unwrap_err().to_string();
    assert!(
        taken.contains(&port.address.to_string()) && taken.contains("grpc.listen"),
        "{taken}"
    );
    let remote = bind(SocketAddr::from(([0, 0, 0, 0], 0)))
        .await
        .unwrap_err()
        .to_string();
    assert!(remote.contains("insecure_allow_remote"), "{remote}");
}
