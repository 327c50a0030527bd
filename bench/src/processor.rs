//! What a cluster's own parts take of the processors, beside the models' passes.

use std::{fs, time::Duration};

use anyhow::Context as _;
use musectl::cluster::LocalCluster;

/// Time on a processor so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu {
    /// Valkey's.
    pub(crate) server: Duration,
    /// The first gateway's.
    pub(crate) gateway: Duration,
}

impl Cpu {
    /// Reads it.
    ///
    /// # Errors
    /// When a part is not running, or the system has no `/proc/PID/task/TID/schedstat`.
    pub(crate) fn of(cluster: &LocalCluster) -> anyhow::Result<Self> {
        Ok(Self {
            server: on_processor(cluster.pid("valkey")?)?,
            gateway: on_processor(cluster.pid("gateway-0")?)?,
        })
    }

    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            server: self.server.saturating_sub(earlier.server),
            gateway: self.gateway.saturating_sub(earlier.gateway),
        }
    }
}

/// Of all threads that a process has now. Neither Valkey nor a gateway ends threads while it works.
fn on_processor(pid: u32) -> anyhow::Result<Duration> {
    let mut nanoseconds = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else {
            continue;
        };
        let first = text.split_whitespace().next().context("an empty schedstat")?;
        nanoseconds += first.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}
