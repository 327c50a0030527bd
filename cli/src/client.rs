//! Connections to gateways: any of them will do, and when one is lost another is asked.

use std::time::Duration;

use muse_proto::v1::{
    admin_client::AdminClient, generation_client::GenerationClient, models_client::ModelsClient,
};
use muse_service::{client, config::GrpcClient};
use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use crate::failure::Failure;

/// A picture must fit; as the gateway's own limit for the pictures of a whole job.
const MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// For calls that answer at once.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// A gateway that vanished without a word is noticed in about the sum of these.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(5);

/// The gateways of one cluster.
#[derive(Debug)]
pub(crate) struct Gateways {
    endpoints: Vec<(String, Endpoint)>,
    /// Where to begin; moves on when a gateway was lost.
    first: usize,
}

impl Gateways {
    pub(crate) fn new(addresses: &[String]) -> Result<Self, Failure> {
        let endpoints = addresses
            .iter()
            .map(|address| {
                let endpoint = client::endpoint(address, &GrpcClient::default())
                    .map_err(|error| Failure::Usage(error.to_string()))?;
                let endpoint = endpoint
                    .http2_keep_alive_interval(KEEPALIVE)
                    .keep_alive_timeout(KEEPALIVE_ANSWER);
                Ok((address.clone(), endpoint))
            })
            .collect::<Result<_, Failure>>()?;
        Ok(Self { endpoints, first: 0 })
    }

    /// A connection to the first gateway that answers.
    pub(crate) async fn connect(&mut self) -> Result<Channel, Failure> {
        let mut reasons = Vec::new();
        let connector = client::connector(&GrpcClient::default());
        for offset in 0..self.endpoints.len() {
            let index = (self.first + offset) % self.endpoints.len();
            let (address, endpoint) = &self.endpoints[index];
            match endpoint.connect_with_connector(connector.clone()).await {
                Ok(channel) => {
                    self.first = index;
                    return Ok(channel);
                }
                Err(error) => reasons.push(format!("{address} ({})", innermost(&error))),
            }
        }
        Err(Failure::Unreachable(reasons.join(", ")))
    }

    /// The present one was lost: begin with the next.
    pub(crate) fn move_on(&mut self) {
        self.first = (self.first + 1) % self.endpoints.len().max(1);
    }

    pub(crate) async fn generation(&mut self) -> Result<GenerationClient<Channel>, Failure> {
        Ok(GenerationClient::new(self.connect().await?).max_decoding_message_size(MESSAGE_BYTES))
    }

    pub(crate) async fn models(&mut self) -> Result<ModelsClient<Channel>, Failure> {
        Ok(ModelsClient::new(self.connect().await?))
    }

    pub(crate) async fn admin(&mut self) -> Result<AdminClient<Channel>, Failure> {
        Ok(AdminClient::new(self.connect().await?))
    }
}

/// A call that answers at once.
pub(crate) fn call<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_LIMIT);
    request
}

/// A call that makes a job; it belongs to the trace that TRACEPARENT names, if there is one.
pub(crate) fn traced<T>(mut request: Request<T>) -> Request<T> {
    let named = std::env::var("TRACEPARENT")
        .ok()
        .and_then(|text| MetadataValue::try_from(text).ok());
    if let Some(traceparent) = named {
        request.metadata_mut().insert("traceparent", traceparent);
    }
    request
}

/// "Connection refused" and not "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_there_is_said_with_every_address_tried() {
        // Bound but not listened on: refused at once, and nobody else can take the ports meanwhile.
        let bound = || {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            socket
        };
        let sockets = [bound(), bound()];
        let addresses: Vec<String> = sockets
            .iter()
            .map(|socket| format!("http://{}", socket.local_addr().unwrap()))
            .collect();
        let failure = Gateways::new(&addresses).unwrap().connect().await.unwrap_err();
        let text = failure.to_string();
        assert_eq!(failure.code(), 3);
        assert!(
            addresses.iter().all(|address| text.contains(address)) && text.contains("refused"),
            "{text}"
        );
    }

    #[test]
    fn an_address_that_is_none_is_a_usage_error() {
        let failure = Gateways::new(&["ftp://x".to_owned()]).unwrap_err();
        assert_eq!(failure.code(), 2, "{failure}");
    }
}
