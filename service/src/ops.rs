//! The operators' port: `/metrics`, `/livez`, `/readyz` over HTTP/1.
//!
//! Liveness says that the process answers, and depends on nothing else: restarting it would not bring Redis back.

use std::{io, net::SocketAddr, time::Duration};

use axum::{Router, extract::State, http::StatusCode, http::header, response::IntoResponse, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use crate::{Readiness, Shutdown, config, grpc::ServeError, metrics};

/// Histograms gather samples between two scrapes; without this they would grow where nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// A bound port that is not served yet.
#[derive(Debug)]
pub struct Ops {
    listener: TcpListener,
    address: SocketAddr,
    readiness: Readiness,
    metrics: PrometheusHandle,
}

impl Ops {
    /// Binds the port and installs the metrics recorder: call it before anything is recorded.
    ///
    /// # Errors
    /// [`ServeError`] when the address is taken or not ours.
    pub async fn bind(config: &config::Ops, readiness: Readiness) -> Result<Self, ServeError> {
        let metrics = metrics::install().map_err(|error| ServeError::Setup(error.to_string()))?;
        let failed = |source: io::Error| ServeError::Bind {
            key: "ops.listen",
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            address,
            readiness,
            metrics,
        })
    }

    /// The address bound.
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `ended` returns. Probes shall see a drain, so end it last: after the gRPC port, not with it.
    ///
    /// # Errors
    /// [`ServeError::Serve`] when the listener breaks.
    pub async fn serve_until(
        self,
        ended: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ServeError> {
        let upkeep = self.metrics.clone();
        let keep_up = async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                upkeep.run_upkeep();
            }
        };
        let router = router(self.readiness, self.metrics);
        // Dropping the server closes its port; what is in flight is a scrape, and may be cut.
        tokio::select! {
            served = async { axum::serve(self.listener, router).await } => {
                served.map_err(|error| ServeError::Serve { what: "ops", reason: error.to_string() })
            }
            () = keep_up => Ok(()),
            () = ended => Ok(()),
        }
    }

    /// Serves while the process lives: until the shutdown is requested and `shutdown.drain()` has passed, or until dropped.
    ///
    /// # Errors
    /// [`ServeError::Serve`] when the listener breaks.
    pub async fn serve(self, shutdown: Shutdown) -> Result<(), ServeError> {
        let readiness = self.readiness.clone();
        self.serve_until(async move {
            shutdown.requested().await;
            readiness.drain();
            tokio::time::sleep(shutdown.drain()).await;
        })
        .await
    }
}

fn router(readiness: Readiness, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/livez", get(async || "alive\n"))
        .route(
            "/readyz",
            get(async |State(readiness): State<Readiness>| readyz(&readiness)),
        )
        .with_state(readiness)
        .route(
            "/metrics",
            get(async move || {
                (
                    [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
                    metrics.render(),
                )
            }),
        )
}

fn readyz(readiness: &Readiness) -> impl IntoResponse + use<> {
    let status = if readiness.is_ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, format!("{}\n", readiness.describe()))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn readiness_follows_the_service_and_liveness_does_not() {
        let readiness = Readiness::new();
        let ops = Ops::bind(&config::Ops::default(), readiness.clone())
            .await
            .unwrap();
        let address = ops.local_addr();
        let (trigger, shutdown) = Shutdown::manual();
        let served = tokio::spawn(ops.serve_until(async move { shutdown.requested().await }));

        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
        readiness.set_ready(true);
        let answer = get(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        readiness.drain();
        let answer = get(address, "/readyz").await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.ends_with("draining\n"),
            "{answer}"
        );

        ::metrics::counter!("muse_test_total", "kind" => "ops").increment(3);
        let figures = get(address, "/metrics").await;
        assert!(figures.contains("muse_test_total{kind=\"ops\"} 3"), "{figures}");

        trigger.shut_down();
        served.await.unwrap().unwrap();
    }
}
