//! Many submissions over one stream.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use muse_proto::v1::{
    GenerationRequest, JobState, Stage, SubmitJobsOpened, SubmitJobsRequest, SubmitJobsResponse,
    SubmitJobsUntil, submit_jobs_response::Event,
};
use support::{
    request,
    scene::{Client, Scene, cancel, get, until_state},
    soon,
    worker::picture_bytes,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

struct Stream {
    items: mpsc::Sender<SubmitJobsRequest>,
    answers: Streaming<SubmitJobsResponse>,
    opened: SubmitJobsOpened,
}

impl Stream {
    async fn open(client: &mut Client) -> Self {
        let (items, outbox) = mpsc::channel(16);
        let answers = client.submit_jobs(ReceiverStream::new(outbox)).await;
        let mut answers = answers.expect("a stream").into_inner();
        let first = soon("the opening", answers.message()).await.expect("no error");
        let Some(Event::Opened(opened)) = first.and_then(|answer| answer.event) else {
            panic!("the stream opens by saying what it takes")
        };
        Self {
            items,
            answers,
            opened,
        }
    }

    fn send(&self, sequence: u64, request: GenerationRequest, until: SubmitJobsUntil) {
        let item = SubmitJobsRequest {
            sequence,
            request: Some(request),
            until: until.into(),
        };
        self.items.try_send(item).expect("an open stream with room");
    }

    async fn next(&mut self) -> Result<Option<(u64, Event)>, Status> {
        let answer = soon("an answer", self.answers.message()).await?;
        Ok(answer.map(|answer| (answer.sequence, answer.event.expect("an event"))))
    }

    async fn answer(&mut self) -> (u64, Event) {
        self.next().await.expect("no error").expect("not the end")
    }

    /// Half-closes, and expects the end.
    async fn close(mut self) {
        drop(self.items);
        let end = soon("the end", self.answers.message()).await.expect("OK");
        assert_eq!(end, None);
    }
}

fn keyed(prompt: &str, key: &str) -> GenerationRequest {
    GenerationRequest {
        idempotency_key: key.to_owned(),
        ..request(prompt)
    }
}

#[tokio::test]
async fn each_item_has_its_own_answer_and_a_bad_one_stops_nothing() {
    let mut scene = Scene::of(&[Stage::Base]).await;
    let mut stream = Stream::open(&mut scene.client).await;
    stream.send(10, keyed("a cat", "one"), SubmitJobsUntil::Unspecified);
    let (sequence, first) = stream.answer().await;
    let Event::Accepted(first) = first else {
        panic!("{first:?}")
    };
    assert_eq!((sequence, first.already_existed), (10, false));

    stream.send(11, keyed("a cat", "one"), SubmitJobsUntil::Accepted);
    stream.send(12, request(" "), SubmitJobsUntil::Images);
    stream.send(13, keyed("a dog", "one"), SubmitJobsUntil::Accepted);
    stream.send(14, request("a dog"), SubmitJobsUntil::Accepted);
    let mut answers = BTreeMap::new();
    while answers.len() < 4 {
        let (sequence, event) = stream.answer().await;
        assert!(answers.insert(sequence, event).is_none(), "one answer each");
    }
    match &answers[&11] {
        Event::Accepted(again) => assert!(again.already_existed && again.job_id == first.job_id),
        other => panic!("{other:?}"),
    }
    match &answers[&12] {
        Event::Error(error) => {
            assert_eq!(Code::from(error.code), Code::InvalidArgument);
            assert_eq!(error.field_violations[0].field, "request.text_to_image.prompt");
            assert_eq!(error.retry_delay, None);
        }
        other => panic!("{other:?}"),
    }
    match &answers[&13] {
        Event::Error(error) => assert_eq!(Code::from(error.code), Code::AlreadyExists),
        other => panic!("{other:?}"),
    }
    assert!(matches!(&answers[&14], Event::Accepted(_)), "{answers:?}");
    stream.close().await;
}

#[tokio::test]
async fn an_item_is_followed_to_its_pictures_and_found_again_with_its_key() {
    let mut scene = Scene::of(&[Stage::Base]).await;
    for already_existed in [false, true] {
        let mut stream = Stream::open(&mut scene.client).await;
        stream.send(0, keyed("a cat", "one"), SubmitJobsUntil::Images);
        let (_, Event::Accepted(accepted)) = stream.answer().await else {
            panic!("not accepted")
        };
        assert_eq!(accepted.already_existed, already_existed);
        if !already_existed {
            scene.worker.work_once().await;
        }
        let (sequence, event) = stream.answer().await;
        let Event::Image(image) = event else {
            panic!("{event:?}")
        };
        assert_eq!((sequence, &image.data[..]), (0, &picture_bytes(0)[..]));
        let (_, event) = stream.answer().await;
        let Event::Ended(job) = event else {
            panic!("{event:?}")
        };
        assert_eq!((job.id, job.state), (accepted.job_id, JobState::Succeeded as i32));
        stream.close().await;
    }
}

#[tokio::test]
async fn a_job_that_is_cancelled_is_told_to_both_items_that_share_it() {
    let mut scene = Scene::of(&[Stage::Base]).await;
    let mut stream = Stream::open(&mut scene.client).await;
    let mut jobs = BTreeSet::new();
    for sequence in [1, 2] {
        stream.send(sequence, keyed("a cat", "one"), SubmitJobsUntil::Ended);
        let (_, event) = stream.answer().await;
        let Event::Accepted(accepted) = event else {
            panic!("{event:?}")
        };
        jobs.insert(accepted.job_id);
    }
    let id = jobs.pop_first().unwrap();
    assert!(jobs.is_empty(), "one key, one job");
    cancel(&mut scene.client, &id).await;
    let mut told = BTreeSet::new();
    while told.len() < 2 {
        let (sequence, event) = stream.answer().await;
        let Event::Ended(job) = event else {
            panic!("{event:?}")
        };
        assert_eq!(job.state(), JobState::Cancelled);
        told.insert(sequence);
    }
    stream.close().await;
}

#[tokio::test]
async fn more_items_than_may_be_in_flight_wait_unread() {
    let mut scene = Scene::with(&[Stage::Base], |config| config.submit.in_flight = 2).await;
    let mut stream = Stream::open(&mut scene.client).await;
    assert_eq!(stream.opened.max_in_flight, 2);
    for sequence in 0..7 {
        stream.send(sequence, request("a cat"), SubmitJobsUntil::Ended);
    }
    let (mut accepted, mut ended) = (0, 0);
    while ended < 7 {
        match stream.answer().await.1 {
            Event::Accepted(_) => accepted += 1,
            Event::Ended(_) => ended += 1,
            other => panic!("{other:?}"),
        }
        assert!(accepted - ended <= 2, "{accepted} accepted, {ended} ended");
        if accepted - ended == 2 || (accepted == 7 && ended < 7) {
            // One job, so that the others stay in flight.
            scene.worker.credit(1).await;
            let lease = scene.worker.lease().await;
            scene.worker.complete(&lease).await;
            scene.worker.ack().await;
        }
    }
    stream.close().await;
}

#[tokio::test]
async fn a_full_queue_refuses_an_item_with_a_delay_and_takes_it_later() {
    let mut scene = Scene::with(&[Stage::Base], |config| config.queue.max_waiting = 1).await;
    let mut stream = Stream::open(&mut scene.client).await;
    stream.send(1, request("a cat"), SubmitJobsUntil::Accepted);
    assert!(matches!(stream.answer().await, (1, Event::Accepted(_))));
    stream.send(2, request("a cat"), SubmitJobsUntil::Accepted);
    let (_, event) = stream.answer().await;
    let Event::Error(error) = event else {
        panic!("{event:?}")
    };
    assert_eq!(Code::from(error.code), Code::Unavailable);
    assert!(
        error.retry_delay.is_some_and(|delay| delay.seconds > 0),
        "{error:?}"
    );
    scene.worker.work_once().await;
    stream.send(2, request("a cat"), SubmitJobsUntil::Accepted);
    assert!(matches!(stream.answer().await, (2, Event::Accepted(_))));
    stream.close().await;
}

#[tokio::test]
async fn a_drain_ends_the_stream_and_not_its_jobs() {
    let mut scene = Scene::of(&[Stage::Base]).await;
    let mut stream = Stream::open(&mut scene.client).await;
    stream.send(1, keyed("a cat", "one"), SubmitJobsUntil::Images);
    let (_, event) = stream.answer().await;
    let Event::Accepted(accepted) = event else {
        panic!("{event:?}")
    };
    let second = support::cluster::RunningGateway::start(&scene.redis).await;
    scene.gateway.stop().await;
    let status = stream.next().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");

    let mut client = second.generation().await;
    assert_eq!(get(&mut client, &accepted.job_id).await.id, accepted.job_id);
    let mut stream = Stream::open(&mut client).await;
    stream.send(1, keyed("a cat", "one"), SubmitJobsUntil::Ended);
    let (_, event) = stream.answer().await;
    let Event::Accepted(again) = event else {
        panic!("{event:?}")
    };
    assert!(again.already_existed && again.job_id == accepted.job_id);
}

#[tokio::test]
async fn a_follower_outlives_the_queue_server() {
    let mut scene = Scene::of(&[Stage::Base]).await;
    let mut stream = Stream::open(&mut scene.client).await;
    stream.send(1, request("a cat"), SubmitJobsUntil::Ended);
    let (_, event) = stream.answer().await;
    let Event::Accepted(accepted) = event else {
        panic!("{event:?}")
    };
    scene.redis.restart().await;
    cancel(&mut scene.client, &accepted.job_id).await;
    until_state(&scene.client, &accepted.job_id, JobState::Cancelled).await;
    let (sequence, event) = stream.answer().await;
    assert!(matches!(event, Event::Ended(_)) && sequence == 1, "{event:?}");
    stream.close().await;
}
