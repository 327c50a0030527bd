//! Asking Sentinels which server is the primary. The library's own client is not used: it believes whichever Sentinel answers
//! first, and one that was cut off from the others still names the old primary. Here all are asked, a majority is waited for
//! and the rest for a moment, and the newest configuration wins. Whether that server thinks so too is checked when it is
//! dialled.

use std::{collections::HashMap, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use redis::{Client, RedisResult};

use super::{address::Addresses, dial::DialError};

/// Those that know the primary.
pub(super) struct Sentinels {
    clients: Vec<Client>,
    service: String,
    addresses: Addresses,
    limit: Duration,
    grace: Duration,
}

/// What a Sentinel says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    host: String,
    port: u16,
    /// Grows with each failover.
    epoch: u64,
}

// === impl Sentinels ===

impl Sentinels {
    /// `clients` of Sentinels that call the primary `service`; each has `limit` to answer, and those beyond a majority `grace`.
    pub(super) fn new(
        clients: Vec<Client>,
        service: String,
        addresses: Addresses,
        (limit, grace): (Duration, Duration),
    ) -> Self {
        Self {
            clients,
            service,
            addresses,
            limit,
            grace,
        }
    }

    /// A client for the server that is the primary now.
    pub(super) async fn primary(&self) -> Result<Client, DialError> {
        let majority = self.clients.len() / 2 + 1;
        let mut asked: FuturesUnordered<_> = self.clients.iter().map(|client| self.ask(client)).collect();
        let (mut named, mut silent) = (Vec::new(), Vec::new());
        loop {
            // Without this moment, a Sentinel that knows of a failover could always be the one that is not heard.
            let limit = if named.len() < majority {
                self.limit
            } else {
                self.grace
            };
            match tokio::time::timeout(limit, asked.next()).await {
                Ok(Some(Ok(answer))) => named.push(answer),
                Ok(Some(Err(why))) => silent.push(why),
                Ok(None) | Err(_) => break,
            }
        }
        let Some(newest) = newest(named) else {
            return Err(DialError::Io(format!(
                "no Sentinel names {}: {}",
                self.service,
                silent.join("; ")
            )));
        };
        self.addresses
            .named(&newest.host, newest.port)
            .map_err(|error| DialError::Io(error.to_string()))
    }

    async fn ask(&self, client: &Client) -> Result<Named, String> {
        let address = client.get_connection_info().addr();
        match tokio::time::timeout(self.limit, self.try_ask(client)).await {
            Ok(Ok(Some(named))) => Ok(named),
            Ok(Ok(None)) => Err(format!("{address} does not know it")),
            Ok(Err(error)) => Err(format!("{address}: {error}")),
            Err(_) => Err(format!("{address} does not answer")),
        }
    }

    async fn try_ask(&self, client: &Client) -> RedisResult<Option<Named>> {
        let options = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.limit))
            .set_response_timeout(Some(self.limit));
        let mut connection = client
            .get_multiplexed_async_connection_with_config(&options)
            .await?;
        // During a failover the first already names the new one, when the second still has the old.
        let mut address = redis::cmd("SENTINEL");
        address.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.service);
        let address: Option<(String, u16)> = address.query_async(&mut connection).await?;
        let Some((host, port)) = address else {
            return Ok(None);
        };
        let mut state = redis::cmd("SENTINEL");
        state.arg("MASTER").arg(&self.service);
        let state: HashMap<String, String> = state.query_async(&mut connection).await?;
        let epoch = state.get("config-epoch").and_then(|epoch| epoch.parse().ok());
        Ok(Some(Named {
            host,
            port,
            epoch: epoch.unwrap_or(0),
        }))
    }
}

/// The answer of the latest failover that any of them knows.
fn newest(named: Vec<Named>) -> Option<Named> {
    named.into_iter().max_by_key(|named| named.epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(host: &str, epoch: u64) -> Named {
        Named {
            host: host.to_owned(),
            port: 6379,
            epoch,
        }
    }

    #[test]
    fn a_sentinel_that_missed_the_failover_is_not_believed() {
        let answers = vec![named("old", 3), named("new", 4), named("old", 3)];
        assert_eq!(newest(answers), Some(named("new", 4)));
        assert_eq!(newest(Vec::new()), None);
    }
}
