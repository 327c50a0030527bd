//! Which prompts share a pass. Pure: no clock, no thread, no model.
//!
//! All prompts of a pass are padded to the same length bucket, which a prompt gets from its own length alone: an embedding
//! never depends on who else was in the pass. The cost of a pass is its padded tokens, bucket × prompts, and has a limit.
//! The prompt that has waited longest decides which bucket is next, so none can starve.

use std::collections::{BTreeMap, VecDeque};

/// Prompts that wait, by bucket, each in the order of arrival.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    buckets: BTreeMap<usize, VecDeque<Waiting<T>>>,
    arrivals: u64,
    max_tokens: usize,
}

#[derive(Debug)]
struct Waiting<T> {
    arrival: u64,
    prompt: T,
}

/// Prompts of one bucket, to run together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch<T> {
    /// Tokens that every prompt is padded to.
    pub(crate) bucket: usize,
    /// At least one.
    pub(crate) prompts: Vec<T>,
}

// === impl Queue ===

impl<T> Queue<T> {
    /// Nothing waits. A pass costs at most `max_tokens` padded tokens; a single prompt above that still runs, alone.
    pub(crate) fn new(max_tokens: usize) -> Self {
        Self {
            buckets: BTreeMap::new(),
            arrivals: 0,
            max_tokens,
        }
    }

    /// Adds a prompt that is padded to `bucket` tokens.
    pub(crate) fn push(&mut self, bucket: usize, prompt: T) {
        let arrival = self.arrivals;
        self.arrivals += 1;
        self.buckets
            .entry(bucket)
            .or_default()
            .push_back(Waiting { arrival, prompt });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Whether the next pass would have no place for another prompt, so that waiting for one is idle.
    pub(crate) fn next_is_full(&self) -> bool {
        let next = self
            .oldest_bucket()
            .and_then(|bucket| Some((bucket, self.buckets.get(&bucket)?)));
        next.is_some_and(|(bucket, waiting)| waiting.len() >= self.capacity(bucket))
    }

    /// Takes the next pass out of the queue.
    pub(crate) fn next(&mut self) -> Option<Batch<T>> {
        let bucket = self.oldest_bucket()?;
        let capacity = self.capacity(bucket);
        let waiting = self.buckets.get_mut(&bucket)?;
        let prompts = waiting
            .drain(..capacity.min(waiting.len()))
            .map(|waiting| waiting.prompt)
            .collect();
        if waiting.is_empty() {
            self.buckets.remove(&bucket);
        }
        Some(Batch { bucket, prompts })
    }

    fn oldest_bucket(&self) -> Option<usize> {
        let oldest = |waiting: &VecDeque<Waiting<T>>| waiting.front().map(|first| first.arrival);
        self.buckets
            .iter()
            .min_by_key(|(_, waiting)| oldest(waiting))
            .map(|(bucket, _)| *bucket)
    }

    fn capacity(&self, bucket: usize) -> usize {
        (self.max_tokens / bucket.max(1)).max(1)
    }
}

impl<T> Batch<T> {
    /// Padded tokens: what the pass costs.
    pub(crate) fn tokens(&self) -> usize {
        self.bucket * self.prompts.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_prompt_that_waited_longest_decides_the_bucket() {
        let mut queue = Queue::new(32);
        for (bucket, name) in [(16, "a"), (8, "b"), (16, "c"), (16, "d"), (8, "e")] {
            queue.push(bucket, name);
        }
        assert!(queue.next_is_full());
        assert_eq!(
            queue.next(),
            Some(Batch {
                bucket: 16,
                prompts: vec!["a", "c"]
            })
        );
        assert!(!queue.next_is_full());
        assert_eq!(
            queue.next(),
            Some(Batch {
                bucket: 8,
                prompts: vec!["b", "e"]
            })
        );
        assert_eq!(
            queue.next(),
            Some(Batch {
                bucket: 16,
                prompts: vec!["d"]
            })
        );
        assert_eq!(queue.next(), None);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_prompt_longer_than_the_budget_runs_alone() {
        let mut queue = Queue::new(8);
        queue.push(32, "long");
        queue.push(32, "also");
        assert_eq!(
            queue.next(),
            Some(Batch {
                bucket: 32,
                prompts: vec!["long"]
            })
        );
    }

    proptest! {
        #[test]
        fn every_prompt_runs_once_in_order_within_its_bucket_and_the_budget(
            arrivals in prop::collection::vec(prop::sample::select(vec![1usize, 8, 16, 32, 128]), 0..200),
            max_tokens in 1usize..600,
            // How many prompts arrive before each pass.
            bursts in prop::collection::vec(1usize..20, 1..40),
        ) {
            let mut queue = Queue::new(max_tokens);
            let mut arriving = arrivals.iter().copied().enumerate();
            let mut ran = Vec::new();
            let mut oldest_waiting = 0;
            let mut bursts = bursts.into_iter().cycle();
            loop {
                for (number, bucket) in arriving.by_ref().take(bursts.next().unwrap_or(1)) {
                    queue.push(bucket, number);
                }
                let Some(batch) = queue.next() else {
                    if arriving.len() == 0 { break }
                    continue;
                };
                prop_assert!(batch.tokens() <= max_tokens || batch.prompts.len() == 1);
                prop_assert!(batch.prompts.is_sorted());
                prop_assert!(batch.prompts.iter().all(|number| arrivals[*number] == batch.bucket));
                ran.extend(&batch.prompts);
                // The oldest waiting prompt is always in the pass.
                prop_assert!(batch.prompts.contains(&oldest_waiting), "{oldest_waiting} starves: {:?}", batch);
                while ran.contains(&oldest_waiting) { oldest_waiting += 1 }
            }
            ran.sort_unstable();
            prop_assert_eq!(ran, (0..arrivals.len()).collect::<Vec<_>>());
        }
    }
}
