//! Which rows run in the next pass: pure, and decided again before every pass (design §4).
//!
//! Jobs go by [`Rank`]: priority, raised by one level for every [`Ageing::interval`] of waiting, so that no flow of
//! higher priorities starves a lower one; then least slack; then age. Parking needs no code of its own: a row that is not
//! chosen stays as it is, and is chosen again when nothing of higher rank fills the pass.

use std::{
    cmp::Reverse,
    time::{Duration, Instant},
};

/// How fast waiting raises a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ageing {
    /// Waiting this long is worth one level of priority.
    pub interval: Duration,
}

/// What the policy knows of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// 1 low, 2 normal, 3 high.
    pub priority: u8,
    /// When it was queued, by this shard's clock: its wait in the queue counts.
    pub queued_at: Instant,
    /// Give-up time, if any.
    pub deadline: Option<Instant>,
    /// Estimated time that its remaining steps take.
    pub remaining: Duration,
    /// Order of arrival: the last tie-break, so that the order is total.
    pub arrival: u64,
}

/// Where a job stands among others; smaller goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    level: Reverse<u64>,
    urgency: u32,
    queued_at: Instant,
    arrival: u64,
}

impl Standing {
    /// Its rank at `now`.
    ///
    /// Slack (time to the deadline less the remaining work) is compared in powers of two of a second. Compared exactly, two
    /// jobs of nearly equal slack would take turns at every step and both end late; this way the older one keeps its place.
    pub fn rank(&self, now: Instant, ageing: Ageing) -> Rank {
        let waited = now.saturating_duration_since(self.queued_at);
        let aged = waited.as_nanos() / ageing.interval.as_nanos().max(1);
        let level = u64::from(self.priority).saturating_add(u64::try_from(aged).unwrap_or(u64::MAX));
        let urgency = self.deadline.map_or(u32::MAX, |deadline| {
            let slack = deadline
                .saturating_duration_since(now)
                .saturating_sub(self.remaining);
            u64::BITS - slack.as_secs().leading_zeros()
        });
        Rank {
            level: Reverse(level),
            urgency,
            queued_at: self.queued_at,
            arrival: self.arrival,
        }
    }
}

/// A row of the pass to come: which job (index into what was given to [`choose`]) and which of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chosen {
    /// Index of the job.
    pub job: usize,
    /// Index of the row in its job.
    pub row: usize,
}

/// Fills a pass: takes rows in the order of `ranked` (jobs, best first, each with its unfinished rows as (row, cost)) while
/// their costs fit into `budget`. A row that does not fit is passed over and cheaper ones behind it still go, so no room is
/// wasted; the first row always fits, because a budget is at least the largest cost.
///
/// Returns the rows in the order of choice.
pub fn choose<Rows>(ranked: impl IntoIterator<Item = (usize, Rows)>, budget: usize) -> Vec<Chosen>
where
    Rows: IntoIterator<Item = (usize, usize)>,
{
    let mut left = budget;
    let mut chosen = Vec::new();
    for (job, rows) in ranked {
        for (row, cost) in rows {
            if cost <= left {
                left -= cost;
                chosen.push(Chosen { job, row });
            }
        }
        if left == 0 {
            break;
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AGEING: Ageing = Ageing {
        interval: Duration::from_secs(60),
    };

    fn standing(priority: u8, queued_at: Instant, arrival: u64) -> Standing {
        Standing {
            priority,
            queued_at,
            deadline: None,
            remaining: Duration::ZERO,
            arrival,
        }
    }

    #[test]
    fn a_higher_priority_goes_before_an_older_job() {
        let now = Instant::now() + Duration::from_secs(100);
        let old = standing(2, now - Duration::from_secs(30), 0).rank(now, AGEING);
        let high = standing(3, now, 1).rank(now, AGEING);
        assert!(high < old, "{high:?} {old:?}");
    }

    #[test]
    fn waiting_long_enough_beats_any_new_job() {
        let now = Instant::now() + Duration::from_secs(1000);
        let low = standing(1, now - Duration::from_secs(180), 0).rank(now, AGEING);
        let high = standing(3, now, 1).rank(now, AGEING);
        assert!(low < high, "{low:?} {high:?}");
    }

    #[test]
    fn of_equal_priority_the_one_with_little_slack_goes_first() {
        let now = Instant::now() + Duration::from_secs(1000);
        let older = Standing {
            deadline: Some(now + Duration::from_secs(600)),
            ..standing(2, now, 0)
        };
        let urgent = Standing {
            deadline: Some(now + Duration::from_secs(5)),
            ..standing(2, now, 1)
        };
        let busy = Standing {
            deadline: Some(now + Duration::from_secs(600)),
            remaining: Duration::from_secs(590),
            ..standing(2, now, 2)
        };
        let ranks = [older, urgent, busy].map(|job| job.rank(now, AGEING));
        assert!(ranks[1] < ranks[0] && ranks[2] < ranks[0], "{ranks:?}");
        let never = standing(2, now, 3).rank(now, AGEING);
        assert!(ranks[0] < never, "no deadline goes last: {never:?}");
    }

    #[test]
    fn nearly_equal_slack_leaves_the_older_job_its_place() {
        let now = Instant::now() + Duration::from_secs(1000);
        let older = Standing {
            deadline: Some(now + Duration::from_secs(501)),
            ..standing(2, now, 0)
        };
        let newer = Standing {
            deadline: Some(now + Duration::from_secs(500)),
            ..standing(2, now, 1)
        };
        assert!(older.rank(now, AGEING) < newer.rank(now, AGEING));
    }

    #[test]
    fn a_guided_row_that_does_not_fit_lets_an_unguided_one_behind_it_go() {
        let chosen = choose([(0, vec![(0, 2)]), (1, vec![(0, 2), (1, 1)])], 3);
        assert_eq!(chosen, [Chosen { job: 0, row: 0 }, Chosen { job: 1, row: 1 }]);
    }

    proptest! {
        #[test]
        fn the_budget_is_never_exceeded_and_never_wasted(
            jobs in prop::collection::vec(prop::collection::vec(1usize..3, 0..5), 0..12),
            budget in 2usize..12,
        ) {
            let offered = jobs.iter().enumerate().map(|(job, rows)| (job, rows.iter().copied().enumerate()));
            let chosen = choose(offered, budget);
            let cost: usize = chosen.iter().map(|chosen| jobs[chosen.job][chosen.row]).sum();
            prop_assert!(cost <= budget);
            let left = budget - cost;
            for (job, rows) in jobs.iter().enumerate() {
                for (row, cost) in rows.iter().enumerate() {
                    prop_assert!(*cost > left || chosen.contains(&Chosen { job, row }), "room for {job}.{row}");
                }
            }
            let first = jobs.iter().position(|rows| !rows.is_empty());
            prop_assert_eq!(chosen.first().map(|chosen| chosen.job), first);
        }
    }
}
