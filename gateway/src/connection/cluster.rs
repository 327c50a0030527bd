//! Which node of a Redis Cluster has a group of keys. Any node knows; those that are configured are asked in turn.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use redis::{Client, ConnectionAddr, RedisResult, Value};

use super::{address::Addresses, dial::DialError};

/// Finds the owner of one slot.
pub(super) struct Slot {
    seeds: Vec<Client>,
    addresses: Addresses,
    slot: u16,
    limit: Duration,
    turn: AtomicUsize,
}

/// Slots that a cluster has.
const SLOTS: u16 = 16_384;

impl Slot {
    /// The slot of the keys with `tag`, of which `seeds` know the owner; each has `limit` to answer.
    pub(super) fn new(seeds: Vec<Client>, addresses: Addresses, tag: &str, limit: Duration) -> Self {
        Self {
            seeds,
            addresses,
            slot: slot_of(tag.as_bytes()),
            limit,
            turn: AtomicUsize::new(0),
        }
    }

    /// A client for the owner. Each call begins with another node: one that is cut off from the rest still names the old owner.
    pub(super) async fn owner(&self) -> Result<Client, DialError> {
        let mut silent = Vec::new();
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % self.seeds.len().max(1);
        let (before, from) = self.seeds.split_at(first);
        for seed in from.iter().chain(before) {
            let address = seed.get_connection_info().addr();
            let why = match tokio::time::timeout(self.limit, self.ask(seed)).await {
                Ok(Ok(Some((host, port)))) => {
                    let named = self.addresses.named(&host, port);
                    return named.map_err(|error| DialError::Io(error.to_string()));
                }
                Ok(Ok(None)) => "knows no owner".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "does not answer".to_owned(),
            };
            silent.push(format!("{address}: {why}"));
        }
        let why = silent.join("; ");
        Err(DialError::Io(format!(
            "no node of the cluster names the owner of slot {}: {why}",
            self.slot
        )))
    }

    async fn ask(&self, seed: &Client) -> RedisResult<Option<(String, u16)>> {
        let options = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.limit))
            .set_response_timeout(Some(self.limit));
        let mut connection = seed
            .get_multiplexed_async_connection_with_config(&options)
            .await?;
        let mut command = redis::cmd("CLUSTER");
        let ranges: Vec<Value> = command.arg("SLOTS").query_async(&mut connection).await?;
        let own = match seed.get_connection_info().addr() {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.as_str(),
            _ => "",
        };
        Ok(ranges.iter().find_map(|range| owner_in(range, self.slot, own)))
    }
}

/// The primary of a range `[first, last, [host, port, …], …]` that has `slot`. A node that does not know its own name is where
/// it was `asked`.
fn owner_in(range: &Value, slot: u16, asked: &str) -> Option<(String, u16)> {
    let Value::Array(parts) = range else { return None };
    let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = &parts[..] else {
        return None;
    };
    if !(*first..=*last).contains(&i64::from(slot)) {
        return None;
    }
    let [host, Value::Int(port), ..] = &primary[..] else {
        return None;
    };
    let host = match host {
        Value::BulkString(name) => std::str::from_utf8(name).ok()?,
        Value::SimpleString(name) => name,
        _ => "",
    };
    let host = if host.is_empty() || host == "?" {
        asked
    } else {
        host
    };
    Some((host.to_owned(), u16::try_from(*port).ok()?))
}

/// CRC-16/XMODEM of the tag, as Redis Cluster says.
fn slot_of(tag: &[u8]) -> u16 {
    let crc = tag.iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
            if crc & 0x8000 == 0 {
                crc << 1
            } else {
                crc << 1 ^ 0x1021
            }
        })
    });
    crc % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        // 0x31C3 is the check value of CRC-16/XMODEM.
        assert_eq!(slot_of(b"123456789"), 0x31C3 % SLOTS);
        assert_eq!(slot_of(b"foo"), 12_182);
        assert_eq!(slot_of(b""), 0);
    }

    #[test]
    fn the_owner_of_a_range_is_its_first_node() {
        let node = |host: &str, port| {
            Value::Array(vec![
                Value::BulkString(host.as_bytes().to_vec()),
                Value::Int(port),
                Value::BulkString(b"id".to_vec()),
            ])
        };
        let range = |host: &str| {
            Value::Array(vec![
                Value::Int(10),
                Value::Int(20),
                node(host, 7001),
                node("replica", 7002),
            ])
        };
        assert_eq!(owner_in(&range("a"), 20, "seed"), Some(("a".to_owned(), 7001)));
        assert_eq!(owner_in(&range(""), 10, "seed"), Some(("seed".to_owned(), 7001)));
        assert_eq!(owner_in(&range("a"), 21, "seed"), None);
        assert_eq!(owner_in(&Value::Nil, 1, "seed"), None);
        assert_eq!(
            owner_in(&Value::Array(vec![Value::Int(0), Value::Int(9)]), 1, "seed"),
            None
        );
    }
}
