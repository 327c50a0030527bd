//! What clients ask for and get.

use std::time::Duration;

use muse_proto::{
    internal::v1::{AckOutcome, Expect, Lease, attach_response},
    v1::{
        GenerateRequest, GenerateResponse, GenerationRequest, GetImageRequest, GetJobRequest, JobState,
        ListJobsRequest, Stage, SubmitJobRequest, generate_response::Event, generation_request::Task,
    },
};
use tonic::{Code, Streaming};
use tonic_types::StatusExt as _;

use crate::support::{
    self,
    cluster::RunningGateway,
    model,
    redis_server::RedisServer,
    request,
    scene::{BOTH, Scene, cancel, next, submission, submit, until_state},
    worker::{FakeWorker, picture_bytes, report, tokens},
};

async fn next_event(stream: &mut Streaming<GenerateResponse>) -> Option<Event> {
    next(stream).await.and_then(|response| response.event)
}

#[tokio::test]
async fn a_prompt_passes_both_stages_and_its_watcher_sees_all_of_it() {
    let scene = Scene::of(&BOTH).await;
    let Scene {
        gateway,
        worker: mut base,
        mut client,
        ..
    } = scene;
    let tiny = model("tiny", &BOTH);
    let mut superres = FakeWorker::attach(gateway.address, "superres-1", Stage::Superres, &tiny).await;
    base.credit(8).await;
    superres.credit(8).await;

    let mut wanted = request("two red apples");
    if let Some(Task::TextToImage(task)) = &mut wanted.task {
        task.count = Some(2);
    }
    let generate = GenerateRequest {
        request: Some(wanted),
        omit_images: false,
    };
    let mut events = client.generate(generate).await.unwrap().into_inner();
    let Some(Event::Job(accepted)) = next_event(&mut events).await else {
        panic!("the job comes first")
    };
    let resolved = accepted.request.clone().unwrap();
    assert_eq!(resolved.model, "tiny");
    assert!(
        resolved.seed.is_some() && resolved.base == Some(support::defaults()),
        "{resolved:?}"
    );

    let lease = base.lease().await;
    assert_eq!(
        (lease.stage(), &lease.request),
        (Stage::Base, &Some(resolved.clone()))
    );
    assert!(lease.low_tokens.is_none() && lease.nonce.len() == 16, "{lease:?}");
    base.heartbeat(vec![report(&lease, 2, 3)]).await;
    let stepped = loop {
        match next_event(&mut events).await {
            Some(Event::Progress(progress)) if progress.step == 2 => break progress,
            Some(Event::Job(_) | Event::Progress(_)) => {}
            other => panic!("no progress but {other:?}"),
        }
    };
    assert_eq!((stepped.stage(), stepped.of), (Stage::Base, 3));
    base.complete(&lease).await;
    assert_eq!(base.ack().await.outcome(), AckOutcome::Accepted);

    let lease = superres.lease().await;
    assert_eq!(
        (lease.stage(), lease.low_tokens.clone()),
        (Stage::Superres, Some(tokens(2)))
    );
    superres.complete(&lease).await;
    assert_eq!(superres.ack().await.outcome(), AckOutcome::Accepted);

    let mut pictures = Vec::new();
    let done = loop {
        match next_event(&mut events).await {
            Some(Event::Image(image)) => pictures.push(image.data.to_vec()),
            Some(Event::Job(job)) if job.state() == JobState::Succeeded => break job,
            Some(Event::Job(_) | Event::Progress(_)) => {}
            None => panic!("the stream ended before the job"),
        }
    };
    assert_eq!(
        pictures,
        [picture_bytes(0), picture_bytes(1)],
        "pictures come before the last event"
    );
    assert_eq!(next_event(&mut events).await, None);
    assert_eq!((done.images.len(), done.timings.len()), (2, 2));
    assert_eq!(done.timings[1].worker_id, "superres-1");
    assert_eq!(done.request, Some(resolved));

    let get = GetImageRequest {
        job_id: done.id.clone(),
        index: 1,
    };
    let image = client.get_image(get).await.unwrap().into_inner().image.unwrap();
    assert_eq!(
        (image.data.to_vec(), image.info),
        (picture_bytes(1), Some(done.images[1].clone()))
    );
    let missing = client
        .get_image(GetImageRequest {
            job_id: done.id,
            index: 2,
        })
        .await
        .unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    gateway.stop().await;
}

#[tokio::test]
async fn a_model_with_a_base_stage_alone_ends_there() {
    let mut scene = Scene::of(&[Stage::Base]).await;
    let job = submit(&mut scene.client, "a cat").await;
    scene.worker.work_once().await;
    assert_eq!(
        until_state(&scene.client, &job.id, JobState::Succeeded)
            .await
            .images
            .len(),
        1
    );
}

#[tokio::test]
async fn a_key_stands_for_one_request() {
    let scene = Scene::of(&BOTH).await;
    let mut client = scene.client.clone();
    let keyed = |prompt: &str| {
        let request = GenerationRequest {
            idempotency_key: "line 7".to_owned(),
            ..request(prompt)
        };
        SubmitJobRequest {
            request: Some(request),
        }
    };
    let first = client.submit_job(keyed("a cat")).await.unwrap().into_inner();
    let again = client.submit_job(keyed("a cat")).await.unwrap().into_inner();
    assert!(!first.already_existed && again.already_existed);
    assert_eq!(first.job.unwrap().id, again.job.unwrap().id);
    let other = client.submit_job(keyed("a dog")).await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists);
}

