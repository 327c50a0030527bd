//! Tenants: what was set for each, what each has in the queue; and what is paused.

use std::collections::{BTreeMap, HashMap};

use muse_service::Tenant;

use super::{
    Queue,
    call::foreign,
    pool_name, scripts,
    types::{Paused, Settings, TenantStatus},
};
use crate::connection::RedisError;

/// Fields of a tenant's settings, as in Redis and in the API.
pub const SETTINGS: [&str; 6] = [
    "weight",
    "max_running",
    "max_queued",
    "max_bytes",
    "rate",
    "burst",
];

/// What is paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A stage of a model.
    Pool {
        /// The model's name.
        model: String,
        /// The stage's name.
        stage: String,
    },
    /// All of a tenant's jobs.
    Tenant(Tenant),
}

/// All that is paused, and since when and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllPaused {
    /// Pools, by (model, stage).
    pub pools: BTreeMap<(String, String), Paused>,
    /// Tenants, by name.
    pub tenants: BTreeMap<String, Paused>,
}

impl Queue {
    /// Changes a tenant's settings: each named one gets its value, or none (the configuration's applies again).
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn set_tenant(
        &self,
        tenant: &Tenant,
        settings: &[(&'static str, Option<f64>)],
    ) -> Result<(), RedisError> {
        let mut call = self.on(&scripts::TENANT_SET, self.keys.shard_of(tenant));
        call.arg(tenant.as_str());
        for (name, value) in settings {
            call.arg(*name)
                .arg(value.map(|value| value.to_string()).unwrap_or_default());
        }
        self.redis.eval::<String>(&call).await?;
        Ok(())
    }

    /// One tenant, known or not.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn tenant(&self, tenant: &Tenant) -> Result<TenantStatus, RedisError> {
        let mut all = self.tenant_statuses(vec![tenant.clone()]).await?;
        all.pop().ok_or_else(|| foreign("tenant", "no answer"))
    }

    /// Tenants that have settings or jobs, by name, those after `after`.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn tenants(&self, after: &str, limit: u32) -> Result<Vec<TenantStatus>, RedisError> {
        let mut names: Vec<Tenant> = Vec::new();
        for shard in 0..self.keys.shards() {
            let mut command = redis::cmd("ZRANGE");
            command.arg(self.keys.shard(shard) + "tenants");
            command.arg(if after.is_empty() {
                "-".to_owned()
            } else {
                format!("({after}")
            });
            command.arg("+").arg("BYLEX").arg("LIMIT").arg(0).arg(limit);
            let found: Vec<String> = self.redis.query(&command).await?;
            names.extend(found.iter().filter_map(|name| Tenant::new(name).ok()));
        }
        names.sort_unstable();
        names.dedup();
        names.truncate(limit as usize);
        self.tenant_statuses(names).await
    }

    async fn tenant_statuses(&self, names: Vec<Tenant>) -> Result<Vec<TenantStatus>, RedisError> {
        type Fields = HashMap<String, String>;
        let mut answers: Vec<(Fields, Fields)> = vec![Default::default(); names.len()];
        // A pipeline keeps to one shard.
        for shard in 0..self.keys.shards() {
            let here = |(_, name): &(usize, &Tenant)| self.keys.shard_of(name) == shard;
            let prefix = self.keys.shard(shard);
            let mut pipeline = redis::pipe();
            for (_, name) in names.iter().enumerate().filter(here) {
                pipeline.cmd("HGETALL").arg(format!("{prefix}tenant:{name}"));
                pipeline.cmd("HGETALL").arg(format!("{prefix}use:{name}"));
            }
            if pipeline.is_empty() {
                continue;
            }
            let found: Vec<Fields> = self.redis.pipe(&pipeline).await?;
            let mut found = found.into_iter();
            for (index, _) in names.iter().enumerate().filter(here) {
                answers[index] = (found.next().unwrap_or_default(), found.next().unwrap_or_default());
            }
        }
        let status = |(name, (settings, usage)): (Tenant, (Fields, Fields))| {
            let of = |field: &str| usage.get(field).and_then(|value| value.parse().ok()).unwrap_or(0);
            TenantStatus {
                name: name.to_string(),
                paused: settings.get("paused").map(|text| Paused::parse(text)),
                settings: Settings::parse(&settings),
                queued: of("queued"),
                running: of("running"),
                delayed: of("delayed"),
                bytes: of("bytes"),
            }
        };
        Ok(names.into_iter().zip(answers).map(status).collect())
    }

    /// Stops a pool or a tenant: what runs goes on, what waits waits. Gives the earlier pause, which stays, if there is one.
    ///
    /// # Errors
    /// [`RedisError`]; some shards may have taken it.
    pub async fn pause(&self, target: &Target, reason: &str) -> Result<Option<Paused>, RedisError> {
        self.switch(target, "pause", reason).await
    }

    /// Lets a pool or a tenant go on. Gives the pause that ended, if there was one.
    ///
    /// # Errors
    /// [`RedisError`]; some shards may have taken it.
    pub async fn resume(&self, target: &Target) -> Result<Option<Paused>, RedisError> {
        self.switch(target, "resume", "").await
    }

    async fn switch(&self, target: &Target, act: &str, reason: &str) -> Result<Option<Paused>, RedisError> {
        let (kind, name, shards) = match target {
            Target::Pool { model, stage } => ("pool", pool_name(model, stage), 0..self.keys.shards()),
            Target::Tenant(tenant) => {
                let shard = self.keys.shard_of(tenant);
                ("tenant", tenant.to_string(), shard..shard + 1)
            }
        };
        let mut before = None;
        for shard in shards {
            let mut call = self.on(&scripts::PAUSE, shard);
            call.arg(kind).arg(&name).arg(act).arg(reason);
            let found: String = self.redis.eval(&call).await?;
            if !found.is_empty() {
                before = before.or_else(|| Some(Paused::parse(&found)));
            }
        }
        Ok(before)
    }

    /// All that is paused.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn paused(&self) -> Result<AllPaused, RedisError> {
        let mut all = AllPaused::default();
        for shard in 0..self.keys.shards() {
            let mut command = redis::cmd("HGETALL");
            command.arg(self.keys.shard(shard) + "paused");
            let found: HashMap<String, String> = self.redis.query(&command).await?;
            for (name, text) in found {
                let paused = Paused::parse(&text);
                // A tenant's name has no colon.
                match name.split_once(':') {
                    Some((model, stage)) => {
                        all.pools
                            .entry((model.to_owned(), stage.to_owned()))
                            .or_insert(paused);
                    }
                    None => drop(all.tenants.insert(name, paused)),
                }
            }
        }
        Ok(all)
    }
}
