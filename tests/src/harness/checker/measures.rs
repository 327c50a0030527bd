//! Audits, limits and shares.

use std::collections::{BTreeMap, HashSet};

use super::{Bounds, Invariant, Verdict};
use crate::harness::history::{Event, Record};

/// Leases in a window below which its shares say nothing.
const ENOUGH: u64 = 100;

pub(super) fn check(records: &[Record], bounds: &Bounds, verdict: &mut Verdict) {
    for Record { event, .. } in records {
        match event {
            Event::Audited { findings, .. } => {
                for finding in findings {
                    verdict.breach(Invariant::AuditsAreClean, finding.clone());
                }
            }
            Event::Sampled { what, value, limit } if value > limit => {
                verdict.breach(Invariant::LimitsHold, format!("{what}: {value} above {limit}"));
            }
            Event::Saturated {
                from,
                to,
                stage,
                weights,
            } => {
                shares(records, (*from, *to), stage, weights, bounds.share, verdict);
            }
            _ => {}
        }
    }
}

/// Jobs are counted once: a lost worker's come again, and cost their tenant nothing.
fn shares(
    records: &[Record],
    (from, to): (u64, u64),
    stage: &str,
    weights: &[(String, f64)],
    tolerance: f64,
    verdict: &mut Verdict,
) {
    let mut counts: BTreeMap<&str, u64> = weights.iter().map(|(name, _)| (name.as_str(), 0)).collect();
    let mut seen = HashSet::new();
    for Record { at, event } in records {
        if let Event::Granted {
            job,
            stage: of,
            tenant,
            ..
        } = event
            && of == stage
            && seen.insert(job)
            && (from..=to).contains(at)
            && let Some(count) = counts.get_mut(tenant.as_str())
        {
            *count += 1;
        }
    }
    let total: u64 = counts.values().sum();
    let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
    if total < ENOUGH {
        let what = format!("only {total} leases in a saturated window say nothing about shares");
        verdict.breach(Invariant::SharesAreFair, what);
    }
    for (name, weight) in weights {
        let (share, due) = (counts[name.as_str()] as f64 / total.max(1) as f64, weight / sum);
        if (share - due).abs() > tolerance * due {
            let what =
                format!("{name} of weight {weight} got {share:.3} of {total} leases, {due:.3} are due");
            verdict.breach(Invariant::SharesAreFair, what);
        }
    }
    let window = weights
        .iter()
        .map(|(name, weight)| (name.clone(), *weight, counts[name.as_str()]));
    verdict.shares.push(window.collect());
}
