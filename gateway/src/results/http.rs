//! HTTP for buckets: hyper with rustls on ring, as everywhere else in the services. Certificates are checked against the
//! machine's own, or those of `results.ca_file`.

use std::{error::Error as StdError, io, path::Path, sync::Arc, time::Duration};

use http::header::{HeaderValue, USER_AGENT};
use http_body_util::BodyExt as _;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector as TcpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
        HttpResponseBody, HttpService,
    },
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use super::startup::StoreError;

/// Idle connections that are kept; a bucket's server closes its own side after about as long.
const IDLE: Duration = Duration::from_secs(60);

/// Hands the same client to everything that a store makes requests for; cloning is cheap.
#[derive(Clone)]
pub(super) struct Connector(Client<HttpsConnector<TcpConnector>, HttpRequestBody>);

#[derive(Debug)]
struct Service(Connector);

impl Connector {
    /// A client that trusts the certificates of `ca_file`, or the machine's own.
    ///
    /// # Errors
    /// When there are none, or the file is unreadable.
    pub(super) fn new(ca_file: Option<&Path>, connect_timeout: Duration) -> Result<Self, StoreError> {
        let provider = Arc::new(ring::default_provider());
        let tls = match ca_file {
            Some(path) => HttpsConnectorBuilder::new().with_tls_config(trusting(path, provider)?),
            None => HttpsConnectorBuilder::new()
                .with_provider_and_native_roots(provider)
                .map_err(|error| StoreError::Configuration {
                    key: "results.ca_file",
                    reason: format!("is not set, and this machine has no certificates to trust: {error}"),
                })?,
        };
        let mut tcp = TcpConnector::new();
        // It is asked for https too.
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(connect_timeout));
        tcp.set_nodelay(true);
        // Without TLS: metadata services of the clouds, and endpoints that the configuration lets pass.
        let https = tls.https_or_http().enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .build(https);
        Ok(Self(client))
    }
}

fn trusting(path: &Path, provider: Arc<rustls::crypto::CryptoProvider>) -> Result<ClientConfig, StoreError> {
    let invalid = |reason: String| StoreError::Configuration {
        key: "results.ca_file",
        reason: format!("{}: {reason}", path.display()),
    };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| invalid(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| invalid(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| invalid(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(invalid("has no certificate (PEM)".to_owned()));
    }
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid(error.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

// Its parts say nothing.
impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Service(self.clone())))
    }
}

#[tonic::async_trait]
impl HttpService for Service {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let agent = HeaderValue::from_static(concat!("muse/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().entry(USER_AGENT).or_insert(agent);
        let response = self.0.0.request(request).await.map_err(|error| {
            let kind = if error.is_connect() {
                HttpErrorKind::Connect
            } else {
                kind_of(&error)
            };
            HttpError::new(kind, Chain(error))
        })?;
        let broken = |error| HttpError::new(HttpErrorKind::Interrupted, Chain(error));
        Ok(response.map(|body| HttpResponseBody::new(body.map_err(broken))))
    }
}

/// What an error is to a retry.
fn kind_of(error: &(dyn StdError + 'static)) -> HttpErrorKind {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return match error.kind() {
                io::ErrorKind::TimedOut => HttpErrorKind::Timeout,
                _ => HttpErrorKind::Interrupted,
            };
        }
        cause = error.source();
    }
    // A connection that the server closed meanwhile.
    HttpErrorKind::Interrupted
}

/// An error that tells its causes: hyper's own words are only `client error (Connect)`.
#[derive(Debug)]
struct Chain<E>(E);

impl<E: StdError> std::fmt::Display for Chain<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl<E: StdError + 'static> StdError for Chain<E> {}
