//! Clients and workers around real gateways and a real Redis; only the computing is left out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

mod support;

use std::time::Duration;

use muse_proto::{
    internal::v1::{AckOutcome, RevokeReason},
    v1::{
        CancelJobRequest, GenerateRequest, GenerateResponse, GetImageRequest, GetJobRequest,
        GetQueueStatusRequest, Job, JobErrorReason, JobState, ListJobsRequest, ListModelsRequest,
        ListWorkersRequest, Stage, SubmitJobRequest, WatchJobRequest, generate_response::Event,
        generation_client::GenerationClient, generation_request::Task, watch_job_response,
    },
};
use support::{
    cluster::{RunningGateway, config},
    model,
    redis_server::RedisServer,
    request, soon, until,
    worker::{FakeWorker, picture_bytes, report, result_of, tokens},
};
use tonic::{Code, Streaming, transport::Channel};
use tonic_types::StatusExt as _;

const BOTH: [Stage; 2] = [Stage::Base, Stage::Superres];

async fn submit(client: &mut GenerationClient<Channel>, prompt: &str) -> Job {
    let submit = SubmitJobRequest {
        request: Some(request(prompt)),
    };
    client
        .submit_job(submit)
        .await
        .expect("accepted")
        .into_inner()
        .job
        .expect("a job")
}

async fn get(client: &mut GenerationClient<Channel>, id: &str) -> Job {
    let get = GetJobRequest {
        job_id: id.to_owned(),
    };
    client
        .get_job(get)
        .await
        .expect("known")
        .into_inner()
        .job
        .expect("a job")
}

async fn until_state(client: &GenerationClient<Channel>, id: &str, state: JobState) -> Job {
    until(&format!("job {id} in state {state:?}"), || {
        let mut client = client.clone();
        async move { Some(get(&mut client, id).await).filter(|job| job.state() == state) }
    })
    .await
}

async fn next_event(stream: &mut Streaming<GenerateResponse>) -> Option<Event> {
    soon("an event", stream.message())
        .await
        .expect("no error")
        .and_then(|response| response.event)
}

#[tokio::test]
async fn a_prompt_passes_both_stages_and_its_watcher_sees_all_of_it() {
    let redis = RedisServer::start().await;
    let gateway = RunningGateway::start(&redis).await;
    let tiny = model("tiny", &BOTH);
    let mut base = FakeWorker::attach(gateway.address, "base-1", Stage::Base, &tiny).await;
    let mut superres = FakeWorker::attach(gateway.address, "superres-1", Stage::Superres, &tiny).await;
    base.credit(8).await;
    superres.credit(8).await;

    let mut client = gateway.generation().await;
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
    let redis = RedisServer::start().await;
    let gateway = RunningGateway::start(&redis).await;
    let mut worker =
        FakeWorker::attach(gateway.address, "w", Stage::Base, &model("small", &[Stage::Base])).await;
    let mut client = gateway.generation().await;
    let job = submit(&mut client, "a cat").await;
    worker.work_once().await;
    assert_eq!(
        until_state(&client, &job.id, JobState::Succeeded)
            .await
            .images
            .len(),
        1
    );
}

