//! Whether this instance wants work: one state, seen as gRPC health and as `/readyz`.

use std::{collections::BTreeSet, sync::Arc};

use futures::{StreamExt as _, stream, stream::BoxStream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};

/// Shared by whoever knows (a warm-up, a connection to Redis) and whoever is asked. Begins not ready.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<State>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    NotReady,
    Ready,
    // Final: a draining instance does not become ready again.
    Draining,
}

// === impl Readiness ===

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(State::NotReady)))
    }
}

impl Readiness {
    /// Not ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says whether work is wanted; without effect once draining.
    pub fn set_ready(&self, ready: bool) {
        let wanted = if ready { State::Ready } else { State::NotReady };
        self.0.send_if_modified(|state| {
            let change = *state != State::Draining && *state != wanted;
            if change {
                *state = wanted;
            }
            change
        });
    }

    /// No more work, for good. Watches of the health service end.
    pub fn drain(&self) {
        self.0.send_replace(State::Draining);
    }

    /// Whether work is wanted.
    pub fn is_ready(&self) -> bool {
        *self.0.borrow() == State::Ready
    }

    /// Returns when work is wanted; never once draining.
    pub async fn ready(&self) {
        let mut states = self.0.subscribe();
        if states.wait_for(|state| *state == State::Ready).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// For people: `ready`, `not ready` or `draining`.
    pub fn describe(&self) -> &'static str {
        match *self.0.borrow() {
            State::NotReady => "not ready",
            State::Ready => "ready",
            State::Draining => "draining",
        }
    }
}

impl State {
    fn response(self) -> HealthCheckResponse {
        let status = if self == Self::Ready {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        HealthCheckResponse {
            status: status.into(),
        }
    }
}

/// `grpc.health.v1.Health` over a [`Readiness`]. Every service of the port has the same state. Unlike the library's own
/// implementation its watches end with the drain, so that one watching client cannot hold the process up.
#[derive(Clone, Debug)]
pub(crate) struct HealthService {
    readiness: Readiness,
    services: Arc<BTreeSet<&'static str>>,
}

impl HealthService {
    pub(crate) fn new(readiness: Readiness, services: impl IntoIterator<Item = &'static str>) -> Self {
        Self {
            readiness,
            services: Arc::new(services.into_iter().collect()),
        }
    }

    fn known(&self, request: &HealthCheckRequest) -> Result<(), Status> {
        let name = request.service.as_str();
        if name.is_empty() || self.services.contains(name) {
            return Ok(());
        }
        Err(Status::not_found("no such service on this port"))
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.known(request.get_ref())?;
        Ok(Response::new(self.readiness.0.borrow().response()))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.known(request.get_ref())?;
        let mut states = self.readiness.0.subscribe();
        states.mark_changed();
        let statuses = stream::unfold(Some(states), |states| async move {
            let mut states = states?;
            states.changed().await.ok()?;
            let state = *states.borrow_and_update();
            Some((Ok(state.response()), (state != State::Draining).then_some(states)))
        });
        Ok(Response::new(statuses.boxed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest {
            service: service.to_owned(),
        })
    }

    #[test]
    fn draining_is_final() {
        let readiness = Readiness::new();
        assert!(!readiness.is_ready());
        readiness.set_ready(true);
        assert!(readiness.is_ready());
        readiness.drain();
        readiness.set_ready(true);
        assert_eq!(readiness.describe(), "draining");
    }

    #[tokio::test]
    async fn a_watch_says_every_change_and_ends_with_the_drain() {
        let readiness = Readiness::new();
        let health = HealthService::new(readiness.clone(), ["muse.v1.Generation"]);
        let mut watch = health
            .watch(ask("muse.v1.Generation"))
            .await
            .unwrap()
            .into_inner();
        let mut next = async || watch.next().await.map(|status| status.unwrap().status());
        assert_eq!(next().await, Some(ServingStatus::NotServing));
        readiness.set_ready(true);
        assert_eq!(next().await, Some(ServingStatus::Serving));
        readiness.drain();
        assert_eq!(next().await, Some(ServingStatus::NotServing));
        assert_eq!(next().await, None);
    }

    #[tokio::test]
    async fn health_knows_the_port_as_a_whole_and_its_services_only() {
        let health = HealthService::new(Readiness::new(), ["muse.v1.Generation"]);
        assert!(health.check(ask("")).await.is_ok());
        assert_eq!(
            health.check(ask("muse.v1.Other")).await.unwrap_err().code(),
            tonic::Code::NotFound
        );
    }
}
