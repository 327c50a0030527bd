//! What comes of jobs.

use std::time::{Duration, Instant};

use muse_engine::Stage;
use muse_proto::{
    internal::v1::{Complete, Expect, Pictures, Tensor, attach_request::Message, attach_response, complete},
    v1::Sampling,
};

use crate::{
    encoder::FakeEncoder,
    gateway::{FakeGateway, PATIENCE, Session},
    worker::{Running, Wish, config, wish},
};

fn completed(message: Message) -> Complete {
    match message {
        Message::Complete(complete) => complete,
        other => panic!("not completed: {other:?}"),
    }
}

fn tokens(message: Message) -> Tensor {
    match completed(message).result {
        Some(complete::Result::Tokens(tensor)) => tensor,
        other => panic!("no tokens: {other:?}"),
    }
}

fn pictures(message: Message) -> Pictures {
    match completed(message).result {
        Some(complete::Result::Pictures(pictures)) => pictures,
        other => panic!("no pictures: {other:?}"),
    }
}

/// Runs jobs one after the other.
async fn one_by_one(session: &mut Session, wishes: &[Wish]) -> Vec<Message> {
    let mut reports = Vec::new();
    for wish in wishes {
        let lease = wish.lease();
        session.lease(&lease).await;
        reports.push(session.report(&lease).await);
        session.ack(&lease).await;
    }
    reports
}

