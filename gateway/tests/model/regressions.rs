//! Where the scripts, the model and docs/queue.md once differed.

use crate::{
    calls::{Act, Call, Claim, Fail, Submit, TenantLimits},
    comparison::Player,
    redis_side::RedisSide,
    shard::{PATIENCE, Reply},
    support::redis_server::RedisServer,
};

fn submit(id: &str) -> Call {
    Call::Submit(vec![Submit {
        id: id.to_owned(),
        tenant: "a".to_owned(),
        model: "m".to_owned(),
        stages: vec!["base".to_owned()],
        rows: 1,
        boost: 0,
        timeout: 60_000,
        request: "request".to_owned(),
        traceparent: String::new(),
        idempotency: None,
        ranked: false,
        max_waiting: 100,
        max_bytes: 0,
        rate: 0.0,
        burst: 0.0,
        tenant_limits: TenantLimits {
            max_queued: 0.0,
            max_bytes: 0.0,
            rate: 0.0,
            burst: 0.0,
        },
    }])
}

fn claim(nonce: &str) -> Call {
    Call::Claim(Claim {
        model: "m".to_owned(),
        stage: "base".to_owned(),
        worker: "worker".to_owned(),
        lease: 10_000,
        credit: 1,
        weight: 1.0,
        max_running: 0.0,
        history: 20,
        nonces: vec![nonce.to_owned()],
    })
}

fn fail(id: &str, nonce: &str) -> Call {
    Call::Fail(Fail {
        id: id.to_owned(),
        nonce: nonce.to_owned(),
        reason: "1".to_owned(),
        message: "it was too red".to_owned(),
        retriable: false,
        history: 20,
        delays: Vec::new(),
    })
}

fn audit(act: Act) -> Call {
    Call::Audit {
        token: "token".to_owned(),
        act,
        repair: false,
        lease: 10_000,
        patience: PATIENCE,
    }
}

fn wrong(script: &'static str, arguments: &[&str]) -> Call {
    Call::Wrong {
        script,
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
    }
}

/// Makes the calls on both sides; gives the last answer.
async fn last_of(calls: &[Call]) -> Reply {
    let server = RedisServer::start_with(&["--appendonly", "no"]).await;
    let mut redis = RedisSide::new(&server, None).await;
    let mut player = Player::new(&mut redis).await;
    let mut last = Reply::List(Vec::new());
    for call in calls {
        last = player
            .call(call)
            .await
            .unwrap_or_else(|difference| panic!("{difference}"));
    }
    last
}

#[tokio::test]
async fn a_nonce_that_another_begins_with_is_another_nonce() {
    let granted = last_of(&[submit("j1"), claim("n12"), submit("j2"), claim("n1")]).await;
    let Reply::List(grants) = granted else {
        panic!("{granted:?}")
    };
    let Some(Reply::List(grant)) = grants.first() else {
        panic!("{grants:?}")
    };
    assert_eq!(grant.first(), Some(&Reply::from("j2")));
}

#[tokio::test]
async fn an_empty_nonce_is_nobodys() {
    let beat = wrong("beat", &["worker", "1000", "j1", "", "1", "3", ""]);
    let complete = wrong(
        "complete",
        &["j1", "", "base", "pictures", "list", "", "1", "digest"],
    );
    let release = wrong("release", &["j1", "", ""]);
    last_of(&[submit("j1"), beat, complete, release, claim("n1")]).await;
}

#[tokio::test]
async fn a_retry_whose_answer_was_lost_gives_no_second_life() {
    let retry = Call::RetryDead {
        token: "token".to_owned(),
        ids: vec!["j1".to_owned()],
    };
    let calls = [
        submit("j1"),
        claim("n1"),
        fail("j1", "n1"),
        retry.clone(),
        claim("n2"),
        fail("j1", "n2"),
        retry,
    ];
    assert_eq!(last_of(&calls).await, Reply::from(vec!["retried"]));
    let retried = [&calls[..], &[claim("n3")]].concat();
    assert_eq!(last_of(&retried).await, Reply::List(Vec::new()), "it stays dead");
}

#[tokio::test]
async fn an_audit_whose_beginning_is_repeated_still_counts_right() {
    let counters = ["cnt:queued:m:base:a", "use:a:queued", "use:a:bytes", "use::bytes"];
    let counters = Act::Counters(counters.iter().map(|name| (*name).to_owned()).collect());
    let calls = [
        audit(Act::Begin),
        submit("j1"),
        audit(Act::Begin),
        audit(counters),
    ];
    assert_eq!(last_of(&calls).await, Reply::List(Vec::new()));
}

#[tokio::test]
async fn what_would_leave_half_a_change_is_refused() {
    last_of(&[
        wrong("tenant_set", &["a", "paused", "1"]),
        wrong("tenant_set", &["a", "weight", "0"]),
        wrong("pause", &["pool", "a", "pause", "no reason"]),
        wrong("pause", &["tenant", "m:base", "pause", "no reason"]),
        wrong("reap", &["-1", "3", "20"]),
        wrong("purge", &["-1", "0", "0"]),
    ])
    .await;
}
