//! From the configuration to clients: addresses, credentials and certificates. No I/O but reading files.

use std::path::Path;

use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, TlsCertificates};

use super::dial::StartupError;
use crate::config;

/// Makes clients with the configured certificates.
#[derive(Clone)]
pub(super) struct Addresses {
    certificates: Option<TlsCertificates>,
    /// The server's: address, user, password, database.
    server: ConnectionInfo,
}

fn invalid(key: &'static str, reason: impl Into<String>) -> StartupError {
    StartupError::Configuration {
        key,
        reason: reason.into(),
    }
}

// === impl Addresses ===

impl Addresses {
    /// Reads `redis.*`.
    pub(super) fn new(config: &config::Redis) -> Result<Self, StartupError> {
        let server = parse("redis.url", &config.url)?;
        let server = with_password(server, "redis.password_file", config.password_file.as_deref())?;
        Ok(Self {
            certificates: certificates(config)?,
            server,
        })
    }

    /// A client for `redis.url`.
    pub(super) fn server(&self) -> Result<Client, StartupError> {
        self.client(self.server.clone())
            .map_err(|error| invalid("redis.url", error.to_string()))
    }

    /// Clients for `redis.sentinels`.
    pub(super) fn sentinels(&self, config: &config::Redis) -> Result<Vec<Client>, StartupError> {
        if matches!(self.server.addr(), ConnectionAddr::Unix(_)) {
            let reason = "must be redis:// or rediss:// with redis.sentinels, which name a host and a port";
            return Err(invalid("redis.url", reason));
        }
        let clients = config.sentinels.iter().map(|url| {
            let key = "redis.sentinels";
            let info = with_password(
                parse(key, url)?,
                "redis.sentinel_password_file",
                config.sentinel_password_file.as_deref(),
            )?;
            self.client(info).map_err(|error| invalid(key, error.to_string()))
        });
        clients.collect()
    }

    /// Clients for `redis.cluster_nodes`: with the user and password of `redis.url`.
    pub(super) fn cluster_nodes(&self, config: &config::Redis) -> Result<Vec<Client>, StartupError> {
        if matches!(self.server.addr(), ConnectionAddr::Unix(_)) || self.server.redis_settings().db() != 0 {
            let reason = "must be redis:// or rediss:// with redis.cluster_nodes, and of database 0, the only one there";
            return Err(invalid("redis.url", reason));
        }
        let clients = config.cluster_nodes.iter().map(|url| {
            let key = "redis.cluster_nodes";
            let node = parse(key, url)?;
            let info = self.server.clone().set_addr(node.addr().clone());
            self.client(info).map_err(|error| invalid(key, error.to_string()))
        });
        clients.collect()
    }

    /// A client for a server that Sentinels or a cluster name: with the scheme, user, password and database of `redis.url`.
    pub(super) fn named(&self, host: &str, port: u16) -> Result<Client, redis::RedisError> {
        let address = match self.server.addr() {
            ConnectionAddr::TcpTls {
                insecure, tls_params, ..
            } => ConnectionAddr::TcpTls {
                host: host.to_owned(),
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            _ => ConnectionAddr::Tcp(host.to_owned(), port),
        };
        self.client(self.server.clone().set_addr(address))
    }

    fn client(&self, info: ConnectionInfo) -> Result<Client, redis::RedisError> {
        match (&self.certificates, info.addr()) {
            (Some(certificates), ConnectionAddr::TcpTls { .. }) => {
                Client::build_with_tls(info, certificates.clone())
            }
            _ => Client::open(info),
        }
    }
}

fn parse(key: &'static str, url: &str) -> Result<ConnectionInfo, StartupError> {
    let info = url.into_connection_info().map_err(|error| {
        let reason = format!("{error}; use redis://host:port, rediss:// or unix:///path");
        invalid(key, reason)
    })?;
    if info.redis_settings().password().is_some() {
        let reason = "must not hold a password: put it into a file and set redis.password_file or \
                      redis.sentinel_password_file";
        return Err(invalid(key, reason));
    }
    Ok(info)
}

fn with_password(
    info: ConnectionInfo,
    key: &'static str,
    path: Option<&Path>,
) -> Result<ConnectionInfo, StartupError> {
    let Some(path) = path else { return Ok(info) };
    let password = read(key, path)?;
    let password = std::str::from_utf8(&password).map_err(|_| invalid(key, "is no text"))?;
    let settings = info.redis_settings().clone().set_password(password.trim());
    Ok(info.set_redis_settings(settings))
}

fn certificates(config: &config::Redis) -> Result<Option<TlsCertificates>, StartupError> {
    let client_tls = match (&config.cert_file, &config.key_file) {
        (Some(cert), Some(key)) => Some(redis::ClientTlsConfig {
            client_cert: read("redis.cert_file", cert)?,
            client_key: read("redis.key_file", key)?,
        }),
        _ => None,
    };
    let root_cert = match &config.ca_file {
        Some(path) => Some(read("redis.ca_file", path)?),
        None => None,
    };
    Ok(
        (client_tls.is_some() || root_cert.is_some()).then_some(TlsCertificates {
            client_tls,
            root_cert,
        }),
    )
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, StartupError> {
    std::fs::read(path).map_err(|error| invalid(key, format!("cannot read {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> config::Redis {
        config::Redis {
            url: url.to_owned(),
            ..config::Redis::default()
        }
    }

    #[test]
    fn what_sentinels_name_has_the_user_and_database_of_the_url() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "hush\n").unwrap();
        let config = config::Redis {
            password_file: Some(file),
            ..config("redis://muse@ignored:1/3")
        };
        let client = Addresses::new(&config).unwrap().named("10.0.0.7", 6380).unwrap();
        let info = client.get_connection_info();
        assert_eq!(info.addr(), &ConnectionAddr::Tcp("10.0.0.7".to_owned(), 6380));
        let settings = info.redis_settings();
        assert_eq!(
            (settings.username(), settings.password(), settings.db()),
            (Some("muse"), Some("hush"), 3)
        );
    }

    #[test]
    fn what_sentinels_name_is_reached_by_tls_where_the_url_is() {
        let addresses = Addresses::new(&config("rediss://ignored:1")).unwrap();
        let client = addresses.named("node", 6380).unwrap();
        assert!(
            matches!(
                client.get_connection_info().addr(),
                ConnectionAddr::TcpTls { host, insecure: false, .. } if host == "node"
            ),
            "{:?}",
            client.get_connection_info().addr()
        );
    }

    #[test]
    fn passwords_belong_into_files() {
        let refused = Addresses::new(&config("redis://:hush@host"))
            .err()
            .unwrap()
            .to_string();
        assert!(
            refused.contains("password_file") && !refused.contains("hush"),
            "{refused}"
        );
        let config = config::Redis {
            sentinels: vec!["redis://:hush@host".to_owned()],
            ..config::Redis::default()
        };
        let addresses = Addresses::new(&config).unwrap();
        let refused = addresses.sentinels(&config).err().unwrap().to_string();
        assert!(
            refused.contains("redis.sentinels") && !refused.contains("hush"),
            "{refused}"
        );
    }

    #[test]
    fn a_socket_cannot_be_what_sentinels_name() {
        let config = config::Redis {
            sentinels: vec!["redis://host:26379".to_owned()],
            ..config("unix:///tmp/socket")
        };
        let refused = Addresses::new(&config).unwrap().sentinels(&config).err().unwrap();
        assert!(refused.to_string().contains("redis.url"), "{refused}");
    }
}
