//! The names of keys and channels. Everything a script touches carries its shard's hash tag, so that a Redis Cluster keeps
//! it together.

use muse_service::Tenant;
use sha2::{Digest as _, Sha256};

/// The names under one prefix.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
    shards: u16,
}

impl Keys {
    /// The names of a cluster whose tenants are spread over `shards`.
    pub fn new(prefix: &str, shards: u16) -> Self {
        Self {
            prefix: prefix.to_owned(),
            shards: shards.max(1),
        }
    }

    /// How many shards there are.
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// The shard of a tenant's new jobs.
    pub fn shard_of(&self, tenant: &Tenant) -> u16 {
        let digest = Sha256::digest(tenant.as_str().as_bytes());
        let hash = digest
            .iter()
            .take(8)
            .fold(0_u64, |hash, byte| hash << 8 | u64::from(*byte));
        (hash % u64::from(self.shards)) as u16
    }

    /// What every key of a shard begins with: `muse:{s0}:`.
    pub fn shard(&self, shard: u16) -> String {
        format!("{}:{{s{shard}}}:", self.prefix)
    }

    /// What the keys that belong to no tenant begin with: workers and models.
    pub fn registry(&self) -> String {
        format!("{}:{{g}}:", self.prefix)
    }

    /// The prefixes whose channels ring.
    pub fn channels(&self) -> Vec<String> {
        (0..self.shards)
            .map(|shard| self.shard(shard))
            .chain([self.registry()])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_spread_over_all_shards_and_stay_where_they_are() {
        let keys = Keys::new("muse", 4);
        let shard = |n: usize| keys.shard_of(&Tenant::new(&format!("tenant-{n}")).unwrap());
        let mut seen = [0; 4];
        (0..400).for_each(|n| seen[usize::from(shard(n))] += 1);
        assert!(seen.iter().all(|count| *count > 50), "{seen:?}");
        assert_eq!(shard(7), shard(7));
        assert_eq!(keys.shard(3), "muse:{s3}:");
    }
}