#[tokio::test]
async fn a_cancelled_job_is_taken_from_its_worker() {
    let redis = RedisServer::start().await;
    let gateway = RunningGateway::start(&redis).await;
    let mut worker = FakeWorker::attach(gateway.address, "w", Stage::Base, &model("tiny", &BOTH)).await;
    let mut client = gateway.generation().await;
    let job = submit(&mut client, "a cat").await;
    worker.credit(1).await;
    let lease = worker.lease().await;
    let cancel = CancelJobRequest {
        job_id: job.id.clone(),
    };
    let cancelled = client
        .cancel_job(cancel.clone())
        .await
        .unwrap()
        .into_inner()
        .job
        .unwrap();
    assert_eq!(cancelled.state(), JobState::Cancelled);
    let revoke = worker.revoke().await;
    assert_eq!(
        (revoke.job_id, revoke.nonce.clone()),
        (job.id, lease.nonce.clone())
    );
    assert_eq!(RevokeReason::try_from(revoke.reason), Ok(RevokeReason::Cancelled));
    // The doorbell may be lost; the next heartbeat says the same.
    worker.heartbeat(vec![report(&lease, 1, 3)]).await;
    assert_eq!(
        RevokeReason::try_from(worker.revoke().await.reason),
        Ok(RevokeReason::Cancelled)
    );
    worker.complete(&lease).await;
    assert_eq!(worker.ack().await.outcome(), AckOutcome::Stale);
    let again = client.cancel_job(cancel).await.unwrap().into_inner().job.unwrap();
    assert_eq!(
        again.version, cancelled.version,
        "a finished job is left as it is"
    );
}

#[tokio::test]
async fn a_job_goes_on_at_another_worker_when_the_first_one_dies() {
    let redis = RedisServer::start().await;
    let gateway = RunningGateway::start(&redis).await;
    let tiny = model("tiny", &BOTH);
    let mut first = FakeWorker::attach(gateway.address, "first", Stage::Base, &tiny).await;
    let mut client = gateway.generation().await;
    let job = submit(&mut client, "a cat").await;
    first.credit(1).await;
    let lost = first.lease().await;
    drop(first);

    let mut second = FakeWorker::attach(gateway.address, "second", Stage::Base, &tiny).await;
    second.credit(1).await;
    let lease = second.lease().await;
    assert_eq!(lease.job_id, job.id);
    assert_ne!(lease.nonce, lost.nonce);
    let running = until_state(&client, &job.id, JobState::Running).await;
    assert_eq!((running.crashes, running.worker_id.as_str()), (1, "second"));

    // The first one was only slow. Its result comes too late, the second's counts, and counts once.
    second.send_complete(result_of(&lost)).await;
    assert_eq!(second.ack().await.outcome(), AckOutcome::Stale);
    second.complete(&lease).await;
    assert_eq!(second.ack().await.outcome(), AckOutcome::Accepted);
    second.complete(&lease).await;
    assert_eq!(second.ack().await.outcome(), AckOutcome::Duplicate);
}

#[tokio::test]
async fn a_late_result_counts_while_nobody_took_the_job_over() {
    let redis = RedisServer::start().await;
    let gateway = RunningGateway::start(&redis).await;
    let mut worker =
        FakeWorker::attach(gateway.address, "w", Stage::Base, &model("small", &[Stage::Base])).await;
    let mut client = gateway.generation().await;
    let job = submit(&mut client, "a cat").await;
    worker.credit(1).await;
    let lease = worker.lease().await;
    // No heartbeat: the lease runs out.
    assert_eq!(until_state(&client, &job.id, JobState::Queued).await.crashes, 1);
    worker.complete(&lease).await;
    assert_eq!(worker.ack().await.outcome(), AckOutcome::Accepted);
    let done = until_state(&client, &job.id, JobState::Succeeded).await;
    assert_eq!(done.crashes, 0, "it was no crash after all");
}

#[tokio::test]
async fn a_worker_brings_its_leases_to_another_gateway() {
    let redis = RedisServer::start().await;
    let first = RunningGateway::start(&redis).await;
    let second = RunningGateway::start(&redis).await;
    let small = model("small", &[Stage::Base]);
    let mut worker = FakeWorker::attach(first.address, "w", Stage::Base, &small).await;
    let mut client = first.generation().await;
    let job = submit(&mut client, "a cat").await;
    worker.credit(1).await;
    let lease = worker.lease().await;
    first.kill().await;

    let mut client = second.generation().await;
    let watch = WatchJobRequest {
        job_id: job.id.clone(),
        after_version: job.version,
    };
    let mut events = client.watch_job(watch).await.unwrap().into_inner();
    let mut worker = FakeWorker::attach(second.address, "w", Stage::Base, &small).await;
    worker.heartbeat(vec![report(&lease, 2, 3)]).await;
    worker.complete(&lease).await;
    assert_eq!(worker.ack().await.outcome(), AckOutcome::Accepted);
    let mut versions = vec![job.version];
    loop {
        let event = soon("news", events.message())
            .await
            .unwrap()
            .and_then(|response| response.event);
        match event {
            Some(watch_job_response::Event::Job(job)) => versions.push(job.version),
            Some(watch_job_response::Event::Progress(_)) => {}
            None => break,
        }
    }
    assert!(
        versions.len() > 1 && versions.windows(2).all(|pair| pair[0] < pair[1]),
        "{versions:?}"
    );
    assert_eq!(get(&mut client, &job.id).await.state(), JobState::Succeeded);
}

