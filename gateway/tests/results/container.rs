//! Azure's protocol, as far as it is spoken: a server of one container that checks each request's shared key, and a picture's
//! way through it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, request::Parts},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use muse_gateway::{Config, Gateway};
use muse_proto::v1::Stage;
use muse_service::Shutdown;
use tempfile::TempDir;
use tokio::net::TcpListener;
use url::form_urlencoded;

use super::{
    signature::hmac,
    travel::{finished, picture},
};
use crate::support::{cluster, redis_server::RedisServer, scene::Scene, until, worker::picture_bytes};

const ACCOUNT: &str = "studio";
const KEY: &[u8] = b"hush, container";
const LAST_MODIFIED: &str = "Wed, 25 Nov 2026 09:00:00 GMT";

type Blobs = Arc<Mutex<BTreeMap<String, Bytes>>>;
type Answer = Result<Response, (StatusCode, String)>;

async fn start() -> (SocketAddr, Blobs) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let blobs = Blobs::default();
    let router = Router::new().fallback(answer).with_state(Arc::clone(&blobs));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (address, blobs)
}

async fn answer(State(blobs): State<Blobs>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 64 << 20).await.unwrap();
    let signed = check(
        parts.method.as_str(),
        parts.uri.path(),
        parts.uri.query().unwrap_or_default(),
        &parts.headers,
    );
    let answered = signed
        .map_err(|why| (StatusCode::FORBIDDEN, format!("AuthenticationFailed: {why}")))
        .and_then(|()| serve(&mut blobs.lock().unwrap(), &parts, body));
    match answered {
        Ok(response) => response,
        Err((status, code)) => (
            status,
            format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code></Error>"),
        )
            .into_response(),
    }
}

/// Whether a request is what its shared key says.
fn check(method: &str, path: &str, query: &str, headers: &HeaderMap) -> Result<(), String> {
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("")
    };
    let length = Some(header("content-length"))
        .filter(|length| *length != "0")
        .unwrap_or("");
    let mut text = format!("{method}\n");
    for field in [
        header("content-encoding"),
        header("content-language"),
        length,
        header("content-md5"),
    ] {
        text += &format!("{field}\n");
    }
    for name in [
        "content-type",
        "date",
        "if-modified-since",
        "if-match",
        "if-none-match",
        "if-unmodified-since",
        "range",
    ] {
        text += &format!("{}\n", header(name));
    }
    let own: BTreeMap<&str, &str> = headers
        .keys()
        .map(|name| name.as_str())
        .filter(|name| name.starts_with("x-ms-"))
        .map(|name| (name, header(name)))
        .collect();
    for (name, value) in own {
        text += &format!("{name}:{value}\n");
    }
    text += &format!("/{ACCOUNT}{path}");
    let pairs: BTreeMap<_, _> = form_urlencoded::parse(query.as_bytes()).collect();
    for (name, value) in pairs {
        text += &format!("\n{name}:{value}");
    }
    let wanted = format!(
        "SharedKey {ACCOUNT}:{}",
        BASE64_STANDARD.encode(hmac(KEY, text.as_bytes()))
    );
    match header("authorization") {
        found if found == wanted => Ok(()),
        "" => Err("no key".to_owned()),
        _ => Err("another key".to_owned()),
    }
}

