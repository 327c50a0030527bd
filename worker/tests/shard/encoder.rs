//! A text encoder in this process: an embedding is a function of the text.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use muse_proto::internal::v1::{
    ElementType, EmbedRequest, EmbedResponse, Embedding, Tensor,
    text_encoder_server::{TextEncoder, TextEncoderServer},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// A text that the encoder refuses.
pub(crate) const REFUSED: &str = "refused";

/// The tiny bundle's.
const WIDTH: usize = 24;

#[derive(Default)]
pub(crate) struct State {
    pub(crate) calls: AtomicUsize,
    pub(crate) broken: AtomicBool,
}

pub(crate) struct FakeEncoder {
    address: SocketAddr,
    pub(crate) state: Arc<State>,
    server: JoinHandle<()>,
}

struct Service(Arc<State>);

#[tonic::async_trait]
impl TextEncoder for Service {
    async fn embed(&self, request: Request<EmbedRequest>) -> Result<Response<EmbedResponse>, Status> {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        if self.0.broken.load(Ordering::SeqCst) {
            return Err(Status::unavailable("broken"));
        }
        let request = request.into_inner();
        if request.texts.iter().any(|text| text == REFUSED) {
            return Err(Status::invalid_argument("texts[0]: refused"));
        }
        let embeddings = request.texts.iter().map(|text| {
            let tokens = text.split_whitespace().count() + 1;
            let data: Vec<u8> = (0..tokens * WIDTH)
                .flat_map(|index| {
                    let seed = text
                        .bytes()
                        .fold(index as u32, |hash, byte| hash.wrapping_mul(31) ^ u32::from(byte));
                    ((seed.wrapping_mul(0x9E37_79B9) >> 8) as f32 / (1 << 23) as f32 - 1.0).to_le_bytes()
                })
                .collect();
            let shape = vec![tokens as u64, WIDTH as u64];
            let tensor = Tensor {
                element_type: ElementType::F32 as i32,
                shape,
                data: data.into(),
            };
            Embedding {
                embedding: Some(tensor),
                tokens: tokens as u32,
                cached: false,
            }
        });
        Ok(Response::new(EmbedResponse {
            embeddings: embeddings.collect(),
        }))
    }
}

impl FakeEncoder {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let serve =
            tonic::transport::Server::builder().add_service(TextEncoderServer::new(Service(state.clone())));
        let server = tokio::spawn(async move {
            serve
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        FakeEncoder {
            address,
            state,
            server,
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn calls(&self) -> usize {
        self.state.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn break_down(&self, broken: bool) {
        self.state.broken.store(broken, Ordering::SeqCst);
    }
}

impl Drop for FakeEncoder {
    fn drop(&mut self) {
        self.server.abort();
    }
}
