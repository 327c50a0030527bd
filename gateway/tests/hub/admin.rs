//! What operators change.

use muse_proto::v1::{
    AuditRequest, AuditSummary, DeadFilter, DeadJob, GetDeadJobRequest, GetQueueStatusRequest,
    JobErrorReason, JobIds, JobState, ListDeadJobsRequest, ListTenantsRequest, PauseRequest, Pool,
    PurgeDeadJobsRequest, RequeueJobRequest, ResumeRequest, RetryDeadJobsRequest, SetTenantRequest, Stage,
    TenantSettings, admin_client::AdminClient, audit_response::Event, pause_request, purge_dead_jobs_request,
    resume_request, retry_dead_jobs_request,
};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::support::{
    scene::{BOTH, Scene, cancel, get, next, submission, submit, until_state},
    until,
};

fn base() -> Pool {
    Pool {
        model: "tiny".to_owned(),
        stage: Stage::Base as i32,
    }
}

/// Fails the worker's next job for good; gives its name.
async fn dead_job(scene: &mut Scene) -> String {
    let (job, lease) = scene.lease().await;
    scene.worker.fail(&lease, false).await;
    scene.worker.ack().await;
    job.id
}

async fn dead_jobs(admin: &mut AdminClient<Channel>, filter: DeadFilter) -> Vec<DeadJob> {
    let mut jobs = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListDeadJobsRequest {
            filter: Some(filter.clone()),
            page_size: 2,
            page_token,
        };
        let page = admin.list_dead_jobs(request).await.unwrap().into_inner();
        assert!(page.jobs.len() <= 2, "{page:?}");
        jobs.extend(page.jobs);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return jobs;
        }
    }
}

fn fields(refused: &Status) -> Vec<String> {
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let request = refused.get_details_bad_request().unwrap();
    request
        .field_violations
        .into_iter()
        .map(|violation| violation.field)
        .collect()
}

#[tokio::test]
async fn a_tenants_limit_refuses_its_clients_until_an_operator_raises_it() {
    let scene = Scene::of(&BOTH).await;
    let (mut client, mut admin) = (scene.client.clone(), scene.gateway.admin().await);
    let set = |max_queued| SetTenantRequest {
        name: "default".to_owned(),
        settings: Some(TenantSettings {
            max_queued: Some(max_queued),
            ..TenantSettings::default()
        }),
        reset: Vec::new(),
    };
    let tenant = admin
        .set_tenant(set(1))
        .await
        .unwrap()
        .into_inner()
        .tenant
        .unwrap();
    assert_eq!(tenant.settings.unwrap().max_queued, Some(1));
    assert_eq!(tenant.in_force.unwrap().weight, Some(1.0));
    submit(&mut client, "a cat").await;
    let refused = client.submit_job(submission("a dog")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.get_details_retry_info().is_some(), "{refused:?}");
    let quota = refused.get_details_quota_failure().unwrap();
    assert_eq!(quota.violations[0].subject, "tenant:default");
    assert!(
        quota.violations[0].description.contains("max_queued"),
        "{quota:?}"
    );

    admin.set_tenant(set(2)).await.unwrap();
    submit(&mut client, "a dog").await;
    let listed = admin
        .list_tenants(ListTenantsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (listed.tenants.len(), listed.tenants[0].queued),
        (1, 2),
        "{listed:?}"
    );
    assert!(listed.tenants[0].bytes > 0, "{listed:?}");

    let wrong = SetTenantRequest {
        name: "No Name".to_owned(),
        settings: Some(TenantSettings {
            weight: Some(-1.0),
            ..TenantSettings::default()
        }),
        reset: vec!["colour".to_owned()],
    };
    let refused = admin.set_tenant(wrong).await.unwrap_err();
    assert_eq!(fields(&refused), ["name", "settings.weight", "reset[0]"]);
}

