//! Spans on their way to a collector, under the trace that the client began.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]

use std::net::SocketAddr;

use muse_proto::internal::v1::{
    EmbedRequest, EmbedResponse,
    text_encoder_client::TextEncoderClient,
    text_encoder_server::{TextEncoder, TextEncoderServer},
};
use muse_service::{
    Readiness, Shutdown, client,
    config::{GrpcClient, GrpcServer, Telemetry},
    grpc::Server,
    identity::Authentication,
    telemetry,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENTS_SPAN: &str = "b7ad6b7169203331";

struct Collector(mpsc::Sender<Span>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans;
        for span in resources
            .into_iter()
            .flat_map(|resource| resource.scope_spans)
            .flat_map(|scope| scope.spans)
        {
            self.0.send(span).await.unwrap();
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Answers with the trace context that the next service would get.
struct Tell;

#[tonic::async_trait]
impl TextEncoder for Tell {
    async fn embed(&self, _: Request<EmbedRequest>) -> Result<Response<EmbedResponse>, Status> {
        let onward = telemetry::trace_context::current().unwrap();
        Err(Status::failed_precondition(onward))
    }
}

async fn collector() -> (SocketAddr, mpsc::Receiver<Span>) {
    let (sender, spans) = mpsc::channel(100);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(Collector(sender)))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(serving);
    (address, spans)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_a_span_of_the_clients_trace_and_so_is_what_it_calls() {
    let (address, mut spans) = collector().await;
    let config = Telemetry {
        otlp_endpoint: Some(format!("http://{address}")),
        ..Telemetry::default()
    };
    let guard = telemetry::init("muse-test", &config).unwrap();

    let port = Server::new(&GrpcServer::default(), Authentication::None, Readiness::new())
        .add_service(TextEncoderServer::new(Tell))
        .bind()
        .await
        .unwrap();
    let channel = client::connect(&port.local_addr().to_string(), &GrpcClient::default()).unwrap();
    let (_trigger, shutdown) = Shutdown::manual();
    tokio::spawn(port.serve(shutdown));

    let mut request = Request::new(EmbedRequest::default());
    let traceparent = format!("00-{TRACE}-{CLIENTS_SPAN}-01");
    request
        .metadata_mut()
        .insert("traceparent", traceparent.parse().unwrap());
    let onward = TextEncoderClient::new(channel)
        .embed(request)
        .await
        .unwrap_err()
        .message()
        .to_owned();
    assert!(onward.starts_with(&format!("00-{TRACE}-")), "{onward}");
    assert!(!onward.contains(CLIENTS_SPAN), "{onward}");

    tokio::task::spawn_blocking(|| guard.flush()).await.unwrap();
    let span = spans.recv().await.unwrap();
    assert_eq!(hex(&span.trace_id), TRACE, "{span:?}");
    assert_eq!(hex(&span.parent_span_id), CLIENTS_SPAN, "{span:?}");
    assert_eq!(span.name, "/muse.internal.v1.TextEncoder/Embed");
}
