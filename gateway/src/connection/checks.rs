//! What a server must be before jobs are entrusted to it. Pure: facts in, verdict out.

use std::collections::HashMap;

use super::Guarantee;
use crate::config::Durability;

/// What a server says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// `redis_version`, which Valkey also gives.
    pub version: String,
    /// `master` or `slave`.
    pub role: String,
    /// It is a node of a Redis Cluster.
    pub cluster: bool,
    /// Replicas that follow it now.
    pub replicas: u32,
    /// CONFIG GET, or `None` when the server refuses to tell.
    pub settings: Option<HashMap<String, String>>,
}

/// Why a server is not used; the message is one line and says what to set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Too old.
    #[error("Redis {0} is too old: use Redis 7.0 or later, or Valkey")]
    Version(String),
    /// Writes would be refused.
    #[error("Redis is a replica: point redis.url at the primary")]
    Replica,
    /// Keys would be on other nodes.
    #[error("Redis is a node of a Redis Cluster: name its nodes in redis.cluster_nodes")]
    Cluster,
    /// It has all keys itself.
    #[error("redis.cluster_nodes name a server that is no node of a Redis Cluster: set redis.url alone")]
    NoCluster,
    /// It cannot confirm what is promised.
    #[error(
        "queue.durability = \"synced\" and queue.replicas_on_disk need WAITAOF, which Redis {0} does not have: use Redis 7.2 or later, or Valkey"
    )]
    NoWaitAof(String),
    /// It has too few replicas.
    #[error(
        "queue.replicas = {needed}, but Redis has {found} that follow it: start them, or set queue.replicas to what is enough for you"
    )]
    Replicas {
        /// The configured number.
        needed: u32,
        /// Those that are there.
        found: u32,
    },
    /// It would throw jobs away.
    #[error(
        "Redis has maxmemory-policy {0}, which throws jobs away when memory is short: set `maxmemory-policy noeviction`"
    )]
    Evicting(String),
    /// It does not keep what queue.durability promises.
    #[error(
        "queue.durability = \"{promised}\" needs `{needed}` in Redis, which has `{found}`: set it there, or set queue.durability to what is enough for you (always, synced, everysec, none)"
    )]
    Durability {
        /// The configured level.
        promised: &'static str,
        /// What it takes.
        needed: &'static str,
        /// What is there.
        found: String,
    },
    /// It does not say.
    #[error(
        "Redis refuses CONFIG GET, so queue.durability cannot be checked: allow it, or set queue.durability = \"unverified\""
    )]
    Silent,
}

/// The settings that [`check`] looks at.
pub(super) const SETTINGS: [&str; 4] = [
    "appendonly",
    "appendfsync",
    "maxmemory-policy",
    "aof-load-truncated",
];

/// Checks whether a server is a node of a cluster where one is wanted, and only there.
///
/// # Errors
/// [`Unfit::Cluster`], [`Unfit::NoCluster`].
pub(super) fn check_mode(facts: &Facts, wanted: bool) -> Result<(), Unfit> {
    match (facts.cluster, wanted) {
        (true, false) => Err(Unfit::Cluster),
        (false, true) => Err(Unfit::NoCluster),
        _ => Ok(()),
    }
}

/// Checks a server against what is promised to clients.
///
/// # Errors
/// [`Unfit`], for the first thing that is wrong.
pub fn check(facts: &Facts, guarantee: &Guarantee) -> Result<(), Unfit> {
    let durability = guarantee.durability;
    let mut parts = facts.version.split('.').map(|part| part.parse::<u32>().ok());
    let version = (parts.next().flatten(), parts.next().flatten().unwrap_or(0));
    let (Some(major @ 7..), minor) = version else {
        return Err(Unfit::Version(facts.version.clone()));
    };
    if facts.role == "slave" {
        return Err(Unfit::Replica);
    }
    if guarantee.needs_waitaof() && (major, minor) < (7, 2) {
        return Err(Unfit::NoWaitAof(facts.version.clone()));
    }
    let Some(settings) = &facts.settings else {
        return if durability == Durability::Unverified {
            Ok(())
        } else {
            Err(Unfit::Silent)
        };
    };
    let setting = |name: &str| settings.get(name).map_or("", String::as_str);
    let policy = setting("maxmemory-policy");
    if policy != "noeviction" {
        return Err(Unfit::Evicting(policy.to_owned()));
    }
    let (promised, fsync, needed): (_, &[&str], _) = match durability {
        Durability::None | Durability::Unverified => return Ok(()),
        Durability::Synced => ("synced", &["everysec", "always"], "appendfsync everysec"),
        Durability::Everysec => ("everysec", &["everysec", "always"], "appendfsync everysec"),
        Durability::Always => ("always", &["always"], "appendfsync always"),
    };
    if setting("appendonly") != "yes" {
        let found = format!("appendonly {}", setting("appendonly"));
        return Err(Unfit::Durability {
            promised,
            needed: "appendonly yes",
            found,
        });
    }
    if !fsync.contains(&setting("appendfsync")) {
        let found = format!("appendfsync {}", setting("appendfsync"));
        return Err(Unfit::Durability {
            promised,
            needed,
            found,
        });
    }
    Ok(())
}