#[tokio::test]
async fn a_base_job_becomes_tokens_with_its_times_and_credit_comes_back() {
    let (mut gateway, encoder) = (FakeGateway::start().await, FakeEncoder::start().await);
    let worker = Running::start(config(Stage::Base, &[gateway.endpoint()], &[&encoder])).await;
    let mut session = gateway.welcome().await;
    let model = session.hello.model.clone().unwrap();
    assert_eq!(
        (model.name.as_str(), model.stages.len(), model.max_text_tokens),
        ("muse-tiny", 2, 20)
    );
    assert_eq!(
        (session.hello.provider.as_str(), session.hello.row_budget),
        ("cpu", 8)
    );
    let credit = session.credit(1).await;

    let lease = Wish {
        count: 2,
        ..wish(1, Stage::Base)
    }
    .lease();
    session.lease(&lease).await;
    let report = completed(session.report(&lease).await);
    let timing = report.timing.clone().unwrap();
    assert!(timing.wait.unwrap().seconds >= 1, "{timing:?}");
    assert!(timing.embed.is_some() && timing.decode.is_some(), "{timing:?}");
    assert_eq!(timing.worker_id, session.hello.worker_id);
    let tensor = tokens(Message::Complete(report));
    assert_eq!(tensor.shape, [2, 24]);
    let values: Vec<u16> = tensor
        .data
        .chunks(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .collect();
    assert!(values.iter().all(|token| *token < 37), "{values:?}");
    assert_ne!(values[..24], values[24..], "each picture has its own randomness");
    session.ack(&lease).await;
    assert_eq!(session.credit(credit).await, credit);
    worker.stop().await;
}

#[tokio::test]
async fn progress_counts_the_steps_that_are_taken_from_the_first_report_on() {
    let (mut gateway, encoder) = (FakeGateway::start().await, FakeEncoder::start().await);
    let worker = Running::start(config(Stage::Base, &[gateway.endpoint()], &[&encoder])).await;
    let mut session = gateway.welcome().await;
    // More steps than the grid has positions: each reveals at least one.
    let sampling = Sampling {
        steps: Some(200),
        ..Sampling::default()
    };
    let lease = Wish {
        sampling,
        ..wish(1, Stage::Base)
    }
    .lease();
    session.lease(&lease).await;
    let told = session
        .wait("progress", |message| match message {
            Message::Heartbeat(heartbeat) => heartbeat.leases.first()?.progress,
            _ => None,
        })
        .await;
    assert_eq!(told.of, 24, "{told:?}");
    session.report(&lease).await;
    session.ack(&lease).await;
    worker.stop().await;
}

#[tokio::test]
async fn the_last_stage_makes_pictures_in_order() {
    let (mut gateway, encoder) = (FakeGateway::start().await, FakeEncoder::start().await);
    let worker = Running::start(config(Stage::Superres, &[gateway.endpoint()], &[&encoder])).await;
    let mut session = gateway.welcome().await;
    let lease = Wish {
        count: 3,
        ..wish(1, Stage::Superres)
    }
    .lease();
    session.lease(&lease).await;
    let pictures = pictures(session.report(&lease).await).pictures;
    assert_eq!(pictures.len(), 3);
    for (index, picture) in pictures.iter().enumerate() {
        let info = picture.info.clone().unwrap();
        assert_eq!((info.index as usize, info.width, info.height), (index, 48, 32));
        assert_eq!(info.size_bytes as usize, picture.data.len());
        assert!(picture.data.starts_with(b"\x89PNG"), "{:?}", &picture.data[..8]);
    }
    session.ack(&lease).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_job_among_seven_others_makes_the_tokens_that_it_makes_alone() {
    let (mut gateway, encoder) = (FakeGateway::start().await, FakeEncoder::start().await);
    let worker = Running::start(config(Stage::Base, &[gateway.endpoint()], &[&encoder])).await;
    let mut session = gateway.welcome().await;
    let wishes: Vec<Wish> = (0..8u8)
        .map(|job| Wish {
            prompt: ["two red apples", "a cat", "blue", "one two three four"][job as usize % 4],
            negative: if job % 3 == 0 { "green" } else { "" },
            sampling: Sampling {
                steps: Some(3 + u32::from(job)),
                guidance: Some(f32::from(job % 3)),
                ..Sampling::default()
            },
            count: 1 + u32::from(job % 2),
            ..wish(job, Stage::Base)
        })
        .collect();
    let alone: Vec<Tensor> = one_by_one(&mut session, &wishes)
        .await
        .into_iter()
        .map(tokens)
        .collect();
    let again: Vec<Wish> = wishes
        .iter()
        .map(|wish| Wish {
            job: wish.job,
            ..wish.clone()
        })
        .collect();
    let leases: Vec<_> = again
        .iter()
        .map(|wish| {
            let mut lease = wish.lease();
            lease.nonce = vec![wish.job + 100; 16];
            lease
        })
        .collect();
    for lease in &leases {
        session.lease(lease).await;
    }
    let mut mixed: Vec<Option<Tensor>> = vec![None; leases.len()];
    while let Some(open) = mixed.iter().position(Option::is_none) {
        let (index, tensor) = session
            .wait(&format!("job {open}"), |message| match message {
                Message::Complete(report) => {
                    let index = leases.iter().position(|lease| lease.nonce == report.nonce)?;
                    Some((index, tokens(message.clone())))
                }
                _ => None,
            })
            .await;
        mixed[index] = Some(tensor);
    }
    let mixed: Vec<Tensor> = mixed.into_iter().flatten().collect();
    assert_eq!(mixed, alone);
    for lease in &leases {
        session.ack(lease).await;
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_job_released_in_the_middle_goes_on_elsewhere_with_the_same_result() {
    let encoder = FakeEncoder::start().await;
    let mut first = FakeGateway::start().await;
    // 12 pictures of 40 guided steps, one row a pass: hundreds of passes.
    let sampling = Sampling {
        steps: Some(40),
        ..Sampling::default()
    };
    let long = Wish {
        count: 12,
        sampling,
        ..wish(1, Stage::Superres)
    };
    let slow = |gateway: &FakeGateway| {
        let mut config = config(Stage::Superres, &[gateway.endpoint()], &[&encoder]);
        config.batcher.row_budget = Some(2);
        config
    };
    let worker = Running::start(slow(&first)).await;
    let mut session = first.welcome().await;
    let lease = long.lease();
    session.lease(&lease).await;
    session
        .heartbeat("a checkpoint", |heartbeat| {
            heartbeat
                .leases
                .iter()
                .filter_map(|lease| lease.checkpoint.as_ref())
                .any(|it| it.rows[0].step > 3)
        })
        .await;
    worker.shut_down();
    let checkpoint = match session.report(&lease).await {
        Message::Release(release) => release.checkpoint.expect("it had begun"),
        other => panic!("not released: {other:?}"),
    };
    assert!(
        checkpoint.rows[0].step > 3 && checkpoint.rows[11].step < 40,
        "{checkpoint:?}"
    );
    session.ack(&lease).await;
    worker.ended().await.unwrap();

    let mut second = FakeGateway::start().await;
    let worker = Running::start(slow(&second)).await;
    let mut session = second.welcome().await;
    let resumed = Wish {
        checkpoint: Some(checkpoint),
        ..long.clone()
    }
    .lease();
    session.lease(&resumed).await;
    let resumed_pictures = pictures(session.report(&resumed).await);
    session.ack(&resumed).await;
    let mut whole = long.lease();
    whole.nonce = vec![77; 16];
    session.lease(&whole).await;
    assert_eq!(resumed_pictures, pictures(session.report(&whole).await));
    session.ack(&whole).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_result_that_cannot_be_stored_for_now_is_kept_and_delivered_again_as_it_was() {
    let (mut gateway, encoder) = (FakeGateway::start().await, FakeEncoder::start().await);
    let worker = Running::start(config(Stage::Superres, &[gateway.endpoint()], &[&encoder])).await;
    let mut session = gateway.welcome().await;
    let lease = wish(1, Stage::Superres).lease();
    session.lease(&lease).await;
    let first = session.report(&lease).await;
    session.postpone(&lease, Duration::from_millis(100)).await;
    // The lease is renewed as long as the result is kept.
    session
        .heartbeat("the lease", |beat| {
            beat.leases.iter().any(|held| held.nonce == lease.nonce)
        })
        .await;
    assert_eq!(session.report(&lease).await, first);
    session.ack(&lease).await;
    session.heartbeat("nothing", |beat| beat.leases.is_empty()).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_text_of_a_job_on_its_way_is_asked_for_once_and_before_the_lease() {
    let (mut gateway, encoder) = (FakeGateway::start().await, FakeEncoder::start().await);
    let worker = Running::start(config(Stage::Base, &[gateway.endpoint()], &[&encoder])).await;
    let mut session = gateway.welcome().await;
    // Without guidance the prompt is all that is needed.
    let lease = Wish {
        sampling: Sampling {
            guidance: Some(0.0),
            ..Sampling::default()
        },
        ..wish(1, Stage::Base)
    }
    .lease();
    let expect = Expect {
        texts: vec!["two red apples".to_owned()],
        traceparent: String::new(),
    };
    session.send(attach_response::Message::Expect(expect)).await;
    let begun = Instant::now();
    while encoder.calls() == 0 {
        assert!(begun.elapsed() < PATIENCE, "the text is not asked for");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    session.lease(&lease).await;
    tokens(session.report(&lease).await);
    assert_eq!(encoder.calls(), 1, "the job asked again");
    session.ack(&lease).await;
    worker.stop().await;
}
