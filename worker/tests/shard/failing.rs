//! What fails, and how it is told.

use std::fs;

use muse_engine::{Provider, Stage};
use muse_proto::{
    internal::v1::{Checkpoint, Fail, Lease, attach_request::Message},
    v1::{JobErrorReason, Sampling},
};
use muse_service::Shutdown;
use muse_worker::{Worker, WorkerConfig};

use crate::{
    encoder::{FakeEncoder, REFUSED},
    gateway::{FakeGateway, Session},
    worker::{Running, Wish, bundle, config, wish},
};

/// How a lease fails: the reason, whether another attempt may help, and the words.
async fn failure(session: &mut Session, lease: &Lease) -> (JobErrorReason, bool, String) {
    session.lease(lease).await;
    let report = session.report(lease).await;
    session.ack(lease).await;
    match report {
        Message::Fail(Fail {
            error: Some(error),
            retriable,
            ..
        }) => (error.reason(), retriable, error.message),
        other => panic!("did not fail: {other:?}"),
    }
}

async fn completes(session: &mut Session, lease: &Lease) {
    session.lease(lease).await;
    let report = session.report(lease).await;
    assert!(matches!(report, Message::Complete(_)), "{report:?}");
    session.ack(lease).await;
}

#[tokio::test]
async fn a_bad_lease_fails_its_job_and_the_worker_goes_on() {
    let (mut gateway, encoder) = (FakeGateway::start().await, FakeEncoder::start().await);
    let worker = Running::start(config(Stage::Superres, &[gateway.endpoint()], &[&encoder])).await;
    let mut session = gateway.welcome().await;
    let good = || wish(1, Stage::Superres);
    let mut no_seed = good().lease();
    no_seed.request.as_mut().unwrap().seed = None;
    let mut no_low_tokens = good().lease();
    no_low_tokens.low_tokens = None;
    let mut foreign_token = good().lease();
    let tensor = foreign_token.low_tokens.as_mut().unwrap();
    tensor.data = vec![37u8; tensor.data.len()].into();
    let short_checkpoint = Wish {
        checkpoint: Some(Checkpoint {
            stage: 2,
            rows: vec![],
        }),
        ..good()
    }
    .lease();
    let mut untrue_checkpoint = good().lease();
    let masked = muse_proto::internal::v1::RowState {
        tokens: Some(muse_worker::grid::row_to_tensor(&[53; 96])),
        step: 3,
        of: 5,
        initially_masked: 96,
        initially_known: vec![],
    };
    untrue_checkpoint.checkpoint = Some(Checkpoint {
        stage: 2,
        rows: vec![masked],
    });
    for (nonce, (mut lease, says)) in [
        (no_seed, "seed"),
        (no_low_tokens, "low_tokens"),
        (foreign_token, "codebook"),
        (short_checkpoint, "0 rows for 1 pictures"),
        (untrue_checkpoint, "masked"),
    ]
    .into_iter()
    .enumerate()
    {
        lease.nonce = vec![nonce as u8 + 10; 16];
        let (reason, retriable, words) = failure(&mut session, &lease).await;
        assert_eq!((reason, retriable), (JobErrorReason::Internal, false), "{words}");
        assert!(words.contains(says), "{words}");
    }
    let nan = Sampling {
        guidance: Some(f32::NAN),
        ..Sampling::default()
    };
    let not_a_number = Wish {
        sampling: nan,
        ..wish(30, Stage::Superres)
    };
    let (reason, retriable, words) = failure(&mut session, &not_a_number.lease()).await;
    assert_eq!(
        (reason, retriable),
        (JobErrorReason::InvalidRequest, false),
        "{words}"
    );
    let mut misrouted = wish(31, Stage::Superres).lease();
    misrouted.stage = 1;
    let (reason, retriable, words) = failure(&mut session, &misrouted).await;
    assert_eq!((reason, retriable), (JobErrorReason::Internal, true), "{words}");

    completes(&mut session, &wish(40, Stage::Superres).lease()).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_text_that_the_encoder_refuses_is_the_requests_fault() {
    let (mut gateway, encoder) = (FakeGateway::start().await, FakeEncoder::start().await);
    let worker = Running::start(config(Stage::Base, &[gateway.endpoint()], &[&encoder])).await;
    let mut session = gateway.welcome().await;
    let refused = Wish {
        prompt: REFUSED,
        ..wish(1, Stage::Base)
    };
    let (reason, retriable, words) = failure(&mut session, &refused.lease()).await;
    assert_eq!(
        (reason, retriable),
        (JobErrorReason::InvalidRequest, false),
        "{words}"
    );
    worker.stop().await;
}

#[tokio::test]
async fn an_encoder_that_fails_is_replaced_by_another_and_without_any_the_attempt_fails() {
    let mut gateway = FakeGateway::start().await;
    let encoders = [FakeEncoder::start().await, FakeEncoder::start().await];
    let both: Vec<&FakeEncoder> = encoders.iter().collect();
    let worker = Running::start(config(Stage::Base, &[gateway.endpoint()], &both)).await;
    let mut session = gateway.welcome().await;
    for (job, broken) in [(1, 0), (2, 1)] {
        encoders[broken].break_down(true);
        encoders[1 - broken].break_down(false);
        let prompt = ["", "a house", "a tree"][job as usize];
        let wish = Wish {
            prompt,
            ..wish(job, Stage::Base)
        };
        completes(&mut session, &wish.lease()).await;
    }
    encoders.iter().for_each(|encoder| encoder.break_down(true));
    let unembedded = Wish {
        prompt: "a boat",
        ..wish(3, Stage::Base)
    };
    let (reason, retriable, words) = failure(&mut session, &unembedded.lease()).await;
    assert_eq!(
        (reason, retriable),
        (JobErrorReason::EncoderUnavailable, true),
        "{words}"
    );

    // What was embedded before is still here.
    let calls: usize = encoders.iter().map(FakeEncoder::calls).sum();
    let known = Wish {
        prompt: "a house",
        ..wish(4, Stage::Base)
    };
    completes(&mut session, &known.lease()).await;
    assert_eq!(encoders.iter().map(FakeEncoder::calls).sum::<usize>(), calls);
    worker.stop().await;
}

/// The line that start-up stops with.
async fn refusal(config: WorkerConfig) -> String {
    let (_trigger, shutdown) = Shutdown::manual();
    let error = Worker::bind(config)
        .await
        .unwrap()
        .serve(shutdown)
        .await
        .unwrap_err();
    format!("{error:#}")
}

#[tokio::test]
async fn a_second_worker_on_the_same_port_is_told_which_key_to_set() {
    let encoder = FakeEncoder::start().await;
    let mut config = config(Stage::Base, &["http://127.0.0.1:1".to_owned()], &[&encoder]);
    let first = Worker::bind(config.clone()).await.unwrap();
    config.ops.listen = first.ops_addr();
    let line = format!("{:#}", Worker::bind(config).await.err().unwrap());
    assert!(
        line.contains("set ops.listen to another") && line.contains("in use") && !line.contains('\n'),
        "{line}"
    );
}

#[tokio::test]
async fn a_bad_bundle_stops_the_start_with_one_line_that_names_the_file() {
    let encoder = FakeEncoder::start().await;
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(bundle()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let mut config = config(Stage::Base, &["http://127.0.0.1:1".to_owned()], &[&encoder]);
    config.bundle = folder.path().to_owned();
    let file = folder.path().join("base_step.onnx");
    let mut bytes = fs::read(&file).unwrap();
    bytes[1000] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let line = refusal(config.clone()).await;
    assert!(
        line.contains("base_step.onnx") && line.contains("SHA-256"),
        "{line}"
    );
    fs::remove_file(&file).unwrap();
    let line = refusal(config).await;
    assert!(
        line.contains("base_step.onnx") && line.contains("missing") && !line.contains('\n'),
        "{line}"
    );
}

#[tokio::test]
async fn a_provider_that_cannot_be_had_stops_the_start_unless_another_may_take_over() {
    let (mut gateway, encoder) = (FakeGateway::start().await, FakeEncoder::start().await);
    let mut config = config(Stage::Base, &[gateway.endpoint()], &[&encoder]);
    config.runtime.providers = vec![Provider::Cuda];
    let line = refusal(config.clone()).await;
    assert!(line.contains("cuda") && !line.contains('\n'), "{line}");
    config.runtime.providers.push(Provider::Cpu);
    let worker = Running::start(config).await;
    let session = gateway.welcome().await;
    assert_eq!(session.hello.provider, "cpu");
    worker.stop().await;
}
