//! The threads that compute the parts of a pass side by side.

use std::sync::{Mutex, PoisonError};

use crate::runtime::{Lanes, RuntimeError};

/// A caller and its helpers, who stay from pass to pass.
#[derive(Debug)]
pub(super) struct LaneThreads {
    /// All lanes but the caller's; `None`: there is no other.
    helpers: Option<rayon::ThreadPool>,
}

// === impl LaneThreads ===

impl LaneThreads {
    /// Starts them.
    pub(super) fn start(lanes: Lanes) -> Result<LaneThreads, RuntimeError> {
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

    /// Calls `work` on every part, as many at once as there are lanes, and returns when all are done. Whoever is done with one
    /// takes the next.
    pub(super) fn each<T: Send>(&self, parts: &mut [T], work: impl Fn(&mut T) + Sync) {
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
