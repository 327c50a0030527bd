//! A whole cluster of real processes on this machine: Valkey, gateways, text encoders, base and super-resolution workers.
//!
//! `musectl up` runs it for people and the end-to-end tests run it to break it: each part is a process of its own, found by
//! its name (`valkey`, `gateway-0`, `encoder-0`, `base-0`, `superres-0`, …), that can be killed and started again. No part
//! outlives the process that holds the [`LocalCluster`], even when that one is killed with SIGKILL ([`guard`]).

mod configuration;
mod directory;
mod error;
pub mod guard;
mod keeper;
mod log;
mod options;
mod part;
mod plan;
mod probe;
mod programs;
mod spawner;
mod state;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use nix::sys::signal::Signal;
use tokio::{runtime::Handle, sync::broadcast};

use self::{
    directory::StateDirectory,
    keeper::Keeper,
    part::Part,
    plan::{PartPlan, Planner},
    spawner::Spawner,
};
pub use self::{
    error::ClusterError,
    options::{ClusterOptions, Limits, OtherWorkers, Override, OverrideError, RestartPolicy, Sizes},
    programs::{ONNXRUNTIME_VARIABLE, Programs, REDIS_SERVER_VARIABLE, find_onnxruntime},
    state::{PartEvent, PartState, Running},
};

/// Events that a slow reader may fall behind by.
const EVENT_CAPACITY: usize = 256;

/// A running cluster. Dropping it kills every part; [`LocalCluster::stop`] lets them drain.
#[derive(Debug)]
pub struct LocalCluster {
    parts: BTreeMap<String, Part>,
    /// Names in the order in which parts were started, by group.
    groups: Vec<Vec<String>>,
    redis_url: String,
    limits: Limits,
    events: broadcast::Sender<PartEvent>,
    directory: Arc<StateDirectory>,
}

impl LocalCluster {
    /// Starts every part, and waits until each says that it is ready: models are warm, and jobs would run at once.
    ///
    /// # Errors
    /// When a program, the bundle or the folder cannot be used, or a part ends or stays unready while starting; then its
    /// log's last lines are in the error, and what had started is killed.
    pub async fn start(options: ClusterOptions) -> Result<Self, ClusterError> {
        let directory = Arc::new(StateDirectory::open(options.directory.as_deref())?);
        let planner = Planner::new(&options, Arc::clone(&directory))?;
        let (events, _) = broadcast::channel(EVENT_CAPACITY);
        let mut cluster = Self {
            parts: BTreeMap::new(),
            groups: Vec::new(),
            redis_url: planner.redis_url(),
            limits: options.limits,
            events,
            directory,
        };
        let spawner = Spawner::new(options.programs.guard.clone(), Handle::current())?;

        cluster
            .start_group(vec![planner.valkey()?], &options, &spawner)
            .await?;
        cluster.start_group(planner.front()?, &options, &spawner).await?;
        let workers = planner.workers(&cluster.grpc_urls("gateway-"), &cluster.grpc_urls("encoder-"))?;
        cluster.start_group(workers, &options, &spawner).await?;
        Ok(cluster)
    }

    /// Starts parts side by side, and waits for all of them.
    async fn start_group(
        &mut self,
        plans: Vec<PartPlan>,
        options: &ClusterOptions,
        spawner: &Spawner,
    ) -> Result<(), ClusterError> {
        let mut names = Vec::new();
        for plan in plans {
            let name = plan.name.clone();
            let part = Keeper::launch(plan, options, spawner.clone(), self.events.clone());
            self.parts.insert(name.clone(), part);
            names.push(name);
        }
        self.groups.push(names.clone());
        for name in &names {
            self.part(name)?.wait_ready(self.limits.start).await?;
        }
        Ok(())
    }

    /// The first gateway, such as `http://127.0.0.1:43211`.
    pub fn endpoint(&self) -> String {
        self.endpoints().into_iter().next().unwrap_or_default()
    }

    /// Every gateway.
    pub fn endpoints(&self) -> Vec<String> {
        self.grpc_urls("gateway-")
    }

    /// Every text encoder.
    pub fn encoder_endpoints(&self) -> Vec<String> {
        self.grpc_urls("encoder-")
    }

