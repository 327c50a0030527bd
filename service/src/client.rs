//! Calls to another service: channels with time-outs and keepalive, and the trace context on every call.

use std::time::Duration;

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{
    service::{Interceptor, interceptor::InterceptedService},
    transport::Endpoint,
};
use tower::{BoxError, Service, ServiceExt as _};

use crate::{config::GrpcClient, corked::Corked, telemetry::trace_context};

/// A channel whose calls carry the trace context of the span that they are made in. Cloning is cheap.
pub type Channel = InterceptedService<tonic::transport::Channel, TraceInjection>;

/// An address that no channel can be made for.
#[derive(Debug, Error)]
pub enum AddressError {
    /// It is no URI.
    #[error("{address:?} is not a service address such as 127.0.0.1:7700 or http://gateway:7700: {reason}")]
    Malformed {
        /// As given.
        address: String,
        /// What the parser says.
        reason: String,
    },
    /// It has a scheme that is not spoken.
    #[error("{address:?} has an unknown scheme; use http://, or host:port alone")]
    Scheme {
        /// As given.
        address: String,
    },
}

/// A channel to `address` (`host:port` or `http://host:port`) that connects with the first call, and again after a loss.
/// Needs a tokio runtime. Calls have no time limit of their own: give each its own with [`tonic::Request::set_timeout`].
///
/// # Errors
/// [`AddressError`]; that nobody answers is found out by the first call, as UNAVAILABLE.
pub fn connect(address: &str, config: &GrpcClient) -> Result<Channel, AddressError> {
    let channel = endpoint(address, config)?.connect_with_connector_lazy(connector(config));
    Ok(InterceptedService::new(channel, TraceInjection))
}

/// The endpoint behind [`connect`], for those who want to wait for the connection.
///
/// # Errors
/// [`AddressError`].
pub fn endpoint(address: &str, config: &GrpcClient) -> Result<Endpoint, AddressError> {
    let uri = if address.contains("://") {
        address.to_owned()
    } else {
        format!("http://{address}")
    };
    let malformed = |reason: String| AddressError::Malformed {
        address: address.to_owned(),
        reason,
    };
    let parsed: http::Uri = uri
        .parse()
        .map_err(|error: http::uri::InvalidUri| malformed(error.to_string()))?;
    if parsed.scheme_str() != Some("http") {
        return Err(AddressError::Scheme {
            address: address.to_owned(),
        });
    }
    if parsed.port().is_none() {
        return Err(malformed("the port is missing".to_owned()));
    }
    let endpoint = Endpoint::from_shared(uri)
        .map_err(|error| malformed(error.to_string()))?
        .user_agent(concat!("muse/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| malformed(error.to_string()))?;
    Ok(endpoint
        .connect_timeout(Duration::from_millis(config.connect_timeout_ms))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(config.keepalive_interval_seconds))
        .keep_alive_timeout(Duration::from_secs(config.keepalive_timeout_seconds))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(config.stream_window_bytes)
        .initial_connection_window_size(config.connection_window_bytes))
}

/// How the connections of an [`endpoint`] are made: calls that are made at the same time share a write.
pub fn connector(
    config: &GrpcClient,
) -> impl Service<
    http::Uri,
    Response = TokioIo<impl AsyncRead + AsyncWrite + Send + Unpin + use<>>,
    Error = BoxError,
    Future: Send,
> + Clone
+ Send
+ 'static {
    let limit = config.write_buffer_bytes;
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.map_response(move |stream| TokioIo::new(Corked::new(stream.into_inner(), limit)))
        .map_err(BoxError::from)
}

/// Adds `traceparent` to a call.
#[derive(Clone, Copy, Debug, Default)]
pub struct TraceInjection;

impl Interceptor for TraceInjection {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        trace_context::inject(&tracing::Span::current(), request.metadata_mut());
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_are_taken_with_and_without_a_scheme_and_faults_are_named() {
        let config = GrpcClient::default();
        for good in ["127.0.0.1:5", "http://gateway:7700", "localhost:1", "[::1]:7"] {
            assert!(connect(good, &config).is_ok(), "{good}");
        }
        for bad in ["", "gateway", "https://gateway:1", "ftp://a:1", "http://a b:1"] {
            let error = connect(bad, &config).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }
}
