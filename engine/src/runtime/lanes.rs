//! How a pass on the CPU is divided, and the threads that compute its parts side by side.

use std::sync::{Mutex, PoisonError};

use super::RuntimeError;

/// How passes are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lanes {
    /// Parts side by side.
    pub count: usize,
    /// Most rows in a part.
    pub rows: usize,
    /// Threads of each; 0: one for each core.
    pub threads: usize,
}

/// A caller and its helpers, who stay from pass to pass.
#[derive(Debug)]
pub(crate) struct LaneThreads {
    /// All lanes but the caller's; `None`: there is no other.
    helpers: Option<rayon::ThreadPool>,
}

// === impl Lanes ===

impl Lanes {
    /// Rows of the smallest pass that gives every lane a part of [`Lanes::rows`]; 1 with a single lane, whose parts have no limit.
    pub fn full_rows(&self) -> usize {
        match self.count {
            0 | 1 => 1,
            count => count.saturating_mul(self.rows),
        }
    }

    /// How many of `rows` each part has: nearly the same, at most [`Lanes::rows`], and as many parts as there are lanes or a
    /// multiple, so that no lane waits for another. With fewer rows than lanes, each is a part.
    pub fn parts(&self, rows: usize) -> Vec<usize> {
        let lanes = self.count.max(1);
        let rounds = rows.div_ceil(lanes.saturating_mul(self.rows.max(1)));
        let parts = (lanes * rounds).min(rows);
        (0..parts)
            .map(|part| (part + 1) * rows / parts - part * rows / parts)
            .collect()
    }
}

// === impl LaneThreads ===

impl LaneThreads {
    /// Starts them.
    pub(crate) fn start(lanes: Lanes) -> Result<LaneThreads, RuntimeError> {
        let helpers = (lanes.count > 1)
            .then(|| {
                rayon::ThreadPoolBuilder::new()
                    .num_threads(lanes.count - 1)
                    .thread_name(|index| format!("lane-{}", index + 1))
                    .build()
            })
            .transpose()
            .map_err(|error| RuntimeError::Threads {
                lanes: lanes.count,
                reason: error.to_string(),
            })?;
        Ok(LaneThreads { helpers })
    }

    /// As many as there are, the caller included.
    pub(crate) fn count(&self) -> usize {
        1 + self
            .helpers
            .as_ref()
            .map_or(0, rayon::ThreadPool::current_num_threads)
    }

    /// Calls `work` on every part, as many at once as there are lanes, and returns when all are done. Whoever is done with one
    /// takes the next.
    pub(crate) fn each<T: Send>(&self, parts: &mut [T], work: impl Fn(&mut T) + Sync) {
        let Some(helpers) = self.helpers.as_ref().filter(|_| parts.len() > 1) else {
            parts.iter_mut().for_each(work);
            return;
        };
        let wanted = helpers.current_num_threads().min(parts.len() - 1);
        let waiting = Mutex::new(parts.iter_mut());
        let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
        let take_turns = || {
            while let Some(part) = next() {
                work(part);
            }
        };
        helpers.in_place_scope(|scope| {
            for _ in 0..wanted {
                scope.spawn(|_| take_turns());
            }
            take_turns();
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    fn started(count: usize) -> LaneThreads {
        let lanes = Lanes {
            count,
            rows: 4,
            threads: 1,
        };
        LaneThreads::start(lanes).unwrap()
    }

    #[test]
    fn a_full_pass_has_a_full_part_for_each_lane() {
        let lanes = |count, rows| Lanes {
            count,
            rows,
            threads: 1,
        };
        assert_eq!(lanes(2, 4).full_rows(), 8);
        assert_eq!(lanes(2, 4).parts(8), [4, 4]);
        assert_eq!(lanes(1, usize::MAX).full_rows(), 1);
        assert_eq!(lanes(2, usize::MAX).full_rows(), usize::MAX);
    }

    #[test]
    fn every_part_is_worked_on_once() {
        for lanes in 1..4 {
            let threads = started(lanes);
            for count in 0..9 {
                let mut parts = vec![0; count];
                threads.each(&mut parts, |part| *part += 1);
                assert_eq!(parts, vec![1; count]);
            }
        }
    }

    #[test]
    fn as_many_parts_as_there_are_lanes_are_worked_on_at_once() {
        let threads = started(3);
        // Nobody gets past the barrier unless three are at it.
        let barrier = Barrier::new(3);
        let mut parts = vec![None; 3];
        threads.each(&mut parts, |part| {
            barrier.wait();
            *part = Some(thread::current().id());
        });
        assert_eq!(parts.iter().flatten().collect::<HashSet<_>>().len(), 3);
        assert!(
            parts.contains(&Some(thread::current().id())),
            "the caller is a lane too"
        );
    }
}