    /// Metrics and probes of each part that has them: (part, `http://…`).
    pub fn ops_endpoints(&self) -> Vec<(String, String)> {
        self.known_addresses()
            .filter_map(|(name, running)| Some((name.to_owned(), format!("http://{}", running.ops?))))
            .collect()
    }

    /// Where this cluster's own Valkey listens.
    pub fn redis_url(&self) -> &str {
        &self.redis_url
    }

    /// Where logs, configuration files and Valkey's data lie.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The names of all parts.
    pub fn parts(&self) -> Vec<&str> {
        self.parts.keys().map(String::as_str).collect()
    }

    /// What a part does now.
    ///
    /// # Errors
    /// When no part has this name; so for every method that takes one.
    pub fn state(&self, part: &str) -> Result<PartState, ClusterError> {
        Ok(self.part(part)?.state())
    }

    /// The process id of a part that runs.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self, part: &str) -> Result<u32, ClusterError> {
        match self.part(part)?.state() {
            PartState::Running(running) => Ok(running.pid),
            other => Err(ClusterError::NotRunning {
                part: part.to_owned(),
                state: other.to_string(),
            }),
        }
    }

    /// What happens to parts from now on.
    pub fn events(&self) -> broadcast::Receiver<PartEvent> {
        self.events.subscribe()
    }

    /// SIGKILL, and waits until the process is gone. The restart policy then applies as to any death.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(&self, part: &str) -> Result<(), ClusterError> {
        self.part(part)?.kill().await
    }

    /// Any signal, such as SIGSTOP and SIGCONT; does not wait.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn signal(&self, part: &str, signal: Signal) -> Result<(), ClusterError> {
        self.part(part)?.signal(signal).await
    }

    /// SIGTERM, and waits until it has drained; SIGKILL when that takes longer than the limit. It stays down until
    /// [`LocalCluster::start_part`], whatever the restart policy.
    ///
    /// # Errors
    /// Only for an unknown name.
    pub async fn stop_part(&self, part: &str) -> Result<(), ClusterError> {
        self.part(part)?.stop().await;
        Ok(())
    }

    /// Starts a part that is down, at the same addresses as before, and waits until it is ready.
    ///
    /// # Errors
    /// When it ends or stays unready.
    pub async fn start_part(&self, part: &str) -> Result<(), ClusterError> {
        let part = self.part(part)?;
        part.start().await;
        part.wait_ready(self.limits.start).await
    }

    /// Waits until a part runs and is ready, such as after a restart by policy.
    ///
    /// # Errors
    /// When it takes longer than `limit`.
    pub async fn wait_ready(&self, part: &str, limit: Duration) -> Result<(), ClusterError> {
        self.part(part)?.wait_ready(limit).await
    }

    /// The last lines of a part's log.
    ///
    /// # Errors
    /// Only for an unknown name.
    pub fn log_tail(&self, part: &str, lines: usize) -> Result<String, ClusterError> {
        Ok(log::tail(self.part(part)?.log(), lines))
    }

    /// Stops everything, workers first and Valkey last, and removes the folder if it was a temporary one.
    pub async fn stop(mut self) {
        for group in std::mem::take(&mut self.groups).iter().rev() {
            futures::future::join_all(
                group
                    .iter()
                    .filter_map(|name| self.parts.get(name))
                    .map(Part::stop),
            )
            .await;
        }
    }

    fn part(&self, name: &str) -> Result<&Part, ClusterError> {
        self.parts.get(name).ok_or_else(|| ClusterError::UnknownPart {
            part: name.to_owned(),
            known: self.parts().join(", "),
        })
    }

    fn grpc_urls(&self, prefix: &str) -> Vec<String> {
        self.known_addresses()
            .filter(|(name, _)| name.starts_with(prefix))
            .filter_map(|(_, running)| Some(format!("http://{}", running.grpc?)))
            .collect()
    }

    /// Addresses stay the same over restarts, so that those of a part that is down are still right.
    fn known_addresses(&self) -> impl Iterator<Item = (&str, Running)> {
        self.parts
            .iter()
            .filter_map(|(name, part)| Some((name.as_str(), part.last_running()?)))
    }
}
