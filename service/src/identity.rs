//! Who calls. Every call passes [`Authentication::identify`] once, before its handler, and the answer travels in the
//! request's extensions; handlers take it from there with [`tenant`].

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderMap, HeaderName};
use tonic::{Request, Status, body::Body};
use tower::{Layer, Service};

use crate::{
    config::ConfigError,
    error::{Error, ErrorKind},
};

/// Whose job, quota and share it is. Part of Redis keys and of metrics, so the name is short and plain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(Arc<str>);

/// How callers prove who they are. Closed: a new way is a new variant, and the compiler finds every place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Authentication {
    /// Nothing is configured: everyone is [`Tenant::DEFAULT`], and only loopback is served.
    #[default]
    None,
    /// A proxy in front has checked who calls, and names the tenant in this header; without it a call is
    /// [`Tenant::DEFAULT`]'s. Proves nothing by itself: whoever reaches the port can be any tenant, so the loopback rule
    /// holds as for [`Authentication::None`].
    Proxied(HeaderName),
}

// === impl Tenant ===

impl Tenant {
    /// The tenant of everyone where no authentication is configured.
    pub const DEFAULT: &str = "default";
    /// Bytes of the longest name.
    pub const MAX_LENGTH: usize = 64;

    /// A name of `[a-z0-9._-]`, 1 to 64 characters.
    ///
    /// # Errors
    /// Says what a name may be.
    pub fn new(name: &str) -> Result<Self, InvalidTenant> {
        let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > Self::MAX_LENGTH || !name.bytes().all(plain) {
            return Err(InvalidTenant);
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Tenant {
    fn default() -> Self {
        Self(Self::DEFAULT.into())
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tenant's name that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tenant's name is 1 to 64 characters of a-z, 0-9, '.', '_' and '-'")]
pub struct InvalidTenant;

/// The tenant of a call that came through the server's stack.
///
/// # Errors
/// [`crate::error::ErrorKind::Internal`] when it did not: a handler must never fall back to a tenant.
pub fn tenant<T>(request: &Request<T>) -> Result<Tenant, Error> {
    request
        .extensions()
        .get::<Tenant>()
        .cloned()
        .ok_or_else(|| Error::internal("a call reached its handler without an identity"))
}

// === impl Authentication ===

impl Authentication {
    /// Whether callers have to prove anything.
    pub const fn is_configured(&self) -> bool {
        match self {
            Self::None | Self::Proxied(_) => false,
        }
    }

    /// Who calls, from what the call carries.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Unauthenticated`] where a proof is wanted and missing or wrong.
    pub fn identify(&self, metadata: &HeaderMap) -> Result<Tenant, Error> {
        match self {
            Self::None => Ok(Tenant::default()),
            Self::Proxied(header) => {
                let refused =
                    |why: String| Error::new(ErrorKind::Unauthenticated, format!("{header}: {why}"));
                let mut names = metadata.get_all(header).iter();
                match (names.next(), names.next()) {
                    (None, _) => Ok(Tenant::default()),
                    // Never another tenant than the one named: a name that cannot be is nobody's.
                    (Some(name), None) => name
                        .to_str()
                        .ok()
                        .and_then(|name| Tenant::new(name).ok())
                        .ok_or_else(|| refused(InvalidTenant.to_string())),
                    // One of them may be the caller's own, before which a proxy has put its word, or after.
                    (Some(_), Some(_)) => Err(refused("it is there more than once".to_owned())),
                }
            }
        }
    }

    /// The loopback rule: without authentication nobody else's machine may reach the port, unless `insecure_allow_remote`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] says what to change.
    pub fn may_listen(&self, listen: SocketAddr, insecure_allow_remote: bool) -> Result<(), ConfigError> {
        if self.is_configured() || is_loopback(listen.ip()) {
            return Ok(());
        }
        if !insecure_allow_remote {
            return Err(ConfigError::invalid(
                "grpc.listen",
                format!(
                    "{listen} can be reached from other machines and no authentication is configured; listen on 127.0.0.1, \
                     or set grpc.insecure_allow_remote = true where the network itself is trusted"
                ),
            ));
        }
        tracing::warn!(%listen, "no authentication is configured, and other machines may call (insecure_allow_remote)");
        Ok(())
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Puts the [`Tenant`] into each request's extensions, or answers for the handler.
#[derive(Clone, Debug)]
pub(crate) struct IdentityLayer(pub(crate) Arc<Authentication>);

/// See [`IdentityLayer`].
#[derive(Clone, Debug)]
pub(crate) struct Identity<S> {
    inner: S,
    authentication: Arc<Authentication>,
}

impl<S> Layer<S> for IdentityLayer {
    type Service = Identity<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Identity {
            inner,
            authentication: Arc::clone(&self.0),
        }
    }
}

impl<S> Service<http::Request<Body>> for Identity<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = futures::future::Either<S::Future, std::future::Ready<Result<Self::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        match self.authentication.identify(request.headers()) {
            Ok(tenant) => {
                request.extensions_mut().insert(tenant);
                futures::future::Either::Left(self.inner.call(request))
            }
            Err(error) => {
                let refused: http::Response<Body> = Status::from(error).into_http();
                futures::future::Either::Right(std::future::ready(Ok(refused)))
            }
        }
    }
}

/// So that a handler can be tested without a server: a request from `tenant`.
pub fn request_from<T>(tenant: Tenant, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(tenant);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_authentication_only_loopback_is_served() {
        let rule = |listen: &str, allow| Authentication::None.may_listen(listen.parse().unwrap(), allow);
        for loopback in ["127.0.0.1:0", "127.9.9.9:80", "[::1]:80", "[::ffff:127.0.0.1]:80"] {
            assert!(rule(loopback, false).is_ok(), "{loopback}");
        }
        for remote in ["0.0.0.0:0", "10.0.0.1:80", "[::]:80", "[::ffff:10.0.0.1]:80"] {
            let error = rule(remote, false).unwrap_err().to_string();
            assert!(
                error.contains("insecure_allow_remote") && error.contains("grpc.listen"),
                "{error}"
            );
            assert!(rule(remote, true).is_ok(), "{remote}");
        }
    }

    #[test]
    fn a_proxied_call_is_the_named_tenants_and_a_name_that_cannot_be_is_nobodys() {
        let proxied = Authentication::Proxied(HeaderName::from_static("x-tenant"));
        let named = |name: &'static str| {
            let mut metadata = HeaderMap::new();
            metadata.insert("x-tenant", http::HeaderValue::from_static(name));
            proxied.identify(&metadata)
        };
        assert_eq!(named("lab").unwrap().as_str(), "lab");
        assert_eq!(
            proxied.identify(&HeaderMap::new()).unwrap().as_str(),
            Tenant::DEFAULT
        );
        for name in ["", "Lab", "a:b"] {
            assert!(named(name).is_err(), "{name}");
        }
        let mut twice = HeaderMap::new();
        twice.append("x-tenant", http::HeaderValue::from_static("mine"));
        twice.append("x-tenant", http::HeaderValue::from_static("lab"));
        assert!(
            proxied.identify(&twice).is_err(),
            "a caller's own word beside the proxy's"
        );
        assert!(proxied.may_listen("0.0.0.0:0".parse().unwrap(), false).is_err());
    }

    #[test]
    fn tenant_names_are_plain() {
        assert!(Tenant::new("team-7.prod_x").is_ok());
        for name in ["", "Team", "a b", "a:b", "{a}", &"x".repeat(65)] {
            assert_eq!(Tenant::new(name), Err(InvalidTenant), "{name}");
        }
    }

    #[test]
    fn a_call_without_an_identity_is_refused_and_not_given_a_tenant() {
        assert!(tenant(&Request::new(())).is_err());
        assert_eq!(
            tenant(&request_from(Tenant::default(), ())).unwrap().as_str(),
            "default"
        );
    }
}
