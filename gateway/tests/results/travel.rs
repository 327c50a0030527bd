//! A picture's way through a bucket.

use std::{net::SocketAddr, sync::Arc};

use muse_gateway::{Config, Gateway};
use muse_proto::v1::{
    GenerateRequest, GetImageRequest, Job, JobErrorReason, JobState, Stage, generate_response::Event,
};
use muse_service::Shutdown;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, rustls, server::TlsStream};

use super::bucket::Bucket;
use crate::support::{
    cluster,
    redis_server::RedisServer,
    request,
    scene::{Client, Scene, submit, until_state},
    soon,
    worker::picture_bytes,
};

/// A job that has run to its end.
pub async fn finished(scene: &mut Scene) -> Job {
    let job = submit(&mut scene.client, "a cat").await;
    scene.worker.work_once().await;
    until_state(&scene.client, &job.id, JobState::Succeeded).await
}

/// A job's first picture.
pub async fn picture(client: &mut Client, job: &Job) -> Result<Vec<u8>, tonic::Status> {
    let get = GetImageRequest {
        job_id: job.id.clone(),
        index: 0,
    };
    let image = client.get_image(get).await?.into_inner().image;
    Ok(image.unwrap_or_default().data.to_vec())
}

/// The names of a job's pictures in the bucket.
pub fn pictures_of(bucket: &Bucket, job: &Job) -> Vec<String> {
    let names = bucket.names().into_iter();
    names.filter(|name| name.contains(&job.id)).collect()
}

#[tokio::test]
async fn pictures_go_into_the_bucket_and_come_back() {
    let bucket = Bucket::start().await;
    let mut scene = Scene::with(&[Stage::Base], |config| bucket.configure(config)).await;
    let job = finished(&mut scene).await;
    let names = pictures_of(&bucket, &job);
    assert_eq!(names.len(), 1, "{:?}", bucket.names());
    assert!(
        names[0].starts_with(&format!("pictures/{}.", job.id)) && names[0].ends_with("/0"),
        "{names:?}"
    );
    assert_eq!(bucket.get(&names[0]).unwrap(), picture_bytes(0));
    assert_eq!(picture(&mut scene.client, &job).await.unwrap(), picture_bytes(0));
    let keys: Vec<String> = scene.redis.ask(&["KEYS", "*img:*"]).await;
    assert!(keys.is_empty(), "nothing of them in Redis: {keys:?}");
    let requests = bucket.requests();
    let all_fine = requests
        .iter()
        .all(|request| request.ends_with(" 200") || request.ends_with("muse-owner 404"));
    assert!(all_fine, "{requests:#?}");
}

/// Makes a picture over `Generate`; gives it and its job.
async fn generated(scene: &mut Scene) -> (Vec<u8>, Job) {
    let generate = GenerateRequest {
        request: Some(request("a cat")),
        omit_images: false,
    };
    let mut events = scene.client.generate(generate).await.unwrap().into_inner();
    scene.worker.credit(1).await;
    let lease = scene.worker.lease().await;
    let (mut picture, mut job): (_, Option<Job>) = (Vec::new(), None);
    while let Some(response) = soon("an event", events.message()).await.unwrap() {
        match response.event {
            Some(Event::Image(image)) => picture = image.data.to_vec(),
            Some(Event::Job(told)) => {
                // Told by its watcher, who is there then.
                if told.state() == JobState::Running {
                    scene.worker.complete(&lease).await;
                }
                job = Some(told);
            }
            _ => {}
        }
    }
    (picture, job.unwrap())
}

