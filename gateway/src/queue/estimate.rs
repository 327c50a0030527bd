//! How long a job will still take: pure. Everything here is an estimate, from how many jobs wait and run and how long the
//! pool's shards took for one lately.

use std::collections::BTreeMap;

/// A pool at a moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct PoolLoad {
    /// The tenants that wait there.
    pub(super) waiting: BTreeMap<String, Waiting>,
    /// Jobs that run.
    pub(super) running: u64,
    /// Milliseconds from lease to result, averaged over the last jobs; `None` before the first.
    pub(super) took_ms: Option<f64>,
    /// Nothing is taken.
    pub(super) paused: bool,
}

/// A tenant's jobs in a pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Waiting {
    /// How many wait.
    pub(super) jobs: u64,
    /// Its share.
    pub(super) weight: f64,
    /// None is taken.
    pub(super) paused: bool,
}

impl PoolLoad {
    /// Jobs that are taken before one that has `own` of its tenant's jobs before it: those, and of each other tenant as
    /// many as its weight gets in the same turns.
    pub(super) fn ahead(&self, tenant: &str, own: u64) -> u64 {
        let weight = self.waiting.get(tenant).map_or(1.0, |waiting| waiting.weight);
        let turns = (own as f64 + 1.0) / weight;
        let others = self
            .waiting
            .iter()
            .filter(|(name, waiting)| name.as_str() != tenant && !waiting.paused);
        let theirs = others.map(|(_, waiting)| waiting.jobs.min((turns * waiting.weight) as u64));
        own.saturating_add(theirs.sum())
    }

    /// Milliseconds until `jobs` more have been taken; `None` while nothing runs or nothing was measured.
    pub(super) fn wait_ms(&self, jobs: u64) -> Option<f64> {
        let took = self.took_ms.filter(|_| self.running > 0 && !self.paused)?;
        Some(jobs as f64 * took / self.running as f64)
    }

    /// Milliseconds for a job that has yet to come here: behind all that wait, and through.
    pub(super) fn pass_ms(&self) -> Option<f64> {
        let waiting: u64 = self.waiting.values().map(|waiting| waiting.jobs).sum();
        let took = self.took_ms?;
        if waiting == 0 {
            return Some(took);
        }
        Some(self.wait_ms(waiting)? + took)
    }
}

/// Milliseconds of a running job's stage that are left, from how far it is.
pub(super) fn left_ms(took_ms: f64, step: u32, of: u32) -> f64 {
    if of == 0 {
        return took_ms;
    }
    took_ms * (1.0 - f64::from(step.min(of)) / f64::from(of))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load(tenants: &[(u64, f64)]) -> PoolLoad {
        let waiting = tenants.iter().enumerate().map(|(n, (jobs, weight))| {
            let (jobs, weight) = (*jobs, *weight);
            (
                format!("t{n}"),
                Waiting {
                    jobs,
                    weight,
                    paused: false,
                },
            )
        });
        PoolLoad {
            waiting: waiting.collect(),
            running: 4,
            took_ms: Some(1000.0),
            paused: false,
        }
    }

    /// As the claim script does it: the least virtual time first, and a job costs 1/weight.
    fn served_before(load: &PoolLoad, tenant: &str, own: u64) -> u64 {
        let mut left: BTreeMap<&str, (u64, f64)> = load
            .waiting
            .iter()
            .map(|(name, waiting)| (name.as_str(), (waiting.jobs, 0.0)))
            .collect();
        let (mut served, mut before) = (0, own);
        loop {
            let next = left.iter().filter(|(_, (jobs, _))| *jobs > 0);
            let next = next
                .min_by(|a, b| a.1.1.total_cmp(&b.1.1))
                .map(|(name, _)| *name)
                .unwrap();
            if next == tenant {
                if before == 0 {
                    return served;
                }
                before -= 1;
            }
            let slot = left.get_mut(next).unwrap();
            slot.0 -= 1;
            slot.1 += 1.0 / load.waiting[next].weight;
            served += 1;
        }
    }

    proptest! {
        #[test]
        fn the_place_is_what_fair_shares_give_within_a_job_for_each_weight(
            tenants in prop::collection::vec((1_u64..60, 1_u32..5), 1..6), pick: prop::sample::Index, own in 0_u64..60,
        ) {
            let tenants: Vec<_> = tenants.into_iter().map(|(jobs, weight)| (jobs, f64::from(weight))).collect();
            let load = load(&tenants);
            let n = pick.index(tenants.len());
            let own = own.min(tenants[n].0 - 1);
            let name = format!("t{n}");
            let (guess, truth) = (load.ahead(&name, own), served_before(&load, &name, own));
            let slack: f64 = tenants.iter().map(|(_, weight)| weight + 1.0).sum();
            prop_assert!(guess.abs_diff(truth) as f64 <= slack, "{} where {} are right, {:?}", guess, truth, load);
            prop_assert!(guess >= own);
        }
    }

    #[test]
    fn a_wait_is_told_only_where_it_was_measured() {
        let mut load = load(&[(10, 1.0)]);
        assert_eq!(load.wait_ms(8), Some(2000.0));
        assert_eq!(load.pass_ms(), Some(3500.0));
        load.running = 0;
        assert_eq!((load.wait_ms(8), load.pass_ms()), (None, None));
        load.waiting.clear();
        assert_eq!(load.pass_ms(), Some(1000.0), "nothing in the way");
        load.took_ms = None;
        assert_eq!(load.pass_ms(), None);
    }

    #[test]
    fn a_paused_tenant_is_not_ahead_of_anybody() {
        let mut load = load(&[(5, 1.0), (5, 1.0)]);
        assert_eq!(load.ahead("t0", 2), 5);
        load.waiting.get_mut("t1").unwrap().paused = true;
        assert_eq!(load.ahead("t0", 2), 2);
    }

    #[test]
    fn what_is_left_of_a_stage_follows_its_steps() {
        assert_eq!(left_ms(1000.0, 3, 12), 750.0);
        assert_eq!(left_ms(1000.0, 20, 12), 0.0);
        assert_eq!(left_ms(1000.0, 0, 0), 1000.0);
    }
}