/// Checks that a server has the replicas that are waited for. Asked at start alone: later on, accepted jobs go on without
/// them, and new ones are refused one by one.
///
/// # Errors
/// [`Unfit::Replicas`].
pub(super) fn check_replicas(facts: &Facts, guarantee: &Guarantee) -> Result<(), Unfit> {
    let (needed, found) = (guarantee.replicas, facts.replicas);
    if found < needed {
        return Err(Unfit::Replicas { needed, found });
    }
    Ok(())
}

/// Replicas that follow now, from INFO.
pub(super) fn online_replicas(info: &HashMap<&str, &str>) -> u32 {
    let online = info.iter().filter(|(name, value)| {
        name.strip_prefix("slave")
            .is_some_and(|number| number.parse::<u32>().is_ok())
            && value.split(',').any(|part| part == "state=online")
    });
    online.count().try_into().unwrap_or(u32::MAX)
}

/// Parses the reply of INFO: `name:value` lines, with comments.
pub(super) fn parse_info(text: &str) -> HashMap<&str, &str> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.trim_end().split_once(':'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(fsync: &str) -> Facts {
        let settings = [
            ("appendonly", "yes"),
            ("appendfsync", fsync),
            ("maxmemory-policy", "noeviction"),
        ];
        Facts {
            version: "7.2.4".to_owned(),
            role: "master".to_owned(),
            settings: Some(
                settings
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
            ),
            ..Facts::default()
        }
    }

    #[test]
    fn a_server_that_keeps_less_than_promised_is_refused_with_what_to_set() {
        let refused = check(&facts("everysec"), &Durability::Always.into())
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("appendfsync always") && refused.contains("queue.durability"),
            "{refused}"
        );
        assert_eq!(check(&facts("everysec"), &Durability::Everysec.into()), Ok(()));
        assert_eq!(check(&facts("always"), &Durability::Everysec.into()), Ok(()));
    }

    #[test]
    fn an_evicting_server_an_old_one_and_a_replica_are_refused_whatever_is_promised() {
        let mut evicting = facts("always");
        evicting
            .settings
            .as_mut()
            .unwrap()
            .insert("maxmemory-policy".to_owned(), "allkeys-lru".to_owned());
        assert_eq!(
            check(&evicting, &Durability::None.into()),
            Err(Unfit::Evicting("allkeys-lru".to_owned()))
        );
        let old = Facts {
            version: "6.2.14".to_owned(),
            ..facts("always")
        };
        assert_eq!(
            check(&old, &Durability::None.into()),
            Err(Unfit::Version("6.2.14".to_owned()))
        );
        let replica = Facts {
            role: "slave".to_owned(),
            ..facts("always")
        };
        assert_eq!(check(&replica, &Durability::None.into()), Err(Unfit::Replica));
    }

    #[test]
    fn a_server_that_does_not_tell_is_used_only_when_the_operator_vouches_for_it() {
        let silent = Facts {
            settings: None,
            ..facts("always")
        };
        assert_eq!(check(&silent, &Durability::Always.into()), Err(Unfit::Silent));
        assert_eq!(check(&silent, &Durability::Unverified.into()), Ok(()));
    }

    #[test]
    fn a_server_that_cannot_confirm_is_refused_before_anything_waits_for_it() {
        let synced = Guarantee::from(Durability::Synced);
        let old = Facts {
            version: "7.0.15".to_owned(),
            ..facts("everysec")
        };
        assert_eq!(check(&old, &synced), Err(Unfit::NoWaitAof("7.0.15".to_owned())));
        assert_eq!(check(&old, &Durability::Everysec.into()), Ok(()));
        assert_eq!(check(&facts("everysec"), &synced), Ok(()));
        assert!(matches!(
            check(&facts("no"), &synced),
            Err(Unfit::Durability { .. })
        ));
        let node = Facts {
            cluster: true,
            ..facts("always")
        };
        assert_eq!(check_mode(&node, false), Err(Unfit::Cluster));
        assert_eq!(check_mode(&facts("always"), true), Err(Unfit::NoCluster));
        assert_eq!(
            (check_mode(&node, true), check_mode(&facts("always"), false)),
            (Ok(()), Ok(()))
        );
    }

    #[test]
    fn replicas_count_once_they_follow() {
        let text = "connected_slaves:2\r\nslave0:ip=127.0.0.1,port=1,state=online,offset=1,lag=0\r\n\
                    slave1:ip=127.0.0.1,port=2,state=wait_bgsave,offset=0,lag=0\r\nslave_expires:0\r\n";
        assert_eq!(online_replicas(&parse_info(text)), 1);
        let two = Guarantee {
            replicas: 2,
            ..Durability::Always.into()
        };
        let one = Facts {
            replicas: 1,
            ..facts("always")
        };
        let refused = check_replicas(&one, &two).unwrap_err();
        assert_eq!(refused, Unfit::Replicas { needed: 2, found: 1 });
        assert!(refused.to_string().contains("queue.replicas"), "{refused}");
        assert_eq!(check_replicas(&one, &Durability::Always.into()), Ok(()));
    }
}