#[tokio::test]
async fn who_watches_over_the_gateway_of_the_worker_gets_the_picture_from_memory() {
    for recent_bytes in [muse_gateway::config::Results::default().recent_bytes, 0] {
        let bucket = Bucket::start().await;
        let mut scene = Scene::with(&[Stage::Base], |config| {
            bucket.configure(config);
            config.results.recent_bytes = recent_bytes;
        })
        .await;
        let (first, job) = generated(&mut scene).await;
        assert_eq!(first, picture_bytes(0));
        let reads = || {
            let read = |request: &&String| request.starts_with("GET") && request.contains(&job.id);
            bucket.requests().iter().filter(read).count()
        };
        assert_eq!(reads(), usize::from(recent_bytes == 0), "{:?}", bucket.requests());
        // Who comes later reads what was written.
        assert_eq!(picture(&mut scene.client, &job).await.unwrap(), picture_bytes(0));
        assert_eq!(
            reads(),
            1 + usize::from(recent_bytes == 0),
            "{:?}",
            bucket.requests()
        );
    }
}

#[tokio::test]
async fn pictures_of_a_folder_are_files_that_another_gateway_reads() {
    let folder = TempDir::new().unwrap();
    let store = format!("file://{}", folder.path().display());
    let mut scene = Scene::with(&[Stage::Base], |config| config.results.store = store.clone()).await;
    let job = finished(&mut scene).await;
    let names: Vec<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(&job.id))
        .collect();
    assert_eq!(names.len(), 1, "{names:?}");
    let file = folder.path().join(&names[0]).join("0");
    assert_eq!(std::fs::read(&file).unwrap(), picture_bytes(0));

    let mut config = cluster::config(&scene.redis);
    config.results.store = store;
    let other = cluster::RunningGateway::start_with(config).await;
    let mut client = other.generation().await;
    assert_eq!(picture(&mut client, &job).await.unwrap(), picture_bytes(0));
    std::fs::remove_file(file).unwrap();
    let gone = picture(&mut client, &job).await.unwrap_err();
    assert_eq!(gone.code(), tonic::Code::NotFound, "{gone:?}");
}

#[tokio::test]
async fn a_picture_above_the_limit_fails_its_job_with_the_reason() {
    let bucket = Bucket::start().await;
    let mut scene = Scene::with(&[Stage::Base], |config| {
        bucket.configure(config);
        config.results.picture_bytes = 4;
    })
    .await;
    let (job, lease) = scene.lease().await;
    scene.worker.complete(&lease).await;
    scene.worker.ack().await;
    let failed = until_state(&scene.client, &job.id, JobState::Failed).await;
    let error = failed.error.clone().unwrap_or_default();
    assert_eq!(error.reason(), JobErrorReason::Internal);
    assert!(error.message.contains("results.picture_bytes"), "{error:?}");
    assert!(pictures_of(&bucket, &job).is_empty());
}

/// A listener that speaks TLS with a certificate for 127.0.0.1.
struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, peer) = self.listener.accept().await.unwrap();
            // Who does not trust the certificate leaves.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[tokio::test]
async fn a_buckets_server_is_trusted_by_the_certificate_that_is_configured_and_by_no_other() {
    let names = vec!["127.0.0.1".to_owned()];
    let certified = rcgen::generate_simple_self_signed(names).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let listener = Tls {
        listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        acceptor: TlsAcceptor::from(Arc::new(tls)),
    };
    let address = listener.listener.local_addr().unwrap();
    let bucket = Bucket::serve(address, |router| {
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() })
    });
    let folder = TempDir::new().unwrap();
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, certified.cert.pem()).unwrap();
    let with_tls = |config: &mut Config| {
        bucket.configure(config);
        config.results.endpoint = Some(format!("https://{address}"));
    };
    let mut scene = Scene::with(&[Stage::Base], |config| {
        with_tls(config);
        config.results.ca_file = Some(ca_file);
    })
    .await;
    let job = finished(&mut scene).await;
    assert_eq!(picture(&mut scene.client, &job).await.unwrap(), picture_bytes(0));

    let redis = RedisServer::start().await;
    let mut config = cluster::config(&redis);
    with_tls(&mut config);
    let (_trigger, shutdown) = Shutdown::manual();
    let refused = Gateway::bind(config, shutdown)
        .await
        .err()
        .expect("no trust")
        .to_string();
    assert!(
        refused.contains("certificate") || refused.contains("UnknownIssuer"),
        "{refused}"
    );
}