#[tokio::test]
async fn a_full_queue_is_unavailable_and_says_when_to_come_back() {
    let scene = Scene::with(&BOTH, |config| {
        config.queue.max_waiting = 1;
        config.queue.full_retry_ms = 1_234;
    })
    .await;
    let mut client = scene.client.clone();
    submit(&mut client, "a cat").await;
    let refused = client.submit_job(submission("a dog")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let retry = refused.get_details_retry_info().unwrap().retry_delay;
    assert_eq!(retry, Some(std::time::Duration::from_millis(1_234)));
}

#[tokio::test]
async fn a_paused_stage_is_shown_as_such_and_its_jobs_wait_until_it_is_resumed() {
    let mut scene = Scene::of(&BOTH).await;
    let mut admin = scene.gateway.admin().await;
    let pause = |pool| PauseRequest {
        target: Some(pause_request::Target::Pool(pool)),
        reason: "a new bundle".to_owned(),
    };
    let paused = admin.pause(pause(base())).await.unwrap().into_inner();
    assert!(!paused.already && paused.paused.unwrap().since.is_some());
    let job = submit(&mut scene.client, "a cat").await;
    scene.worker.credit(1).await;
    let status = admin
        .get_queue_status(GetQueueStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    let pool = &status.pools[0];
    assert_eq!(
        (pool.waiting, pool.paused.clone().unwrap().reason.as_str()),
        (1, "a new bundle")
    );
    let place = get(&mut scene.client, &job.id).await.place.unwrap();
    assert_eq!(
        (place.ahead_of_tenant, place.wait),
        (0, None),
        "nobody knows how long"
    );

    let resume = ResumeRequest {
        target: Some(resume_request::Target::Pool(base())),
    };
    assert!(admin.resume(resume).await.unwrap().into_inner().was_paused);
    assert_eq!(scene.worker.lease().await.job_id, job.id);

    let unknown = pause(Pool {
        model: "huge".to_owned(),
        ..base()
    });
    assert_eq!(fields(&admin.pause(unknown).await.unwrap_err()), ["pool.model"]);
    assert_eq!(
        fields(&admin.pause(PauseRequest::default()).await.unwrap_err()),
        ["target"]
    );
}

#[tokio::test]
async fn a_paused_tenant_is_listed_and_goes_on_when_resumed() {
    let mut scene = Scene::of(&BOTH).await;
    let mut admin = scene.gateway.admin().await;
    let pause = PauseRequest {
        target: Some(pause_request::Target::Tenant("default".to_owned())),
        reason: "unpaid".to_owned(),
    };
    admin.pause(pause.clone()).await.unwrap();
    assert!(admin.pause(pause).await.unwrap().into_inner().already);
    let job = submit(&mut scene.client, "a cat").await;
    scene.worker.credit(1).await;
    let status = admin
        .get_queue_status(GetQueueStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.paused_tenants[0].tenant, "default", "{status:?}");
    let resume = ResumeRequest {
        target: Some(resume_request::Target::Tenant("default".to_owned())),
    };
    admin.resume(resume).await.unwrap();
    assert_eq!(scene.worker.lease().await.job_id, job.id);
}

#[tokio::test]
async fn dead_jobs_are_listed_shown_retried_and_purged() {
    let mut scene = Scene::of(&BOTH).await;
    let mut admin = scene.gateway.admin().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(dead_job(&mut scene).await);
        // Those of the same millisecond come in another order.
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let all = dead_jobs(&mut admin, DeadFilter::default()).await;
    let mut newest_first = ids.clone();
    newest_first.reverse();
    assert_eq!(
        all.iter().map(|dead| dead.job_id.clone()).collect::<Vec<_>>(),
        newest_first
    );
    assert_eq!(
        (all[0].tenant.as_str(), all[0].worker_id.as_str()),
        ("default", "worker-1"),
        "{all:?}"
    );
    let crashed = DeadFilter {
        reason: JobErrorReason::CrashedWorkers as i32,
        ..DeadFilter::default()
    };
    assert_eq!(dead_jobs(&mut admin, crashed).await, []);

    let show = |job_id: &str| GetDeadJobRequest {
        job_id: job_id.to_owned(),
    };
    let shown = admin.get_dead_job(show(&ids[0])).await.unwrap().into_inner();
    assert_eq!(
        (shown.history.len(), shown.history[0].message.as_str()),
        (1, "it was too red"),
        "{shown:?}"
    );
    assert_eq!(shown.history[0].worker_id, "worker-1", "{shown:?}");
    assert!(shown.job.unwrap().request.is_some());

    let live = submit(&mut scene.client, "a live cat").await.id;
    let retry = RetryDeadJobsRequest {
        which: Some(retry_dead_jobs_request::Which::Jobs(JobIds {
            job_ids: vec![ids[0].clone(), live.clone()],
        })),
    };
    let retried = admin.retry_dead_jobs(retry).await.unwrap().into_inner();
    assert_eq!(
        (retried.retried, retried.not_dead, retried.more),
        (1, vec![live.clone()], false)
    );
    assert_eq!(get(&mut scene.client, &ids[0]).await.state(), JobState::Queued);
    assert_eq!(
        admin.get_dead_job(show(&ids[0])).await.unwrap_err().code(),
        Code::NotFound
    );

    let purge = PurgeDeadJobsRequest {
        which: Some(purge_dead_jobs_request::Which::Filter(DeadFilter {
            model: "tiny".to_owned(),
            ..DeadFilter::default()
        })),
    };
    let purged = admin.purge_dead_jobs(purge).await.unwrap().into_inner();
    assert_eq!((purged.purged, purged.more), (2, false));
    assert_eq!(dead_jobs(&mut admin, DeadFilter::default()).await, []);
    assert_eq!(get(&mut scene.client, &live).await.state(), JobState::Queued);
    let refused = admin
        .retry_dead_jobs(RetryDeadJobsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(fields(&refused), ["which"]);
}

#[tokio::test]
async fn a_filter_takes_as_many_dead_jobs_as_a_call_may_and_says_that_there_are_more() {
    let mut scene = Scene::with(&BOTH, |config| config.limits.dead_batch = 2).await;
    let mut admin = scene.gateway.admin().await;
    for _ in 0..3 {
        dead_job(&mut scene).await;
    }
    let retry = RetryDeadJobsRequest {
        which: Some(retry_dead_jobs_request::Which::Filter(DeadFilter::default())),
    };
    let first = admin.retry_dead_jobs(retry.clone()).await.unwrap().into_inner();
    assert_eq!((first.retried, first.more), (2, true));
    let second = admin.retry_dead_jobs(retry).await.unwrap().into_inner();
    assert_eq!((second.retried, second.more), (1, false));
}

#[tokio::test]
async fn a_job_is_taken_from_its_worker_and_given_to_the_next() {
    let mut scene = Scene::of(&BOTH).await;
    let mut admin = scene.gateway.admin().await;
    let (job, lease) = scene.lease().await;
    let requeue = RequeueJobRequest {
        job_id: job.id.clone(),
    };
    let queued = admin
        .requeue_job(requeue.clone())
        .await
        .unwrap()
        .into_inner()
        .job
        .unwrap();
    assert_eq!(
        (queued.state(), queued.crashes, queued.attempts),
        (JobState::Queued, 0, 0)
    );
    let revoke = scene.worker.revoke().await;
    assert_eq!((&revoke.job_id, &revoke.nonce), (&job.id, &lease.nonce));
    scene.worker.credit(1).await;
    assert_eq!(scene.worker.lease().await.job_id, job.id);
    cancel(&mut scene.client, &job.id).await;
    let refused = admin.requeue_job(requeue).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn an_audit_tells_what_is_wrong_and_mends_it() {
    let mut scene = Scene::of(&BOTH).await;
    let mut admin = scene.gateway.admin().await;
    submit(&mut scene.client, "a cat").await;
    scene
        .redis
        .ask::<u64>(&["ZADD", "muse:{s0}:delay", "1", "ghost"])
        .await;
    let mut audit = async |repair| {
        let mut stream = admin.audit(AuditRequest { repair }).await.unwrap().into_inner();
        let (mut findings, mut last) = (Vec::new(), None);
        while let Some(response) = next(&mut stream).await {
            match response.event {
                Some(Event::Finding(finding)) => findings.push(finding),
                Some(Event::Summary(summary)) => last = Some(summary),
                Some(Event::Progress(_)) | None => {}
            }
        }
        (findings, last.expect("a summary comes last"))
    };
    // The reaper finds such a ghost too, where it looks: the audit may come second.
    let (findings, summary) = audit(true).await;
    assert_eq!(summary.findings, findings.len() as u64);
    assert_eq!((summary.jobs, summary.repaired), (1, summary.findings));
    assert!(
        findings
            .iter()
            .all(|finding| finding.subject == "ghost" && finding.repaired),
        "{findings:?}"
    );
    let (findings, summary) = audit(false).await;
    assert_eq!((findings.len(), summary.findings), (0, 0), "{findings:?}");
    assert_eq!(summary, AuditSummary { jobs: 1, ..summary });
}

#[tokio::test]
async fn a_queued_job_knows_its_place_and_how_long_it_will_take() {
    // No lease runs out while the test looks.
    let mut scene = Scene::with(&[Stage::Base], |config| {
        config.queue.lease_ms = 600_000;
        config.queue.housekeeping_ms = 50;
    })
    .await;
    let (first, lease) = scene.lease().await;
    assert!(get(&mut scene.client, &first.id).await.place.is_none(), "it runs");
    assert_eq!(
        get(&mut scene.client, &first.id).await.eta,
        None,
        "nothing was measured yet"
    );
    scene.worker.complete(&lease).await;
    scene.worker.ack().await;
    until_state(&scene.client, &first.id, JobState::Succeeded).await;

    // One runs, three wait.
    let (running, _lease) = scene.lease().await;
    let mut waiting = Vec::new();
    for n in 0..3 {
        waiting.push(submit(&mut scene.client, &format!("cat {n}")).await.id);
        // Jobs of the same millisecond have no order.
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let last = until("the estimates of a queue of three", || {
        let (mut client, id) = (scene.client.clone(), waiting[2].clone());
        async move {
            let job = get(&mut client, &id).await;
            let known = job.place.as_ref().is_some_and(|place| place.wait.is_some());
            (known && job.eta.is_some()).then_some(job)
        }
    })
    .await;
    let place = last.place.unwrap();
    assert_eq!((place.ahead_of_tenant, place.ahead), (2, 2), "{place:?}");
    let first = get(&mut scene.client, &waiting[0]).await.place.unwrap();
    assert_eq!(first.ahead_of_tenant, 0);
    assert!(get(&mut scene.client, &running.id).await.eta.is_some());
}
