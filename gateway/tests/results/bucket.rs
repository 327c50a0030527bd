//! A server of one bucket, in the test's own process, that speaks as much of S3 as is spoken to it. Requests that S3 would
//! refuse are refused: unsigned or signed wrongly, for another bucket, a mass deletion without its digest.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{Method, StatusCode},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use url::form_urlencoded;

use super::signature;

/// Ends with this value.
pub struct Bucket {
    pub address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    folder: TempDir,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    objects: BTreeMap<String, Object>,
    /// What every request is answered with, instead.
    broken: Option<StatusCode>,
    /// Method and path, query included, and the answer's status.
    requests: Vec<String>,
}

struct Object {
    content: Bytes,
    modified: SystemTime,
}

const NAME: &str = "bucket";
/// Short, so that lists have several pages.
const PAGE: usize = 2;

type Answer = Result<Response, (StatusCode, String)>;

impl Bucket {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self::serve(address, |router| {
            tokio::spawn(async move { axum::serve(listener, router).await.unwrap() })
        })
    }

    /// With a way to listen of the test's own.
    pub fn serve(address: SocketAddr, serve: impl FnOnce(Router) -> JoinHandle<()>) -> Self {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let task = serve(Router::new().fallback(answer).with_state(Arc::clone(&shared)));
        Self {
            address,
            shared,
            folder: TempDir::with_prefix("muse-bucket-").unwrap(),
            task,
        }
    }

    /// The gateway's configuration for it.
    pub fn configure(&self, config: &mut muse_gateway::Config) {
        config.results.store = format!("s3://{NAME}/pictures");
        config.results.endpoint = Some(format!("http://{}", self.address));
        config.results.region = Some(signature::REGION.to_owned());
        config.results.credentials_file = Some(self.credentials(signature::SECRET));
        config.results.timeout_ms = 700;
        config.results.retry_ms = 100;
        config.results.startup_timeout_ms = 1_000;
    }

    /// A file with the key and this secret.
    pub fn credentials(&self, secret: &str) -> PathBuf {
        let path = self.folder.path().join("credentials");
        let text = format!(
            "[default]\naws_access_key_id = {}\naws_secret_access_key = {secret}\n",
            signature::KEY_ID
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    /// From now on every request fails so; `None`: it works again.
    pub fn set_broken(&self, broken: Option<StatusCode>) {
        self.lock().broken = broken;
    }

    pub fn put(&self, name: &str, age: Duration) {
        self.put_content(name, b"picture", age);
    }

    pub fn put_content(&self, name: &str, content: &'static [u8], age: Duration) {
        let object = Object {
            content: Bytes::from_static(content),
            modified: SystemTime::now() - age,
        };
        self.lock().objects.insert(name.to_owned(), object);
    }

    pub fn get(&self, name: &str) -> Option<Bytes> {
        self.lock().objects.get(name).map(|object| object.content.clone())
    }

    /// The names of everything in it.
    pub fn names(&self) -> Vec<String> {
        self.lock().objects.keys().cloned().collect()
    }

    pub fn requests(&self) -> Vec<String> {
        self.lock().requests.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(shared): State<Arc<Mutex<Shared>>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 64 << 20).await.unwrap();
    let asked = format!("{} {}", parts.method, parts.uri);
    let mut shared = shared.lock().unwrap();
    let answered = match shared.broken {
        Some(status) => Err((status, "Broken".to_owned())),
        None => signature::check(&parts, &body)
            .map_err(|why| (StatusCode::FORBIDDEN, format!("SignatureDoesNotMatch: {why}")))
            .and_then(|()| shared.serve(&parts, body)),
    };
    let response = match answered {
        Ok(response) => response,
        Err((status, code)) => {
            let text = format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code></Error>");
            (status, text).into_response()
        }
    };
    shared
        .requests
        .push(format!("{asked} {}", response.status().as_u16()));
    response
}

impl Shared {
    fn serve(&mut self, request: &axum::http::request::Parts, body: Bytes) -> Answer {
        let refuse = |status, code: &str| Err((status, code.to_owned()));
        let path = request.uri.path().trim_start_matches('/');
        let query: BTreeMap<String, String> =
            form_urlencoded::parse(request.uri.query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect();
        let (bucket, name) = path.split_once('/').unwrap_or((path, ""));
        if bucket != NAME {
            return refuse(StatusCode::NOT_FOUND, "NoSuchBucket");
        }
        match (&request.method, name) {
            (&Method::GET, "") if query.get("list-type").is_some_and(|kind| kind == "2") => self.list(&query),
            (&Method::POST, "") if query.contains_key("delete") => {
                // S3 takes no mass deletion without a digest of it.
                if !request.headers.contains_key("content-md5") {
                    return refuse(StatusCode::BAD_REQUEST, "MissingContentMD5");
                }
                let checksum = BASE64_STANDARD.encode(Sha256::digest(&body));
                if request
                    .headers
                    .get("x-amz-checksum-sha256")
                    .is_none_or(|found| *found != checksum[..])
                {
                    return refuse(StatusCode::BAD_REQUEST, "BadDigest");
                }
                self.delete(&String::from_utf8_lossy(&body))
            }
            (&Method::PUT, name) if !name.is_empty() && query.is_empty() => {
                let tag = tag(&body);
                let object = Object {
                    content: body,
                    modified: SystemTime::now(),
                };
                self.objects.insert(name.to_owned(), object);
                Ok([("etag", tag)].into_response())
            }
            (&Method::GET, name) if !name.is_empty() && query.is_empty() => match self.objects.get(name) {
                Some(object) => {
                    let headers = [
                        ("etag", tag(&object.content)),
                        ("last-modified", "Wed, 25 Nov 2026 09:00:00 GMT".to_owned()),
                    ];
                    Ok((headers, object.content.clone()).into_response())
                }
                None => refuse(StatusCode::NOT_FOUND, "NoSuchKey"),
            },
            (&Method::DELETE, name) if !name.is_empty() && query.is_empty() => {
                self.objects.remove(name);
                Ok(StatusCode::NO_CONTENT.into_response())
            }
            _ => refuse(StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
        }
    }

    fn list(&self, query: &BTreeMap<String, String>) -> Answer {
        let prefix = query.get("prefix").cloned().unwrap_or_default();
        let after = query.get("continuation-token").cloned().unwrap_or_default();
        let mut found = self
            .objects
            .iter()
            .filter(|(name, _)| name.starts_with(&prefix) && **name > after);
        let page: Vec<_> = found.by_ref().take(PAGE).collect();
        let more = found.next().is_some();
        let contents: String = page
            .iter()
            .map(|(name, object)| {
                let modified = prost_types::Timestamp::from(object.modified);
                let (size, tag) = (object.content.len(), tag(&object.content));
                format!(
                    "<Contents><Key>{name}</Key><LastModified>{modified}</LastModified><Size>{size}</Size>\
                     <ETag>{tag}</ETag></Contents>"
                )
            })
            .collect();
        let next = match page.last() {
            Some((name, _)) if more => format!("<NextContinuationToken>{name}</NextContinuationToken>"),
            _ => String::new(),
        };
        let text = format!(
            "<?xml version=\"1.0\"?>\n<ListBucketResult><IsTruncated>{more}</IsTruncated>{next}{contents}\
             </ListBucketResult>"
        );
        Ok(text.into_response())
    }

    fn delete(&mut self, document: &str) -> Answer {
        let mut deleted = String::new();
        for rest in document.split("<Key>").skip(1) {
            let Some((name, _)) = rest.split_once("</Key>") else {
                return Err((StatusCode::BAD_REQUEST, "MalformedXML".to_owned()));
            };
            self.objects.remove(name);
            deleted += &format!("<Deleted><Key>{name}</Key></Deleted>");
        }
        Ok(format!("<?xml version=\"1.0\"?>\n<DeleteResult>{deleted}</DeleteResult>").into_response())
    }
}

fn tag(content: &[u8]) -> String {
    format!("\"{}\"", hex::encode(&Sha256::digest(content)[..16]))
}