#[tokio::test]
async fn jobs_are_listed_newest_first_in_pages() {
    let scene = Scene::of(&BOTH).await;
    let mut client = scene.client.clone();
    let mut ids = Vec::new();
    for n in 0..5 {
        let job = submit(&mut client, &format!("cat {n}")).await;
        if n == 2 {
            cancel(&mut client, &job.id).await;
        }
        ids.push(job.id);
        // Names of the same millisecond have no order.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    ids.reverse();
    let mut listed = Vec::new();
    let mut page_token = String::new();
    loop {
        let page = ListJobsRequest {
            page_size: 2,
            page_token,
            states: Vec::new(),
        };
        let page = client.list_jobs(page).await.unwrap().into_inner();
        assert!(page.jobs.len() <= 2);
        listed.extend(page.jobs.into_iter().map(|job| job.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, ids);
    let states = vec![JobState::Cancelled as i32];
    let cancelled = client
        .list_jobs(ListJobsRequest {
            states,
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        cancelled.jobs.iter().map(|job| &job.id).collect::<Vec<_>>(),
        [&ids[2]]
    );
}

#[tokio::test]
async fn bad_input_is_refused_field_by_field() {
    let redis = RedisServer::start().await;
    let gateway = RunningGateway::start(&redis).await;
    let mut client = gateway.generation().await;
    let early = client.submit_job(submission("a cat")).await.unwrap_err();
    assert_eq!(early.code(), Code::Unavailable);
    assert!(
        early.message().contains("no worker has attached yet"),
        "{early:?}"
    );
    assert!(early.get_details_retry_info().is_some(), "{early:?}");

    let _worker = FakeWorker::attach(gateway.address, "w", Stage::Base, &model("tiny", &BOTH)).await;
    let mut bad = request("");
    bad.model = "huge".to_owned();
    let refused = client
        .submit_job(SubmitJobRequest { request: Some(bad) })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let fields: Vec<_> = refused
        .get_details_bad_request()
        .unwrap()
        .field_violations
        .into_iter()
        .map(|violation| violation.field)
        .collect();
    assert_eq!(
        fields,
        ["request.model", "request.text_to_image.prompt"],
        "{}",
        refused.message()
    );
    assert!(
        refused.message().contains("tiny"),
        "the known models are named: {}",
        refused.message()
    );

    let unknown = "01932c07-a1b0-7c3e-8f21-5b8f6c1d0000".to_owned();
    let missing = client
        .get_job(GetJobRequest { job_id: unknown })
        .await
        .unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let garbage = client
        .get_job(GetJobRequest {
            job_id: "garbage".to_owned(),
        })
        .await
        .unwrap_err();
    assert_eq!(garbage.code(), Code::InvalidArgument);
    let huge = client
        .submit_job(submission(&"x".repeat(100_000)))
        .await
        .unwrap_err();
    assert!(
        matches!(huge.code(), Code::ResourceExhausted | Code::OutOfRange),
        "{huge:?}"
    );
}

#[tokio::test]
async fn the_registry_of_models_is_read_once_for_many_submissions() {
    let mut scene = Scene::with(&BOTH, |config| config.models.refresh_ms = 3_600_000).await;
    // The attached worker has rung the registry's bell: that is answered once.
    submit(&mut scene.client, "the first").await;
    let reads = async |redis: &RedisServer| -> u64 {
        let text: String = redis.ask(&["INFO", "commandstats"]).await;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("cmdstat_hvals:calls="));
        line.and_then(|rest| rest.split(',').next()?.parse().ok())
            .unwrap_or(0)
    };
    let before = reads(&scene.redis).await;
    for number in 0..20 {
        submit(&mut scene.client, &format!("number {number}")).await;
    }
    let after = reads(&scene.redis).await;
    assert!(before > 0, "nothing was read at all");
    assert!(after - before <= 1, "{} reads for 20 submissions", after - before);
}

/// What a worker hears until its next lease: of jobs on their way, and the lease.
async fn until_lease(worker: &mut FakeWorker) -> (Vec<Expect>, Lease) {
    let mut expected = Vec::new();
    loop {
        match worker.next_of_all().await {
            Some(attach_response::Message::Expect(expect)) => expected.push(expect),
            Some(attach_response::Message::Lease(lease)) => return (expected, lease),
            other => panic!("no lease but {other:?}"),
        }
    }
}

#[tokio::test]
async fn idle_workers_hear_of_a_jobs_texts_before_its_lease_comes() {
    let scene = Scene::of(&BOTH).await;
    let Scene {
        worker: mut base,
        mut client,
        gateway,
        model,
        ..
    } = scene;
    let mut superres = FakeWorker::attach(gateway.address, "superres", Stage::Superres, &model).await;
    base.credit(1).await;
    superres.credit(1).await;
    // A worker that is looking, or has no credit yet, is not idle: then it hears nothing, and the next round asks again.
    let (mut by_base, mut by_superres) = (0, 0);
    for round in 0.. {
        assert!(
            round < 1000,
            "{by_base} rounds of {round} told base, {by_superres} superres"
        );
        if by_base > 0 && by_superres > 0 {
            break;
        }
        let mut request = submission(&format!("cat {round}"));
        if let Some(Task::TextToImage(task)) = request.request.as_mut().and_then(|all| all.task.as_mut()) {
            task.negative_prompt = "dogs".to_owned();
        }
        client.submit_job(request).await.unwrap();
        let texts = [format!("cat {round}"), "dogs".to_owned()];
        for (worker, count) in [(&mut base, &mut by_base), (&mut superres, &mut by_superres)] {
            let (expected, lease) = until_lease(worker).await;
            for expect in expected {
                assert_eq!(expect.texts, texts);
                *count += 1;
            }
            worker.complete(&lease).await;
            assert_eq!(worker.ack().await.outcome(), AckOutcome::Accepted);
            worker.credit(1).await;
        }
    }
}