fn serve(blobs: &mut BTreeMap<String, Bytes>, request: &Parts, body: Bytes) -> Answer {
    let refuse = |status, code: &str| Err((status, code.to_owned()));
    let query: BTreeMap<String, String> =
        form_urlencoded::parse(request.uri.query().unwrap_or_default().as_bytes())
            .into_owned()
            .collect();
    let asks = |name: &str, value: &str| query.get(name).is_some_and(|found| found == value);
    let Some(name) = request.uri.path().strip_prefix("/container") else {
        return refuse(StatusCode::NOT_FOUND, "ContainerNotFound");
    };
    let name = name.trim_start_matches('/');
    match request.method {
        Method::GET if asks("restype", "container") && asks("comp", "list") => {
            let prefix = query.get("prefix").cloned().unwrap_or_default();
            let found: String = blobs
                .iter()
                .filter(|(name, _)| name.starts_with(&prefix))
                .map(|(name, content)| {
                    format!(
                        "<Blob><Name>{name}</Name><Properties><Last-Modified>{LAST_MODIFIED}</Last-Modified><Etag>e</Etag>\
                         <Content-Length>{}</Content-Length><Content-Type>a/b</Content-Type></Properties></Blob>",
                        content.len()
                    )
                })
                .collect();
            let text = format!(
                "<?xml version=\"1.0\"?>\n<EnumerationResults><Blobs>{found}</Blobs><NextMarker /></EnumerationResults>"
            );
            Ok(text.into_response())
        }
        Method::POST if asks("restype", "container") && asks("comp", "batch") => {
            delete(blobs, &String::from_utf8_lossy(&body))
        }
        Method::PUT if !name.is_empty() => {
            if request
                .headers
                .get("x-ms-blob-type")
                .is_none_or(|kind| kind != "BlockBlob")
            {
                return refuse(StatusCode::BAD_REQUEST, "MissingRequiredHeader");
            }
            blobs.insert(name.to_owned(), body);
            Ok((StatusCode::CREATED, [("etag", "e")]).into_response())
        }
        Method::GET if !name.is_empty() => match blobs.get(name) {
            Some(content) => {
                Ok(([("etag", "e"), ("last-modified", LAST_MODIFIED)], content.clone()).into_response())
            }
            None => refuse(StatusCode::NOT_FOUND, "BlobNotFound"),
        },
        _ => refuse(StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
    }
}

/// A batch: each of its parts is a whole request with a key of its own.
fn delete(blobs: &mut BTreeMap<String, Bytes>, batch: &str) -> Answer {
    let mut answers = String::new();
    for part in batch.split("\r\n--batch_") {
        let Some((before, request)) = part.split_once("DELETE ") else {
            continue;
        };
        let malformed = || (StatusCode::BAD_REQUEST, "InvalidInput".to_owned());
        let (path, fields) = request.split_once(" HTTP/1.1").ok_or_else(malformed)?;
        let mut headers = HeaderMap::new();
        for (name, value) in fields.lines().filter_map(|line| line.split_once(':')) {
            let name: axum::http::HeaderName = name.trim().parse().map_err(|_| malformed())?;
            headers.insert(name, value.trim().parse().map_err(|_| malformed())?);
        }
        check("DELETE", path, "", &headers).map_err(|why| (StatusCode::FORBIDDEN, why))?;
        let id = before
            .lines()
            .find_map(|line| line.split_once("Content-ID: "))
            .ok_or_else(malformed)?
            .1;
        let name = path.trim_start_matches("/container").trim_start_matches('/');
        let status = if blobs.remove(name).is_some() {
            "202 Accepted"
        } else {
            "404 The specified blob does not exist."
        };
        answers += &format!(
            "--batchresponse_a\r\nContent-Type: application/http\r\nContent-ID: {id}\r\n\r\nHTTP/1.1 {status}\r\n\
             x-ms-version: 2020-10-02\r\n\r\n\r\n"
        );
    }
    answers += "--batchresponse_a--\r\n";
    let kind = [("content-type", "multipart/mixed; boundary=batchresponse_a")];
    Ok((StatusCode::ACCEPTED, kind, answers).into_response())
}

fn configure(config: &mut Config, address: SocketAddr, folder: &TempDir, key: &[u8]) {
    let path = folder.path().join("key");
    std::fs::write(&path, BASE64_STANDARD.encode(key) + "\n").unwrap();
    config.results.store = "az://container/pictures".to_owned();
    config.results.endpoint = Some(format!("http://{address}"));
    config.results.account = Some(ACCOUNT.to_owned());
    config.results.credentials_file = Some(path);
    config.results.timeout_ms = 700;
    config.results.startup_timeout_ms = 1_000;
}

#[tokio::test]
async fn pictures_go_into_a_container_come_back_and_go_with_their_job() {
    let ((address, blobs), folder) = (start().await, TempDir::new().unwrap());
    let mut scene = Scene::with(&[Stage::Base], |config| {
        configure(config, address, &folder, KEY);
        config.queue.keep_done_seconds = 2;
        config.queue.housekeeping_ms = 50;
    })
    .await;
    let job = finished(&mut scene).await;
    assert_eq!(picture(&mut scene.client, &job).await.unwrap(), picture_bytes(0));
    let names = || blobs.lock().unwrap().keys().cloned().collect::<Vec<String>>();
    assert!(
        names()
            .iter()
            .any(|name| name.starts_with(&format!("pictures/{}.", job.id))),
        "{:?}",
        names()
    );
    until("the picture to go with its job", || async {
        (names() == ["pictures/muse-owner"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn another_accounts_key_is_named_and_not_told() {
    let ((address, _blobs), folder, redis) =
        (start().await, TempDir::new().unwrap(), RedisServer::start().await);
    let mut config = cluster::config(&redis);
    configure(&mut config, address, &folder, b"another");
    let (_trigger, shutdown) = Shutdown::manual();
    let refused = Gateway::bind(config, shutdown)
        .await
        .err()
        .expect("no rights")
        .to_string();
    assert!(
        refused.contains("az://container/pictures") && refused.contains("AuthenticationFailed"),
        "{refused}"
    );
    assert!(
        !refused.contains(&BASE64_STANDARD.encode(b"another")),
        "{refused}"
    );
}
