//! Whether the numbers hold together; each refusal names its key.

use muse_service::config::ConfigError;

use super::{Config, Durability};
use crate::results::{Location, location};

pub(super) fn all(config: &Config) -> Result<(), ConfigError> {
    config.identity.authentication()?;
    let at_least_one = [
        ("redis.connect_timeout_ms", config.redis.connect_timeout_ms),
        ("redis.response_timeout_ms", config.redis.response_timeout_ms),
        ("redis.reconnect_delay_ms", config.redis.reconnect_delay_ms),
        ("redis.ping_ms", config.redis.ping_ms),
        ("redis.sentinel_check_ms", config.redis.sentinel_check_ms),
        ("queue.confirm_timeout_ms", config.queue.confirm_timeout_ms),
        ("queue.shards", u64::from(config.queue.shards)),
        ("queue.attempts", u64::from(config.queue.attempts)),
        ("queue.crashes", u64::from(config.queue.crashes)),
        ("queue.reap_ms", config.queue.reap_ms),
        ("queue.housekeeping_ms", config.queue.housekeeping_ms),
        ("queue.history", u64::from(config.queue.history)),
        ("queue.audit_patience_ms", config.queue.audit_patience_ms),
        ("queue.call_bytes", config.queue.call_bytes as u64),
        ("queue.calls_in_flight", config.queue.calls_in_flight as u64),
        ("limits.count", u64::from(config.limits.count)),
        ("limits.steps", u64::from(config.limits.steps)),
        ("limits.page_size", u64::from(config.limits.page_size)),
        ("limits.page_scan", u64::from(config.limits.page_scan)),
        ("limits.dead_batch", u64::from(config.limits.dead_batch)),
        (
            "limits.control_message_bytes",
            config.limits.control_message_bytes as u64,
        ),
        ("hub.heartbeat_ms", config.hub.heartbeat_ms),
        ("hub.hello_timeout_ms", config.hub.hello_timeout_ms),
        ("hub.poll_ms", config.hub.poll_ms),
        ("hub.reports_in_flight", config.hub.reports_in_flight as u64),
        ("hub.outbox", config.hub.outbox as u64),
        ("hub.message_bytes", config.hub.message_bytes as u64),
        ("results.connect_timeout_ms", config.results.connect_timeout_ms),
        ("results.timeout_ms", config.results.timeout_ms),
        ("results.retry_ms", config.results.retry_ms),
        ("results.concurrency", config.results.concurrency as u64),
        ("results.picture_bytes", config.results.picture_bytes as u64),
        ("results.backlog", config.results.backlog as u64),
        ("results.sweep_batch", config.results.sweep_batch as u64),
        ("watch.reread_ms", config.watch.reread_ms),
        ("watch.outbox", config.watch.outbox as u64),
        ("submit.in_flight", u64::from(config.submit.in_flight)),
        ("submit.accepting", config.submit.accepting as u64),
        ("submit.delivering", config.submit.delivering as u64),
        ("submit.outbox", config.submit.outbox as u64),
    ];
    for (key, value) in at_least_one {
        if value == 0 {
            return Err(ConfigError::invalid(key, "must be at least 1, not 0"));
        }
    }
    if config.watch.settle_ms >= config.watch.reread_ms {
        return Err(ConfigError::invalid(
            "watch.settle_ms",
            format!(
                "must be less than watch.reread_ms ({}), it is {}",
                config.watch.reread_ms, config.watch.settle_ms
            ),
        ));
    }
    let batches = [
        ("queue.reap_batch", u64::from(config.queue.reap_batch)),
        ("queue.call_items", config.queue.call_items as u64),
        ("hub.claim_batch", u64::from(config.hub.claim_batch)),
    ];
    for (key, value) in batches {
        if !(1..=100).contains(&value) {
            return Err(ConfigError::invalid(
                key,
                format!("must be between 1 and 100, not {value}"),
            ));
        }
    }
    if config.hub.heartbeat_ms.saturating_mul(2) > config.queue.lease_ms {
        return Err(ConfigError::invalid(
            "hub.heartbeat_ms",
            format!(
                "must be at most half of queue.lease_ms ({}), or a single late heartbeat loses the lease; it is {}",
                config.queue.lease_ms, config.hub.heartbeat_ms
            ),
        ));
    }
    if config.hub.worker_expiry_ms < config.hub.heartbeat_ms.saturating_mul(2) {
        return Err(ConfigError::invalid(
            "hub.worker_expiry_ms",
            "must be at least twice hub.heartbeat_ms",
        ));
    }
    let weight = config.queue.tenant.weight;
    if !weight.is_finite() || weight <= 0.0 {
        return Err(ConfigError::invalid(
            "queue.tenant.weight",
            format!("must be above 0, not {weight}"),
        ));
    }
    for (key, rate) in [
        ("queue.rate", config.queue.rate),
        ("queue.tenant.rate", config.queue.tenant.rate),
    ] {
        if !rate.is_finite() || rate < 0.0 {
            return Err(ConfigError::invalid(
                key,
                format!("must be at least 0, not {rate}"),
            ));
        }
    }
    if !(0.0..=1.0).contains(&config.redis.memory_share) {
        return Err(ConfigError::invalid(
            "redis.memory_share",
            format!("must be between 0 and 1, not {}", config.redis.memory_share),
        ));
    }
    if !config.redis.sentinels.is_empty() && config.redis.service_name.is_empty() {
        return Err(ConfigError::invalid(
            "redis.service_name",
            "must be what the Sentinels call the primary",
        ));
    }
    if config.redis.cert_file.is_some() != config.redis.key_file.is_some() {
        return Err(ConfigError::invalid(
            "redis.key_file",
            "redis.cert_file and redis.key_file go together",
        ));
    }
    if config.queue.replicas_on_disk && config.queue.replicas == 0 {
        return Err(ConfigError::invalid(
            "queue.replicas",
            "must be at least 1 with queue.replicas_on_disk",
        ));
    }
    if !config.redis.cluster_nodes.is_empty() {
        if !config.redis.sentinels.is_empty() {
            return Err(ConfigError::invalid(
                "redis.cluster_nodes",
                "does not go with redis.sentinels: a cluster finds its primaries by itself",
            ));
        }
        if config.queue.replicas > 0 || config.queue.durability == Durability::Synced {
            return Err(ConfigError::invalid(
                if config.queue.replicas > 0 {
                    "queue.replicas"
                } else {
                    "queue.durability"
                },
                "is not offered with redis.cluster_nodes: nothing is waited for there (no WAIT, no WAITAOF); use a primary \
                 with replicas and Sentinels, or queue.replicas = 0 and durability = \"always\" or \"everysec\"",
            ));
        }
    }
    results(config)?;
    let prefix = &config.redis.prefix;
    if prefix.is_empty()
        || !prefix
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    {
        return Err(ConfigError::invalid(
            "redis.prefix",
            "must be letters, digits, '.', '_' or '-'",
        ));
    }
    Ok(())
}