#[tokio::test]
async fn a_draining_gateway_ends_its_streams_so_that_others_take_over() {
    let redis = RedisServer::start().await;
    let gateway = RunningGateway::start(&redis).await;
    let mut worker = FakeWorker::attach(gateway.address, "w", Stage::Base, &model("tiny", &BOTH)).await;
    let mut client = gateway.generation().await;
    let job = submit(&mut client, "a cat").await;
    let watch = WatchJobRequest {
        job_id: job.id,
        after_version: 0,
    };
    let mut events = client.watch_job(watch).await.unwrap().into_inner();
    soon("the present state", events.message()).await.unwrap();
    let stopped = tokio::spawn(gateway.stop());
    assert_eq!(worker.next().await, None);
    let ended = loop {
        match soon("the stream's end", events.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a watch must not end as if the job had"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unavailable);
    assert!(ended.get_details_retry_info().is_some(), "{ended:?}");
    drop((client, worker, events));
    stopped.await.unwrap();
}

#[tokio::test]
async fn errors_are_retried_within_their_budget_and_then_the_job_fails() {
    let redis = RedisServer::start().await;
    let mut config = config(&redis);
    config.queue.attempts = 2;
    let gateway = RunningGateway::start_with(config).await;
    let mut worker = FakeWorker::attach(gateway.address, "w", Stage::Base, &model("tiny", &BOTH)).await;
    let mut client = gateway.generation().await;
    let job = submit(&mut client, "a cat").await;
    for _ in 0..2 {
        worker.credit(1).await;
        let lease = worker.lease().await;
        worker.fail(&lease, true).await;
        assert_eq!(worker.ack().await.outcome(), AckOutcome::Accepted);
    }
    let failed = until_state(&client, &job.id, JobState::Failed).await;
    let error = failed.error.clone().unwrap();
    assert_eq!(
        (failed.attempts, error.reason(), error.message.as_str()),
        (2, JobErrorReason::ModelFailed, "it was too red")
    );

    let hopeless = submit(&mut client, "a dog").await;
    worker.credit(1).await;
    let lease = worker.lease().await;
    worker.fail(&lease, false).await;
    assert_eq!(worker.ack().await.outcome(), AckOutcome::Accepted);
    assert_eq!(
        until_state(&client, &hopeless.id, JobState::Failed)
            .await
            .attempts,
        1
    );
}

#[tokio::test]
async fn a_result_that_does_not_fit_is_refused_and_the_job_stays_with_its_worker() {
    let redis = RedisServer::start().await;
    let gateway = RunningGateway::start(&redis).await;
    let mut worker = FakeWorker::attach(gateway.address, "w", Stage::Base, &model("tiny", &BOTH)).await;
    let mut client = gateway.generation().await;
    submit(&mut client, "a cat").await;
    worker.credit(1).await;
    let lease = worker.lease().await;
    let mut wrong = result_of(&lease);
    wrong.result = Some(muse_proto::internal::v1::complete::Result::Tokens(tokens(2)));
    worker.send_complete(wrong).await;
    assert_eq!(
        worker.ack().await.outcome(),
        AckOutcome::Refused,
        "two rows for a job of one"
    );
    let mut wrong = result_of(&lease);
    wrong.nonce = vec![7; 16];
    worker.send_complete(wrong).await;
    assert_eq!(worker.ack().await.outcome(), AckOutcome::Stale, "another's nonce");
    worker.complete(&lease).await;
    assert_eq!(worker.ack().await.outcome(), AckOutcome::Accepted);
}

#[tokio::test]
async fn a_worker_with_another_bundle_of_the_same_name_is_refused_while_the_first_is_served() {
    let redis = RedisServer::start().await;
    let gateway = RunningGateway::start(&redis).await;
    let old = model("tiny", &BOTH);
    let new = muse_proto::v1::Model {
        bundle_digest: "cd".repeat(32),
        ..old.clone()
    };
    let worker = FakeWorker::attach(gateway.address, "old", Stage::Base, &old).await;
    let refused = FakeWorker::try_attach(gateway.address, "new", Stage::Superres, &new)
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("tiny"), "{refused:?}");
    drop(worker);
    until("the old one to leave", async || {
        FakeWorker::try_attach(gateway.address, "new", Stage::Superres, &new)
            .await
            .ok()
    })
    .await;
    let models = gateway
        .models()
        .await
        .list_models(ListModelsRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(models.models[0].bundle_digest, new.bundle_digest);
}

#[tokio::test]
async fn bad_input_is_refused_field_by_field() {
    let redis = RedisServer::start().await;
    let gateway = RunningGateway::start(&redis).await;
    let mut client = gateway.generation().await;
    let submit = |request| SubmitJobRequest {
        request: Some(request),
    };
    let early = client.submit_job(submit(request("a cat"))).await.unwrap_err();
    assert_eq!(early.code(), Code::Unavailable);
    assert!(
        early.message().contains("no worker has attached yet"),
        "{early:?}"
    );
    assert!(early.get_details_retry_info().is_some(), "{early:?}");

    let _worker = FakeWorker::attach(gateway.address, "w", Stage::Base, &model("tiny", &BOTH)).await;
    let mut bad = request("");
    bad.model = "huge".to_owned();
    let refused = client.submit_job(submit(bad)).await.unwrap_err();
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
        .submit_job(submit(request(&"x".repeat(100_000))))
        .await
        .unwrap_err();
    assert!(
        matches!(huge.code(), Code::ResourceExhausted | Code::OutOfRange),
        "{huge:?}"
    );
}

#[tokio::test]
async fn a_key_stands_for_one_request() {
    let redis = RedisServer::start().await;
    let gateway = RunningGateway::start(&redis).await;
    let _worker = FakeWorker::attach(gateway.address, "w", Stage::Base, &model("tiny", &BOTH)).await;
    let mut client = gateway.generation().await;
    let keyed = |prompt: &str| {
        let request = muse_proto::v1::GenerationRequest {
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
    let redis = RedisServer::start().await;
    let gateway = RunningGateway::start(&redis).await;
    let _worker = FakeWorker::attach(gateway.address, "w", Stage::Base, &model("tiny", &BOTH)).await;
    let mut client = gateway.generation().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        let job = submit(&mut client, &format!("cat {n}")).await;
        if n == 2 {
            client
                .cancel_job(CancelJobRequest {
                    job_id: job.id.clone(),
                })
                .await
                .unwrap();
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
async fn an_operator_sees_pools_and_workers_over_all_gateways() {
    let redis = RedisServer::start().await;
    let (first, second) = (
        RunningGateway::start(&redis).await,
        RunningGateway::start(&redis).await,
    );
    let tiny = model("tiny", &BOTH);
    let mut base = FakeWorker::attach(first.address, "base-1", Stage::Base, &tiny).await;
    let superres = FakeWorker::attach(second.address, "superres-1", Stage::Superres, &tiny).await;
    superres.heartbeat(Vec::new()).await;
    let mut client = second.generation().await;
    for n in 0..3 {
        submit(&mut client, &format!("cat {n}")).await;
    }
    base.credit(1).await;
    base.lease().await;
    let status = until("two waiting, one running", async || {
        let status = second
            .admin()
            .await
            .get_queue_status(GetQueueStatusRequest {})
            .await
            .unwrap()
            .into_inner();
        (status.pools.len() == 2 && status.pools[0].running == 1).then_some(status)
    })
    .await;
    assert_eq!(
        (
            status.pools[0].waiting,
            status.pools[0].workers,
            status.pools[1].workers
        ),
        (2, 1, 1),
        "{status:?}"
    );
    assert!(
        status.pools[0].oldest.is_some() && status.pools[1].oldest.is_none(),
        "{status:?}"
    );
    let workers = until("the heartbeat in the table", async || {
        let workers = first
            .admin()
            .await
            .list_workers(ListWorkersRequest {})
            .await
            .unwrap()
            .into_inner()
            .workers;
        workers.iter().any(|worker| worker.rows == 1).then_some(workers)
    })
    .await;
    assert_eq!(
        workers
            .iter()
            .map(|worker| worker.id.as_str())
            .collect::<Vec<_>>(),
        ["base-1", "superres-1"]
    );
    assert_ne!(workers[0].gateway_id, workers[1].gateway_id);
    // A worker that leaves is gone at once.
    drop(base);
    until("one worker", async || {
        let workers = first
            .admin()
            .await
            .list_workers(ListWorkersRequest {})
            .await
            .unwrap()
            .into_inner()
            .workers;
        (workers.len() == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn while_redis_is_away_clients_are_told_and_reports_wait() {
    let mut redis = RedisServer::start().await;
    let gateway = RunningGateway::start(&redis).await;
    let mut worker =
        FakeWorker::attach(gateway.address, "w", Stage::Base, &model("small", &[Stage::Base])).await;
    let mut client = gateway.generation().await;
    let job = submit(&mut client, "a cat").await;
    worker.credit(1).await;
    let lease = worker.lease().await;
    let watch = WatchJobRequest {
        job_id: job.id.clone(),
        after_version: 0,
    };
    let mut events = client.watch_job(watch).await.unwrap().into_inner();
    redis.kill();

    let refused = client
        .submit_job(SubmitJobRequest {
            request: Some(request("a dog")),
        })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.get_details_retry_info().is_some(), "{refused:?}");
    worker.complete(&lease).await;
    redis.restart().await;
    assert_eq!(
        worker.ack().await.outcome(),
        AckOutcome::Accepted,
        "nothing expired, nothing is lost"
    );
    let mut last = None;
    while let Some(response) = soon("news", events.message()).await.unwrap() {
        last = response.event;
    }
    let Some(watch_job_response::Event::Job(done)) = last else {
        panic!("no job at the end but {last:?}")
    };
    assert_eq!((done.state(), done.crashes), (JobState::Succeeded, 0));
}

#[tokio::test]
async fn a_released_job_goes_to_another_worker_and_costs_nothing() {
    let redis = RedisServer::start().await;
    let gateway = RunningGateway::start(&redis).await;
    let tiny = model("tiny", &BOTH);
    let mut first = FakeWorker::attach(gateway.address, "first", Stage::Base, &tiny).await;
    let mut client = gateway.generation().await;
    submit(&mut client, "a cat").await;
    first.credit(1).await;
    let lease = first.lease().await;
    first.credit(0).await;
    first.release(&lease).await;
    assert_eq!(first.ack().await.outcome(), AckOutcome::Accepted);
    let mut second = FakeWorker::attach(gateway.address, "second", Stage::Base, &tiny).await;
    second.credit(1).await;
    let again = second.lease().await;
    assert_eq!(again.job_id, lease.job_id);
    let job = get(&mut client, &lease.job_id).await;
    assert_eq!((job.attempts, job.crashes), (0, 0));
    assert_eq!(Stage::try_from(job.stage), Ok(Stage::Base));
}
