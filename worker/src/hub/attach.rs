//! One attempt to attach: connect, hello, welcome. And what its failure means.

use std::time::Duration;

use muse_proto::internal::v1::{
    AttachRequest, AttachResponse, Hello, attach_request, attach_response, worker_hub_client::WorkerHubClient,
};
use muse_service::{client::connector, config::GrpcClient, error::code_name};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Endpoint};

use crate::config::Hub;

/// A welcomed connection.
pub(super) struct Link {
    pub(super) gateway: String,
    pub(super) heartbeat: Duration,
    pub(super) outbound: mpsc::Sender<AttachRequest>,
    pub(super) inbound: Streaming<AttachResponse>,
}

/// Why there is no connection, or no longer.
#[derive(Debug)]
pub(super) struct Loss {
    /// On one line.
    pub(super) reason: String,
    /// Asking again does not help: somebody has to change the worker, its bundle, or what else is attached.
    pub(super) is_standing: bool,
}

// === impl Loss ===

impl Loss {
    /// It may work next time.
    pub(super) fn passing(reason: impl Into<String>) -> Self {
        Loss {
            reason: reason.into(),
            is_standing: false,
        }
    }

    /// The stream ended with a status, whose code says whether that stands (worker_hub.proto).
    pub(super) fn of(status: &Status) -> Self {
        let code = status.code();
        Loss {
            reason: format!("{} ({})", status.message(), code_name(code)),
            is_standing: matches!(
                code,
                Code::InvalidArgument
                    | Code::FailedPrecondition
                    | Code::Unauthenticated
                    | Code::PermissionDenied
                    | Code::Unimplemented
            ),
        }
    }
}

/// Full jitter below a doubling limit: after `failures` failures a share `random` (0…1) of it. The first attempt goes at
/// once.
pub(super) fn backoff(failures: u32, config: &Hub, random: f64) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let doubled = config
        .backoff_initial_ms
        .saturating_mul(1 << (failures - 1).min(30));
    Duration::from_millis(doubled.min(config.backoff_max_ms)).mul_f64(random.clamp(0.0, 1.0))
}

/// Connects, says hello, and waits for the welcome; all within `limit`.
///
/// # Errors
/// Why there is no connection, with the endpoint's name.
pub(super) async fn attach(
    endpoint: Endpoint,
    client: &GrpcClient,
    hello: Hello,
    limit: Duration,
    max_message: usize,
) -> Result<Link, Loss> {
    let uri = endpoint.uri().to_string();
    let attached = tokio::time::timeout(limit, open(endpoint, client, hello, max_message));
    let mut attached = attached
        .await
        .unwrap_or_else(|_| Err(Loss::passing(format!("no welcome in {limit:?}"))));
    if let Err(loss) = &mut attached {
        loss.reason = format!("{uri}: {}", loss.reason);
    }
    attached
}

async fn open(
    endpoint: Endpoint,
    client: &GrpcClient,
    hello: Hello,
    max_message: usize,
) -> Result<Link, Loss> {
    let channel = endpoint
        .connect_with_connector(connector(client))
        .await
        .map_err(|error| Loss::passing(format!("cannot connect: {}", causes(&error))))?;
    let mut client = WorkerHubClient::new(channel).max_decoding_message_size(max_message);
    // One message ahead: what waits here is lost with the connection, and would be said anew anyway.
    let (outbound, messages) = mpsc::channel(1);
    let hello = AttachRequest {
        message: Some(attach_request::Message::Hello(hello)),
    };
    outbound
        .try_send(hello)
        .map_err(|_| Loss::passing("the connection closed"))?;
    let response = client
        .attach(ReceiverStream::new(messages))
        .await
        .map_err(|status| Loss::of(&status))?;
    let mut inbound = response.into_inner();
    let first = inbound.message().await.map_err(|status| Loss::of(&status))?;
    let unwelcome = || Loss::passing("its first message is not a welcome with a heartbeat interval");
    let Some(attach_response::Message::Welcome(welcome)) = first.and_then(|response| response.message) else {
        return Err(unwelcome());
    };
    let heartbeat = welcome
        .heartbeat
        .as_ref()
        .and_then(muse_proto::std_duration)
        .filter(|heartbeat| !heartbeat.is_zero())
        .ok_or_else(unwelcome)?;
    Ok(Link {
        gateway: welcome.gateway_id,
        heartbeat,
        outbound,
        inbound,
    })
}

/// An error with its causes on one line: tonic's own says "transport error" and no more.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attempt_goes_at_once_and_later_ones_back_off_to_a_limit() {
        let config = Hub {
            backoff_initial_ms: 100,
            backoff_max_ms: 1000,
            ..Hub::default()
        };
        let waits = [0, 1, 2, 4, 5, 40].map(|failures| backoff(failures, &config, 1.0).as_millis());
        assert_eq!(waits, [0, 100, 200, 800, 1000, 1000]);
        assert_eq!(
            backoff(3, &config, 0.5).as_millis(),
            200,
            "jitter spreads the shards"
        );
    }
}
