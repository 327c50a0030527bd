//! The primary is another server than before.

use muse_gateway::{
    config::{self, Durability},
    connection::{Redis, RedisError, StartupError, Unfit},
};

use crate::{
    nodes::{Group, SERVICE, Sentinel},
    support::until,
};

fn sentinels(sentinels: &[&Sentinel]) -> config::Redis {
    config::Redis {
        sentinels: sentinels.iter().map(|sentinel| sentinel.url()).collect(),
        service_name: SERVICE.to_owned(),
        retry_ms: 5_000,
        startup_timeout_ms: 500,
        // Only what a test is about may move the connection.
        ping_ms: 600_000,
        sentinel_check_ms: 600_000,
        ..config::Redis::default()
    }
}

async fn set(redis: &Redis, value: u32) -> Result<(), RedisError> {
    redis.query(redis::cmd("SET").arg("muse:test").arg(value)).await
}

async fn get(group: &Group, node: usize) -> Option<u32> {
    group.nodes[node].server.ask(&["GET", "muse:test"]).await
}

/// Makes the second server the primary and the first its replica, as Sentinel does, but for the connections that it would
/// end.
async fn swap(group: &Group, sentinel: &Sentinel) {
    let [old, new] = &group.nodes[..] else {
        panic!("two servers")
    };
    new.server.ask::<String>(&["REPLICAOF", "NO", "ONE"]).await;
    let port = new.port.to_string();
    old.server.ask::<String>(&["REPLICAOF", "127.0.0.1", &port]).await;
    sentinel.name(new.port).await;
}

#[tokio::test]
async fn a_write_that_a_demoted_server_refuses_goes_to_the_new_primary() {
    let group = Group::start(1).await;
    let sentinel = Sentinel::start(group.nodes[0].port, 1).await;
    let redis = Redis::connect(&sentinels(&[&sentinel]), Durability::Everysec)
        .await
        .unwrap();
    set(&redis, 1).await.unwrap();
    swap(&group, &sentinel).await;
    // The connection is as good as ever: only READONLY tells.
    set(&redis, 2).await.unwrap();
    assert_eq!(get(&group, 1).await, Some(2));
}

#[tokio::test]
async fn a_demoted_server_is_left_before_anybody_writes() {
    let group = Group::start(1).await;
    let sentinel = Sentinel::start(group.nodes[0].port, 1).await;
    let config = config::Redis {
        ping_ms: 20,
        ..sentinels(&[&sentinel])
    };
    let redis = Redis::connect(&config, Durability::Everysec).await.unwrap();
    swap(&group, &sentinel).await;
    let new = &group.nodes[1];
    until("a connection to the new primary", async || {
        let clients: String = new.server.ask(&["CLIENT", "LIST", "TYPE", "normal"]).await;
        // Its last question, before it is used.
        (clients.contains("cmd=info") && redis.is_up()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_server_that_does_not_know_of_its_demotion_is_left_when_the_sentinels_name_another() {
    let group = Group::start(1).await;
    let sentinel = Sentinel::start(group.nodes[0].port, 1).await;
    let config = config::Redis {
        ping_ms: 20,
        sentinel_check_ms: 50,
        ..sentinels(&[&sentinel])
    };
    let redis = Redis::connect(&config, Durability::Everysec).await.unwrap();
    let new = &group.nodes[1];
    new.server.ask::<String>(&["REPLICAOF", "NO", "ONE"]).await;
    sentinel.name(new.port).await;
    until("a write on the new primary", async || {
        set(&redis, 1).await.unwrap();
        get(&group, 1).await
    })
    .await;
}

#[tokio::test]
async fn with_one_address_a_demoted_server_is_unavailable_until_it_is_primary_again() {
    let group = Group::start(1).await;
    let config = config::Redis {
        url: group.url(),
        retry_ms: 200,
        ..config::Redis::default()
    };
    let redis = Redis::connect(&config, Durability::Everysec).await.unwrap();
    let [old, new] = &group.nodes[..] else {
        panic!("two servers")
    };
    new.server.ask::<String>(&["REPLICAOF", "NO", "ONE"]).await;
    let port = new.port.to_string();
    old.server.ask::<String>(&["REPLICAOF", "127.0.0.1", &port]).await;
    let refused = set(&redis, 1).await.unwrap_err();
    assert!(matches!(refused, RedisError::Unavailable(_)), "{refused}");
    old.server.ask::<String>(&["REPLICAOF", "NO", "ONE"]).await;
    until("a write", async || set(&redis, 2).await.ok()).await;
    assert_eq!(get(&group, 0).await, Some(2));
}

#[tokio::test]
async fn a_replica_that_sentinels_name_is_not_used() {
    let group = Group::start(1).await;
    let sentinel = Sentinel::start(group.nodes[0].port, 1).await;
    sentinel.name(group.nodes[1].port).await;
    let outcome = Redis::connect(&sentinels(&[&sentinel]), Durability::Everysec).await;
    let refused = outcome.err().expect("a replica takes no writes");
    assert!(
        matches!(refused, StartupError::Unfit(Unfit::Replica)),
        "{refused}"
    );
}

#[tokio::test]
async fn sentinels_that_are_gone_are_done_without_as_long_as_one_answers() {
    let group = Group::start(0).await;
    let alive = Sentinel::start(group.nodes[0].port, 2).await;
    let mut config = sentinels(&[&alive]);
    let gone = Sentinel::start(group.nodes[0].port, 2).await.url();
    config.sentinels.extend([gone.clone(), gone.clone()]);
    let redis = Redis::connect(&config, Durability::Everysec).await.unwrap();
    set(&redis, 1).await.unwrap();
    config.sentinels = vec![gone];
    let refused = Redis::connect(&config, Durability::Everysec).await.err().unwrap();
    assert!(
        matches!(&refused, StartupError::Unreachable { key, .. } if *key == "redis.sentinels"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_server_that_hangs_is_left_after_the_response_timeout() {
    let group = Group::start(1).await;
    let sentinel = Sentinel::start(group.nodes[0].port, 9).await;
    let config = config::Redis {
        response_timeout_ms: 200,
        ..sentinels(&[&sentinel])
    };
    let redis = Redis::connect(&config, Durability::Everysec).await.unwrap();
    let new = &group.nodes[1];
    new.server.ask::<String>(&["REPLICAOF", "NO", "ONE"]).await;
    sentinel.name(new.port).await;
    let old = group.nodes[0].server.client();
    let hanging = tokio::spawn(async move {
        let mut connection = old.get_multiplexed_async_connection().await.unwrap();
        let mut sleep = redis::cmd("DEBUG");
        sleep.arg("SLEEP").arg(60);
        let answer: Result<String, _> = sleep.query_async(&mut connection).await;
        panic!("the server answers: {answer:?}");
    });
    // Until it hangs, the old one takes writes.
    until("a write on the new primary", async || {
        assert!(!hanging.is_finished(), "the server hangs");
        let _ = set(&redis, 1).await;
        get(&group, 1).await
    })
    .await;
    hanging.abort();
}
