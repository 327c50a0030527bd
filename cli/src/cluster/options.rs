//! What kind of local cluster is wanted.

use std::{path::PathBuf, str::FromStr, time::Duration};

use thiserror::Error;

use super::programs::Programs;

/// What [`super::LocalCluster::start`] starts.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// The bundle's folder.
    pub bundle: PathBuf,
    /// How many of each part.
    pub sizes: Sizes,
    /// Port of the first gateway; every other port is a free one. 0: that one too.
    pub gateway_port: u16,
    /// A folder that stays, with Valkey's data. Without: a temporary one, removed at the end.
    pub directory: Option<PathBuf>,
    /// What is run.
    pub programs: Programs,
    /// Valkey's socket. Absent: one in a temporary folder.
    pub redis_socket: Option<PathBuf>,
    /// Workers of other programs, beside those of `sizes`.
    pub other_workers: Vec<OtherWorkers>,
    /// What happens when a part dies.
    pub restart: RestartPolicy,
    /// How long things may take.
    pub limits: Limits,
    /// Settings of parts, over the cluster's own.
    pub overrides: Vec<Override>,
}

/// How many of each part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Gateways, at least 1.
    pub gateways: usize,
    /// Text encoders, at least 1.
    pub encoders: usize,
    /// Workers of the base stage.
    pub base_workers: usize,
    /// Workers of the super-resolution stage; 0 for a bundle without one.
    pub superres_workers: usize,
}

/// Workers of another program than muse-worker, which takes the same configuration file with `settings` over it, and says
/// in the same line where it listens.
#[derive(Clone, Debug)]
pub struct OtherWorkers {
    /// The parts are called `<name>-0`, `<name>-1`, …; each finds its own in its configuration's `name`.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// `base` or `superres`.
    pub stage: String,
    /// How many.
    pub count: usize,
    /// Settings of their own.
    pub settings: toml::Table,
}

/// What happens when a part dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// It stays down.
    Never,
    /// It is started again after `first`, then after twice as long at each death in a row, up to `most`.
    Backoff {
        /// The first delay.
        first: Duration,
        /// The longest delay.
        most: Duration,
    },
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From a part's start until it is ready.
    pub start: Duration,
    /// From SIGTERM until a part has drained; then it is killed.
    pub stop: Duration,
}

/// A setting of parts: `ROLE.SECTION.KEY=VALUE`, where ROLE is `gateway`, `encoder`, `worker` (both kinds), `base` or
/// `superres`, and VALUE is TOML, or text when it is none.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    pub(super) role: String,
    pub(super) path: Vec<String>,
    pub(super) value: toml::Value,
}

/// An override that says nothing.
#[derive(Debug, Error)]
#[error("expected ROLE.SECTION.KEY=VALUE with ROLE one of {}, such as gateway.telemetry.log_level=debug", ROLES.join(", "))]
pub struct OverrideError;

const ROLES: [&str; 5] = ["gateway", "encoder", "worker", "base", "superres"];

impl ClusterOptions {
    /// One of each part, all ports free, nothing kept, parts restarted.
    pub fn new(bundle: impl Into<PathBuf>, programs: Programs) -> Self {
        Self {
            bundle: bundle.into(),
            sizes: Sizes::default(),
            gateway_port: 0,
            directory: None,
            programs,
            redis_socket: None,
            other_workers: Vec::new(),
            restart: RestartPolicy::default(),
            limits: Limits::default(),
            overrides: Vec::new(),
        }
    }
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            gateways: 1,
            encoders: 1,
            base_workers: 1,
            superres_workers: 1,
        }
    }
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self::Backoff {
            first: Duration::from_millis(200),
            most: Duration::from_secs(5),
        }
    }
}

impl RestartPolicy {
    /// The delay before the next start, after so many deaths in a row (1 is the first).
    pub(super) fn delay(self, deaths: u32) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::Backoff { first, most } => {
                let factor = 2_u32.saturating_pow(deaths.saturating_sub(1));
                Some(first.saturating_mul(factor).min(most))
            }
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        // A bundle of many gigabytes takes its time to load; a service has 30 s to drain and 5 s more by default.
        Self {
            start: Duration::from_secs(120),
            stop: Duration::from_secs(40),
        }
    }
}

impl FromStr for Override {
    type Err = OverrideError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, value) = text.split_once('=').ok_or(OverrideError)?;
        let mut keys = path.split('.').map(str::to_owned);
        let role = keys
            .next()
            .filter(|role| ROLES.contains(&role.as_str()))
            .ok_or(OverrideError)?;
        let path: Vec<String> = keys.collect();
        if path.is_empty() || path.iter().any(String::is_empty) {
            return Err(OverrideError);
        }
        let value = format!("value = {value}")
            .parse::<toml::Table>()
            .ok()
            .and_then(|mut table| table.remove("value"))
            .unwrap_or_else(|| toml::Value::String(value.to_owned()));
        Ok(Self { role, path, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let policy = RestartPolicy::Backoff {
            first: Duration::from_millis(200),
            most: Duration::from_secs(1),
        };
        let delays: Vec<_> = [1, 2, 3, 4, 100]
            .map(|deaths| policy.delay(deaths).unwrap().as_millis())
            .into();
        assert_eq!(delays, [200, 400, 800, 1000, 1000]);
        assert_eq!(RestartPolicy::Never.delay(1), None);
    }

    #[test]
    fn an_override_is_toml_where_it_can_be_and_text_otherwise() {
        let parse = |text: &str| text.parse::<Override>().unwrap();
        assert_eq!(parse("base.batcher.row_budget=4").value, toml::Value::Integer(4));
        assert_eq!(
            parse("worker.runtime.providers=[\"cpu\"]")
                .value
                .as_array()
                .unwrap()
                .len(),
            1
        );
        let text = parse("gateway.telemetry.log_level=info,muse=debug");
        assert_eq!(text.value.as_str(), Some("info,muse=debug"));
        assert_eq!(text.path, ["telemetry", "log_level"]);
        for bad in ["gateway.x", "nobody.a.b=1", "gateway=1", "gateway..b=1", ""] {
            assert!(bad.parse::<Override>().is_err(), "{bad}");
        }
    }
}
