//! What a gateway says of a store that it cannot use, and that it does not start with it.

use axum::http::StatusCode;
use muse_gateway::{Config, Gateway};
use muse_service::Shutdown;
use tempfile::TempDir;

use super::{bucket::Bucket, signature};
use crate::support::{
    cluster::{self, RunningGateway},
    redis_server::RedisServer,
};

async fn refused(redis: &RedisServer, change: impl FnOnce(&mut Config)) -> String {
    let mut config = cluster::config(redis);
    change(&mut config);
    let (_trigger, shutdown) = Shutdown::manual();
    let line = match Gateway::bind(config, shutdown).await {
        Ok(_) => panic!("it starts"),
        Err(error) => format!("{error:#}"),
    };
    assert!(
        !line.contains('\n') && !line.contains(signature::SECRET),
        "one line without secrets: {line}"
    );
    line
}

#[tokio::test]
async fn a_wrong_key_a_missing_bucket_and_an_outage_are_named() {
    let (redis, bucket) = (RedisServer::start().await, Bucket::start().await);
    let line = refused(&redis, |config| {
        bucket.configure(config);
        config.results.credentials_file = Some(bucket.credentials("wrong"));
    })
    .await;
    for part in [
        "results.store s3://bucket/pictures",
        "cannot write",
        "SignatureDoesNotMatch",
    ] {
        assert!(line.contains(part), "{part} is not in: {line}");
    }
    let line = refused(&redis, |config| {
        bucket.configure(config);
        config.results.store = "s3://elsewhere/pictures".to_owned();
    })
    .await;
    assert!(
        line.contains("s3://elsewhere/pictures") && line.contains("NoSuchBucket"),
        "{line}"
    );
    bucket.set_broken(Some(StatusCode::SERVICE_UNAVAILABLE));
    let line = refused(&redis, |config| bucket.configure(config)).await;
    assert!(line.contains("results.store s3://bucket/pictures"), "{line}");
    let line = refused(&redis, |config| {
        bucket.configure(config);
        config.results.credentials_file = Some("/nowhere/keys".into());
    })
    .await;
    assert!(line.contains("/nowhere/keys"), "{line}");
}

#[tokio::test]
async fn a_bucket_that_comes_late_is_waited_for() {
    let (redis, bucket) = (RedisServer::start().await, Bucket::start().await);
    bucket.set_broken(Some(StatusCode::SERVICE_UNAVAILABLE));
    let mut config = cluster::config(&redis);
    bucket.configure(&mut config);
    config.results.startup_timeout_ms = 60_000;
    let starting = tokio::spawn(RunningGateway::start_with(config));
    crate::support::until("a first attempt", || async {
        (!bucket.requests().is_empty()).then_some(())
    })
    .await;
    bucket.set_broken(None);
    starting.await.unwrap().stop().await;
}

#[tokio::test]
async fn a_folder_that_is_missing_or_may_not_be_written_is_named() {
    let (redis, folder) = (RedisServer::start().await, TempDir::new().unwrap());
    let missing = folder.path().join("pictures");
    let store = format!("file://{}", missing.display());
    let line = refused(&redis, |config| config.results.store = store.clone()).await;
    assert!(line.contains(&store), "{line}");
    assert!(
        !missing.exists(),
        "a folder that is made here could be one that lacks its mount"
    );
    // Not a folder at all: the test may run as root, whom no rights stop.
    std::fs::write(&missing, b"").unwrap();
    let line = refused(&redis, |config| config.results.store = store.clone()).await;
    assert!(line.contains(&store), "{line}");
}

#[tokio::test]
async fn a_store_has_one_cluster() {
    let (first, second) = (RedisServer::start().await, RedisServer::start().await);
    let folder = TempDir::new().unwrap();
    let store = format!("file://{}", folder.path().display());
    let with_store = |redis: &RedisServer| {
        let mut config = cluster::config(redis);
        config.results.store = store.clone();
        config
    };
    let one = RunningGateway::start_with(with_store(&first)).await;
    let two = RunningGateway::start_with(with_store(&first)).await;
    let line = refused(&second, |config| config.results.store = store.clone()).await;
    assert!(
        line.contains("another cluster") && line.contains("muse-owner"),
        "{line}"
    );
    std::fs::remove_file(folder.path().join("muse-owner")).unwrap();
    let three = RunningGateway::start_with(with_store(&second)).await;
    for gateway in [one, two, three] {
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_volume_that_is_not_mounted_is_not_taken_for_an_empty_store() {
    let (redis, folder) = (RedisServer::start().await, TempDir::new().unwrap());
    let store = format!("file://{}", folder.path().display());
    let mut config = cluster::config(&redis);
    config.results.store = store.clone();
    RunningGateway::start_with(config.clone()).await.stop().await;
    let marker = folder.path().join("muse-owner");
    let mark = std::fs::read_to_string(&marker).unwrap();
    std::fs::remove_file(&marker).unwrap();
    let line = refused(&redis, |config| config.results.store = store).await;
    assert!(
        line.contains("mounted") && line.contains(mark.trim()),
        "what to write there if that is right: {line}"
    );
    std::fs::write(&marker, mark).unwrap();
    RunningGateway::start_with(config).await.stop().await;
}