/// Where pictures go, and what only makes sense with that.
fn results(config: &Config) -> Result<(), ConfigError> {
    let results = &config.results;
    let invalid = |key: &str, reason: String| Err(ConfigError::invalid(key, reason));
    let location = match Location::parse(&results.store) {
        Ok(location) => location,
        Err(reason) => return invalid("results.store", reason),
    };
    let in_bucket = matches!(location, Location::Bucket { .. });
    let only_of_buckets = [
        ("results.endpoint", results.endpoint.is_some()),
        ("results.region", results.region.is_some()),
        ("results.account", results.account.is_some()),
        ("results.credentials_file", results.credentials_file.is_some()),
        ("results.ca_file", results.ca_file.is_some()),
        ("results.insecure_allow_http", results.insecure_allow_http),
    ];
    if let Some((key, _)) = only_of_buckets.iter().find(|(_, set)| *set && !in_bucket) {
        let reason = format!("is set, but results.store is {location}, which is no bucket");
        return invalid(key, reason);
    }
    if let Some(endpoint) = &results.endpoint
        && !results.insecure_allow_http
        && let Err(reason) = location::is_private(endpoint)
    {
        return invalid("results.endpoint", reason);
    }
    if location != Location::Redis && results.timeout_ms.saturating_mul(2) > config.queue.lease_ms {
        let reason = format!(
            "must be at most half of queue.lease_ms ({}), or a store that hangs costs workers their leases; it is {}",
            config.queue.lease_ms, results.timeout_ms
        );
        return invalid("results.timeout_ms", reason);
    }
    if results.picture_bytes > config.hub.message_bytes {
        let reason = format!("must be at most hub.message_bytes ({})", config.hub.message_bytes);
        return invalid("results.picture_bytes", reason);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use muse_service::config::ServiceConfig as _;

    use super::*;

    #[test]
    fn the_defaults_hold_together() {
        Config::default().validate().unwrap();
    }

    #[test]
    fn settings_that_only_make_sense_together_are_refused_alone() {
        let refused = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        let key = refused(|config| config.redis.cert_file = Some("client.pem".into()));
        assert!(key.contains("redis.key_file"), "{key}");
        let replicas = refused(|config| config.queue.replicas_on_disk = true);
        assert!(replicas.contains("queue.replicas"), "{replicas}");
        let both = refused(|config| {
            config.redis.cluster_nodes = vec!["redis://n1:6379".to_owned()];
            config.redis.sentinels = vec!["redis://s1:26379".to_owned()];
        });
        assert!(both.contains("redis.cluster_nodes"), "{both}");
        let waiting = refused(|config| {
            config.redis.cluster_nodes = vec!["redis://n1:6379".to_owned()];
            config.queue.replicas = 1;
        });
        assert!(
            waiting.contains("queue.replicas") && waiting.contains("WAIT"),
            "{waiting}"
        );
        let synced = refused(|config| {
            config.redis.cluster_nodes = vec!["redis://n1:6379".to_owned()];
            config.queue.durability = Durability::Synced;
        });
        assert!(synced.contains("queue.durability"), "{synced}");
        let name = refused(|config| {
            config.redis.sentinels = vec!["redis://s1:26379".to_owned()];
            config.redis.service_name.clear();
        });
        assert!(name.contains("redis.service_name"), "{name}");
    }

    #[test]
    fn a_store_of_pictures_must_fit_its_settings() {
        let refused = |store: &str, change: fn(&mut Config)| {
            let mut config = Config::default();
            config.results.store = store.to_owned();
            change(&mut config);
            config.validate().err().map(|error| error.to_string())
        };
        for store in [
            "redis",
            "file:///a/b",
            "s3://bucket/a",
            "gs://bucket",
            "az://container/a",
        ] {
            assert_eq!(refused(store, |_| {}), None, "{store}");
        }
        for (store, key, change) in [
            (
                "s3://key:hush@bucket",
                "results.store",
                (|_| {}) as fn(&mut Config),
            ),
            ("redis", "results.region", |config| {
                config.results.region = Some("eu".to_owned());
            }),
            ("file:///a/b", "results.ca_file", |config| {
                config.results.ca_file = Some("ca".into());
            }),
            ("s3://bucket", "results.endpoint", |config| {
                config.results.endpoint = Some("http://minio:9000".to_owned());
            }),
            ("s3://bucket", "results.timeout_ms", |config| {
                config.results.timeout_ms = 5_001;
            }),
            ("redis", "results.picture_bytes", |config| {
                config.hub.message_bytes = 1024;
            }),
        ] {
            let told = refused(store, change).unwrap_or_default();
            assert!(told.contains(key) && !told.contains("hush"), "{store}: {told:?}");
        }
    }

    #[test]
    fn a_heartbeat_too_slow_for_the_lease_is_refused_by_name() {
        let mut config = Config::default();
        config.hub.heartbeat_ms = config.queue.lease_ms;
        let refused = config.validate().unwrap_err().to_string();
        assert!(refused.contains("hub.heartbeat_ms"), "{refused}");
    }
}
