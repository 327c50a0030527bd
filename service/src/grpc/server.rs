//! Builds the port, binds it, serves it, ends it.

use std::{any::Any, convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::response::IntoResponse;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, server::NamedService, service::Routes};
use tonic_health::pb::health_server::HealthServer;
use tower::Service;
use tower_http::catch_panic::CatchPanicLayer;

use super::{accept, call::CallLayer, methods};
use crate::{
    Readiness, Shutdown,
    config::{ConfigError, GrpcServer},
    error::{Error as CallError, ErrorKind},
    health::HealthService,
    identity::{Authentication, IdentityLayer},
};

/// Why a port could not be opened or kept open.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The loopback rule.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address is taken, or not ours.
    #[error(
        "cannot listen on {address}: {source}; set {key} to another address, or to port 0 for any free one"
    )]
    Bind {
        /// The configuration key that says where.
        key: &'static str,
        /// The address asked for.
        address: SocketAddr,
        /// The operating system's word.
        source: io::Error,
    },
    /// Reflection or metrics could not be built: a fault of the service.
    #[error("cannot set the service up: {0}")]
    Setup(String),
    /// The port broke while it was served.
    #[error("the {what} port failed: {reason}")]
    Serve {
        /// `gRPC` or `ops`.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

/// Services on their way to a port.
pub struct Server {
    config: GrpcServer,
    authentication: Arc<Authentication>,
    readiness: Readiness,
    routes: Routes,
    names: Vec<&'static str>,
}

/// A port that is bound and not served yet: callers can connect, and wait.
#[derive(Debug)]
pub struct Bound {
    config: GrpcServer,
    authentication: Arc<Authentication>,
    readiness: Readiness,
    routes: Routes,
    listener: TcpListener,
    address: SocketAddr,
}

// === impl Server ===

impl Server {
    /// A port without services yet.
    pub fn new(config: &GrpcServer, authentication: Authentication, readiness: Readiness) -> Self {
        Self {
            config: config.clone(),
            authentication: Arc::new(authentication),
            readiness,
            routes: Routes::default(),
            names: Vec::new(),
        }
    }

    /// Adds a generated service. Set its message limits on it before.
    #[must_use]
    pub fn add_service<S>(mut self, service: S) -> Self
    where
        S: Service<http::Request<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
        S::Response: IntoResponse,
        S::Future: Send + 'static,
    {
        self.routes = self.routes.add_service(service);
        self.names.push(S::NAME);
        self
    }

    /// Adds health and reflection, and binds.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn bind(mut self) -> Result<Bound, ServeError> {
        let listen = self.config.listen;
        self.authentication
            .may_listen(listen, self.config.insecure_allow_remote)?;
        self.add_health_and_reflection()?;
        let failed = |source| ServeError::Bind {
            key: "grpc.listen",
            address: listen,
            source,
        };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Bound {
            config: self.config,
            authentication: self.authentication,
            readiness: self.readiness,
            routes: self.routes.prepare(),
            listener,
            address,
        })
    }

    fn add_health_and_reflection(&mut self) -> Result<(), ServeError> {
        let health = HealthServer::new(HealthService::new(
            self.readiness.clone(),
            self.names.iter().copied(),
        ));
        let setup = |error: tonic_reflection::server::Error| ServeError::Setup(error.to_string());
        let v1 = self.reflection().build_v1().map_err(setup)?;
        let v1alpha = self.reflection().build_v1alpha().map_err(setup)?;
        let routes = std::mem::take(&mut self.routes);
        self.routes = routes.add_service(health).add_service(v1).add_service(v1alpha);
        Ok(())
    }

    /// What this port serves, and no more: the descriptors know the other services too.
    fn reflection(&self) -> tonic_reflection::server::Builder<'static> {
        let mut builder = tonic_reflection::server::Builder::configure();
        for descriptors in methods::DESCRIPTOR_SETS {
            builder = builder.register_encoded_file_descriptor_set(descriptors);
        }
        for name in self.names.iter().chain(&methods::COMMON_SERVICES) {
            builder = builder.with_service_name(*name);
        }
        builder
    }
}

// === impl Bound ===

impl Bound {
    /// The address bound.
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the shutdown, then drains: no new connections, readiness off, running calls go on, and after
    /// [`Shutdown::drain`] what is left is cut with a warning. Streams that end only with their client must end themselves
    /// when the shutdown is requested. Dropping the future cuts every connection.
    ///
    /// # Errors
    /// [`ServeError::Serve`] when the listener breaks.
    pub async fn serve(self, shutdown: Shutdown) -> Result<(), ServeError> {
        let cut = CancellationToken::new();
        let _cut_with_this_future = cut.clone().drop_guard();
        let limits = accept::Limits {
            connections: self.config.max_connections,
            handshake: Duration::from_millis(self.config.handshake_timeout_ms),
            write_buffer: self.config.write_buffer_bytes,
        };
        let incoming = accept::incoming(self.listener, limits, cut);
        let known = methods::known().map_err(|error| ServeError::Setup(error.to_string()))?;
        let requested = {
            let (shutdown, readiness) = (shutdown.clone(), self.readiness.clone());
            async move {
                shutdown.requested().await;
                readiness.drain();
            }
        };
        let served = transport(&self.config)
            .layer(CallLayer::new(known))
            .layer(CatchPanicLayer::custom(answer_panic))
            .layer(IdentityLayer(self.authentication))
            .add_routes(self.routes)
            .serve_with_incoming_shutdown(incoming, requested);
        match shutdown.limit("gRPC connections", served).await {
            Some(Err(error)) => Err(ServeError::Serve {
                what: "gRPC",
                reason: error.to_string(),
            }),
            Some(Ok(())) | None => Ok(()),
        }
    }
}

fn transport(config: &GrpcServer) -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .max_concurrent_streams(config.max_concurrent_streams)
        .http2_max_local_error_reset_streams(Some(config.max_local_error_reset_streams))
        .http2_max_pending_accept_reset_streams(Some(config.max_pending_accept_reset_streams))
        .http2_max_header_list_size(config.max_header_bytes)
        .http2_keepalive_interval(Some(Duration::from_secs(config.keepalive_interval_seconds)))
        .http2_keepalive_timeout(Some(Duration::from_secs(config.keepalive_timeout_seconds)))
        .initial_stream_window_size(config.stream_window_bytes)
        .initial_connection_window_size(config.connection_window_bytes)
        // Age alone: a grace would cut running streams without telling the client.
        .max_connection_age(Duration::from_secs(config.max_connection_age_seconds))
}

/// A handler that panics fails its own call. The panic's text stays in the log: it may hold a prompt.
fn answer_panic(_panic: Box<dyn Any + Send>) -> http::Response<Body> {
    Status::from(CallError::new(ErrorKind::Internal, "a call panicked")).into_http()
}
