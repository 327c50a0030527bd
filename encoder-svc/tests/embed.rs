//! The whole service, in process, on the tiny bundle and the real ONNX Runtime: what a worker gets over gRPC is what the
//! engine gives alone, to the bit.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]

use std::path::{Path, PathBuf};

use muse_encoder_svc::{EncoderConfig, Service};
use muse_engine::{Bundle, Runtime, SessionOptions, TextEncoder};
use muse_proto::internal::v1::{EmbedRequest, Embedding, text_encoder_client::TextEncoderClient};
use muse_service::{
    Shutdown,
    client::{self, Channel},
    config::{GrpcClient, GrpcServer, Ops},
};
use tonic::Code;
use tonic_types::StatusExt as _;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn config() -> EncoderConfig {
    let library = std::env::var_os("MUSE__RUNTIME__ONNXRUNTIME").map_or_else(
        || root().join(".deps/onnxruntime/libonnxruntime.so"),
        PathBuf::from,
    );
    assert!(
        library.is_file(),
        "{} is not there: run scripts/fetch-deps",
        library.display()
    );
    EncoderConfig {
        bundle: root().join("tests/bundles/tiny"),
        grpc: GrpcServer::on_port(0),
        ops: Ops::on_port(0),
        runtime: SessionOptions {
            onnxruntime: Some(library),
            threads: 1,
            ..SessionOptions::default()
        },
        ..EncoderConfig::default()
    }
}

async fn embed(
    client: &mut TextEncoderClient<Channel>,
    texts: &[&str],
) -> Result<Vec<Embedding>, tonic::Status> {
    let texts = texts.iter().map(|text| (*text).to_owned()).collect();
    let request = EmbedRequest {
        texts,
        ..EmbedRequest::default()
    };
    Ok(client.embed(request).await?.into_inner().embeddings)
}

#[tokio::test]
async fn embeddings_over_grpc_are_the_engines_alone_and_a_drain_ends_the_service() {
    let config = config();
    let service = Service::bind(config.clone()).await.unwrap();
    let address = service.addresses().grpc.unwrap().to_string();
    let (trigger, shutdown) = Shutdown::manual();
    let served = tokio::spawn(service.serve(shutdown));
    let mut client = TextEncoderClient::new(client::connect(&address, &GrpcClient::default()).unwrap());

    let texts = [
        "",
        "a red circle",
        "a red",
        "two blue squares on a white sky",
        "blue",
        "a green star",
        "red",
    ];
    let answers = embed(&mut client, &texts).await.unwrap();

    let bundle = Bundle::load(&config.bundle).unwrap();
    Runtime::initialise(config.runtime.onnxruntime.as_deref()).unwrap();
    let mut alone = TextEncoder::open(&bundle, &config.runtime).unwrap();
    for (text, answer) in texts.iter().zip(&answers) {
        let tokens = alone.tokenize(text).unwrap();
        let expected = alone.embed(&[tokens]).unwrap().remove(0);
        let bytes: Vec<u8> = expected
            .values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let tensor = answer.embedding.clone().unwrap();
        assert_eq!(
            tensor.shape,
            [expected.length as u64, expected.width as u64],
            "{text:?}"
        );
        assert_eq!(answer.tokens as usize, expected.length, "{text:?}");
        assert!(
            tensor.data == bytes,
            "{text:?} is not what the engine gives alone"
        );
        assert!(!answer.cached, "{text:?}");
    }
    let again = embed(&mut client, &["a red", "new"]).await.unwrap();
    assert_eq!((again[0].cached, again[1].cached), (true, false));
    assert_eq!(again[0].embedding, answers[2].embedding);

    let long = "a red circle ".repeat(50);
    let status = embed(&mut client, &["fine", &long]).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let fields = status.get_details_bad_request().unwrap().field_violations;
    assert_eq!(fields.len(), 1, "{fields:?}");
    assert_eq!(fields[0].field, "texts[1]");
    let limit = bundle.text().max_length.to_string();
    assert!(fields[0].description.contains(&limit), "{fields:?}");

    let other = EmbedRequest {
        model: "other".to_owned(),
        ..EmbedRequest::default()
    };
    assert_eq!(
        client.embed(other).await.unwrap_err().code(),
        Code::FailedPrecondition
    );

    trigger.shut_down();
    served.await.unwrap().unwrap();
    assert_eq!(
        embed(&mut client, &["late"]).await.unwrap_err().code(),
        Code::Unavailable
    );
}

#[tokio::test]
async fn a_service_without_a_bundle_says_which_key_to_set() {
    let config = EncoderConfig {
        bundle: PathBuf::new(),
        ..config()
    };
    let error = Service::bind(config)
        .await
        .err()
        .map(|error| format!("{error:#}"))
        .unwrap();
    assert!(error.contains("key bundle"), "{error}");
}
