//! What a server must be before jobs are entrusted to it. Pure: facts in, verdict out.

use std::collections::HashMap;

use crate::config::Durability;

/// What a server says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// `redis_version`, which Valkey also gives.
    pub version: String,
    /// `master` or `slave`.
    pub role: String,
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
    /// It would throw jobs away.
    #[error(
        "Redis has maxmemory-policy {0}, which throws jobs away when memory is short: set `maxmemory-policy noeviction`"
    )]
    Evicting(String),
    /// It does not keep what queue.durability promises.
    #[error(
        "queue.durability = \"{promised}\" needs `{needed}` in Redis, which has `{found}`: set it there, or set queue.durability to what is enough for you (always, everysec, none)"
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

/// Checks a server against what is promised to clients.
///
/// # Errors
/// [`Unfit`], for the first thing that is wrong.
pub fn check(facts: &Facts, durability: Durability) -> Result<(), Unfit> {
    let major = facts
        .version
        .split('.')
        .next()
        .and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < 7) {
        return Err(Unfit::Version(facts.version.clone()));
    }
    if facts.role == "slave" {
        return Err(Unfit::Replica);
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
        }
    }

    #[test]
    fn a_server_that_keeps_less_than_promised_is_refused_with_what_to_set() {
        let refused = check(&facts("everysec"), Durability::Always)
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("appendfsync always") && refused.contains("queue.durability"),
            "{refused}"
        );
        assert_eq!(check(&facts("everysec"), Durability::Everysec), Ok(()));
        assert_eq!(check(&facts("always"), Durability::Everysec), Ok(()));
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
            check(&evicting, Durability::None),
            Err(Unfit::Evicting("allkeys-lru".to_owned()))
        );
        let old = Facts {
            version: "6.2.14".to_owned(),
            ..facts("always")
        };
        assert_eq!(
            check(&old, Durability::None),
            Err(Unfit::Version("6.2.14".to_owned()))
        );
        let replica = Facts {
            role: "slave".to_owned(),
            ..facts("always")
        };
        assert_eq!(check(&replica, Durability::None), Err(Unfit::Replica));
    }

    #[test]
    fn a_server_that_does_not_tell_is_used_only_when_the_operator_vouches_for_it() {
        let silent = Facts {
            settings: None,
            ..facts("always")
        };
        assert_eq!(check(&silent, Durability::Always), Err(Unfit::Silent));
        assert_eq!(check(&silent, Durability::Unverified), Ok(()));
    }
}
